"""Requests that are shared: threads that ask at the same moment make one request, and each has its own answer.

Who is alone asks at once. While a request is under way, those who come wait; when it is back, the first of them takes
all who wait, as many as fit, and asks for them. When so many wait that a request would be full, they do not wait for
the other one to be back. There is no thread but the callers' own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from idem.errors import IdemError

#: How long one waits for a request that hangs before one asks without regard to it.
_PATIENCE_SECONDS: Final = 0.25

#: Longer than any request can take with the clients' timeouts: whoever was to ask for us has died.
_FORSAKEN_SECONDS: Final = 30.0

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


@dataclass(slots=True, eq=False)
class _Waiting(Generic[_Item, _Answer]):
    """A caller's place in the queue."""

    item: _Item
    since: float
    called: threading.Event = field(default_factory=threading.Event)
    aboard: bool = False
    answer: _Answer | IdemError | None = None
    _landed: bool = False

    def has_landed(self) -> bool:
        return self._landed

    def land(self, answer: _Answer | IdemError) -> None:
        self.answer = answer
        self._landed = True
        self.called.set()


class Together(Generic[_Item, _Answer]):
    """Shares requests between the threads of a process.

    `request` makes one, for one item or several, and gives for each its answer, or the error that its caller is to
    have; it raises nothing but what interrupts its thread. `choose` says which of those who wait may share one, by
    their positions: the first, and with it no more than `full`. `unanswered` makes the error of those who are left
    without an answer.
    """

    def __init__(
        self,
        request: Callable[[Sequence[_Item]], Sequence[_Answer | IdemError]],
        choose: Callable[[Sequence[_Item]], Sequence[int]],
        *,
        full: int,
        requests: int = 4,
        unanswered: Callable[[str], IdemError],
    ) -> None:
        self._request = request
        self._choose = choose
        self._full = full
        self._requests = requests
        self._unanswered = unanswered
        self._under_way = 0
        self._queue: list[_Waiting[_Item, _Answer]] = []
        self._lock = threading.Lock()

    def ask(self, item: _Item) -> _Answer:
        """The answer to one item. Raises its error."""
        waiting: _Waiting[_Item, _Answer] = _Waiting(item, time.monotonic())
        with self._lock:
            self._queue.append(waiting)
            batch = self._board()
        while True:
            if batch:
                self._fly(batch)
            if waiting.has_landed():
                break
            batch = self._wait(waiting)
        if isinstance(waiting.answer, IdemError):
            # One of its own for each caller: an exception is no thing to share between threads.
            raise type(waiting.answer)(*waiting.answer.args) from waiting.answer
        return waiting.answer  # type: ignore[return-value]  # it has landed

    def _wait(self, waiting: _Waiting[_Item, _Answer]) -> Sequence[_Waiting[_Item, _Answer]]:
        """Until the answer has come, or it is ours to ask for those who wait; then they are returned."""
        called = waiting.called.wait(_PATIENCE_SECONDS)
        if waiting.has_landed():
            return ()
        with self._lock:
            waiting.called.clear()
            if waiting.has_landed():
                return ()
            if time.monotonic() - waiting.since > _FORSAKEN_SECONDS:
                if not waiting.aboard:
                    self._queue.remove(waiting)
                waiting.land(self._unanswered("does not answer"))
                return ()
            return self._board(overdue=not called and not waiting.aboard)

    def _board(self, *, overdue: bool = False) -> Sequence[_Waiting[_Item, _Answer]]:
        """Who flies now, if anybody does. The lock is held."""
        full = len(self._queue) >= self._full and self._under_way < self._requests
        if not self._queue or (self._under_way and not full and not overdue):
            return ()
        batch = [self._queue[position] for position in self._choose([waiting.item for waiting in self._queue])]
        for waiting in batch:
            waiting.aboard = True
        self._queue = [waiting for waiting in self._queue if not waiting.aboard]
        self._under_way += 1
        return batch

    def _fly(self, batch: Sequence[_Waiting[_Item, _Answer]]) -> None:
        """Ask for all of them; whatever happens to this thread, nobody is left without an answer."""
        answers: Sequence[_Answer | IdemError] = ()
        try:
            answers = self._request([waiting.item for waiting in batch])
        finally:
            with self._lock:
                self._under_way -= 1
                following = self._queue[0] if self._queue else None
            if following is not None:
                following.called.set()
            missing = self._unanswered("the thread that asked for others was interrupted")
            for waiting, answer in zip(batch, answers or [missing] * len(batch), strict=True):
                waiting.land(answer)
