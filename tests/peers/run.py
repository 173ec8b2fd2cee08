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
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from tests.peers.contestants import Contestant
from tests.peers.wired.parts import HTTP_TIMEOUT_SECONDS

#: What goes wrong at the provider, in parts of all sends: half of it after the email was accepted.
FAULTS: Final = {"accept_then_drop": 0.05, "accept_then_500": 0.03, "accept_then_hang": 0.01} | {
    "drop": 0.02, "503": 0.03, "429": 0.02, "hang": 0.01
}  # fmt: skip
_WORKERS: Final = 2
#: How long the provider takes, so that a kill meets every thread in the middle of a request.
_DELAY_MS: Final = 400
#: The same where recovery is timed: as long as it can be for a client that does not give up.
_LONG_DELAY_MS: Final = 1_700
#: More of them wait than the worker can take in the meantime, so that all its threads are busy when it is killed.
_JOBS_A_THREAD: Final = 6
_START_SECONDS: Final = 60.0
#: How long there may be no more requests in flight than before until there are as many as there will ever be.
_FILLING_SECONDS: Final = 10.0
#: From one look-up to the next: until the last attempt is over, and Postmark shows whether it was accepted.
_LOOK_UP_SECONDS: Final = 1_000
_LOOK_UPS: Final = 40


class Size(Protocol):
    """How many jobs and kills, and for how long nothing may move before a run is over, in seconds.

    Longer than every back-off and visibility here.
    """

    jobs: int
    kills: int
    patience: float


@dataclass(frozen=True, slots=True)
class Doubt:
    """How many keys were undecided, and of how many of them the provider had accepted the email."""

    keys: int
    accepted: int

    @classmethod
    def of(cls, keys: Collection[str], accepted: Collection[str]) -> Doubt:
        """Those keys, by that log."""
        return cls(len(keys), sum(key in accepted for key in keys))


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the jobs. `never`: no acceptance; `lost`: and no message, letter or undecided key of them either.

    `doubt_at_rest` is from before the look-ups, `doubt` from after them: the same where nobody looks anything up.
    """

    jobs: int
    kills: int
    once: int
    duplicates: int
    never: int
    lost: int
    waiting: int
    dead: int
    doubt_at_rest: Doubt
    doubt: Doubt
    seconds: float


@dataclass(frozen=True, slots=True)
class Request:
    """One request to send an email, as the provider saw it: `at` in Unix seconds."""

    at: float
    key: str
    answered: bool


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

    def sends(self, since: float = 0.0) -> list[Request]:
        """The requests to send from that instant on, in order."""
        posts = (one for one in self.call("/api/requests") if one["method"] == "POST")
        seen = (
            Request(datetime.fromisoformat(one["at"]).timestamp(), str(one["key"]), one["status"] is not None)
            for one in posts
        )
        return [request for request in seen if request.at >= since]

    def advance(self, seconds: float) -> None:
        """Put the provider's clock forward."""
        self.call("/api/clock", "POST", {"advance": seconds})

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
    at_rest = Doubt.of(contestant.held().undecided, sandbox.accepted())
    look_up(contestant, sandbox, size)
    counts, held = sandbox.accepted(), contestant.held()
    return Tally(
        jobs=size.jobs,
        kills=killed,
        once=sum(count == 1 for count in counts.values()),
        duplicates=sum(counts.values()) - len(counts),
        never=size.jobs - len(counts),
        lost=len(lost(size.jobs, counts, held.undecided | contestant.queued())),
        waiting=held.waiting,
        dead=held.dead,
        doubt_at_rest=at_rest,
        doubt=Doubt.of(held.undecided, counts),
        seconds=seconds,
    )


def lost(jobs: int, accepted: Collection[str], held: Collection[str]) -> list[str]:
    """The jobs that nobody sent, and nobody knows of."""
    return [subject for number in range(jobs) if (subject := f"job-{number}") not in accepted and subject not in held]


def look_up(contestant: Contestant, sandbox: Sandbox, size: Size) -> None:
    """Go on until look-ups have told what became of the undecided keys, with both clocks put forward for each."""
    for number in range(1, _LOOK_UPS + 1):
        if not contestant.held().undecided:
            return
        sandbox.advance(_LOOK_UP_SECONDS)
        worker = contestant.look_up(number * _LOOK_UP_SECONDS)
        if worker is None:
            return
        try:
            deadline = time.monotonic() + size.patience
            while contestant.held().waiting and time.monotonic() < deadline:
                time.sleep(1)
        finally:
            kill(worker)


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


def recover(contestant: Contestant, sandbox: Sandbox, *, in_flight: int, cap: float) -> list[float | None]:
    """From the kill of a worker to the next attempt of each job whose request was not answered by then (keyed only).

    The worker has as many processes as it takes to have that many requests in flight. Seconds a job, None where there
    was no attempt within `cap`.
    """
    processes = -(-in_flight // contestant.most_in_flight)
    sandbox.order("delay", delay_ms=_LONG_DELAY_MS)
    contestant.enqueue(_JOBS_A_THREAD * in_flight)
    worker = contestant.start(-(-in_flight // processes), processes)
    try:
        _await_full(sandbox, in_flight)
    finally:
        kill(worker)
    killed = time.time()
    begun = open_keys(sandbox.sends(), killed)
    sandbox.call("/api/faults", "DELETE")
    heir = contestant.start(in_flight)
    again: dict[str, float] = {}
    try:
        while not begun <= again.keys() and time.time() < killed + cap:
            time.sleep(0.2)
            for request in sandbox.sends(killed):
                again.setdefault(request.key, request.at - killed)
    finally:
        kill(heir)
    return [again.get(key) for key in begun]


def open_keys(requests: Iterable[Request], now: float) -> set[str]:
    """The keys whose latest request has no answer yet, and somebody who still waits for it."""
    latest = {request.key: request for request in requests}
    return {key for key, one in latest.items() if not one.answered and now < one.at + HTTP_TIMEOUT_SECONDS}


def _await_full(sandbox: Sandbox, in_flight: int) -> None:
    """Until there are so many requests in flight, or as many as there were before and will ever be."""
    most, deadline = 0, time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        count = len(open_keys(sandbox.sends(), time.time()))
        if count >= in_flight:
            return
        if count > most:
            most, deadline = count, time.monotonic() + _FILLING_SECONDS
        time.sleep(0.05)


def percentile(values: Sequence[float | None], part: int) -> float | None:
    """The value that `part` of a hundred do not exceed; None counts as the largest."""
    ordered = sorted(values, key=lambda value: float("inf") if value is None else value)
    return ordered[min(len(ordered) - 1, len(ordered) * part // 100)]


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a worker with all its processes."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
