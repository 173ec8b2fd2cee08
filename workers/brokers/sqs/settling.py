"""What becomes of a message that is through: deleted, hidden until it may run again, sent anew, or buried.

Deleting and hiding wait for company, ten a request and a second at the most: nobody waits for them, and what a crash in
between leaves undone is done over, at the price of one look at the ledger. A request that fails is made again until the
message has become visible to others; then it comes again by itself.

A retry hides the very message that was received, so that nothing can fall between a send and a delete. It is sent anew
only where hiding does not carry far enough, send first, then delete: what SQS cannot hide for so long, what was
received so often that SQS would soon make it a dead letter, and what is so old that SQS would soon drop it. A crash in
between leaves two messages of one key.

The arithmetic: a job that waits its turn for a day, at the longest pause of 15 minutes and the least jitter of a tenth,
is received (86,400 - 102) / 90 + 10 = 969 times; a new queue makes dead letters after 1,000 receipts, and a message is
sent anew after half of what its queue allows. So no retry ends among the dead letters, however long it goes on. A
message that kills its workers does, 90 s each, after 25 hours; one about which a mistake of ours says nothing, 5 s
each, after 83 minutes.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from idem.errors import BrokerError
from idem.privacy import redact
from workers.brokers.base import UNSAID_SECONDS
from workers.brokers.sqs.failures import Kind, code_of, kind_of
from workers.brokers.sqs.holding import Holding, whole
from workers.brokers.sqs.queue import BATCH, Queue
from workers.brokers.sqs.sending import GroupSender
from workers.brokers.sqs.wire import Delivery, Outgoing

_log = logging.getLogger("idem.worker")

#: Of the time that SQS can hide a message, what is left for being slow.
_MARGIN: Final = 0.01
#: Between two tries of the last requests, when the worker stops.
_FIRST_PAUSE_SECONDS: Final = 0.1
_MOST_PAUSE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What SQS can do for one message, and how far that is used. In seconds, where it is a time."""

    longest_delay_seconds: int = 900
    longest_hidden_seconds: float = 12 * 3600
    #: Half of the retention that `idem init` asks for.
    oldest_seconds: float = 7 * 86_400
    #: How long a delete waits for others.
    linger_seconds: float = 1.0


@dataclass(slots=True, eq=False)
class _Pending:
    delivery: Delivery
    #: When the message may come again, on the monotonic clock; None for a delete.
    due: float | None
    since: float


