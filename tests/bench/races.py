"""Claims that are raced for: `python -m tests.bench.races [--store STORE] [--rounds N] [--racers N] [--processes N]`.

In every round all racers, threads of several processes, claim one fresh key at the same moment, through a ledger and a
store of their own process; a share of them hears nothing of a write that was applied, and asks again. Counted are
double claims (a round with two claims), self lock-outs (a racer refused on account of its own write), and keys that
nobody got.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from idem.clock import SystemClock
from idem.errors import LedgerUnavailable
from idem.ledger import Claim, Ledger
from idem.policy import Policy
from idem.protocol import Intent, Record
from idem.stores.base import Store
from tests.bench.stores import STORES
from tests.fakes import FaultyStore

_POLICY = Policy(lease_seconds=3_600.0, window_seconds=864_000.0)


@dataclass(frozen=True, slots=True)
class Race:
    """What every process is told."""

    prefix: str
    rounds: int
    threads: int
    lost: float


class Forgetful(FaultyStore):
    """A store whose driver, for a share of the writes, does not hear the answer and writes once more."""

    def __init__(self, store: Store, lost: float) -> None:
        super().__init__(store)
        self._inner = store
        self._lost = lost

    def swap(self, old: Record | None, new: Record) -> Record | None:
        met = self._inner.swap(old, new)
        return met if random.random() >= self._lost else self._inner.swap(old, new)


def run(race: Race, reopen: Callable[[], Store], barrier: Any, results: Any) -> None:
    """One process: its threads race through all rounds; then each key's claims, and what the store holds."""
    store = reopen()
    claimed: list[tuple[int, str]] = []
    unanswered = Counter[str]()

    def go() -> None:
        ledger = Ledger(Forgetful(store, race.lost), policy=_POLICY, provider="fake", clock=SystemClock())
        for number in range(race.rounds):
            barrier.wait(120)
            try:
                got = ledger.claim(Intent(f"{race.prefix}/{number}", fingerprint="f"))
            except LedgerUnavailable:
                unanswered["n"] += 1
                continue
            if isinstance(got, Claim):
                claimed.append((number, got.record.claim_id))

    racers = [threading.Thread(target=go) for _ in range(race.threads)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    results.put((claimed, unanswered["n"]))
    store.close()


def race_all(
    race: Race, processes: int, reopen: Callable[[], Store]
) -> tuple[dict[int, list[str]], dict[int, str], int]:
    """The claims of each round, the claim that the store holds, and how often nobody answered."""
    # The children inherit what they are to open; nothing is connected before they open it.
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(processes * race.threads), context.Queue()
    children = [context.Process(target=run, args=(race, reopen, barrier, results)) for _ in range(processes)]
    for child in children:
        child.start()
    claims: dict[int, list[str]] = {number: [] for number in range(race.rounds)}
    unanswered = 0
    for _ in children:
        claimed, missing = results.get(timeout=24 * 3_600)
        unanswered += missing
        for number, claim_id in claimed:
            claims[number].append(claim_id)
    for child in children:
        child.join()
    store = reopen()
    held = {number: store.read(f"{race.prefix}/{number}") for number in range(race.rounds)}
    store.close()
    return claims, {number: record.claim_id for number, record in held.items() if record is not None}, unanswered


def main(arguments: Sequence[str]) -> int:
    """Print the counts; status 1 when one is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="signed grouped", choices=[name for name in STORES if name != "memory"])
    parser.add_argument("--rounds", type=int, default=3_000)
    parser.add_argument("--racers", type=int, default=8, help="threads of each process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--lost", type=float, default=0.1, help="the share of writes whose answer is lost")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        opened = STORES[options.store](stack)
        assert opened.reopen is not None
        opened.store.close()
        began = time.monotonic()
        race = Race(uuid.uuid4().hex, options.rounds, options.racers, options.lost)
        claims, held, unanswered = race_all(race, options.processes, opened.reopen)
    double = sum(len(ids) > 1 for ids in claims.values())
    # Nobody was told that they have it, although somebody's write is there: its writer was refused by it.
    locked_out = sum(not ids and number in held for number, ids in claims.items())
    strangers = sum(ids != [held.get(number)] for number, ids in claims.items() if len(ids) == 1)
    raced = options.rounds * options.racers * options.processes
    sys.stdout.write(
        f"{options.store}: {raced} raced claims in {options.rounds} rounds, {time.monotonic() - began:.0f} s: "
        f"{double} double claims, {locked_out} self lock-outs, {strangers} claims that the store does not hold, "
        f"{options.rounds - len(held)} keys unclaimed, {unanswered} calls unanswered\n"
    )
    return 1 if double or locked_out or strangers else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
