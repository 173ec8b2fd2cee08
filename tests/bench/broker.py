"""Our Redis broker beside dramatiq's own, on one Valkey server: `python -m tests.bench.broker [--jobs N] [--rounds N]`.

Idle pick-up: from `enqueue` to the first line of the actor in another process, at random instants. Recovery: from `kill
-9` of a worker to the same job in another one, with visibility (stock: heartbeat timeout) set to 3 s for both; stock
then looks for dead workers by chance, once in a thousand commands, so that it is given up on after a limit. Jobs lost:
seven failing attempts each, without and with every fiftieth retry refused by the server at that instant, and jobs for
an actor that the worker does not know.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import dramatiq
import redis
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker as StockBroker
from dramatiq.middleware import CurrentMessage

from tests.valkey import DURABLE, Server
from workers.brokers.base import Acknowledge, Retry, dispose
from workers.brokers.redis import RedisBroker
from workers.brokers.servers import connect
from workers.jobs import QUEUE

_KINDS: Final = ("ours", "stock")
_VISIBILITY_SECONDS = 3.0
_ATTEMPTS = 7
_REFUSED_EVERY = 50
_THREADS = 8
#: How often the consumer of each is asked whether it should stop: as `idem worker` and `dramatiq` have it.
_TIMEOUT_MS = {"ours": 100, "stock": 1_000}
_NAMESPACE = {"ours": "{idem:bench}", "stock": "dramatiq"}


def _broker(kind: str, url: str, **options: Any) -> Any:
    if kind == "stock":
        return StockBroker(url=url, heartbeat_timeout=int(_VISIBILITY_SECONDS * 1000), **options)
    broker = RedisBroker(connect(url), namespace="bench", visibility_seconds=_VISIBILITY_SECONDS)
    broker.declare_queue(QUEUE)
    return broker


def work(kind: str, url: str, *, hold: bool, refuse: bool) -> None:
    """A worker process: one line for each job begun, with the time since it was enqueued, in ms."""
    logging.disable(logging.CRITICAL)
    broker = _broker(kind, url)
    if refuse:
        _refuse_some(kind, broker)

    def job(at: int, failures: int) -> None:
        message = CurrentMessage.get_current_message()
        tried = 0 if message is None else message.options.get("tries" if kind == "ours" else "retries", 0)
        if tried < failures:
            if kind == "stock":
                raise RuntimeError("fails")
            assert message is not None
            dispose(message, Retry(0.001))
            return
        sys.stdout.write(f"{(time.monotonic_ns() - at) / 1e6}\n")
        sys.stdout.flush()
        if hold:
            time.sleep(3_600)
        if kind == "ours":
            assert message is not None
            dispose(message, Acknowledge())

    if kind == "stock":
        broker.add_middleware(CurrentMessage())
        options: dict[str, Any] = {"max_retries": 50, "min_backoff": 1, "max_backoff": 2}
        dramatiq.actor(broker=broker, actor_name="job", queue_name=QUEUE, **options)(job)
    else:
        dramatiq.actor(broker=broker, actor_name="job", queue_name=QUEUE)(job)
    # What both wait before they try again to say what became of a message: only so that the run is shorter.
    vars(sys.modules["dramatiq.worker"])["POST_PROCESS_MESSAGE_RETRY_DELAY_SECS"] = 0.05
    dramatiq.Worker(broker, worker_threads=_THREADS, worker_timeout=_TIMEOUT_MS[kind]).start()
    threading.Event().wait()


def _refuse_some(kind: str, broker: Any) -> None:
    """The server is gone at the instant of every fiftieth retry, as in a restart."""
    calls = iter(range(1, 1_000_000_000))

    def maybe() -> None:
        if next(calls) % _REFUSED_EVERY == 0:
            raise redis.ConnectionError("Connection refused")

    if kind == "stock":
        enqueue = broker.enqueue

        def enqueue_or_not(message: Message[Any], *, delay: int | None = None) -> Message[Any]:
            if delay is not None:
                maybe()
            stored: Message[Any] = enqueue(message, delay=delay)
            return stored

        broker.enqueue = enqueue_or_not
        return
    move = broker.move

    def move_or_not(command: str, *args: Any) -> Any:
        if command == "retry":
            maybe()
        return move(command, *args)

    broker.move = move_or_not


@contextlib.contextmanager
def _worker(kind: str, url: str, *flags: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.bench.broker", "--worker", kind, "--url", url, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _enqueue(producer: Any, count: int = 1, *, failures: int = 0, actor: str = "job") -> None:
    for _ in range(count):
        kwargs = {"at": time.monotonic_ns(), "failures": failures}
        producer.enqueue(Message(queue_name=QUEUE, actor_name=actor, args=(), kwargs=kwargs, options={}))


def _next(process: subprocess.Popen[str]) -> float:
    assert process.stdout is not None
    return float(process.stdout.readline())


def _percentiles(values: Sequence[float]) -> str:
    ordered = sorted(values)
    shown = (f"p{part} {ordered[min(len(ordered) - 1, len(ordered) * part // 100)]:7.1f}" for part in (50, 90, 99))
    return "  ".join(shown)


def idle(kind: str, url: str, jobs: int) -> str:
    """The pick-up latency of an idle worker, and what it costs to be one."""
    producer, latencies = _broker(kind, url), []
    with _worker(kind, url) as process, redis.Redis.from_url(url) as raw:
        _enqueue(producer)
        _next(process)
        for _ in range(jobs):
            time.sleep(random.uniform(0.5, 1.5))
            _enqueue(producer)
            latencies.append(_next(process))
        cpu, commands, begun = _cpu_seconds(process.pid), _commands(raw), time.monotonic()
        time.sleep(10)
        seconds = time.monotonic() - begun
        burden = 100 * (_cpu_seconds(process.pid) - cpu) / seconds
        asked = (_commands(raw) - commands) / seconds
    return f"{_percentiles(latencies)} ms ({jobs} jobs); idle: {burden:.1f} % of a core, {asked:.0f} commands/s"


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _commands(raw: redis.Redis) -> int:
    return int(raw.info("stats")["total_commands_processed"])


def recover(kind: str, url: str, rounds: int, limit_seconds: float) -> str:
    """From `kill -9` of the worker that has the job to the job in another one."""
    producer, taken = _broker(kind, url), []
    for _ in range(rounds):
        with redis.Redis.from_url(url) as raw:
            raw.flushall()
        with _worker(kind, url, "--hold") as victim:
            _enqueue(producer)
            _next(victim)
            with _worker(kind, url) as heir:
                time.sleep(1)
                victim.kill()
                begun = time.monotonic()
                timer = threading.Timer(limit_seconds, heir.kill)
                timer.start()
                assert heir.stdout is not None
                line = heir.stdout.readline()
                timer.cancel()
        if not line:
            return f"not within {limit_seconds:g} s (given up)"
        taken.append(time.monotonic() - begun)
    return f"p50 {sorted(taken)[len(taken) // 2]:.1f} s, max {max(taken):.1f} s ({rounds} kills)"


def retry(kind: str, url: str, jobs: int, *flags: str) -> str:
    """Seven failing attempts each, then one that succeeds: how many jobs never succeed."""
    producer = _broker(kind, url)
    _enqueue(producer, jobs, failures=_ATTEMPTS)
    done: list[str] = []
    with _worker(kind, url, *flags) as process, redis.Redis.from_url(url) as raw:
        reader = threading.Thread(target=lambda: done.extend(iter(process.stdout.readline, "")))  # type: ignore[union-attr]  # it is a pipe
        reader.start()
        quiet = 0
        while len(done) < jobs and quiet < 20:
            time.sleep(0.25)
            quiet = 0 if _held(kind, raw) else quiet + 1
        process.kill()
        reader.join()
    return f"{jobs - len(done)} of {jobs:,} lost"


def _held(kind: str, raw: redis.Redis) -> int:
    places = (".msgs", ".later") if kind == "ours" else (".msgs", ".DQ.msgs")
    names = [f"{_NAMESPACE[kind]}:{QUEUE}{place}" for place in places]
    return sum(int(raw.zcard(name) if name.endswith("later") else raw.hlen(name)) for name in names)


def unknown(kind: str, url: str, jobs: int) -> str:
    """Jobs for an actor that the worker does not know, as in a rolling deployment."""
    producer = _broker(kind, url)
    _enqueue(producer, jobs, actor="other")
    with _worker(kind, url), redis.Redis.from_url(url) as raw:
        while _held(kind, raw):
            time.sleep(0.1)
        kept = int(raw.hlen(f"{_NAMESPACE[kind]}:{QUEUE}.XQ.msgs"))
        if kind == "stock":
            # Its maintenance, as it comes a week later.
            late = _broker(kind, url, dead_message_ttl=1, maintenance_chance=1_000_000)
            time.sleep(0.01)
            late.do_fetch(QUEUE, 1)
            left = int(raw.hlen(f"{_NAMESPACE[kind]}:{QUEUE}.XQ.msgs"))
            return f"{jobs - kept} of {jobs:,} lost at once, {jobs - left:,} after its dead_message_ttl (7 days)"
    return f"{jobs - kept} of {jobs:,} lost, then or later"


def main() -> None:
    """Run it all, one kind after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--latencies", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--worker", choices=_KINDS)
    parser.add_argument("--url")
    parser.add_argument("--hold", action="store_true")
    parser.add_argument("--refuse", action="store_true")
    given = parser.parse_args()
    if given.worker:
        work(given.worker, given.url, hold=given.hold, refuse=given.refuse)
        return
    measures: dict[str, Callable[[str, str], str]] = {
        "idle pick-up": lambda kind, url: idle(kind, url, given.latencies),
        "recovery": lambda kind, url: recover(kind, url, given.rounds, given.limit),
        f"{_ATTEMPTS} failing attempts": lambda kind, url: retry(kind, url, given.jobs),
        "and refused retries": lambda kind, url: retry(kind, url, given.jobs, "--refuse"),
        "unknown actor": lambda kind, url: unknown(kind, url, given.jobs),
    }
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), *DURABLE)
        server.start()
        try:
            for name, measure in measures.items():
                for kind in _KINDS:
                    with server.client() as raw:
                        raw.flushall()
                    sys.stdout.write(f"{name:<20} {kind:<6} {measure(kind, server.url)}\n")
                    sys.stdout.flush()
        finally:
            server.kill()


if __name__ == "__main__":
    main()
