"""The ledger in DynamoDB: what every worker on every machine agrees on.

`DynamoStore` is the store; `Connection` is how it reaches AWS, and `Bucket` where bodies go that are too large for an
item. `writes.py` by boto3 is the reference; `batch.py`, fewer calls, and `signed.py`, cheaper ones, are what a worker
uses, and are held to it by the same tests. The rest is in the file of its name.
"""

from idem.stores.dynamodb.bodies import Bucket
from idem.stores.dynamodb.connection import Connection
from idem.stores.dynamodb.store import RETENTION_SECONDS, DynamoStore

__all__ = ["RETENTION_SECONDS", "Bucket", "Connection", "DynamoStore"]
