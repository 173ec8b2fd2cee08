"""The Redis broker against a real Valkey server: where a message is, at every step and after every accident."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import dramatiq
import pytest
import redis
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.errors import ConnectionClosed

from idem.errors import BrokerUnavailable
from tests.workers.parts import Running, Sandbox, StartIdem, Valkey, make_email, wait_for
from workers.brokers.base import Acknowledge, Backlog, Bury, Retry, dispose
from workers.brokers.redis import RedisBroker
from workers.brokers.servers import connect
from workers.jobs import QUEUE, email_message

_VISIBILITY_SECONDS = 0.6
#: Keys of the broker's own, for looking behind its back.
_NS = "{idem:test}"
_READY, _MESSAGES, _DEAD = f"{_NS}:{QUEUE}", f"{_NS}:{QUEUE}.msgs", f"{_NS}:{QUEUE}.XQ.msgs"


class Side:
    """One worker's side of the queue, driven by hand."""

    def __init__(self, url: str) -> None:
        self.broker = RedisBroker(connect(url), namespace="test", visibility_seconds=_VISIBILITY_SECONDS)
        self.broker.declare_queue(QUEUE)
        self.consumer: Consumer = self.broker.consume(QUEUE, prefetch=100, timeout=10)

    def enqueue(self, count: int = 1) -> list[str]:
        messages = [email_message(make_email(number), f"k{number}")[0] for number in range(1, count + 1)]
        return [self.broker.enqueue(message).message_id for message in messages]

    def fetch(self) -> MessageProxy:
        found = wait_for(lambda: next(self.consumer))
        assert isinstance(found, MessageProxy)
        return found

    def finish(self, message: MessageProxy, said: Acknowledge | Retry | Bury) -> None:
        dispose(message, said)
        self.consumer.ack(message)

    def backlog(self) -> tuple[int, int, int, int]:
        seen = self.broker.backlog()
        return seen.ready, seen.delayed, seen.in_flight, seen.dead


@pytest.fixture
def make_side(valkey: Valkey) -> Iterator[Callable[[], Side]]:
    sides: list[Side] = []

    def make() -> Side:
        sides.append(Side(valkey.url))
        return sides[-1]

    yield make
    for side in sides:
        side.broker.close()


@pytest.fixture
def side(make_side: Callable[[], Side]) -> Side:
    return make_side()


@pytest.fixture
def raw(valkey: Valkey) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        yield client


def _put(raw: redis.Redis, message_id: str, data: bytes) -> None:
    """What anybody may write into the queue."""
    raw.hset(_MESSAGES, message_id, data)
    raw.rpush(_READY, message_id)


def _wire(**changes: Any) -> bytes:
    message, _ = email_message(make_email(), "k1")
    return json.dumps(message.asdict() | changes).encode()


