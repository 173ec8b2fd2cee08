"""Receipts: threads that poll for messages, as many as there is room for, and never more.

One thread polls always; a poll takes as long as the queue has been empty, ten seconds at the most. The others poll
only while receipts come back full, when one alone might not keep the workers busy. A message that is not due yet goes
back at once; the others wait here for a worker's thread.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from idem.errors import BrokerError
from workers.brokers.sqs.holding import Holding, whole
from workers.brokers.sqs.queue import BATCH, Queue
from workers.brokers.sqs.wire import Delivery

_log = logging.getLogger("idem.worker")

#: SQS would hold a poll for 20 seconds; a worker that is told to stop waits for its last one.
_LONGEST_WAIT_SECONDS: Final = 10
_LONGEST_PAUSE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 1.0

#: So many more threads of a worker need another receiver: at 200 ms a job, they empty 32 receipts a second.
THREADS_A_RECEIVER: Final = 64


class Receiving:
    """What polls one queue for one worker process."""

    def __init__(  # noqa: PLR0913 - each is one part or one number, put together once
        self,
        source: Queue,
        holding: Holding,
        postpone: Callable[[Sequence[Delivery]], None],
        *,
        receivers: int,
        least: int,
        visibility_seconds: float,
    ) -> None:
        self._source = source
        self._holding = holding
        self._postpone = postpone
        self._least = min(BATCH, least)
        self._hidden_seconds = whole(visibility_seconds)
        self._ready: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._stopping = threading.Event()
        #: Set while receipts come back full.
        self._rich = threading.Event()
        #: When a message was last received, on the monotonic clock.
        self.fed_at = time.monotonic()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"idem-sqs-receive-{number}", daemon=True)
            for number in range(receivers)
        ]

    def start(self) -> None:
        """Begin to poll."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin no poll any more; those under way end by themselves."""
        self._stopping.set()
        self._rich.set()
        self._holding.wake()

    def close(self) -> None:
        """Stop, and wait for the polls under way; what they bring can be taken afterwards."""
        self.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def next(self, seconds: float) -> Delivery | None:
        """A message that is due, or None when none has come within that time."""
        with contextlib.suppress(queue.Empty):
            return self._ready.get(timeout=seconds)
        return None

    def rest(self) -> list[Delivery]:
        """Everything that was received and not taken."""
        found: list[Delivery] = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._ready.get_nowait())
        return found

    def _run(self, number: int) -> None:
        pause = 0.0
        while not self._stopping.is_set():
            try:
                self._poll(number)
                pause = 0.0
            except BrokerError as error:
                _log.error("%s; no job can be received", error)
                pause = min(_LONGEST_PAUSE_SECONDS, max(_LOOK_SECONDS, pause * 2))
            except Exception as error:
                _log.error("a mistake of ours: nothing was received (%s)", type(error).__name__)
                pause = _LONGEST_PAUSE_SECONDS
            self._stopping.wait(pause)

    def _poll(self, number: int) -> None:
        if number and not self._rich.wait(_LOOK_SECONDS):
            return
        reserved = self._holding.reserve(self._least, _LOOK_SECONDS)
        if not reserved:
            return
        received: list[Delivery] = []
        try:
            if not self._stopping.is_set():
                received = self._receive(reserved)
        finally:
            self._holding.fill(reserved, received)
        self._sort(received)

    def _receive(self, most: int) -> list[Delivery]:
        since = time.monotonic()
        idle = int(min(_LONGEST_WAIT_SECONDS, max(1.0, since - self.fed_at)))
        found = self._source.receive(most, hidden_seconds=self._hidden_seconds, wait_seconds=idle)
        for delivery in found:
            delivery.hidden_until = delivery.received_at + self._hidden_seconds
        if found:
            self.fed_at = time.monotonic()
        if len(found) == most:
            self._rich.set()
        elif not self._stopping.is_set():
            self._rich.clear()
        return found

    def _sort(self, received: Sequence[Delivery]) -> None:
        now = time.time()
        early = [delivery for delivery in received if delivery.due > now]
        if early:
            self._postpone(early)
        for delivery in received:
            if delivery.due <= now:
                self._ready.put(delivery)
