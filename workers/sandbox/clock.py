"""The sandbox's time: a clock that only goes forward when it is told to jump."""

from __future__ import annotations

from idem.clock import Clock


class SandboxClock:
    """What the providers take for the time; `advance` lets keys expire and look-ups catch up."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.advanced = 0.0

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return self._clock.now() + self.advanced

    def advance(self, seconds: float) -> None:
        """Let that much time have passed."""
        self.advanced += seconds