class TestPlaces:
    def test_backlog_is_right_at_each_stage(self, side: Side) -> None:
        side.enqueue(3)
        assert side.backlog() == (3, 0, 0, 0)

        first, second, third = side.fetch(), side.fetch(), side.fetch()
        assert side.backlog() == (0, 0, 3, 0)

        side.finish(first, Acknowledge())
        assert side.backlog() == (0, 0, 2, 0)

        side.finish(second, Retry(60))
        assert side.backlog() == (0, 1, 1, 0)

        side.finish(third, Bury("because"))
        assert side.backlog() == (0, 1, 0, 1)
        assert side.broker.backlog().pending == 1

    def test_messages_come_in_order_and_complete(self, side: Side) -> None:
        sent = side.enqueue(5)

        got = [side.fetch() for _ in sent]

        assert [message.message_id for message in got] == sent
        assert [message.kwargs["key"] for message in got] == ["k1", "k2", "k3", "k4", "k5"]

    def test_a_delayed_message_becomes_ready_on_time(self, side: Side) -> None:
        begun = time.time()
        side.broker.enqueue(email_message(make_email(), "k1")[0], delay=300)
        assert side.backlog() == (0, 1, 0, 0)
        assert next(side.consumer) is None

        message = side.fetch()

        assert 0.3 <= time.time() - begun < 3
        assert message.kwargs["key"] == "k1"
        assert side.backlog() == (0, 0, 1, 0)

    def test_a_retried_message_comes_again_as_it_was_with_its_tries_counted(self, side: Side) -> None:
        (sent,) = side.enqueue()
        first = side.fetch()
        side.finish(first, Retry(0))
        second = side.fetch()
        side.finish(second, Retry(0.05))
        third = side.fetch()

        assert [message.options.get("tries", 0) for message in (first, second, third)] == [0, 1, 2]
        assert {message.message_id for message in (first, second, third)} == {sent}
        assert third.kwargs == first.kwargs
        assert third.message_timestamp == first.message_timestamp

    def test_a_message_of_which_nothing_was_said_comes_again(self, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workers.brokers.base.UNSAID_SECONDS", 0.05)
        (sent,) = side.enqueue()
        side.consumer.ack(side.fetch())
        assert side.backlog() == (0, 1, 0, 0)

        assert side.fetch().message_id == sent

    def test_a_buried_message_is_kept_with_the_reason(self, side: Side) -> None:
        side.enqueue()
        message = side.fetch()
        side.finish(message, Bury("its key already stands for another email"))

        (letter,) = side.broker.dead_letters()
        assert letter.reason == "its key already stands for another email"
        assert json.loads(letter.payload)["kwargs"] == message.kwargs

    def test_the_dead_letters_outlive_maintenance(self, side: Side, raw: redis.Redis) -> None:
        """Dramatiq's own maintenance drops them after a week."""
        side.enqueue()
        side.finish(side.fetch(), Bury("no"))
        month_ago = (time.time() - 30 * 86_400) * 1000
        message_id = cast("bytes", raw.hkeys(_DEAD)[0])
        raw.zadd(f"{_NS}:{QUEUE}.XQ", {message_id: month_ago})

        side.broker._maintained_at = 0.0
        side.broker.maintain(QUEUE)

        assert side.backlog() == (0, 0, 0, 1)

    def test_enqueueing_the_same_message_again_is_a_second_copy_under_the_same_key(self, side: Side) -> None:
        """A producer whose answer was lost repeats; the ledger makes one of the two."""
        message, _ = email_message(make_email(), "k1")
        side.broker.enqueue(message)
        side.broker.enqueue(message)

        assert {side.fetch().message_id, side.fetch().message_id} == {message.message_id}

    def test_delaying_the_same_message_again_is_one_copy(self, side: Side) -> None:
        message, _ = email_message(make_email(), "k1")
        side.broker.enqueue(message, delay=60_000)
        side.broker.enqueue(message, delay=60_000)

        assert side.backlog() == (0, 1, 0, 0)

    def test_a_second_copy_of_an_id_is_never_counted_as_less_than_nothing(self, side: Side, raw: redis.Redis) -> None:
        side.enqueue()
        (message_id,) = raw.lrange(_READY, 0, -1)
        raw.rpush(_READY, message_id)
        message = side.fetch()
        assert side.fetch() == message
        raw.rpush(_READY, message_id)
        side.finish(message, Acknowledge())
        assert side.backlog() == (1, 0, 0, 0)

        assert next(side.consumer) is None
        assert side.backlog() == (0, 0, 0, 0)

    def test_two_namespaces_do_not_see_each_other(self, side: Side, valkey: Valkey) -> None:
        side.enqueue()
        other = RedisBroker(connect(valkey.url), namespace="other", visibility_seconds=1)
        other.declare_queue(QUEUE)

        assert other.backlog() == Backlog(0, 0, 0, 0)
        other.close()


def test_a_message_is_in_one_place_at_every_instant(make_side: Callable[[], Side]) -> None:
    """Retries, burials and acknowledgements of four workers, against a thread that sums all the places all the time."""
    jobs = 40
    sides = [make_side() for _ in range(4)]
    sides[0].enqueue(jobs)
    watcher, stop = make_side(), threading.Event()
    sums: Counter[int] = Counter()
    gone = threading.Lock()
    acknowledged = 0

    def watch() -> None:
        while not stop.is_set():
            with gone:
                sums[sum(watcher.backlog()) + acknowledged] += 1

    def work(side: Side, number: int) -> None:
        nonlocal acknowledged
        for turn in range(60):
            message = next(side.consumer)
            if message is None:
                continue
            choice = (turn + number) % 6
            if choice == 0:
                with gone:
                    side.finish(message, Acknowledge())
                    acknowledged += 1
            else:
                side.finish(message, Bury("x") if choice == 1 else Retry(0.002 * choice))

    watching = threading.Thread(target=watch)
    working = [threading.Thread(target=work, args=(side, number)) for number, side in enumerate(sides)]
    for thread in (watching, *working):
        thread.start()
    for thread in working:
        thread.join()
    stop.set()
    watching.join()

    assert set(sums) == {jobs}
    assert sums[jobs] > 20


class TestPoison:
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xff\xfe",
            b"null",
            b"[]",
            b"{",
            b"[" * 100_000,
            b'{"actor_name": "idem"}',
            _wire(unknown=1),
            _wire(args=None),
            _wire(args=7),
            _wire(kwargs=None),
            _wire(kwargs=[1]),
            _wire(options=None),
            _wire(options=[1]),
            _wire(actor_name=None),
            _wire(actor_name=["idem"]),
            _wire(message_id=None),
            _wire(message_id={}),
            _wire(message_timestamp="now"),
            _wire(message_timestamp=None),
            _wire(message_timestamp=10**400),
            _wire(message_timestamp=-1),
        ],
    )
    def test_what_cannot_be_a_message_is_buried_as_it_came_and_others_go_on(
        self, side: Side, raw: redis.Redis, data: bytes
    ) -> None:
        _put(raw, "poison", data)
        (sent,) = side.enqueue()

        assert side.fetch().message_id == sent
        assert raw.hgetall(_DEAD) == {b"poison": data}

    @pytest.mark.parametrize(
        "options",
        [
            {"eta": 1},
            {"eta": "soon"},
            {"eta": 9e99},
            {"throws": "Exception"},
            {"pipe_target": {"actor_name": "idem"}},
            {"on_success": "idem", "on_failure": "idem"},
            {"max_retries": 0, "time_limit": 1, "max_age": 0},
            {"tries": -1},
            {"tries": "many"},
            {"tries": 10**400},
            {"tries": True},
            {"redis_message_id": "another"},
            {"reason": "mine"},
        ],
    )
    def test_options_from_the_wire_have_no_effect(self, side: Side, raw: redis.Redis, options: dict[str, Any]) -> None:
        _put(raw, "id", _wire(options=options))

        assert side.fetch().options == {"redis_message_id": "id"}

    def test_the_queue_that_a_message_names_has_no_effect(self, side: Side, raw: redis.Redis) -> None:
        """Dramatiq looks up the consumer by that name, in a `finally` that nothing guards."""
        _put(raw, "id", _wire(queue_name="elsewhere"))

        assert side.fetch().queue_name == QUEUE

    def test_a_delayed_id_without_its_message_does_not_stop_the_queue(self, side: Side, raw: redis.Redis) -> None:
        raw.zadd(f"{_NS}:{QUEUE}.later", {"lost": 1})
        (sent,) = side.enqueue()

        assert side.fetch().message_id == sent

    def test_a_message_in_hand_shows_nothing_of_its_email(self, side: Side) -> None:
        """Dramatiq writes messages into its log lines."""
        (sent,) = side.enqueue()
        message = side.fetch()

        assert (str(message), repr(message)) == (sent, sent)


