"""One contestant under the faults, counted by the provider's own log."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from tests.peers.contestants import Contestant, Held

#: What goes wrong at the provider, in parts of all sends: half of it after the email was accepted.
FAULTS: Final = {"accept_then_drop": 0.05, "accept_then_500": 0.03, "accept_then_hang": 0.01} | {
    "drop": 0.02, "503": 0.03, "429": 0.02, "hang": 0.01
}  # fmt: skip
_WORKERS: Final = 2
#: How long the provider takes, so that a kill meets every thread in the middle of a request.
_DELAY_MS: Final = 400


class Size(Protocol):
    """How many jobs and kills, and for how long nothing may move before a run is over, in seconds.

    Longer than every back-off and visibility here.
    """

    jobs: int
    kills: int
    patience: float


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the jobs. `never`: no acceptance; `lost`: and nothing holds them either."""

    jobs: int
    kills: int
    once: int
    duplicates: int
    never: int
    held: Held
    seconds: float

    @property
    def lost(self) -> int:
        """The jobs that nobody sent, and nobody knows of."""
        return max(0, self.never - self.held.waiting - self.held.dead - self.held.undecided)


class Sandbox:
    """The provider's side, asked over HTTP."""

    def __init__(self, url: str) -> None:
        self._url = url

    def order(self, kind: str, **order: Any) -> None:
        """A fault, from now on."""
        self.call("/api/faults", "POST", {"provider": "*", "fault": kind, "times": None} | order)

    def accepted(self) -> Counter[str]:
        """How often each subject was accepted."""
        return Counter(entry["subject"] for entry in self.call("/api/accepted"))

    def sends(self, since: float = 0.0) -> list[tuple[float, str]]:
        """The instant (Unix seconds) and key of every request to send."""
        seen = ((datetime.fromisoformat(one["at"]).timestamp(), one) for one in self.call("/api/requests"))
        return [(at, str(one["key"])) for at, one in seen if one["method"] == "POST" and at >= since]

    def call(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """Its own interface."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}{path}", data, method=method)  # noqa: S310 - our own sandbox
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            text = response.read()
        return json.loads(text) if text else None


def endure(contestant: Contestant, sandbox: Sandbox, size: Size, chance: random.Random) -> Tally:
    """All jobs under faults, while a worker is killed every second or so; then as long as anything still moves."""
    for kind, rate in FAULTS.items():
        sandbox.order(kind, rate=rate)
    sandbox.order("delay", delay_ms=_DELAY_MS)
    contestant.enqueue(size.jobs)
    begun = time.monotonic()
    workers = [contestant.start() for _ in range(_WORKERS)]
    killed = 0
    try:
        while killed < size.kills and len(sandbox.accepted()) < size.jobs:
            # Long enough for the slowest to start and to work for a while.
            time.sleep(chance.uniform(2.0, 4.0))
            kill(workers.pop(chance.randrange(_WORKERS)))
            workers.append(contestant.start())
            killed += 1
        seconds = _await_quiet(contestant, sandbox, size) - begun
    finally:
        for worker in workers:
            kill(worker)
    counts = sandbox.accepted()
    return Tally(
        jobs=size.jobs,
        kills=killed,
        once=sum(count == 1 for count in counts.values()),
        duplicates=sum(counts.values()) - len(counts),
        never=size.jobs - len(counts),
        held=contestant.held(),
        seconds=seconds,
    )


def _await_quiet(contestant: Contestant, sandbox: Sandbox, size: Size) -> float:
    """When the last thing changed, on the monotonic clock."""
    last, moved = (sandbox.accepted(), contestant.held()), time.monotonic()
    while time.monotonic() < moved + size.patience:
        time.sleep(1)
        now = (sandbox.accepted(), contestant.held())
        if now != last:
            last, moved = now, time.monotonic()
        elif len(now[0]) == size.jobs and not now[1].waiting and not now[1].undecided:
            break
    return moved


def recover(contestant: Contestant, sandbox: Sandbox, *, jobs: int, cap: float) -> list[float | None]:
    """From the kill of a worker that has every job in the provider's hands to the next attempt of each (keyed only).

    Seconds a job, None where there was none within `cap`.
    """
    since = time.time()
    sandbox.order("delay", delay_ms=1_500)
    contestant.enqueue(jobs)
    worker = contestant.start(jobs)
    waited = time.monotonic() + 60
    while len({key for _, key in sandbox.sends(since)}) < jobs and time.monotonic() < waited:
        time.sleep(0.05)
    kill(worker)
    killed = time.time()
    sandbox.call("/api/faults", "DELETE")
    begun = {key for _, key in sandbox.sends(since)}
    heir = contestant.start(jobs)
    again: dict[str, float] = {}
    try:
        while len(again) < len(begun) and time.time() < killed + cap:
            time.sleep(0.2)
            for at, key in sandbox.sends(killed):
                again.setdefault(key, at - killed)
    finally:
        kill(heir)
    return [again.get(key) for key in begun]


def percentile(values: Sequence[float | None], part: int) -> float | None:
    """The value that `part` of a hundred do not exceed; None counts as the largest."""
    ordered = sorted(values, key=lambda value: float("inf") if value is None else value)
    return ordered[min(len(ordered) - 1, len(ordered) * part // 100)]


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a worker with all its processes."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
