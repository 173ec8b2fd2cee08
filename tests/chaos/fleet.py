"""The processes under chaos: one that ends is started again at once, as a supervisor of services would."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from idem.send import Point
from tests.chaos.causes import Incident
from tests.chaos.stage import APPLICATION, LANES, TRIGGERED, Stage
from tests.chaos.zygote import Zygote

_THREADS = 4
#: One worker in so many is to die at a crash point, at one of its first so many visits there.
_DOOMED, _VISITS = 3, 12
_SIGTERM_SECONDS = 15.0
#: Before one that gave up at its start is started again.
_PAUSE_SECONDS = 0.3
#: How much later it may be seen that a process was killed.
_SEEN_SECONDS = 1.0


@dataclass(slots=True)
class Member:
    """One place in the fleet; `pid` is None while nobody fills it."""

    name: str
    args: Sequence[str]
    environ: Mapping[str, str]
    crashes: bool = False
    lane: str | None = None
    pid: int | None = None
    halted: bool = False
    halted_at: float = 0.0
    retired: bool = False
    not_before: float = 0.0


class Fleet:
    """Workers of every lane, two schedulers and a receiver of webhooks; `ends` counts how processes ended."""

    def __init__(self, stage: Stage, dice: random.Random) -> None:
        self._zygote: Zygote = stage.zygote
        self._logs: Path = stage.logs
        self._incidents = stage.incidents
        self._dice = dice
        self._pids: dict[int, Member] = {}
        self.ends: Counter[int] = Counter()
        self.started = 0
        self.at_points = 0
        self.odd: list[tuple[int, int]] = []
        self.workers = [
            Member(f"{lane.name}-{number}", _worker(), stage.environ(lane), crashes=True, lane=lane.name)
            for lane in LANES
            for number in range(lane.workers)
        ]
        triggered = stage.environ(TRIGGERED)
        scheduler = ("scheduler", "--app", APPLICATION, "--verbose")
        self.schedulers = [Member(f"scheduler-{number}", scheduler, triggered) for number in range(2)]
        arguments = ("webhooks", "--app", APPLICATION, "--port", str(stage.receiver_port))
        self.receiver = Member("receiver", arguments, triggered)

    @property
    def members(self) -> list[Member]:
        return [*self.workers, *self.schedulers, self.receiver]

    @property
    def kills(self) -> int:
        """Processes that SIGKILL ended, from outside or at a crash point."""
        return self.ends[-signal.SIGKILL]

    def look(self) -> None:
        """Take note of who has ended, and fill every place."""
        for pid, status in self._zygote.ended():
            member = self._pids.pop(pid, None)
            if member is None:
                continue
            self.ends[status] += 1
            if status == -signal.SIGKILL:
                self._note("killed", member, time.time() - _SEEN_SECONDS)
            self.at_points += status == -signal.SIGKILL and member.pid == pid
            # 1: the broker or the ledger did not answer at its start, which it says in one line.
            if status not in {0, 1, -signal.SIGKILL}:
                self.odd.append((pid, status))
            if member.pid == pid:
                member.pid = None
                member.not_before = time.monotonic() + (_PAUSE_SECONDS if status == 1 else 0.0)
        for member in self.members:
            if member.pid is None and not member.retired and time.monotonic() >= member.not_before:
                self._start(member)

    def kill(self, member: Member) -> None:
        self._signal(member, signal.SIGKILL)
        member.pid = None

    def halt(self, member: Member) -> int | None:
        """SIGSTOP; the pid to let go on later."""
        self._signal(member, signal.SIGSTOP)
        member.halted, member.halted_at = member.pid is not None, time.time()
        return member.pid

    def go_on(self, member: Member, pid: int) -> None:
        """SIGCONT, if it is still the process that was halted."""
        if member.pid == pid:
            self._signal(member, signal.SIGCONT)
        self._note("halted", member, member.halted_at)
        member.halted = False

    def mend(self) -> None:
        """No process that starts from now on is to die at a crash point."""
        for member in self.workers:
            member.crashes = False

    def end(self, members: Sequence[Member]) -> None:
        """SIGTERM, and SIGKILL for whoever has not ended a good while later: one may yet wait for its crash point."""
        for member in members:
            member.retired = True
        pids = {member.pid for member in members if member.pid is not None}
        for number, seconds in ((signal.SIGTERM, _SIGTERM_SECONDS), (signal.SIGKILL, _SIGTERM_SECONDS)):
            for pid in pids & self._pids.keys():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while pids & self._pids.keys() and time.monotonic() < deadline:
                time.sleep(0.02)
                self.look()

    def _start(self, member: Member) -> None:
        environ = dict(member.environ)
        if member.crashes and self._dice.randrange(_DOOMED) == 0:
            environ["CRASH_AT"] = f"{self._dice.choice(list(Point))}:{self._dice.randint(1, _VISITS)}"
        member.pid = self._zygote.fork(self._logs / (member.name + "-{pid}.log"), member.args, environ)
        member.halted = False
        self._pids[member.pid] = member
        self.started += 1

    def _note(self, what: str, member: Member, since: float) -> None:
        if member.lane is not None:
            self._incidents.append(Incident(what, since, time.time(), member.lane))

    def _signal(self, member: Member, number: int) -> None:
        if member.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, number)


def _worker() -> tuple[str, ...]:
    return ("worker", "--app", APPLICATION, "--threads", str(_THREADS), "--verbose")