class TestWorkerThreads:
    """Dramatiq's own threads with our broker between them and Redis."""

    @pytest.fixture
    def performed(self, side: Side, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        """An actor that acknowledges, in one thread; the keys that it has seen."""
        monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.05)
        seen: list[str] = []

        def idem(*_args: Any, **payload: Any) -> None:
            message = dramatiq.middleware.CurrentMessage.get_current_message()
            assert message is not None
            seen.append(payload["key"])
            dispose(message, Acknowledge())

        dramatiq.actor(broker=side.broker, actor_name="idem", queue_name=QUEUE)(idem)
        worker = dramatiq.Worker(side.broker, worker_threads=1, worker_timeout=10)
        worker.start()
        yield seen
        worker.stop(5_000)

    @pytest.mark.parametrize(
        "poison",
        [
            {"actor_name": "other"},
            {"actor_name": ["idem"]},
            {"queue_name": "elsewhere"},
            {"options": {"throws": "x"}, "kwargs": {}},
            {"options": None},
            {"kwargs": {"self": 1}},
        ],
    )
    def test_no_message_ends_a_thread(
        self, side: Side, raw: redis.Redis, performed: list[str], poison: dict[str, Any]
    ) -> None:
        """There is one thread: if it ended, what comes later would stay."""
        _put(raw, "poison", _wire(**poison))
        wait_for(lambda: side.broker.backlog().ready == 0)
        side.enqueue(2)

        wait_for(lambda: performed[-2:] == ["k1", "k2"])

    def test_a_foreign_actor_is_buried_with_the_reason(
        self, side: Side, raw: redis.Redis, performed: list[str]
    ) -> None:
        _put(raw, "poison", _wire(actor_name="other", args=[1]))
        wait_for(lambda: side.backlog() == (0, 0, 0, 1))

        (letter,) = side.broker.dead_letters()
        assert letter.reason == "it names the actor other, not one of ours"
        assert performed == []

    def test_an_eta_from_the_wire_makes_no_copies(self, side: Side, raw: redis.Redis, performed: list[str]) -> None:
        _put(raw, "id", _wire(options={"eta": 1}))

        wait_for(lambda: side.backlog() == (0, 0, 0, 0))
        assert performed == ["k1"]


