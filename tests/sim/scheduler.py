"""Simulated time, in which one thing happens at a time, and any of them can be held up at any I/O step.

Production code is plain and synchronous, so what is held up in the middle must keep a stack of its own: the thread that
runs it waits, and another one goes on with the events. Only a hold-up costs a change of threads, and only if something
else is due meanwhile; who runs next is decided by simulated time alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

Action = Callable[[], None]


class Stopped(BaseException):
    """Something else has failed: what is held up is not to go on."""


def _taken() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True)
class _Held:
    """A thread in the middle of its action."""

    baton: threading.Lock = field(default_factory=_taken)


class Scheduler:
    """Events by their due time, first come first served among equals. `now` is the true time, which no clock shows."""

    def __init__(self, start: float) -> None:
        self.now = start
        self._events: list[tuple[float, int, Action | _Held]] = []
        self._numbers = count()
        self._idle: list[threading.Lock] = []
        self._over = threading.Event()
        self._error: BaseException | None = None

    def at(self, when: float, action: Action) -> None:
        """Let it happen then, or as soon as time has come that far."""
        heappush(self._events, (when, next(self._numbers), action))

    def run(self) -> None:
        """Until nothing is left to happen. Raises what an action raised, and nothing happens after that."""
        self._go_on(None)
        self._over.wait()
        for rest in self._idle:
            rest.release()
        if self._error is not None:
            raise self._error

    def hold(self, seconds: float) -> None:
        """Called by an action: nothing of it happens for that long, while everything else goes on."""
        until = self.now + seconds
        if not self._events or until < self._events[0][0]:
            self.now = until
            return
        held = _Held()
        heappush(self._events, (until, next(self._numbers), held))
        if self._idle:
            self._idle.pop().release()
        else:
            threading.Thread(target=self._serve, daemon=True).start()
        held.baton.acquire()
        if self._error is not None:
            raise Stopped

    def _serve(self) -> None:
        rest = _taken()
        while not self._over.is_set():
            self._go_on(rest)
            if not self._over.is_set():
                rest.acquire()

    def _go_on(self, rest: threading.Lock | None) -> None:
        """Let happen what is due, until it is another thread's turn: then this one is idle."""
        while self._events and self._error is None:
            when, _, action = heappop(self._events)
            self.now = max(self.now, when)
            if isinstance(action, _Held):
                # First, as it may need an idle thread at once.
                if rest is not None:
                    self._idle.append(rest)
                action.baton.release()
                return
            try:
                action()
            except Stopped:
                return
            except BaseException as error:
                self._error = error
                self._stop()
        self._over.set()

    def _stop(self) -> None:
        for _, _, action in self._events:
            if isinstance(action, _Held):
                action.baton.release()
