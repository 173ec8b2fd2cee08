"""What a scheduler costs: to declare, to start, and when all of its schedules are due at once.

python -m tests.bench.schedule [--schedules N]
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from zoneinfo import ZoneInfo

from idem.stores.base import Cells
from idem.stores.memory import MemoryStore
from idem.stores.sqlite import SqliteStore
from tests.fakes import FakeClock
from workers.schedule.board import Board
from workers.schedule.scheduler import Scheduler
from workers.schedule.slots import CatchUp, Cron, Schedule

_ZONES = ("Europe/Amsterdam", "America/New_York", "Asia/Kolkata", "UTC")
_HOUR = 3_600


@dataclass(slots=True)
class Counted:
    """Cells that are counted."""

    cells: Cells
    counted: Counter[str] = field(default_factory=Counter)

    def read_cell(self, name: str) -> bytes | None:
        self.counted["reads"] += 1
        return self.cells.read_cell(name)

    def swap_cell(self, name: str, old: bytes | None, new: bytes) -> bytes | None:
        self.counted["writes"] += 1
        self.counted["bytes"] += len(new)
        return self.cells.swap_cell(name, old, new)


class Queue:
    """Takes every message, and counts it: what a broker costs is in `tests.bench.broker`."""

    def __init__(self) -> None:
        self.count = 0

    def enqueue_many(self, messages: Sequence[object]) -> list[None]:
        self.count += len(messages)
        return [None] * len(messages)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


@contextmanager
def _timed(what: str, cells: Counted, queue: Queue) -> Iterator[None]:
    cells.counted.clear()
    queue.count = 0
    begun, worked = time.perf_counter(), time.process_time()
    yield
    seconds, cpu, counted = time.perf_counter() - begun, time.process_time() - worked, cells.counted
    cell_bytes = counted["bytes"] // max(1, counted["writes"])
    _say(
        f"  {what:<34} {seconds:8.3f} s  CPU {cpu:8.3f} s  {queue.count:7,} slots  {counted['reads']:4} reads  "
        f"{counted['writes']:4} writes of {cell_bytes:,} bytes"
    )  # fmt: skip


def _schedules(count: int) -> dict[str, Schedule]:
    """Each at a minute of the day of its own, in four zones."""
    return {
        name: Schedule(name, Cron(f"{n % 60} {n // 60 % 24} * * *", ZoneInfo(_ZONES[n % 4])), CatchUp.of("latest"))
        for n in range(count)
        for name in [f"report-of-customer-{n}"]
    }


def _drain(scheduler: Scheduler) -> None:
    while scheduler.tick():
        pass


def measure(store: Cells, count: int) -> None:
    """All phases, on one store."""
    cells, queue, clock = Counted(store), Queue(), FakeClock()
    _say(f"{count:,} daily schedules, cells in {type(store).__name__}")
    with _timed("declare", cells, queue):
        schedules = _schedules(count)
    scheduler = Scheduler(schedules, Board(cells), queue.enqueue_many, clock=clock)
    with _timed("first start", cells, queue):
        scheduler.start()
    scheduler = Scheduler(schedules, Board(cells), queue.enqueue_many, clock=clock)
    with _timed("second start", cells, queue):
        scheduler.start()
    with _timed("10,000 ticks with nothing due", cells, queue):
        for _ in range(10_000):
            scheduler.tick()
    clock.sleep(60)
    with _timed("a minute later, what is due", cells, queue):
        _drain(scheduler)
    clock.sleep(30 * 24 * _HOUR)
    with _timed("30 days away, all due at once", cells, queue):
        _drain(scheduler)


def main() -> int:
    """Measure on both stores that need no server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=100_000)
    # A line for each schedule whose slots are left out is not what is measured.
    logging.disable()
    count: int = parser.parse_args().schedules
    measure(MemoryStore(), count)
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "ledger.db", "bench")
        store.create()
        measure(store, count)
        store.close()
    _say(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
