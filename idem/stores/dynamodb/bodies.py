"""Frozen bodies: compressed, in the item where they fit, else in a bucket, else refused.

An object is named by its record and by the SHA-256 of its content, is written only where there is none, and is never
changed or removed by a worker. A lifecycle rule of the bucket may remove it once the record is forgotten, not before:
a record whose body is gone is unusable.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Final

from idem.aws import Objects
from idem.errors import BodyTooLarge, LedgerUnusable
from idem.stores.dynamodb.connection import Connection
from idem.stores.dynamodb.failures import FAILURES
from idem.stores.dynamodb.items import Item

#: Compressed. An item may have 400 KB; the rest is for the record's history and evidence.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
LARGEST_IN_ITEM: Final = 320 * 1024


class Bucket:
    """Where bodies go that fit no item."""

    def __init__(self, connection: Connection, name: str, prefix: str = "idem/") -> None:
        self._objects = Objects(connection, name, "create it, or name another one", FAILURES)
        self._prefix = prefix

    def put(self, pk: str, packed: bytes) -> str:
        """Write an object unless it is there already; its name. May be repeated after any failure."""
        owner, digest = hashlib.sha256(pk.encode()).hexdigest(), hashlib.sha256(packed).hexdigest()
        name = f"{self._prefix}{owner}/{digest}"
        self._objects.put(name, packed, once=True)
        return name

    def get(self, name: str) -> bytes:
        """Read an object; `LedgerUnusable` when it is gone, or is not what was written."""
        packed = self._objects.get(name)
        if packed is None:
            raise LedgerUnusable(
                f"{self._objects.place.name} has lost a frozen body of the ledger: restore it; a lifecycle rule must "
                "keep bodies longer than the ledger keeps records"
            )
        if hashlib.sha256(packed).hexdigest() != name.rpartition("/")[2]:
            raise LedgerUnusable(f"{self._objects.place.name} holds a frozen body that was changed: restore it")
        return packed

    def check(self) -> None:
        """`LedgerUnusable` when the bucket is missing or out of reach."""
        self._objects.check()

    def close(self) -> None:
        """Close the connection."""
        self._objects.close()


def add_body(item: Item, body: bytes | None, bucket: Bucket | None) -> None:
    """Put a frozen body into its item, or beside it; before the item is written, so that it never points nowhere."""
    if body is None:
        return
    packed = zlib.compress(body)
    if len(packed) <= LARGEST_IN_ITEM:
        item["b"] = {"B": packed}
    elif bucket is None:
        raise BodyTooLarge(
            f"a job built an email of {len(body):,} bytes ({len(packed):,} compressed); the table takes "
            f"{LARGEST_IN_ITEM:,}: make it smaller, or configure a bucket for large bodies"
        )
    else:
        item["o"] = {"S": bucket.put(item["pk"]["S"], packed)}


def read_body(item: Item, bucket: Bucket | None) -> bytes | None:
    """The frozen body of an item, from wherever it is."""
    if "b" in item:
        packed: bytes = item["b"]["B"]
    elif "o" not in item:
        return None
    elif bucket is None:
        raise LedgerUnusable("a record's frozen body is in a bucket, and none is configured: name the bucket")
    else:
        packed = bucket.get(item["o"]["S"])
    try:
        return zlib.decompress(packed)
    except zlib.error as error:
        raise LedgerUnusable("a frozen body in the ledger cannot be read: it is damaged; restore it") from error
