"""Messages that are too large for SQS: their body is an object in a bucket, and what is sent names it.

An object is named by the SHA-256 of its content and is never removed by a worker. It is written at every send, not only
where there is none: that makes it young again for a lifecycle rule of the bucket, which must keep objects for longer
than the two queues keep messages (28 days) and jobs are delayed.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec
from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

from idem.errors import BrokerError
from workers.brokers.sqs.client import Client
from workers.brokers.sqs.failures import Place, Unreadable, code_of, translated

#: SQS takes 1 MiB a message, attributes included; a batch may not hold more either.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
LARGEST: Final = 1024 * 1024
#: What our attributes take at the most.
ATTRIBUTES: Final = 4 * 1024

_DIGEST = re.compile(r"[0-9a-f]{64}")
_GONE = frozenset({"NoSuchKey", "404"})


class _Pointer(msgspec.Struct, forbid_unknown_fields=True):
    """What is sent in place of a body. It names no bucket: whoever can send a message must not choose what is read."""

    idem_body_sha256: str


_POINTER_DECODER = msgspec.json.Decoder(_Pointer)


class Bucket:
    """Where bodies go that fit no message."""

    def __init__(self, client: Client, name: str, prefix: str = "idem-jobs/") -> None:
        self._client = client
        self._name = name
        self._prefix = prefix
        self._place = Place(f"the S3 bucket {name}", "create it, or name another one in IDEM_BODIES_BUCKET")

    def put(self, body: str) -> str:
        """Keep a body; the pointer to send in its place. May be repeated after any failure."""
        data = body.encode()
        digest = hashlib.sha256(data).hexdigest()
        with translated(self._place, "s3:PutObject"):
            self._client.calls.put_object(Bucket=self._name, Key=f"{self._prefix}{digest}", Body=data)
        return msgspec.json.encode(_Pointer(digest)).decode()

    def get(self, digest: str) -> str:
        """The body; `Unreadable` when it is gone, or is not what was written."""
        with translated(self._place, "s3:GetObject"):
            try:
                found = self._client.calls.get_object(Bucket=self._name, Key=f"{self._prefix}{digest}")
                data: bytes = found["Body"].read()
            except ClientError as error:
                if code_of(error.response["Error"]) not in _GONE:
                    raise
                raise Unreadable(f"its body is not in {self._place.name} any more") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise Unreadable(f"its body in {self._place.name} was changed")
        return data.decode()

    def check(self) -> None:
        """`BrokerError` when the bucket is missing or out of reach."""
        with translated(self._place, "s3:ListBucket"):
            try:
                self._client.calls.head_bucket(Bucket=self._name)
            except ClientError as error:
                # An answer to HEAD has no body, and therefore no code but the status.
                status = {"404": "NoSuchBucket", "403": "AccessDenied"}
                found = error.response["Error"]
                error.response["Error"] = found | {"Code": status.get(found["Code"], found["Code"])}
                raise

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def fold(body: str, bucket: Bucket | None) -> str:
    """The body as it is sent: itself, or a pointer to where it is kept."""
    size = len(body.encode())
    if size <= LARGEST - ATTRIBUTES:
        return body
    if bucket is None:
        raise BrokerError(
            f"a job of {size:,} bytes is too large for SQS, which takes {LARGEST:,}: set IDEM_BODIES_BUCKET to an S3 "
            "bucket for large ones, or enqueue a job that builds its email in the worker"
        )
    return bucket.put(body)


def unfold(body: str, bucket: Bucket | None) -> str:
    """The body that was meant. Raises `Unreadable` when it cannot be found, `BrokerError` when it can not now."""
    if not body.startswith('{"idem_body_sha256"'):
        return body
    try:
        digest = _POINTER_DECODER.decode(body).idem_body_sha256
    except msgspec.MsgspecError:
        return body
    if not _DIGEST.fullmatch(digest):
        raise Unreadable("it names no body in a bucket")
    if bucket is None:
        raise BrokerError("a message's body is in an S3 bucket, and none is configured: set IDEM_BODIES_BUCKET")
    return bucket.get(digest)
