"""A job on the wire: the body, and beside it, in message attributes, what SQS itself cannot keep.

`idem-due`   when it may run, in milliseconds since 1970: SQS delays a message for 15 minutes at the most
`idem-tries` how often it was received before it was sent anew
`idem-id`    the id under which it was first sent, from which its key may come; a message sent anew has another one
`idem-sent`  when it was first sent, in milliseconds since 1970: a message sent anew is as old as the job
`idem-reason` why it is a dead letter
"""

from __future__ import annotations

import hashlib
import math
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dramatiq import Message
from dramatiq.errors import DecodeError

from workers.brokers.messages import decode
from workers.brokers.sqs.bodies import Bucket, unfold
from workers.brokers.sqs.failures import Unreadable
from workers.brokers.sqs.foreign import read_foreign

DUE: Final = "idem-due"
TRIES: Final = "idem-tries"
ID: Final = "idem-id"
SENT: Final = "idem-sent"
REASON: Final = "idem-reason"
ATTRIBUTES: Final = (DUE, TRIES, ID, SENT, REASON)

#: How every message begins that dramatiq has encoded.
_OURS = '{"queue_name":'
_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(slots=True, eq=False)
class Delivery:
    """A message as it was received once."""

    receipt: str
    #: What it was first sent under.
    message_id: str
    #: As it is in SQS: it may be a pointer.
    body: str
    group: str | None
    #: When it may run, in Unix seconds.
    due: float
    #: How often it was received before this copy was sent.
    earlier_tries: int
    #: How often this copy was received, this time counted: at the queue's maximum, SQS makes it a dead letter.
    receives: int
    #: When this copy was sent, and when the first one, in Unix seconds.
    sent_at: float
    first_sent_at: float
    reason: str
    #: Its id in the queue that it was received from.
    queue_id: str
    #: The rest is ours: on the monotonic clock, when it was received and until when nobody else gets it.
    received_at: float = field(default_factory=time.monotonic)
    hidden_until: float = 0.0

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Delivery:
        """What SQS says of a message; whatever is not as it should be there counts as absent."""
        system = found.get("Attributes", {})
        given = {name: str(value.get("StringValue", "")) for name, value in found.get("MessageAttributes", {}).items()}
        sent_ms = _number(system.get("SentTimestamp"))
        return cls(
            receipt=found["ReceiptHandle"],
            message_id=given.get(ID) or found["MessageId"],
            body=found.get("Body", ""),
            group=system.get("MessageGroupId"),
            due=_number(given.get(DUE)) / 1000,
            earlier_tries=_number(given.get(TRIES)),
            receives=max(1, _number(system.get("ApproximateReceiveCount"))),
            sent_at=sent_ms / 1000,
            first_sent_at=(_number(given.get(SENT)) or sent_ms) / 1000,
            reason=given.get(REASON, ""),
            queue_id=found["MessageId"],
        )

    @property
    def tries(self) -> int:
        """How often it was received before, all copies counted."""
        return self.earlier_tries + self.receives - 1

    def message(self, queue_name: str, bucket: Bucket | None) -> Message[None]:
        """What a worker gets. Raises `Unreadable` for ever, and `BrokerError` while its body is out of reach."""
        body = unfold(self.body, bucket)
        options = {"tries": self.tries}
        if body.startswith(_OURS):
            try:
                return decode(body.encode(), queue_name, options)
            except DecodeError as error:
                raise Unreadable("it is no message of dramatiq, and looks like one") from error
        return read_foreign(body, queue_name, options, self.message_id, self.first_sent_at)

    def again(self, *, due: float = 0.0, reason: str = "", tries: int = 0) -> Outgoing:
        """The same job as a message to be sent: what it is called, and so its key, stays, and so does its age."""
        return Outgoing(
            self.body, self.group or self.message_id, self.message_id, self.first_sent_at, due, tries, reason
        )


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to be sent."""

    body: str
    #: FIFO queues hand out one message of a group after the other.
    group: str
    #: None where the body says it.
    message_id: str | None = None
    first_sent_at: float = 0.0
    due: float = 0.0
    tries: int = 0
    reason: str = ""

    def entry(self, *, fifo: bool, longest_delay_seconds: int) -> dict[str, Any]:
        """What SQS is given; it waits there until it is due, or for as long as SQS can delay it."""
        given = {ID: self.message_id or "", REASON: self.reason}
        given |= {
            TRIES: str(self.tries) if self.tries else "",
            DUE: str(math.ceil(self.due * 1000)) if self.due else "",
            SENT: str(round(self.first_sent_at * 1000)) if self.first_sent_at else "",
        }
        attributes = {name: {"DataType": "String", "StringValue": value} for name, value in given.items() if value}
        entry: dict[str, Any] = {"MessageBody": self.body} | ({"MessageAttributes": attributes} if attributes else {})
        if fifo:
            # A FIFO queue cannot delay one message. Every send is one of its own: the ledger knows what is a copy,
            # and SQS would drop one that is sent anew within five minutes.
            return entry | {"MessageGroupId": self.group[:128], "MessageDeduplicationId": uuid.uuid4().hex}
        left = math.ceil(self.due - time.time())
        return entry | {"DelaySeconds": min(left, longest_delay_seconds)} if left > 0 else entry

    def size(self) -> int:
        """Bytes on the wire, or a few more."""
        return len(self.body.encode()) + len(self.reason.encode()) + len(self.message_id or "") + 128


def group_of(message: Message[Any]) -> str:
    """The group of a job in a FIFO queue: the option `group`, else its key, hashed, as both may be anything.

    By the key, two jobs wait for each other only when they are the same.
    """
    named = message.options.get("group") or message.kwargs.get("key") or message.message_id
    return hashlib.sha256(str(named).encode()).hexdigest()


def _number(text: str | None) -> int:
    return int(text) if text is not None and _NUMBER.fullmatch(text) else 0
