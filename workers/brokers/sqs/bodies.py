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

from idem.aws import Objects
from idem.errors import BrokerError, JobTooLarge
from workers.brokers.sqs.client import Client
from workers.brokers.sqs.failures import FAILURES, Unreadable

#: SQS takes 1 MiB a message, attributes included; a batch may not hold more either.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
LARGEST: Final = 1024 * 1024
#: What our attributes take at the most.
ATTRIBUTES: Final = 4 * 1024

_DIGEST = re.compile(r"[0-9a-f]{64}")


class _Pointer(msgspec.Struct, forbid_unknown_fields=True):
    """What is sent in place of a body. It names no bucket: whoever can send a message must not choose what is read."""

    idem_body_sha256: str


_POINTER_DECODER = msgspec.json.Decoder(_Pointer)


class Bucket:
    """Where bodies go that fit no message."""

    def __init__(self, client: Client, name: str, prefix: str = "idem-jobs/") -> None:
        self._objects = Objects(client, name, "create it, or name another one in IDEM_BODIES_BUCKET", FAILURES)
        self._prefix = prefix

    def put(self, body: str) -> str:
        """Keep a body; the pointer to send in its place. May be repeated after any failure."""
        data = body.encode()
        digest = hashlib.sha256(data).hexdigest()
        self._objects.put(f"{self._prefix}{digest}", data)
        return msgspec.json.encode(_Pointer(digest)).decode()

    def get(self, digest: str) -> str:
        """The body; `Unreadable` when it is gone, or is not what was written."""
        data = self._objects.get(f"{self._prefix}{digest}")
        if data is None:
            raise Unreadable(f"its body is not in {self._objects.place.name} any more")
        if hashlib.sha256(data).hexdigest() != digest:
            raise Unreadable(f"its body in {self._objects.place.name} was changed")
        return data.decode()

    def check(self) -> None:
        """`BrokerError` when the bucket is missing or out of reach."""
        self._objects.check()

    def close(self) -> None:
        """Close the connections."""
        self._objects.close()


def fold(body: str, bucket: Bucket | None) -> str:
    """The body as it is sent: itself, or a pointer to where it is kept."""
    size = len(body.encode())
    if size <= LARGEST - ATTRIBUTES:
        return body
    if bucket is None:
        raise JobTooLarge(
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
