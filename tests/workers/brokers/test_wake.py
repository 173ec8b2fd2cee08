"""An idle worker is woken by a job: one worker by one job, never too late, and without running round for nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from dramatiq.broker import MessageProxy

from tests.workers.parts import Valkey, make_email, wait_for
from workers.brokers.base import Acknowledge, Retry, dispose
from workers.brokers.redis import RedisBroker
from workers.brokers.servers import connect
from workers.jobs import QUEUE, email_message

#: By itself, a worker looks after so long; a test that ends well before was woken.
_NEVER_SECONDS = 600.0


class Idle:
    """A worker that is idle: a thread that asks for a message until it gets one, as dramatiq's does."""

    def __init__(self, broker: RedisBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broker = broker
        self.consumer = broker.consume(QUEUE, prefetch=1, timeout=100)
        self.got: list[MessageProxy] = []
        self.fetches = 0
        self._stop = threading.Event()
        self._move = broker.move
        monkeypatch.setattr(broker, "move", self._count)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_for(lambda: self.fetches)

    def _count(self, command: str, *args: str) -> Any:
        self.fetches += command == "fetch"
        return self._move(command, *args)

    def _run(self) -> None:
        while not self._stop.is_set():
            message = next(self.consumer)
            if isinstance(message, MessageProxy):
                self.got.append(message)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def make_broker(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], RedisBroker]]:
    """Brokers whose workers never look by themselves."""
    monkeypatch.setattr("workers.brokers.redis._LOOK_SECONDS", _NEVER_SECONDS)
    made: list[RedisBroker] = []

    def make() -> RedisBroker:
        broker = RedisBroker(connect(valkey.url), namespace="test", visibility_seconds=10 * _NEVER_SECONDS)
        broker.declare_queue(QUEUE)
        made.append(broker)
        return broker

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def make_idle(make_broker: Callable[[], RedisBroker], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Idle]]:
    idle: list[Idle] = []

    def make() -> Idle:
        idle.append(Idle(make_broker(), monkeypatch))
        return idle[-1]

    yield make
    for one in idle:
        one.stop()


def _enqueue(broker: RedisBroker, count: int = 1, *, delay: int | None = None) -> None:
    for number in range(count):
        broker.enqueue(email_message(make_email(number), None)[0], delay=delay)


def test_a_new_job_wakes_an_idle_worker(make_idle: Callable[[], Idle], make_broker: Callable[[], RedisBroker]) -> None:
    idle = make_idle()

    _enqueue(make_broker())

    wait_for(lambda: idle.got)


