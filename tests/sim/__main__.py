"""Run the simulation by hand.

python -m tests.sim --exhaustive            every single fault and every pair, and the interleavings of two workers
python -m tests.sim --seeds 10000           the random tier: as many seeds, each with --jobs jobs
python -m tests.sim --seed N [--trace]      one seed again; a violation is made as small as it gets, and shown
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from idem.protocol import State
from tests.sim.faults import Faults, Plan
from tests.sim.provider import Offer
from tests.sim.scenarios import (
    Verdict,
    interleavings,
    late_writes,
    least,
    long_outages,
    of_seed,
    pairs,
    run,
    second_thoughts,
    shrink,
    singles,
    small,
    two_providers,
    wide,
)
from tests.sim.world import Scenario

#: At how many steps two workers are held up at the most.
_HELD_UP = 3
#: Violations that are made small and shown, of each class.
_SHOWN = 3
#: After how many jobs a long run says how far it is.
_SHOWN_EVERY = 50_000
#: What an email ends as, if not in doubt.
_ENDS = (State.SENT, State.REJECTED, State.DROPPED, State.SPLIT)


@dataclass(slots=True)
class Sum:
    """What many runs came to."""

    runs: int = 0
    jobs: int = 0
    emails: int = 0
    accepted: int = 0
    ends: Counter[State] = field(default_factory=Counter)
    doubted: int = 0
    faults: int = 0
    took: Counter[int] = field(default_factory=Counter)
    problems: int = 0
    cpu_seconds: float = 0.0

    def add(self, verdict: Verdict) -> None:
        self.runs += 1
        self.jobs += len(verdict.scenario.jobs)
        self.problems += verdict.problem is not None
        if verdict.tally is not None:
            self.emails += verdict.tally.emails
            self.accepted += verdict.tally.accepted
            self.ends.update(verdict.tally.ends)
            self.doubted += verdict.tally.doubted
            self.faults += verdict.tally.faults
            self.took.update(verdict.tally.took)

    def plus(self, other: Sum) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def _ends(self) -> str:
        """What has become of the emails, those in doubt apart: all together, it is as many as there are."""
        shown = dict.fromkeys((*_ENDS, *(state for state in self.ends if state is not State.IN_DOUBT)))
        words = {State.SPLIT: "without an email"}
        return ", ".join(f"{self.ends[state]:,} {words.get(state, state.value)}" for state in shown)

    def _most_took(self) -> int:
        """Within how many seconds 99 in 100 emails ended."""
        left = self.took.total() // 100
        for seconds in sorted(self.took, reverse=True):
            left -= self.took[seconds]
            if left < 0:
                return seconds
        return 0

    def report(self, seconds: float) -> str:
        """The figures, and what no event in so many says: at most 3/N, at 95 %, under this mix of faults."""
        jobs = max(1, self.jobs)
        return (
            f"{self.runs:,} runs, {self.jobs:,} jobs, {self.emails:,} emails, {self.accepted:,} accepted, "
            f"{self.faults / jobs:.1f} faults a job; {self.problems} violations; "
            f"{self._ends()}, in doubt {self.ends[State.IN_DOUBT]:,}, by the oracle {self.doubted:,}; "
            f"but for {Offer.KEYED_LATE.value}, 99 % ended within {self._most_took():,} s; "
            f"{jobs / self.cpu_seconds:,.0f} jobs a CPU second, {seconds:,.0f} s in all"
            + (f"; 0 in {jobs:,}: at most {3 / jobs:.1e} a job at 95 %" if not self.problems else "")
        )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, help="run this seed")
    parser.add_argument("--seeds", type=int, help="run so many seeds")
    parser.add_argument("--jobs", type=int, default=100, help="jobs a seed (default: 100)")
    parser.add_argument("--exhaustive", action="store_true", help="run every single fault, every pair, interleavings")
    parser.add_argument("--only", metavar="WORDS", help="with --exhaustive: the tiers with these words in their names")
    parser.add_argument("--trace", action="store_true", help="with --seed: show every step")
    given = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    if given.seed is not None:
        return _one(given.seed, given.jobs, tracing=given.trace)
    if given.exhaustive:
        return _exhaust(given.only)
    if given.seeds:
        step = max(1, min(50, given.seeds // (4 * _cores())))
        starts = range(0, given.seeds, step)
        return _many(partial(_seeded, jobs=given.jobs, step=step, end=given.seeds), starts)
    return parser.error("one of --seed, --seeds and --exhaustive is needed")


def _one(seed: int, jobs: int, *, tracing: bool) -> int:
    scenario, chance = of_seed(seed, jobs)
    found = run(scenario, chance, tracing=tracing)
    if found.problem is None:
        _print("\n".join(found.trace))
        _print(f"seed {seed}, {scenario.offer.value}: everything holds; {found.tally}")
        return 0
    _print(f"seed {seed}, {scenario.offer.value}: {found.problem}\nmade smaller:")
    _show(shrink(found))
    return 1


def _show(found: Verdict) -> None:
    _print(f"{found.problem}\n{found.scenario}")
    for spot, fault in sorted(found.plan.items(), key=lambda item: item[0]):
        _print(f"  {spot.name}, step {spot.number}: {fault}")
    _print("\n".join(found.trace))


def _many(work: Callable[[Any], Sum], items: Iterable[Any]) -> int:
    total, began, shown = Sum(), time.perf_counter(), 0
    with ProcessPoolExecutor(_cores(), initializer=_quiet) as pool:
        for part in pool.map(partial(_timed, work), items):
            total.plus(part)
            if total.jobs >= shown + _SHOWN_EVERY:
                shown = total.jobs
                print(f"so far: {total.report(time.perf_counter() - began)}", file=sys.stderr, flush=True)  # noqa: T201
    _print(total.report(time.perf_counter() - began))
    return 1 if total.problems else 0


def _timed(work: Callable[[Any], Sum], item: Any) -> Sum:
    began = time.process_time()
    found = work(item)
    found.cpu_seconds = time.process_time() - began
    return found


def _seeded(start: int, *, jobs: int, step: int, end: int) -> Sum:
    found = Sum()
    for seed in range(start, min(start + step, end)):
        scenario, chance = of_seed(seed, jobs)
        verdict = run(scenario, chance)
        found.add(verdict)
        if verdict.problem is not None:
            _print(f"seed {seed}: {verdict.problem}; see it: python -m tests.sim --seed {seed} --jobs {jobs}")
    return found


#: What is tried in full, in this order.
_TIERS: Mapping[str, Callable[[Offer], Iterator[tuple[Scenario, Plan]]]] = {
    "single faults": lambda offer: ((each, plan) for each in small(offer) for plan in singles(each)),
    "single faults of lists, slots and events": lambda offer: (
        (each, plan) for each in wide(offer) for plan in singles(each)
    ),
    "two workers and a reconciler in turns": lambda offer: interleavings(offer, _HELD_UP),
    "called back, or opened again": second_thoughts,
    "two providers": two_providers,
    "late writes of a durable list": late_writes,
    "long outages": long_outages,
    "pairs of faults": lambda offer: ((each, plan) for each in least(offer) for plan in pairs(each)),
}


def _exhaust(only: str | None) -> int:
    status = 0
    for tier in _TIERS:
        if only is None or only in tier:
            _print(f"{tier}:")
            status |= _many(_exhausted, [(tier, offer) for offer in Offer])
    return status


def _exhausted(item: tuple[str, Offer]) -> Sum:
    tier, offer = item
    found = Sum()
    for scenario, plan in _TIERS[tier](offer):
        verdict = run(scenario, Faults(plan))
        found.add(verdict)
        if verdict.problem is not None and found.problems <= _SHOWN:
            _show(shrink(verdict))
    return found


def _cores() -> int:
    return os.cpu_count() or 1


def _quiet() -> None:
    logging.disable(logging.CRITICAL)
    # A run leaves little that refers to itself, and looking for it took a quarter of the time.
    gc.freeze()
    gc.set_threshold(1_000_000, 10, 100)


def _print(text: str) -> None:
    if text:
        print(text, flush=True)  # noqa: T201 - a command of its own


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
