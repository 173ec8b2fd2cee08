"""What this process has in hand: received and not yet settled, waiting for a thread or being worked on.

SQS gives a message to somebody else once its visibility timeout is over. One thread prolongs that for all that is in
hand, every third of the timeout, and dies with the process: what a killed worker had is seen by others within one
timeout. SQS allows 12 hours from the receipt; then the message goes to somebody else, and the ledger decides.

Neither an accepted nor a refused prolongation says who owns a message. Only the ledger's claim does.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import Final

from idem.errors import BrokerError
from workers.brokers.sqs.failures import Kind, kind_of
from workers.brokers.sqs.queue import BATCH, Queue
from workers.brokers.sqs.wire import Delivery

#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html
LONGEST_HIDDEN_SECONDS: Final = 12 * 3600

_log = logging.getLogger("idem.worker")


class Holding:
    """The messages in hand, of which there are never more than `capacity`."""

    def __init__(
        self, queue: Queue, capacity: int, *, visibility_seconds: float, longest_hidden_seconds: float
    ) -> None:
        self._queue = queue
        self._capacity = capacity
        self._visibility_seconds = visibility_seconds
        self._longest_hidden_seconds = longest_hidden_seconds
        self._held: dict[str, Delivery] = {}
        self._reserved = 0
        self._prolonged: set[str] = set()
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="idem-sqs-visibility", daemon=True)

    def start(self) -> None:
        """Begin to prolong."""
        self._thread.start()

    def stop(self) -> None:
        """Prolong nothing any more, and let nobody wait for room."""
        self._stopped.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """Let those who wait for room look whether they are still to."""
        with self._changed:
            self._changed.notify_all()

    def __len__(self) -> int:
        """Messages in hand."""
        return len(self._held)

    def reserve(self, least: int, seconds: float) -> int:
        """Wait that long for room for `least` messages, and reserve it; for how many, 0 when there is none."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._room() >= least, seconds):
                return 0
            reserved = min(BATCH, self._room())
            self._reserved += reserved
            return reserved

    def fill(self, reserved: int, deliveries: Sequence[Delivery]) -> None:
        """Take what was received into the room that was reserved for it, and give up the rest of that."""
        with self._changed:
            self._reserved -= reserved
            self._held.update((delivery.receipt, delivery) for delivery in deliveries)
            self._changed.notify_all()

    def let_go(self, delivery: Delivery) -> None:
        """Prolong it no more: once this returns, no prolongation can undo what is asked of SQS next."""
        with self._changed:
            self._held.pop(delivery.receipt, None)
            self._changed.wait_for(lambda: delivery.receipt not in self._prolonged)
            self._changed.notify_all()

    def _room(self) -> int:
        return self._capacity - len(self._held) - self._reserved

    def _keep(self) -> None:
        # Looked at four times as often as it has to be done, so that no message waits for more than a third.
        while not self._stopped.wait(self._visibility_seconds / 12):
            try:
                self.prolong(older_than_seconds=self._visibility_seconds / 4)
            except BrokerError as error:
                _log.error("%s; another worker may get what this one works on", error)
            except Exception as error:
                _log.error("a mistake of ours: the messages in hand were not prolonged (%s)", type(error).__name__)

    def prolong(self, older_than_seconds: float) -> None:
        """Hide from others what was last hidden that long ago."""
        limit = time.monotonic() + self._visibility_seconds - older_than_seconds
        with self._changed:
            due = [delivery for delivery in self._held.values() if delivery.hidden_until <= limit]
        for start in range(0, len(due), BATCH):
            self._prolong_batch(due[start : start + BATCH])

    def _prolong_batch(self, batch: Sequence[Delivery]) -> None:
        with self._changed:
            left = {item.receipt: self._seconds(item) for item in batch if item.receipt in self._held}
            seconds = {receipt: some for receipt, some in left.items() if some > 0}
            self._prolonged = set(seconds)
        if not seconds:
            return
        since = time.monotonic()
        try:
            answers = self._queue.hide(seconds)
        finally:
            with self._changed:
                self._prolonged = set()
                self._changed.notify_all()
        for delivery, answer in zip([item for item in batch if item.receipt in seconds], answers, strict=True):
            # What SQS knows no more is still worked on: if somebody else has it too, the ledger tells them apart.
            if answer is None or kind_of(answer) is Kind.STALE:
                delivery.hidden_until = since + seconds[delivery.receipt]

    def _seconds(self, delivery: Delivery) -> int:
        """How long to hide it from now on; nothing once SQS allows no more."""
        left = delivery.received_at + self._longest_hidden_seconds - time.monotonic() - 1
        return int(min(whole(self._visibility_seconds), left))


def whole(seconds: float) -> int:
    """SQS counts in whole seconds; a message hidden for less than was asked for could come early."""
    return max(0, math.ceil(seconds))
