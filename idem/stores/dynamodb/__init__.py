"""The ledger in DynamoDB: what every worker on every machine agrees on.

`DynamoStore` is the store; `Connection` is how it reaches AWS, and `Bucket` where bodies go that are too large for an
item. `writes.py` is the reference and `batch.py` what it is measured against; the rest is in the file of its name.
"""

from idem.stores.dynamodb.bodies import Bucket
from idem.stores.dynamodb.connection import Connection
from idem.stores.dynamodb.store import RETENTION_SECONDS, DynamoStore

__all__ = ["RETENTION_SECONDS", "Bucket", "Connection", "DynamoStore"]
