"""Sends: threads that send at the same moment share one request, and each has its own answer.

A sender that is alone sends at once. While a request is under way, those who come wait; when it is back, the first of
them takes all who wait (ten at most, one MiB at most) and sends for them. When ten wait, they do not wait for the
request to be back. There is no thread but the senders' own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from idem.errors import BrokerError, BrokerUnavailable
from workers.brokers.sqs.bodies import LARGEST
from workers.brokers.sqs.failures import failure
from workers.brokers.sqs.queue import BATCH, Queue
from workers.brokers.sqs.wire import Outgoing

#: How long one waits for a request that hangs before one sends without regard to it.
_PATIENCE_SECONDS: Final = 0.25

#: Longer than any request can take with the client's timeouts: whoever was to send for us has died.
_FORSAKEN_SECONDS: Final = 30.0

_Result = BrokerError | None


@dataclass(slots=True, eq=False)
class _Waiting:
    """A sender's place in the queue."""

    message: Outgoing
    since: float
    called: threading.Event = field(default_factory=threading.Event)
    aboard: bool = False
    landed: bool = False
    result: _Result = None

    def land(self, result: _Result) -> None:
        self.result, self.landed = result, True
        self.called.set()


class GroupSender:
    """Sends to one queue. `longest_delay_seconds` is what SQS can delay a message."""

    def __init__(self, queue: Queue, *, longest_delay_seconds: int = 900, requests: int = 4) -> None:
        self._queue = queue
        self._longest_delay_seconds = longest_delay_seconds
        self._requests = requests
        self._under_way = 0
        self._waiting: deque[_Waiting] = deque()
        self._lock = threading.Lock()

    def send(self, message: Outgoing) -> None:
        """Return once SQS has it; `BrokerUnavailable` when that is not known, `BrokerError` when it has not."""
        waiting = _Waiting(message, time.monotonic())
        with self._lock:
            self._waiting.append(waiting)
            batch = self._board()
        while True:
            if batch:
                self._fly(batch)
            if waiting.landed:
                break
            batch = self._wait(waiting)
        if waiting.result is not None:
            # One of its own for each caller: an exception is no thing to share between threads.
            raise type(waiting.result)(*waiting.result.args) from waiting.result

    def send_all(self, messages: Sequence[Outgoing]) -> list[_Result]:
        """Send many messages for one caller; for each the error, or None once SQS has it."""
        results: list[_Result] = []
        while len(results) < len(messages):
            rest = messages[len(results) :]
            results += self._commit(rest[: _fitting(rest)])
        return results

    def _wait(self, waiting: _Waiting) -> list[_Waiting]:
        """Until the message has landed, or it is ours to send for those who wait; then they are returned."""
        called = waiting.called.wait(_PATIENCE_SECONDS)
        with self._lock:
            waiting.called.clear()
            if waiting.landed:
                return []
            if time.monotonic() - waiting.since > _FORSAKEN_SECONDS:
                if not waiting.aboard:
                    self._waiting.remove(waiting)
                waiting.land(BrokerUnavailable(f"{self._queue.place.name} does not answer"))
                return []
            return self._board(overdue=not called and not waiting.aboard)

    def _board(self, *, overdue: bool = False) -> list[_Waiting]:
        """Who flies now, if anybody does. The lock is held."""
        full = len(self._waiting) >= BATCH and self._under_way < self._requests
        if not self._waiting or (self._under_way and not full and not overdue):
            return []
        fitting = _fitting([waiting.message for waiting in list(self._waiting)[:BATCH]])
        batch = [self._waiting.popleft() for _ in range(fitting)]
        for waiting in batch:
            waiting.aboard = True
        self._under_way += 1
        return batch

    def _fly(self, batch: Sequence[_Waiting]) -> None:
        """Send for all of them; whatever happens to this thread, nobody is left without an answer."""
        results: Sequence[_Result] = ()
        try:
            results = self._commit([waiting.message for waiting in batch])
        finally:
            with self._lock:
                self._under_way -= 1
                following = self._waiting[0] if self._waiting else None
            if following is not None:
                following.called.set()
            unanswered = BrokerUnavailable(f"{self._queue.place.name}: the thread that sent for others was interrupted")
            for waiting, result in zip(batch, results or [unanswered] * len(batch), strict=True):
                waiting.land(result)

    def _commit(self, messages: Sequence[Outgoing]) -> list[_Result]:
        """One request; the result of each message, whatever happens."""
        fifo, longest = self._queue.fifo, self._longest_delay_seconds
        try:
            answers = self._queue.send([item.entry(fifo=fifo, longest_delay_seconds=longest) for item in messages])
        except BrokerError as error:
            return [error] * len(messages)
        return [None if said is None else failure(self._queue.place, "sqs:SendMessage", said) for said in answers]


def _fitting(messages: Sequence[Outgoing]) -> int:
    """How many of the first messages go into one request; one at least, which SQS may refuse."""
    size = 0
    for number, message in enumerate(messages[:BATCH]):
        size += message.size()
        if size > LARGEST and number:
            return number
    return min(len(messages), BATCH)
