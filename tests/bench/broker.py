"""Our brokers beside stock dramatiq's: `python -m tests.bench.broker [--only redis|sqs] [--jobs N] [--kills N]`.

Redis is one Valkey server that syncs every write, and SQS is ministack; both run on this machine: its load is printed.

Idle pick-up (Redis): from `enqueue` to the first line of the actor in another process, at random instants, ours and
stock's in turns. In it the server syncs its disk twice, to have the job and to hand it out, so that what a sync takes
is printed beside it; and then the same on a server that syncs nothing.

Worker kills: that many workers, each with a job begun (and perhaps another one in hand), are killed with `kill -9` at
one instant, and an idle worker is there. From that instant until it begins each of their jobs, with the visibility
timeout that a lease of so many seconds comes with (stock on Redis: heartbeat timeout; stock on SQS: in place of its 12
hours); the bound is the lease and 15 s. What is not there after the limit is lost, or later still. Stock on SQS does
not prolong that timeout: it runs from the receipt, and what is still being worked on goes to another worker as well.

Jobs lost: seven failing attempts each, without and with some retries refused by the server at that instant, and jobs
for an actor that the worker does not know.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import boto3  # type: ignore[import-untyped]  # ships no types
import redis

from idem.policy import Durations
from tests import services
from tests.bench.side import QUEUE, enqueue, open_broker
from tests.bench.sqs import stock_python
from tests.valkey import DURABLE, Server

_SIDES: Final = ("ours", "stock")
_ATTEMPTS: Final = 7
_THREADS: Final = 8
_HEIR_THREADS: Final = 32
_NAMESPACE: Final = {"ours": "{idem:bench}", "stock": "dramatiq"}
_QUIET_SECONDS: Final = 10.0
_BOUND_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Side:
    """Ours or stock, and where."""

    name: str
    place: str
    python: str

    @contextlib.contextmanager
    def process(self, role: str, visibility_seconds: float, *rest: str) -> Iterator[Process]:
        """A process in a role, killed at the end with all that it has forked."""
        script = Path(__file__).with_name("side.py")
        command = [self.python, str(script), role, self.name, self.place, str(visibility_seconds), *rest]
        environ = os.environ | services.CREDENTIALS
        if self.python == sys.executable:
            environ["PYTHONPATH"] = str(script.parents[2])
        process = Process(command, environ)
        try:
            yield process
        finally:
            process.kill()

    def jobs(self) -> Jobs:
        """What this side keeps in its queues."""
        return OnRedis(self.name, self.place) if self.place.startswith("redis") else OnSqs(self.name, self.place)


class Process:
    """A process of `side.py`, and the lines that it has said."""

    def __init__(self, command: Sequence[str], environ: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(iter(self._process.stdout.readline, ""))

    def begun(self) -> list[tuple[str, int, float]]:
        """Jobs begun: the name, who began it, and when (seconds of the monotonic clock, which all processes share)."""
        found = [line.split() for line in list(self.lines) if line.count(" ") == 2]
        return [(name, int(pid), int(at) / 1e9) for name, pid, at in found]

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def wait(self, count: int, seconds: float = 120.0) -> bool:
        """Wait for so many lines."""
        deadline = time.monotonic() + seconds
        while len(self.lines) < count and time.monotonic() < deadline and self._process.poll() is None:
            time.sleep(0.01)
        return len(self.lines) >= count

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        self._reader.join()
        for pipe in filter(None, (self._process.stdin, self._process.stdout)):
            with contextlib.suppress(OSError):
                pipe.close()


class OnRedis:
    """The keys of a side."""

    def __init__(self, side: str, url: str) -> None:
        self._stock = side == "stock"
        self._prefix = f"{_NAMESPACE[side]}:{QUEUE}"
        self._url = url

    def _count(self, *names: str) -> int:
        with redis.Redis.from_url(self._url) as raw:
            return sum(int(raw.hlen(f"{self._prefix}.{name}")) for name in names)

    def held(self) -> int:
        """Those that are still to be worked on."""
        return self._count("msgs", "DQ.msgs" if self._stock else "later.msgs")

    def dead(self) -> tuple[int, int]:
        """Dead letters now, and after the time that this side keeps them for."""
        now = self._count("XQ.msgs")
        if self._stock:
            late = open_broker("stock", self._url, 3.0, dead_message_ttl=1, maintenance_chance=1_000_000)
            time.sleep(0.01)
            late.do_fetch(QUEUE, 1)
        return now, self._count("XQ.msgs")


class OnSqs:
    """The queues of a side."""

    def __init__(self, side: str, place: str) -> None:
        endpoint, _, prefix = place.partition("#")
        self._client = boto3.client("sqs", region_name=services.REGION, endpoint_url=endpoint)
        self._jobs, self._dead = {
            "ours": (f"{prefix}-{QUEUE}", f"{prefix}-{QUEUE}-dead"),
            "stock": (f"{prefix}_{QUEUE}", f"{prefix}_{QUEUE}_dlq"),
        }[side]

    def _count(self, queue: str) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesDelayed"]
        names.append("ApproximateNumberOfMessagesNotVisible")
        try:
            url = self._client.get_queue_url(QueueName=queue)["QueueUrl"]
        except self._client.exceptions.QueueDoesNotExist:
            return 0
        found = self._client.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return sum(map(int, found.values()))

    def held(self) -> int:
        """See `OnRedis.held`."""
        return self._count(self._jobs)

    def dead(self) -> tuple[int, int]:
        """See `OnRedis.dead`; SQS itself keeps them for 14 days at the most, on both sides."""
        kept = self._count(self._dead)
        return kept, kept


Jobs = OnRedis | OnSqs


def _percentiles(values: Sequence[float], unit: str, digits: int = 1) -> str:
    ordered = sorted(values)
    parts = ((part, ordered[min(len(ordered) - 1, len(ordered) * part // 100)]) for part in (50, 90, 99))
    return "  ".join(f"p{part} {value:.{digits}f}" for part, value in parts) + f"  max {ordered[-1]:.{digits}f} {unit}"


def _enqueue(side: Side, visibility_seconds: float, jobs: int, *, failures: int = 0, actor: str = "job") -> None:
    with side.process("send", visibility_seconds) as producer:
        for number in range(jobs):
            producer.tell(f"j{number} {actor} {failures}")
        assert producer.wait(jobs, 600.0), "the producer did not enqueue"


def idle(sides: Sequence[Side], jobs: int) -> Iterator[str]:
    """The pick-up latency of an idle worker, and what it costs to be one; both sides in turns."""
    latencies: dict[str, list[float]] = {side.name: [] for side in sides}
    with contextlib.ExitStack() as stack:
        workers = {side.name: stack.enter_context(side.process("work", 90.0, str(_THREADS))) for side in sides}
        producers = {side.name: open_broker(side.name, side.place, 90.0) for side in sides}
        assert all(worker.wait(1) for worker in workers.values())
        for number in range(jobs + 1):
            for name, worker in workers.items():
                time.sleep(random.uniform(0.3, 0.8))
                at = time.monotonic()
                enqueue(producers[name], f"j{number}")
                assert worker.wait(number + 2)
                latencies[name].append(1000 * (worker.begun()[-1][2] - at))
        costs = _idle_costs(workers)
    for name, found in latencies.items():
        # The first one makes connections.
        yield f"{name:<6} {_percentiles(found[1:], 'ms')} ({jobs} jobs); idle: {costs[name]:.1f} % of a core"


def _idle_costs(workers: dict[str, Process]) -> dict[str, float]:
    before, begun = {name: _cpu_seconds(worker.pid) for name, worker in workers.items()}, time.monotonic()
    time.sleep(10)
    seconds = time.monotonic() - begun
    return {name: 100 * (_cpu_seconds(worker.pid) - before[name]) / seconds for name, worker in workers.items()}


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _sync(folder: Path) -> str:
    """What one small write and its sync take on this disk."""
    taken = []
    with (folder / "sync").open("wb") as file:
        for _ in range(100):
            file.write(bytes(300))
            file.flush()
            begun = time.monotonic()
            os.fdatasync(file.fileno())
            taken.append(1000 * (time.monotonic() - begun))
    return _percentiles(taken, "ms")


def recover(side: Side, kills: int, visibility_seconds: float, limit_seconds: float) -> str:
    """From `kill -9` of many workers at once to each of their jobs in another one."""
    with contextlib.ExitStack() as stack:
        victims = stack.enter_context(side.process("victims", visibility_seconds, str(kills)))
        producer = stack.enter_context(side.process("send", visibility_seconds))
        assert victims.wait(kills), "the victims did not start"
        sent = _occupy(producer, victims, kills)
        heir = stack.enter_context(side.process("work", visibility_seconds, str(_HEIR_THREADS)))
        assert heir.wait(1)
        time.sleep(2)
        begun = time.monotonic()
        victims.kill()
        while len(heir.begun()) < sent and time.monotonic() < begun + limit_seconds:
            time.sleep(0.05)
        found = heir.begun()
    taken = [at - begun for _, _, at in found if at > begun]
    late = sent - len({name for name, _, _ in found})
    said = _percentiles(taken, "s") if taken else "none"
    return f"{said} ({len(taken)} jobs of {kills} workers); {late} not within {limit_seconds:g} s"


def _occupy(producer: Process, victims: Process, kills: int) -> int:
    """Enqueue until each victim has begun a job: what one has in hand beside it, another one does not get."""
    sent = 0
    while len({pid for _, pid, _ in victims.begun()}) < kills and sent < 5 * kills:
        begun = len(victims.lines)
        producer.tell(f"j{sent} job 0")
        sent += 1
        victims.wait(begun + 1, 0.5)
    assert producer.wait(sent)
    return sent


def retry(side: Side, jobs: int, *flags: str) -> str:
    """Seven failing attempts each, then one that succeeds: how many jobs never succeed."""
    _enqueue(side, 30.0, jobs, failures=_ATTEMPTS)
    kept = side.jobs()
    with side.process("work", 30.0, str(_THREADS), *flags) as worker:
        alive = time.monotonic()
        while len(worker.begun()) < jobs and time.monotonic() < alive + _QUIET_SECONDS:
            time.sleep(0.25)
            if kept.held():
                alive = time.monotonic()
        done = len({name for name, _, _ in worker.begun()})
    return f"{jobs - done} of {jobs:,} lost"


def unknown(side: Side, jobs: int) -> str:
    """Jobs for an actor that the worker does not know, as in a rolling deployment."""
    _enqueue(side, 30.0, jobs, actor="other")
    kept = side.jobs()
    with side.process("work", 30.0, str(_THREADS)):
        while kept.held():
            time.sleep(0.25)
    now, later = kept.dead()
    return f"{jobs - now} of {jobs:,} lost at once, {jobs - later:,} in the end"


def main() -> None:
    """Run it all, one side after the other."""
    parser = argparse.ArgumentParser(description="Our brokers beside stock dramatiq's.")
    parser.add_argument("--only", choices=("redis", "sqs"))
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--latencies", type=int, default=100)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--lease", type=float, default=60.0)
    parser.add_argument("--limit", type=float, default=120.0)
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    _say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "sqs":
            _redis(given, Path(folder))
        if given.only != "redis":
            _sqs(given, Path(folder))
    _say(f"load {os.getloadavg()[0]:.1f}")


def _redis(given: argparse.Namespace, folder: Path) -> None:
    _say(f"redis: a sync of the disk takes {_sync(folder)}")
    for name, options in {"": DURABLE, ", nothing synced": ()}.items():
        with _server(folder / f"server{len(options)}", options) as url:
            sides = [Side(side, url, sys.executable) for side in _SIDES]
            for said in idle(sides, given.latencies):
                _say(f"idle pick-up{name:<19} {said}")
            if options:
                _measure(given, "redis", sides, lambda side: redis.Redis.from_url(side.place).flushall())


@contextlib.contextmanager
def _server(folder: Path, options: Sequence[str]) -> Iterator[str]:
    server = Server(folder, *options)
    server.start()
    try:
        yield server.url
    finally:
        server.kill()


def _sqs(given: argparse.Namespace, folder: Path) -> None:
    os.environ.update(services.CREDENTIALS)
    endpoint = services.ministack()
    pythons = {"ours": sys.executable, "stock": stock_python(folder / "stock")}
    sides = [Side(name, endpoint, python) for name, python in pythons.items() if python]
    _measure(given, "sqs", sides, lambda _: None)


def _measure(given: argparse.Namespace, broker: str, sides: Sequence[Side], clear: Callable[[Side], object]) -> None:
    hidden = Durations(lease_seconds=given.lease).hidden_seconds
    measures: dict[str, Callable[[Side], str]] = {
        f"killed (bound {given.lease + _BOUND_SECONDS:g} s)": lambda side: recover(
            side, given.kills, hidden, given.limit
        ),
        f"{_ATTEMPTS} failing attempts": lambda side: retry(side, given.jobs),
        "and refused retries": lambda side: retry(side, given.jobs, "refuse"),
        "unknown actor": lambda side: unknown(side, given.jobs),
    }
    for name, measure in measures.items():
        for side in sides:
            clear(side)
            place = side.place if broker == "redis" else f"{side.place}#b{uuid.uuid4().hex[:12]}"
            _say(f"{broker:<5} {name:<26} {side.name:<6} {measure(Side(side.name, place, side.python))}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
