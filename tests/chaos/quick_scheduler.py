"""`idem scheduler` by a quicker clock: the same scheduler, board, broker and loop, as a process of its own.

python -m tests.chaos.quick_scheduler MODULE:APP FIRST LAST SECONDS BEGUN: the clock goes from one instant to the other
in that many seconds, from when the file BEGUN was written (its time of change), and stands still before and afterwards.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from idem.clock import SystemClock
from workers.process import load_app, stop_signals
from workers.schedule.scheduler import SPREAD_SECONDS, Scheduler, keep_up


class QuickClock(SystemClock):
    """Years in seconds; its boot clock is the real one, as pauses are."""

    def __init__(self, first: float, last: float, seconds: float, begun: Path) -> None:
        self._first = first
        self._last = last
        self._rate = (last - first) / seconds
        self._begun = begun

    def now(self) -> float:
        """An instant that every process with the same file reads alike."""
        if not self._begun.exists():
            return self._first
        return min(self._last, self._first + (super().now() - self._begun.stat().st_mtime) * self._rate)


def main(name: str, first: str, last: str, seconds: str, begun: str) -> int:
    """Run until told to stop."""
    app = load_app(name)
    clock = QuickClock(float(first), float(last), float(seconds), Path(begun))
    scheduler = Scheduler(app.schedules, app.board, app.ask_each, clock=clock)
    with stop_signals() as stop:
        scheduler.start()
        keep_up(scheduler, stop.wait, clock.now, random.uniform(0, SPREAD_SECONDS))
    app.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
