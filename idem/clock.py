"""Time, as an argument: the wall clock for what others read, the boot clock for what must not stop.

Two clocks, because each is wrong in its own way. The wall clock steps and is set by people; the boot clock counts the
seconds that a machine was suspended (CLOCK_MONOTONIC does not, PEP 418), but a restored snapshot freezes it. A
`Deadline` holds both and believes the one that leaves less time.
"""

from __future__ import annotations

import time
from typing import Protocol

from msgspec import Struct

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """What tells the time; replaced in tests and simulations."""

    def now(self) -> float:
        """Seconds since the Unix epoch, by this machine's wall clock."""
        ...

    def boot(self) -> float:
        """Seconds since some fixed instant, suspended time included; never steps back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let that much time pass."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def now(self) -> float:
        """Read the wall clock."""
        return time.time()

    def boot(self) -> float:
        """Read CLOCK_BOOTTIME; where a platform has none, CLOCK_MONOTONIC."""
        return time.clock_gettime(_BOOT_CLOCK)

    def sleep(self, seconds: float) -> None:
        """Sleep for real."""
        time.sleep(seconds)


class Deadline(Struct, frozen=True):
    """An instant that has come when either clock says so."""

    clock: Clock
    wall: float
    boot: float

    @classmethod
    def after(cls, clock: Clock, seconds: float) -> Deadline:
        """The instant `seconds` from now."""
        return cls(clock, clock.now() + seconds, clock.boot() + seconds)

    def left(self) -> float:
        """Seconds until then, by the clock that leaves fewer; negative once it has passed."""
        return min(self.wall - self.clock.now(), self.boot - self.clock.boot())
