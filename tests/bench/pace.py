"""What the gate costs an email, what it costs the store, and what it saves in an outage.

python -m tests.bench.pace [--emails N]
"""

from __future__ import annotations

import argparse
import heapq
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from idem.clock import SystemClock
from idem.gate import Gate
from idem.outcome import Accepted, Outcome, Unknown
from idem.pace import Rate
from idem.policy import Policy
from idem.stores.base import Cells
from idem.stores.memory import MemoryStore
from idem.stores.sqlite import SqliteStore
from tests.fakes import FakeClock

_JOBS, _PROCESSES, _THREADS, _CALL_SECONDS, _OUTAGE_SECONDS = 500, 3, 8, 0.05, 5.0


@dataclass(slots=True)
class Counted:
    """Cells that are counted."""

    cells: Cells
    counted: Counter[str]

    def read_cell(self, name: str) -> bytes | None:
        self.counted["read"] += 1
        return self.cells.read_cell(name)

    def swap_cell(self, name: str, old: bytes | None, new: bytes) -> bytes | None:
        self.counted["swap"] += 1
        return self.cells.swap_cell(name, old, new)


def overhead(cells: Cells, emails: int, rate: Rate | None) -> None:
    """Time of entering, heeding and leaving, one thread."""
    counted = Counted(cells, Counter())
    gate = Gate(counted, "bench", clock=SystemClock(), probe_seconds=60.0, rate=rate)
    begun = time.perf_counter()
    for _ in range(emails):
        while gate.enter():
            gate.leave()
        gate.heed("bench", "k", Accepted("id"))
        gate.leave()
    seconds = time.perf_counter() - begun
    store = type(cells).__name__
    shown = "no rate" if rate is None else f"{rate.per_second:,.0f}/s"
    _say(
        f"{store:<13} {shown:<10} {emails / seconds:>10,.0f} emails/s {seconds / emails * 1e6:>8.2f} us an email "
        f"{counted.counted.total() / max(seconds, 1.0):>6.1f} cell operations a second"
    )


def operations(rate: Rate | None) -> None:
    """Three processes for a minute of a clock that is moved by hand."""
    clock, counted = FakeClock(), Counted(MemoryStore(), Counter())
    gates = [Gate(counted, "bench", clock=clock, probe_seconds=60.0, rate=rate) for _ in range(_PROCESSES)]
    for gate in gates:
        gate.stop()
    sent = 0
    for _ in range(60 * 200):
        for gate in gates:
            if not gate.enter():
                gate.heed("bench", "k", Accepted("id"))
                sent += 1
            gate.leave()
        clock.sleep(0.005)
    shown = "no rate" if rate is None else f"{rate.per_second:g}/s"
    each = {name: count / 60 / _PROCESSES for name, count in counted.counted.items()}
    _say(
        f"{shown:<10} {sent / 60:>7.1f} emails/s, a process and second: "
        f"{each.get('read', 0):.2f} reads, {each.get('swap', 0):.2f} writes"
    )


def outage(*, gated: bool) -> tuple[int, int, float]:
    """Requests during an outage, attempts in all, and when all jobs were done; by a simulation of events.

    Each answer is known at once: real processes add the requests that are under way when the first one fails.
    """
    clock, policy, cells = FakeClock(), Policy(backoff_seconds=1.0), MemoryStore()
    start = clock.boot()
    end = start + _OUTAGE_SECONDS
    gates = [Gate(cells, "bench", clock=clock, probe_seconds=60.0) for _ in range(_PROCESSES)]
    for gate in gates:
        gate.stop()
    ready: list[tuple[float, int, int]] = [(start, job, 0) for job in range(_JOBS)]
    threads = [(start, process) for process in range(_PROCESSES) for _ in range(_THREADS)]
    heapq.heapify(threads)
    during = total = done = 0
    while done < _JOBS:
        free_at, process = heapq.heappop(threads)
        at, job, attempts = heapq.heappop(ready)
        clock.booted, clock.wall = max(clock.booted, free_at, at), max(clock.booted, free_at, at)
        wait = gates[process].enter() if gated else 0.0
        if wait:
            gates[process].leave()
            # A held message keeps its thread for a second, as the gate does outside of a simulation.
            heapq.heappush(threads, (clock.booted + min(wait, 1.0), process))
            heapq.heappush(ready, (clock.booted + wait, job, attempts))
            continue
        down = clock.booted < end
        total, during = total + 1, during + down
        answered = clock.booted + _CALL_SECONDS
        outcome: Outcome = Unknown("down") if down else Accepted("id")
        if gated:
            gates[process].heed("bench", str(job), outcome)
            gates[process].leave()
        heapq.heappush(threads, (answered, process))
        if down:
            heapq.heappush(ready, (answered + policy.backoff(attempts + 1, 0.55), job, attempts + 1))
        else:
            done += 1
    return during, total, clock.booted - start


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--emails", type=int, default=200_000)
    logging.disable(logging.CRITICAL)
    emails = parser.parse_args().emails
    stores: list[Callable[[Path], Cells]] = [lambda _: MemoryStore(), lambda folder: SqliteStore(folder / "l.db")]
    _say("one thread, what the gate adds to an email:")
    with tempfile.TemporaryDirectory() as folder:
        for make in stores:
            overhead(make(Path(folder)), emails, None)
            overhead(make(Path(folder)), emails, Rate(200_000, 50_000))
    _say(f"\n{_PROCESSES} processes:")
    for rate in (None, Rate(2, 2), Rate(20, 5), Rate(100, 25)):
        operations(rate)
    _say(f"\nan outage of {_OUTAGE_SECONDS:g} s, {_JOBS} jobs, {_PROCESSES} x {_THREADS} threads; simulated:")
    for name, gated in (("with the gate", True), ("without it", False)):
        during, total, seconds = outage(gated=gated)
        _say(f"{name:<14} {during:>6,} requests during it, {total / _JOBS:.2f} attempts an email, done {seconds:.1f} s")


if __name__ == "__main__":
    main()
