"""Simulated time, in which one thing happens at a time, and any of them can be held up at any I/O step.

Production code is plain and synchronous, so what is held up in the middle must keep a stack of its own: it runs in a
greenlet. Only a hold-up costs a change of stacks, and only if something else is due meanwhile; who runs next is decided
by simulated time alone.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from greenlet import getcurrent, greenlet

Action = Callable[[], None]


class Scheduler:
    """Events by their due time, first come first served among equals. `now` is the true time, which no clock shows."""

    def __init__(self, start: float) -> None:
        self.now = start
        self._events: list[tuple[float, int, Action | greenlet]] = []
        self._numbers = count()
        self._idle: list[greenlet] = []
        self._caller = getcurrent()

    def at(self, when: float, action: Action) -> None:
        """Let it happen then, or as soon as time has come that far."""
        heappush(self._events, (when, next(self._numbers), action))

    def run(self) -> None:
        """Until nothing is left to happen. Raises what an action raised, and nothing happens after that."""
        self._caller = getcurrent()
        try:
            # On a stack of its own: what an action raises ends up here, and in the middle of no other action.
            greenlet(self._go_on).switch()
        finally:
            self._stop()

    def hold(self, seconds: float) -> None:
        """Called by an action: nothing of it happens for that long, while everything else goes on."""
        until = self.now + seconds
        if not self._events or until < self._events[0][0]:
            self.now = until
            return
        heappush(self._events, (until, next(self._numbers), getcurrent()))
        other = self._idle.pop() if self._idle else greenlet(self._go_on, self._caller)
        other.switch()

    def _go_on(self) -> None:
        """One action after another, on this stack, until one that was held up goes on where it was."""
        events = self._events
        while events:
            when, _, action = heappop(events)
            self.now = max(self.now, when)
            if isinstance(action, greenlet):
                self._idle.append(getcurrent())
                action.switch()
            else:
                action()

    def _stop(self) -> None:
        """What is held up is not to go on; it sees a `GreenletExit`."""
        held = [action for _, _, action in self._events if isinstance(action, greenlet)]
        for each in (*held, *self._idle):
            each.throw()
        self._events.clear()
        self._idle.clear()
