"""Dead letters: SQS can only hand them out, so to look is to receive, and to put back what was looked at.

While somebody looks, nobody else sees them. They are kept for as long as their queue keeps messages, 14 days at the
most, counted from the day that the job was enqueued where SQS itself made them dead letters.

A letter's place holds the receipt that it was listed by, and that is worth nothing once the letter was put back or its
time was over. So whoever acts on one first hides it by its receipt, and where SQS refuses that, looks for it by its id.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from idem.errors import BrokerError
from workers.brokers.base import DeadLetter, read_letter
from workers.brokers.sqs.bodies import Bucket
from workers.brokers.sqs.failures import Kind, failure, kind_of
from workers.brokers.sqs.queue import BATCH, Queue
from workers.brokers.sqs.sending import GroupSender
from workers.brokers.sqs.wire import Delivery, Outgoing
from workers.jobs import QUEUE

#: Longer than a look at thousands takes; after a crash they are seen again after this.
_HIDDEN_SECONDS: Final = 120
#: Long enough for SQS to ask all of its servers.
_WAIT_SECONDS: Final = 1
_BY_SQS: Final = "it was received too often without being settled"


class _Place(msgspec.Struct):
    """What a message has beside its body."""

    receipt: str
    message_id: str
    group: str
    first_sent_at: float


_PLACE_DECODER = msgspec.json.Decoder(_Place)


class DeadLetters:
    """The queue of dead letters, for a person."""

    def __init__(self, dead: Queue, jobs: GroupSender, bucket: Bucket | None) -> None:
        self._dead = dead
        self._jobs = jobs
        self._bucket = bucket

    def all(self) -> Iterator[DeadLetter]:
        """All of them, once each."""
        with contextlib.closing(self._look()) as looked:
            for item in looked:
                yield self._letter(item)

    def requeue(self, letter: DeadLetter) -> bool:
        """Give it another chance, under the same key; False when it is no longer there."""
        held = self._hold(letter)
        if held is None:
            return False
        # First this: a crash in between leaves a copy, and both have one key.
        self._jobs.send(Outgoing(letter.payload.decode(), held.group, held.message_id, held.first_sent_at))
        return self._delete(held.receipt)

    def drop(self, letter: DeadLetter) -> bool:
        """Forget it; False when it is no longer there."""
        held = self._hold(letter)
        return held is not None and self._delete(held.receipt)

    def _delete(self, receipt: str) -> bool:
        (refused,) = self._dead.delete([receipt])
        if refused is not None and kind_of(refused) is not Kind.STALE:
            raise failure(self._dead.place, "sqs:DeleteMessage", refused)
        return refused is None

    def _hold(self, letter: DeadLetter) -> _Place | None:
        """Where it is now, hidden from others; None when it is no longer there."""
        listed = _PLACE_DECODER.decode(letter.place)
        (refused,) = self._dead.hide({listed.receipt: _HIDDEN_SECONDS})
        if refused is None:
            return listed
        with contextlib.closing(self._look(but=letter.id)) as looked:
            return next((_place(item) for item in looked if item.queue_id == letter.id), None)

    def _look(self, but: str | None = None) -> Generator[Delivery]:
        """All of them, once each; when the caller is through, they are put back, `but` one."""
        seen: dict[str, Delivery] = {}
        try:
            while fresh := self._receive(seen):
                yield from fresh
        finally:
            self._put_back([item.receipt for item in seen.values() if item.queue_id != but])

    def _receive(self, seen: dict[str, Delivery]) -> list[Delivery]:
        """Some that were not seen before; a second receipt of one replaces the first, which is stale."""
        received = self._dead.receive(BATCH, hidden_seconds=_HIDDEN_SECONDS, wait_seconds=_WAIT_SECONDS)
        fresh = [item for item in received if item.queue_id not in seen]
        seen.update((item.queue_id, item) for item in received)
        return fresh

    def _put_back(self, receipts: Sequence[str]) -> None:
        for start in range(0, len(receipts), BATCH):
            self._dead.hide(dict.fromkeys(receipts[start : start + BATCH], 0))

    def _letter(self, item: Delivery) -> DeadLetter:
        payload = item.body.encode()
        try:
            # Somebody else's message, or one whose body is in the bucket, as a worker would read it.
            read = item.message(QUEUE, self._bucket).encode()
        except BrokerError:
            read = payload
        letter = read_letter(
            item.queue_id,
            read,
            reason=item.reason or _BY_SQS,
            # What SQS itself made a dead letter was sent long before; and it counts those who looked at it, too.
            buried_at=item.sent_at if item.reason else None,
            place=msgspec.json.encode(_place(item)).decode(),
            tries=item.earlier_tries if item.reason else None,
        )
        return replace(letter, payload=payload, tries=letter.tries if item.reason else None)


def _place(item: Delivery) -> _Place:
    return _Place(item.receipt, item.message_id, item.group or item.message_id, item.first_sent_at)