class TestAccidents:
    def test_a_worker_that_is_not_heard_of_loses_its_messages_to_another(self, make_side: Callable[[], Side]) -> None:
        first, second = make_side(), make_side()
        (sent,) = first.enqueue()
        first.fetch()
        begun = time.monotonic()

        assert second.fetch().message_id == sent
        assert _VISIBILITY_SECONDS * 0.5 < time.monotonic() - begun < _VISIBILITY_SECONDS * 2 + 1

    def test_who_is_gone_is_forgotten_and_producers_are_not_counted(
        self, make_side: Callable[[], Side], valkey: Valkey, raw: redis.Redis
    ) -> None:
        """There may be very many producers, and each that is counted costs the workers something."""
        producer = RedisBroker(connect(valkey.url), namespace="test", visibility_seconds=1)
        producer.declare_queue(QUEUE)
        producer.enqueue(email_message(make_email(), "k1")[0])
        assert producer.backlog().ready == 1
        producer.close()
        assert raw.zcard(f"{_NS}:__heartbeats__") == 0

        gone, stays = make_side(), make_side()
        gone.fetch()
        assert raw.zrange(f"{_NS}:__heartbeats__", 0, -1) == [gone.broker.broker_id.encode()]
        stays.fetch()
        assert raw.zrange(f"{_NS}:__heartbeats__", 0, -1) == [stays.broker.broker_id.encode()]
        assert raw.keys(f"{_NS}:__acks__*") == [f"{_NS}:__acks__.{stays.broker.broker_id}.{QUEUE}".encode()]

    def test_a_worker_that_is_heard_of_keeps_them(self, make_side: Callable[[], Side]) -> None:
        first, second = make_side(), make_side()
        first.enqueue()
        first.fetch()
        until = time.monotonic() + 3 * _VISIBILITY_SECONDS

        while time.monotonic() < until:
            assert next(first.consumer) is None
            assert next(second.consumer) is None

    @pytest.mark.parametrize("said", [Acknowledge(), Retry(0), Bury("late")])
    def test_a_zombie_that_speaks_late_changes_nothing(
        self, make_side: Callable[[], Side], said: Acknowledge | Retry | Bury
    ) -> None:
        zombie, holder = make_side(), make_side()
        zombie.enqueue()
        stale = zombie.fetch()
        held = holder.fetch()
        assert held == stale

        zombie.finish(stale, said)
        zombie.consumer.requeue([stale])

        assert holder.backlog() == (0, 0, 1, 0)
        holder.finish(held, Retry(60))
        assert holder.backlog() == (0, 1, 0, 0)

    def test_the_lost_answer_to_a_fetch_is_taken_back_at_the_next_connection(
        self, side: Side, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent = side.enqueue(2)
        kept = side.fetch()
        side.consumer.close()
        side.enqueue(1)
        _lose_answers(monkeypatch, side.broker, "fetch")
        with pytest.raises(ConnectionClosed):
            next(side.consumer)
        monkeypatch.undo()
        assert side.backlog() == (0, 0, 3, 0)

        side.consumer = side.broker.consume(QUEUE, prefetch=100, timeout=10)

        assert side.backlog() == (2, 0, 1, 0)
        assert sent[1] in {side.fetch().message_id, side.fetch().message_id}
        side.finish(kept, Acknowledge())

    @pytest.mark.parametrize(("said", "after"), [(Retry(60), (0, 1, 0, 0)), (Bury("x"), (0, 0, 0, 1))])
    def test_the_lost_answer_to_a_move_is_healed_by_repeating_it(
        self, side: Side, monkeypatch: pytest.MonkeyPatch, said: Retry | Bury, after: tuple[int, ...]
    ) -> None:
        side.enqueue()
        message = side.fetch()
        _lose_answers(monkeypatch, side.broker, "retry" if isinstance(said, Retry) else "bury")
        with pytest.raises(ConnectionClosed):
            side.finish(message, said)
        monkeypatch.undo()

        side.finish(message, said)

        assert side.backlog() == after

    def test_what_was_fetched_and_not_begun_is_given_back(self, side: Side) -> None:
        sent = side.enqueue(4)
        first, second = side.fetch(), side.fetch()

        side.consumer.requeue([second])
        side.consumer.close()

        assert side.backlog() == (3, 0, 1, 0)
        side.consumer = side.broker.consume(QUEUE, prefetch=100, timeout=10)
        assert {side.fetch().message_id for _ in range(3)} == set(sent) - {first.message_id}

    def test_a_worker_takes_no_more_than_it_may(self, make_side: Callable[[], Side]) -> None:
        side = make_side()
        side.consumer = side.broker.consume(QUEUE, prefetch=2, timeout=10)
        side.enqueue(5)
        first, _ = side.fetch(), side.fetch()
        assert next(side.consumer) is None
        assert side.backlog() == (3, 0, 2, 0)

        side.finish(first, Acknowledge())

        assert side.fetch().kwargs["key"] == "k3"

    def test_a_server_that_does_not_answer_is_a_broker_unavailable(self, own_valkey: Valkey) -> None:
        side = Side(own_valkey.url)
        own_valkey.kill()
        message, _ = email_message(make_email(), "k1")

        with pytest.raises(BrokerUnavailable, match="does not answer"):
            side.broker.enqueue(message)
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            side.broker.enqueue(message, delay=1)
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            side.broker.backlog()
        side.broker.close()

    def test_everything_outlives_a_kill_of_the_server(self, own_valkey: Valkey) -> None:
        side = Side(own_valkey.url)
        side.enqueue(4)
        side.finish(side.fetch(), Acknowledge())
        side.finish(side.fetch(), Retry(60))
        side.finish(side.fetch(), Bury("x"))
        held = side.fetch()
        own_valkey.kill()
        with pytest.raises(ConnectionClosed):
            side.finish(held, Retry(60))

        own_valkey.start()

        assert side.backlog() == (0, 1, 1, 1)
        side.finish(held, Retry(60))
        assert side.backlog() == (0, 2, 0, 1)
        side.broker.close()


def _lose_answers(monkeypatch: pytest.MonkeyPatch, broker: RedisBroker, lost: str) -> None:
    """Redis carries the command out, and its answer does not arrive."""
    move = broker.move

    def lose(command: str, *args: Any) -> Any:
        answer = move(command, *args)
        if command == lost:
            raise redis.ConnectionError("Connection reset by peer")
        return answer

    monkeypatch.setattr(broker, "move", lose)


_HOLDER = """
import sys, time
from workers.brokers.redis import RedisBroker
from workers.brokers.servers import connect
broker = RedisBroker(connect(sys.argv[1]), namespace="test", visibility_seconds=float(sys.argv[2]))
broker.declare_queue("default")
consumer = broker.consume("default", prefetch=4, timeout=10)
while True:
    message = next(consumer)
    if message is not None:
        print(message.message_id, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_messages_of_a_process_that_is_gone_come_to_another(
    side: Side, valkey: Valkey, number: signal.Signals
) -> None:
    sent = side.enqueue(3)
    command = [sys.executable, "-c", _HOLDER, valkey.url, str(_VISIBILITY_SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert {holder.stdout.readline().strip() for _ in sent} == set(sent)
            holder.send_signal(number)

            assert {side.fetch().message_id for _ in sent} == set(sent)
        finally:
            holder.kill()


def test_nothing_is_lost_when_the_server_is_killed_under_a_worker(
    own_valkey: Valkey, environ: dict[str, str], sandbox: Sandbox, start_idem: StartIdem
) -> None:
    """The worker goes on by itself once the server is back with its append-only file."""
    url = {"IDEM_BROKER_URL": own_valkey.url}
    broker = RedisBroker(connect(own_valkey.url), namespace=environ["IDEM_NAMESPACE"], visibility_seconds=2)
    broker.declare_queue(QUEUE)
    sandbox.order("delay", delay_ms=100)
    worker: Running = start_idem("worker", "--threads", "2", env=url)
    for number in range(30):
        broker.enqueue(email_message(make_email(number), f"k{number}")[0])
    wait_for(lambda: len(sandbox.accepted()) >= 5)

    own_valkey.kill()
    own_valkey.start()

    wait_for(lambda: broker.backlog().pending == 0)
    assert worker.stop() == 0
    assert sorted(sandbox.recipients()) == sorted(f"r{number}@example.com" for number in range(30))
    assert "Hello" not in worker.log
    assert "S 1" not in worker.log
    broker.close()


def test_the_log_of_a_failed_fetch_holds_no_email(
    side: Side, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    _put(raw, "poison", _wire(options=None))
    with caplog.at_level(logging.DEBUG):
        assert next(side.consumer) is None

    assert "'poison' cannot be decoded" in caplog.text
    assert "r1@example.com" not in caplog.text