class Settling:
    """Carries out what was said of messages; none of its methods raises for what SQS does not do."""

    def __init__(  # noqa: PLR0913, PLR0917 - each is one part, put together once
        self, queue: Queue, sender: GroupSender, dead: GroupSender, holding: Holding, limits: Limits, max_receives: int
    ) -> None:
        self._queue = queue
        self._sender = sender
        self._dead = dead
        self._holding = holding
        self._limits = limits
        self._worn_receives = max(1, max_receives // 2)
        self._pending: dict[bool, list[_Pending]] = {True: [], False: []}
        self._lock = threading.Lock()

    def delete(self, delivery: Delivery) -> None:
        """It is done with: SQS may forget it."""
        self._holding.let_go(delivery)
        self._add(_Pending(delivery, None, time.monotonic()))

    def retry(self, delivery: Delivery, delay_seconds: float, *, tried: bool = True, said: bool = True) -> None:
        """It comes again, not earlier than that; see `Retry`.

        What was not tried is sent anew, for the reasons of `postpone`. What nothing was said of never is: by a mistake
        of ours it may come for ever, so its receipts are counted to the end.
        """
        left = self._hideable_seconds(delivery)
        anew = (not tried and not self._queue.fifo) or (said and self._worn(delivery)) or delay_seconds > left
        if anew:
            due = time.time() + delay_seconds
            if self._renew([delivery], [delivery.again(due=due, tries=delivery.tries + tried)])[0]:
                return
        self._hide(delivery, min(delay_seconds, left))

    def postpone(self, deliveries: Sequence[Delivery]) -> None:
        """They came before they are due, and have not been tried: they wait on.

        Sent anew at every turn rather than hidden: a delayed message is no message in flight, of which SQS allows
        120,000, and it neither ages nor counts receipts. A FIFO queue cannot delay a message; there it is hidden.
        """
        anew = [item for item in deliveries if not self._queue.fifo or self._worn(item)]
        copies = [item.again(due=item.due, tries=item.tries) for item in anew]
        renewed = {item for item, sent in zip(anew, self._renew(anew, copies), strict=True) if sent}
        for delivery in deliveries:
            if delivery not in renewed:
                self._hide(delivery, min(delivery.due - time.time(), self._hideable_seconds(delivery)))

    def bury(self, delivery: Delivery, reason: str) -> None:
        """It becomes a dead letter, with the reason; first that, then it is deleted."""
        said = redact(reason) or "no reason was given"
        try:
            self._dead.send(delivery.again(reason=said, tries=delivery.tries))
        except BrokerError as error:
            _log.error("message %s is to be buried, and cannot be yet: %s", delivery.message_id, error)
            self._hide(delivery, UNSAID_SECONDS)
        else:
            self.delete(delivery)

    def hand_back(self, deliveries: Iterable[Delivery]) -> None:
        """They were not begun: anybody may have them at once."""
        for delivery in deliveries:
            self._hide(delivery, 0.0)

    def flush(self, *, overdue: bool = False) -> None:
        """Do what waits for company; with `overdue`, only what has waited for long enough. What fails waits again."""
        limit = self._overdue() if overdue else time.monotonic()
        for deleting in self._pending:
            while batch := self._taken(deleting=deleting, limit=limit):
                self._commit(batch, deleting=deleting)

    def finish(self) -> None:
        """Do all that waits; what fails is tried again, after pauses, until its message is visible to others."""
        pause = _FIRST_PAUSE_SECONDS
        self.flush()
        while any(self._pending.values()):
            time.sleep(pause)
            pause = min(_MOST_PAUSE_SECONDS, 2 * pause)
            self.flush()

    def _add(self, pending: _Pending) -> None:
        deleting = pending.due is None
        with self._lock:
            self._pending[deleting].append(pending)
            full = len(self._pending[deleting]) >= BATCH
        if batch := self._taken(deleting=deleting, limit=math.inf if full else self._overdue()):
            self._commit(batch, deleting=deleting)

    def _overdue(self) -> float:
        """What came before this has waited for long enough."""
        return time.monotonic() - self._limits.linger_seconds

    def _taken(self, *, deleting: bool, limit: float) -> list[_Pending]:
        """The next request's worth, if the first of them has waited since `limit`; it is in nobody else's hands."""
        with self._lock:
            pending = self._pending[deleting]
            if not pending or pending[0].since > limit:
                return []
            batch, pending[:BATCH] = pending[:BATCH], []
            return batch

    def _hide(self, delivery: Delivery, seconds: float) -> None:
        self._holding.let_go(delivery)
        now = time.monotonic()
        self._add(_Pending(delivery, now + max(0.0, seconds), now))

    def _renew(self, deliveries: Sequence[Delivery], copies: Sequence[Outgoing]) -> list[bool]:
        """Send them anew and delete them; which of them. What could not be sent stays as it is."""
        results = self._sender.send_all(copies) if copies else []
        for delivery, error in zip(deliveries, results, strict=True):
            if error is None:
                self.delete(delivery)
            else:
                _log.error("message %s cannot be sent anew yet: %s", delivery.message_id, error)
        return [error is None for error in results]

    def _worn(self, delivery: Delivery) -> bool:
        aged = 0 < delivery.sent_at < time.time() - self._limits.oldest_seconds
        return aged or delivery.receives >= self._worn_receives

    def _hideable_seconds(self, delivery: Delivery) -> float:
        """How long it can be hidden: SQS counts from the receipt."""
        whole_time = self._limits.longest_hidden_seconds * (1 - _MARGIN)
        return max(0.0, delivery.received_at + whole_time - time.monotonic())

    def _commit(self, batch: list[_Pending], *, deleting: bool) -> None:
        """One request; what failed is tried again while the message is out of sight."""
        # A receipt that is in twice would be refused with all others.
        by_receipt = {pending.delivery.receipt: pending for pending in batch}
        try:
            if deleting:
                answers = self._queue.delete(list(by_receipt))
            else:
                now = time.monotonic()
                answers = self._queue.hide(
                    {receipt: whole((item.due or 0.0) - now) for receipt, item in by_receipt.items()}
                )
        except BrokerError as error:
            _log.error("%s; what it was to do with %d messages is tried again", error, len(batch))
            failed = list(by_receipt.values())
        else:
            pairs = zip(by_receipt.values(), answers, strict=True)
            failed = [pending for pending, answer in pairs if answer and kind_of(answer) is not Kind.STALE]
            for answer in answers:
                if answer and kind_of(answer) is not Kind.STALE:
                    _log.error("%s answers %s; it is asked again", self._queue.place.name, code_of(answer) or "nothing")
                    break
        self._try_again(failed, deleting=deleting)

    def _try_again(self, failed: Iterable[_Pending], *, deleting: bool) -> None:
        now = time.monotonic()
        again = [pending for pending in failed if pending.delivery.hidden_until > now]
        for pending in again:
            pending.since = now
        with self._lock:
            self._pending[deleting] += again
