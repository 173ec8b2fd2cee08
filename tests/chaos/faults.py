"""What goes wrong, and when: drawn from a seed, and counted in kills, so that a slow machine sees the same faults."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from tests.chaos.causes import Incident
from tests.chaos.fleet import Fleet
from tests.chaos.intentions import Progress
from tests.chaos.stage import LEASE_SECONDS, Stage

_TICK_SECONDS = 0.02
_KILL_SECONDS = 0.25
_READ_SECONDS = 0.5
#: So many emails may wait before the next kill does: what is killed faster than it works gets nowhere.
_BACKLOG = 250
_PATIENCE_SECONDS = 300.0

#: The provider's days: what each strikes with, all of it on top of a delay.
WEATHERS: Final[tuple[tuple[dict[str, Any], ...], ...]] = (
    (),
    ({"fault": "accept_then_drop", "rate": 0.08}, {"fault": "accept_then_500", "rate": 0.06}),
    ({"fault": "drop", "rate": 0.1}, {"fault": "503", "rate": 0.1}, {"fault": "500", "rate": 0.05}),
    ({"fault": "accept_then_hang", "rate": 0.04}, {"fault": "hang", "rate": 0.03}),
    ({"fault": "accept_then_truncate", "rate": 0.06}, {"fault": "in_progress", "rate": 0.05}),
    ({"fault": "429", "rate": 0.05, "retry_after": 1, "times": 5}, {"fault": "late", "rate": 0.05, "delay_ms": 900}),
    ({"fault": "503"},),
    ({"fault": "500", "rate": 0.3, "on": "lookup"}, {"fault": "drop", "rate": 0.2, "on": "lookup"}),
)
_DELAY: Final = {"fault": "delay", "delay_ms": 100}
#: A whole outage ends before the next change.
_OUTAGE_SECONDS = 1.5


class Chaos:
    """Strikes until so many processes were killed; `counts` says what else was done."""

    def __init__(self, stage: Stage, fleet: Fleet, progress: Progress, kills: int, dice: random.Random) -> None:
        self._stage = stage
        self._fleet = fleet
        self._progress = progress
        self._kills = kills
        self._dice = dice
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._busy: set[str] = set()
        self._read_at = 0.0
        self.counts: Counter[str] = Counter()

    def run(self, jobs: int, report: Callable[[], None]) -> None:
        """Go on to the last kill, or until nothing moves any more."""
        struck, strike_at, moved_at = 0, 0.0, time.monotonic()
        self._change_weather(0)
        while self._fleet.kills < self._kills and time.monotonic() < moved_at + _PATIENCE_SECONDS:
            self._tick(report)
            if self._is_behind(jobs):
                continue
            moved_at = time.monotonic()
            if moved_at >= strike_at:
                struck, strike_at = struck + 1, moved_at + _KILL_SECONDS
                self._strike(struck)

    def mend(self) -> None:
        """Everything answers, nothing is halted, and nobody dies any more."""
        self._fleet.mend()
        while self._later:
            heapq.heappop(self._later)[2]()
        self._stage.sandbox.call("DELETE", "faults")
        self._fleet.look()

    def _tick(self, report: Callable[[], None]) -> None:
        time.sleep(_TICK_SECONDS)
        self._fleet.look()
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()
        if now >= self._read_at:
            self._read_at = now + _READ_SECONDS
            self._stage.sandbox.read()
            report()

    def _is_behind(self, jobs: int) -> bool:
        enqueued = self._progress.enqueued
        if enqueued < min(jobs, jobs * self._fleet.kills / self._kills):
            return True
        return enqueued - len(self._stage.sandbox.accepted) > _BACKLOG

    def _strike(self, number: int) -> None:
        """A kill each time, and beside it, each in its turn, what takes longer."""
        self._kill()
        if number % 10 == 3:
            self._halt()
        if number % 16 == 8:
            self._change_weather(number)
        if number % 30 == 10:
            self._stall_ledger(restart=number % 60 == 40)
        if number % 40 == 20:
            self._restart_broker()

    def _kill(self) -> None:
        fleet = self._fleet
        group = self._dice.choices([fleet.workers, fleet.schedulers, [fleet.receiver]], [0.9, 0.05, 0.05])[0]
        alive = [member for member in group if member.pid is not None and not member.halted]
        if alive:
            fleet.kill(self._dice.choice(alive))

    def _halt(self) -> None:
        """SIGSTOP past the lease: another one takes over meanwhile, and then the first goes on."""
        alive = [member for member in self._fleet.workers if member.pid is not None and not member.halted]
        if not alive:
            return
        member = self._dice.choice(alive)
        pid = self._fleet.halt(member)
        if pid is not None:
            self.counts["halts"] += 1
            self._after(self._dice.uniform(1.1, 2.0) * LEASE_SECONDS, lambda: self._fleet.go_on(member, pid))

    def _change_weather(self, number: int) -> None:
        weather = self._dice.choice(WEATHERS) if number else WEATHERS[1]
        sandbox = self._stage.sandbox
        sandbox.call("DELETE", "faults")
        for fault in (_DELAY, *weather):
            sandbox.call("POST", "faults", {"provider": "*", "times": None, **fault})
        self.counts["weathers"] += 1
        if weather and weather[0].get("rate") is None:
            self._after(_OUTAGE_SECONDS, lambda: self._change_weather(0))

    def _stall_ledger(self, *, restart: bool) -> None:
        ledger, since = self._stage.ledger, time.time()
        if "ledger" in self._busy:
            return
        if restart and ledger.restarts:
            self.counts["ledger restarts"] += 1
            ledger.restart()
            self._note_ledger(since)
            return
        self.counts["ledger stalls"] += 1
        self._busy.add("ledger")
        ledger.stall()
        self._after(self._dice.uniform(0.3, 1.5) * LEASE_SECONDS, lambda: self._end_stall(since))

    def _end_stall(self, since: float) -> None:
        self._free("ledger", self._stage.ledger.go_on)
        self._note_ledger(since)

    def _note_ledger(self, since: float) -> None:
        self._stage.incidents.append(Incident("the ledger was away", since, time.time()))

    def _restart_broker(self) -> None:
        broker = self._stage.broker
        if "broker" in self._busy:
            return
        self.counts["broker restarts"] += 1
        self._busy.add("broker")
        broker.kill()
        self._after(self._dice.uniform(0.1, 1.0), lambda: self._free("broker", broker.start))

    def _free(self, name: str, act: Callable[[], None]) -> None:
        act()
        self._busy.remove(name)

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), act))
