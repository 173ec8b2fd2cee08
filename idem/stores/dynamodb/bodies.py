"""Frozen bodies: compressed, in the item where they fit, else in a bucket, else refused.

An object is named by its record and by the SHA-256 of its content, is written only where there is none, and is never
changed or removed by a worker. A lifecycle rule of the bucket may remove it once the record is forgotten, not before:
a record whose body is gone is unusable.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Final

from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

from idem.errors import BodyTooLarge, LedgerUnusable
from idem.stores.dynamodb.connection import Connection, S3Client
from idem.stores.dynamodb.failures import Place, code_of, translated
from idem.stores.dynamodb.items import Item

#: Compressed. An item may have 400 KB; the rest is for the record's history and evidence.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
LARGEST_IN_ITEM: Final = 320 * 1024

_EXISTS = frozenset({"PreconditionFailed", "412"})
_GONE = frozenset({"NoSuchKey", "404"})


class Bucket:
    """Where bodies go that fit no item."""

    def __init__(self, connection: Connection, name: str, prefix: str = "idem/") -> None:
        self._connection = connection
        self._name = name
        self._prefix = prefix
        self._place = Place(f"the S3 bucket {name}", "create it, or name another one")

    def put(self, pk: str, packed: bytes) -> str:
        """Write an object unless it is there already; its name. May be repeated after any failure."""
        owner, digest = hashlib.sha256(pk.encode()).hexdigest(), hashlib.sha256(packed).hexdigest()
        name = f"{self._prefix}{owner}/{digest}"
        with translated(self._place, "s3:PutObject"):
            try:
                self._client.put_object(Bucket=self._name, Key=name, Body=packed, IfNoneMatch="*")
            except ClientError as error:
                if code_of(error.response["Error"]) not in _EXISTS:
                    raise
        return name

    def get(self, name: str) -> bytes:
        """Read an object; `LedgerUnusable` when it is gone, or is not what was written."""
        with translated(self._place, "s3:GetObject"):
            try:
                packed: bytes = self._client.get_object(Bucket=self._name, Key=name)["Body"].read()
            except ClientError as error:
                if code_of(error.response["Error"]) not in _GONE:
                    raise
                raise LedgerUnusable(
                    f"{self._place.name} has lost a frozen body of the ledger: restore it; a lifecycle rule must keep "
                    "bodies longer than the ledger keeps records"
                ) from error
        if hashlib.sha256(packed).hexdigest() != name.rpartition("/")[2]:
            raise LedgerUnusable(f"{self._place.name} holds a frozen body that was changed: restore it")
        return packed

    def check(self) -> None:
        """`LedgerUnusable` when the bucket is missing or out of reach."""
        with translated(self._place, "s3:ListBucket"):
            try:
                self._client.head_bucket(Bucket=self._name)
            except ClientError as error:
                # An answer to HEAD has no body, and therefore no code but the status.
                status = {"404": "NoSuchBucket", "403": "AccessDenied"}
                found = error.response["Error"]
                error.response["Error"] = found | {"Code": status.get(found["Code"], found["Code"])}
                raise

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @property
    def _client(self) -> S3Client:
        client: S3Client = self._connection.client
        return client


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