def test_a_job_between_the_look_and_the_wait_is_not_missed(
    make_broker: Callable[[], RedisBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumer has looked and found nothing; the job comes before it blocks."""
    broker = make_broker()
    consumer = broker.consume(QUEUE, prefetch=1, timeout=60_000)
    woken = broker.woken

    def late(queue_name: str, seconds: float) -> bool:
        _enqueue(broker)
        return woken(queue_name, seconds)

    monkeypatch.setattr(broker, "woken", late)

    assert next(consumer) is None
    assert next(consumer) is not None


def test_many_jobs_at_once_wake_as_many_workers(
    make_idle: Callable[[], Idle], make_broker: Callable[[], RedisBroker]
) -> None:
    """Each takes one, as it has no room for more, and wakes the next: none of the jobs stays."""
    workers = [make_idle() for _ in range(4)]

    _enqueue(make_broker(), 4)

    wait_for(lambda: all(worker.got for worker in workers))


def test_one_job_does_not_wake_all_workers(
    make_idle: Callable[[], Idle], make_broker: Callable[[], RedisBroker]
) -> None:
    workers = [make_idle() for _ in range(6)]
    before = sum(worker.fetches for worker in workers)

    _enqueue(make_broker())
    wait_for(lambda: any(worker.got for worker in workers))
    for worker in workers:
        worker.stop()

    assert sum(worker.fetches for worker in workers) - before <= 2


def test_a_delayed_job_wakes_one_worker_when_it_is_due(
    make_idle: Callable[[], Idle], make_broker: Callable[[], RedisBroker]
) -> None:
    workers = [make_idle() for _ in range(4)]
    before = sum(worker.fetches for worker in workers)

    _enqueue(make_broker(), delay=300)
    wait_for(lambda: any(worker.got for worker in workers))
    for worker in workers:
        worker.stop()

    assert sum(worker.fetches for worker in workers) - before <= 5


def test_an_earlier_delayed_job_is_not_kept_waiting_by_a_later_one(
    make_idle: Callable[[], Idle], make_broker: Callable[[], RedisBroker]
) -> None:
    producer = make_broker()
    _enqueue(producer, delay=500_000)
    idle = make_idle()

    _enqueue(producer, delay=100)

    wait_for(lambda: idle.got)


def test_a_retry_wakes_a_worker_when_it_is_due(make_idle: Callable[[], Idle]) -> None:
    idle = make_idle()
    _enqueue(idle.broker)
    (message,) = wait_for(lambda: idle.got)

    dispose(message, Retry(0.1))
    idle.consumer.ack(message)

    wait_for(lambda: len(idle.got) == 2)


def test_what_is_given_back_wakes_another(make_idle: Callable[[], Idle]) -> None:
    stopping = make_idle()
    _enqueue(stopping.broker)
    (message,) = wait_for(lambda: stopping.got)
    stopping.stop()
    other = make_idle()

    stopping.consumer.requeue([message])

    wait_for(lambda: other.got)


def test_who_was_woken_and_stops_passes_it_on(make_broker: Callable[[], RedisBroker]) -> None:
    """The wake-up was taken by a worker that stops before it has looked."""
    stopping = make_broker()
    consumer = stopping.consume(QUEUE, prefetch=1, timeout=10)
    _enqueue(stopping)
    assert stopping.woken(QUEUE, 1)
    other = make_broker()
    assert not other.woken(QUEUE, 0.01)

    consumer.close()

    assert other.woken(QUEUE, 1)


def test_a_worker_without_room_leaves_the_wake_up_to_others(
    make_idle: Callable[[], Idle], make_broker: Callable[[], RedisBroker]
) -> None:
    busy = make_idle()
    _enqueue(busy.broker)
    wait_for(lambda: busy.got)

    _enqueue(busy.broker)

    assert make_broker().woken(QUEUE, 10)
    (message,) = busy.got
    dispose(message, Acknowledge())
    busy.consumer.ack(message)
    wait_for(lambda: len(busy.got) == 2)


def test_the_wake_list_does_not_grow(make_broker: Callable[[], RedisBroker], valkey: Valkey) -> None:
    broker = make_broker()
    _enqueue(broker, 50)

    with valkey.client() as raw:
        assert raw.llen(f"{broker.namespace}:{QUEUE}.wake") == 1


def test_a_lost_wake_up_delays_no_job_for_long(
    make_broker: Callable[[], RedisBroker], valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever took it was killed at that instant; here, nobody was woken at all."""
    monkeypatch.setattr("workers.brokers.redis._LOOK_SECONDS", 0.2)
    idle = Idle(make_broker(), monkeypatch)
    ready = f"{idle.broker.namespace}:{QUEUE}"

    with valkey.client() as raw:
        raw.hset(f"{ready}.msgs", "id", email_message(make_email(), None)[0].encode())
        raw.rpush(ready, "id")

    wait_for(lambda: idle.got)
    idle.stop()


def test_an_idle_worker_asks_the_server_for_little(make_idle: Callable[[], Idle], valkey: Valkey) -> None:
    with valkey.client() as raw:
        make_idle()
        before = _commands(raw)
        begun = time.monotonic()
        wait_for(lambda: time.monotonic() - begun > 1)
        asked = _commands(raw) - before

    # The blocking pops of 0.1 s each, and what this test asks itself.
    assert asked < 40


def _commands(raw: redis.Redis) -> int:
    return int(raw.info("stats")["total_commands_processed"])
