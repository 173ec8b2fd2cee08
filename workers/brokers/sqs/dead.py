"""Dead letters: SQS can only hand them out, so to look is to receive, and to put back what was looked at.

While somebody looks, nobody else sees them. They are kept for as long as their queue keeps messages, 14 days at the
most, counted from the day that the job was enqueued where SQS itself made them dead letters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final

from workers.brokers.sqs.queue import BATCH, Queue
from workers.brokers.sqs.sending import GroupSender
from workers.brokers.sqs.wire import Delivery

#: For a person's question; after a crash they are seen again after this.
_HIDDEN_SECONDS: Final = 30
#: Long enough for SQS to ask all of its servers.
_WAIT_SECONDS: Final = 1
_BY_SQS: Final = "it was received too often without being settled"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One of them."""

    #: By which it is requeued or dropped.
    id: str
    #: What SQS called it first: the key of a foreign one that names none.
    message_id: str
    #: As it was sent: it may be a pointer into the bucket.
    body: str
    reason: str
    #: How often the job was received before.
    tries: int
    #: When it became one, or when it was enqueued where SQS made it one; in Unix seconds.
    sent_at: float


class DeadLetters:
    """The queue of dead letters, for a person."""

    def __init__(self, dead: Queue, jobs: GroupSender) -> None:
        self._dead = dead
        self._jobs = jobs

    def some(self, limit: int) -> Sequence[DeadLetter]:
        """Some of them, `limit` at the most; the order is that of SQS, which is none."""
        found: list[DeadLetter] = []
        with contextlib.closing(self._look()) as looked:
            for item in looked:
                found.append(_letter(item))
                if len(found) >= limit:
                    break
        return found

    def requeue(self, dead_id: str) -> bool:
        """Give it another chance, under the same key; False when there is none of that id (any more)."""
        found = self._take(dead_id)
        if found is None:
            return False
        # First this: a crash in between leaves a copy, and both have one key.
        self._jobs.send(found.again())
        return self._delete(found)

    def drop(self, dead_id: str) -> bool:
        """Forget it; False when there is none of that id (any more)."""
        found = self._take(dead_id)
        return found is not None and self._delete(found)

    def _delete(self, found: Delivery) -> bool:
        return self._dead.delete([found.receipt])[0] is None

    def _take(self, dead_id: str) -> Delivery | None:
        """Find one and keep it hidden; all others are put back."""
        with contextlib.closing(self._look(but=dead_id)) as looked:
            return next((item for item in looked if item.queue_id == dead_id), None)

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


def _letter(item: Delivery) -> DeadLetter:
    return DeadLetter(item.queue_id, item.message_id, item.body, item.reason or _BY_SQS, item.tries, item.sent_at)
