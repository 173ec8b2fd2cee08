"""What each store costs, printed as two tables: `python -m tests.bench.ledger [--seconds S] [STORE ...]`.

First what the protocol's steps cost in writes and reads of the store, and in units where the engine reports them; then
conditional writes a second, and the CPU time of this process (not of the server) for each, by threads. DynamoDB Local
runs on the same machine: its CPU competes with ours, and its latency is not Amazon's. The ratios are what counts.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from msgspec.structs import replace

from idem.ledger import Claim, Ledger
from idem.outcome import Accepted
from idem.policy import Policy
from idem.protocol import Intent, State
from idem.stores.base import Store
from tests.bench.stores import STORES, Opened
from tests.fakes import FakeClock, Fault, FaultyStore
from tests.records import make_record

_THREADS = (1, 8, 64)
_POLICY = Policy(window_seconds=86_400.0)
_SENT = Accepted("0123456789abcdef0123456789abcdef")


@dataclass(slots=True)
class Stage:
    """One key, and a worker whose store counts and can be told to fail."""

    ledger: Ledger
    store: FaultyStore
    clock: FakeClock
    key: str

    def claim(self, job: str | None = None) -> Claim:
        """Claim the key for an email that is ready, or for a job."""
        intent = Intent(self.key, job=job) if job else Intent(self.key, fingerprint="f" * 64)
        claim = self.ledger.claim(intent)
        assert isinstance(claim, Claim)
        return claim

    def send(self) -> None:
        """Claim and settle."""
        self.ledger.settle(self.claim(), _SENT)


def _set_stage(store: Store) -> Stage:
    clock, faulty = FakeClock(), FaultyStore(store)
    ledger = Ledger(faulty, policy=_POLICY, provider="lettermint", clock=clock)
    return Stage(ledger, faulty, clock, uuid.uuid4().hex.ljust(100, "k"))


def _fresh(stage: Stage) -> None:
    stage.send()


def _durable(stage: Stage) -> None:
    stage.ledger.ask(Intent(stage.key, fingerprint="f" * 64, body=b"a short email"))
    stage.send()


def _rendered(stage: Stage) -> None:
    stage.ledger.settle(stage.ledger.freeze(stage.claim("report"), b"x" * 500, "f" * 64), _SENT)  # type: ignore[arg-type]  # nobody else is there to win it


def _redelivered(stage: Stage) -> None:
    stage.ledger.claim(Intent(stage.key, fingerprint="f" * 64))


def _lost_answer(stage: Stage) -> None:
    """The settle is applied and not answered; it is asked again, and recognises itself."""
    stage.store.faults = {stage.store.counted["swap"] + 2: Fault.ANSWER_LOST}
    stage.send()


def _dead_holder(stage: Stage) -> None:
    stage.claim()
    stage.clock.sleep(_POLICY.lease_seconds)


def _nothing(_: Stage) -> None:
    """Nothing comes before."""


#: What is measured, and what comes before it.
STEPS: dict[str, tuple[Callable[[Stage], None], Callable[[Stage], None]]] = {
    "fresh send": (_nothing, _fresh),
    "rendered send": (_nothing, _rendered),
    "durable send": (_nothing, _durable),
    "redelivery, settled": (_fresh, _redelivered),
    "takeover and send": (_dead_holder, _fresh),
    "send, answer lost": (_nothing, _lost_answer),
}


def measure_step(opened: Opened, step: str) -> tuple[int, int, float | None, float | None]:
    """Writes, reads, write units and read units of one step; a refused write is charged, too, and not reported."""
    before, run = STEPS[step]
    stage = _set_stage(opened.charged or opened.store)
    before(stage)
    stage.store.counted.clear()
    if opened.units is not None:
        opened.units.reset()
    run(stage)
    counted = stage.store.counted
    if opened.units is None:
        return counted["swap"], counted["read"], None, None
    return counted["swap"], counted["read"], opened.units.write + opened.units.refused, opened.units.read


def measure_speed(store: Store, threads: int, seconds: float) -> tuple[float, float]:
    """Conditional writes a second, and this process's CPU microseconds for each: inserts and updates by turns."""
    counts, stop, ready = [0] * threads, threading.Event(), threading.Barrier(threads + 1)
    prefix = uuid.uuid4().hex

    def write(number: int) -> None:
        ready.wait()
        for step in itertools.count():
            if stop.is_set():
                return
            record = make_record(f"{prefix}/{number}/{step}", fingerprint="f" * 64)
            assert store.swap(None, record) is None
            assert store.swap(record, replace(record, version=2, state=State.SENT)) is None
            counts[number] += 2

    workers = [threading.Thread(target=write, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    began, cpu = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    stop.set()
    for worker in workers:
        worker.join()
    done = sum(counts)
    return done / (time.perf_counter() - began), (time.process_time() - cpu) / done * 1e6


def main(arguments: Sequence[str]) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="*", default=list(STORES), metavar="STORE", help=", ".join(STORES))
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each speed is measured")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        opened = {name: STORES[name](stack) for name in options.stores}
        for store in opened.values():
            stack.callback(store.store.close)
            if store.charged is not None:
                stack.callback(store.charged.close)
        _print_steps(opened)
        _print_speeds(opened, options.seconds)


def _print_steps(opened: dict[str, Opened]) -> None:
    _say(f"{'step':22}{'store':20}{'writes':>8}{'reads':>8}{'WCU':>8}{'RCU':>8}")
    for step, (name, store) in itertools.product(STEPS, opened.items()):
        writes, reads, *units = measure_step(store, step)
        shown = "".join(f"{'-' if unit is None else format(unit, 'g'):>8}" for unit in units)
        _say(f"{step:22}{name:20}{writes:8}{reads:8}{shown}")


def _print_speeds(opened: dict[str, Opened], seconds: float) -> None:
    _say(f"\n{'store':20}{'threads':>8}{'writes/s':>10}{'us CPU/write':>14}{'of plain':>10}")
    plain: dict[int, float] = {}
    for (name, store), threads in itertools.product(opened.items(), _THREADS):
        measure_speed(store.store, threads, seconds / 4)
        rate, cost = measure_speed(store.store, threads, seconds)
        if name == "boto3 plain":
            plain[threads] = cost
        ratio = f"1/{plain[threads] / cost:.1f}" if threads in plain and name not in {"memory", "sqlite"} else ""
        _say(f"{name:20}{threads:8}{rate:10.0f}{cost:14.0f}{ratio:>10}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
