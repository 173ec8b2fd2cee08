"""Jobs in Amazon SQS: at least once, ten messages a request, and no message out of sight for longer than its worker.

`broker.py` is what dramatiq sees. A message is received (`receiving.py`), is in hand and kept hidden from others while
it is worked on (`holding.py`), and is deleted, hidden until it is due, or buried (`settling.py`). `wire.py` and
`foreign.py` read what comes off the wire, `sending.py` sends, `setup.py` makes and checks the two queues.
"""

from workers.brokers.sqs.bodies import Bucket
from workers.brokers.sqs.broker import SqsBroker
from workers.brokers.sqs.client import Client
from workers.brokers.sqs.setup import Names

__all__ = ["Bucket", "Client", "Names", "SqsBroker"]
