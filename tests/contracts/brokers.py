"""What every broker must do, whatever it keeps its messages in. Nothing here knows which one it is.

A broker's test module subclasses `BrokerContract` with a fixture `harness`. What a broker may take its time for is
waited for; what must never happen is looked for at the end.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.broker import Consumer, MessageProxy

from idem.clock import SystemClock
from idem.errors import BrokerUnavailable, IdemError
from idem.gate import Gate
from idem.ledger import Ledger
from idem.policy import Policy
from idem.protocol import State
from idem.send import Sender
from idem.stores.memory import MemoryStore
from tests.fakes import FakeClock, FakeProvider, make_email
from tests.workers.parts import wait_for
from workers.actors import Performer, declare_actor
from workers.brokers.base import Acknowledge, Backlog, Bury, Disposition, JobBroker, Retry, dispose
from workers.jobs import QUEUE, email_message, job_message


class Broker(JobBroker, Protocol):
    """A `JobBroker`, and what dramatiq's worker does with one."""

    actors: Any

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer: ...


class Harness(Protocol):
    """One queue of one broker, empty at first, and what can happen to it."""

    visibility_seconds: float
    #: The largest message that it takes; None where no email comes near the limit.
    limit_bytes: int | None

    def open(self) -> Broker:
        """The broker as a process of its own would have it; closed with the harness."""
        ...

    def die(self, broker: Broker) -> None:
        """The process of that broker is gone: not a sign of life comes from it any more."""
        ...

    def retire(self, broker: Broker) -> None:
        """That broker takes nothing more from the queue, and keeps what it has in hand."""
        ...

    def expire(self, broker: Broker) -> None:
        """What that broker holds is handed to others from now on, although it lives."""
        ...

    def disturb(self) -> None:
        """Each message that is ready is delivered once more, and all of them in another order."""
        ...

    def put(self, data: bytes) -> None:
        """What anybody may write into the queue."""
        ...

    def restart(self) -> None:
        """Kill the server and start it again; `pytest.skip` where there is none to kill."""
        ...

    def refuse(self) -> None:
        """From now on the server does not answer; `pytest.skip` where that cannot be had."""
        ...


class Worker:
    """A worker's side of the queue, driven by hand."""

    def __init__(self, broker: Broker, *, prefetch: int = 10) -> None:
        self.broker = broker
        self.consumer = broker.consume(QUEUE, prefetch=prefetch, timeout=50)

    def fetch(self) -> MessageProxy:
        message = wait_for(lambda: next(self.consumer))
        assert isinstance(message, MessageProxy)
        return message

    def finish(self, message: MessageProxy, said: Disposition | None) -> None:
        if said is not None:
            dispose(message, said)
        self.consumer.ack(message)


def _key(message: MessageProxy) -> str:
    key: str = message.kwargs["key"]
    return key


def _enqueue(broker: Broker, *keys: str, delay: int | None = None) -> None:
    for key in keys:
        broker.enqueue(email_message(make_email(key), key)[0], delay=delay)


def _answers(broker: Broker) -> bool:
    with contextlib.suppress(BrokerUnavailable):
        broker.backlog()
        return True
    return False


def _await(broker: Broker, **counts: int) -> None:
    """Wait until there is so much of each, and nothing of the rest."""
    expected = Backlog(**{name: counts.get(name, 0) for name in ("ready", "delayed", "in_flight", "dead")})
    wait_for(lambda: broker.backlog() == expected)


class _Contract:
    @pytest.fixture
    def broker(self, harness: Harness) -> Broker:
        return harness.open()

    @pytest.fixture
    def worker(self, harness: Harness) -> Worker:
        return Worker(harness.open())


class _Deliveries(_Contract):
    """What becomes of a message."""

    def test_at_first_it_is_empty(self, broker: Broker) -> None:
        assert broker.backlog() == Backlog(0, 0, 0, 0)
        assert list(broker.dead_letters()) == []
        assert all(isinstance(sentence, str) for sentence in broker.check())

    def test_a_message_arrives_as_it_was(self, broker: Broker, worker: Worker) -> None:
        sent = broker.enqueue(email_message(make_email("\u00e9\u4e2d\U0001f600", text="x" * 1_000), "k")[0])

        got = worker.fetch()

        assert (got.message_id, got.actor_name, got.args) == (sent.message_id, sent.actor_name, ())
        assert got.kwargs == sent.kwargs
        assert got.message_timestamp == sent.message_timestamp

    def test_a_job_arrives_as_it_was(self, broker: Broker, worker: Worker) -> None:
        broker.enqueue(job_message("report", [1, None, "x"], {"deep": {"list": [1.5, True]}}, "k")[0])

        assert worker.fetch().kwargs == {
            "key": "k", "job": "report", "args": [1, None, "x"], "kwargs": {"deep": {"list": [1.5, True]}}
        }  # fmt: skip

    @pytest.mark.parametrize("said", [Acknowledge(), Bury("because"), Retry(0), Retry(0.3), None], ids=str)
    def test_what_is_said_is_done(
        self, broker: Broker, worker: Worker, said: Disposition | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only what the actor acknowledged goes; what nothing was said of comes again."""
        monkeypatch.setattr("workers.brokers.base.UNSAID_SECONDS", 0.2)
        _enqueue(broker, "k")
        message = worker.fetch()
        _await(broker, in_flight=1)

        worker.finish(message, said)

        if isinstance(said, Acknowledge):
            _await(broker)
        elif isinstance(said, Bury):
            _await(broker, dead=1)
        else:
            again = worker.fetch()
            assert (again.message_id, again.kwargs) == (message.message_id, message.kwargs)
            worker.finish(again, Acknowledge())
            _await(broker)

    def test_tries_are_counted(self, broker: Broker, worker: Worker) -> None:
        _enqueue(broker, "k")
        tries = []
        for _ in range(4):
            message = worker.fetch()
            tries.append(message.options.get("tries", 0))
            worker.finish(message, Retry(0))

        assert tries == [0, 1, 2, 3]

    def test_a_delayed_message_comes_when_it_is_due_and_not_before(self, broker: Broker, worker: Worker) -> None:
        _enqueue(broker, "later", delay=1_500)
        _enqueue(broker, "now")

        first = worker.fetch()
        assert _key(first) == "now"
        worker.finish(first, Acknowledge())
        _await(broker, delayed=1)
        assert _key(worker.fetch()) == "later"

    def test_many_failing_attempts_lose_nothing(self, broker: Broker, worker: Worker) -> None:
        """The stock brokers lose a job by its seventh retry."""
        keys = [f"k{number}" for number in range(5)]
        _enqueue(broker, *keys)
        tries = Counter(dict.fromkeys(keys, 0))
        for _ in range(1_000):
            message = worker.fetch()
            assert message.options.get("tries", 0) == tries[_key(message)]
            tries[_key(message)] += 1
            worker.finish(message, Retry(0))
            if min(tries.values()) > 8:
                break

        assert sorted(tries) == keys
        assert min(tries.values()) > 8

    def test_two_workers_share_the_work(self, harness: Harness, broker: Broker) -> None:
        """However many one takes ahead of what it works on, it takes no more than that."""
        keys = [f"k{number:02}" for number in range(40)]
        _enqueue(broker, *keys)
        workers = [Worker(harness.open(), prefetch=4) for _ in range(2)]
        seen: list[list[str]] = [[], []]

        def take() -> bool:
            for worker, mine in zip(workers, seen, strict=True):
                if message := next(worker.consumer):
                    mine.append(_key(message))
                    worker.finish(message, Acknowledge())
            return sum(map(len, seen)) >= len(keys)

        wait_for(take)
        assert sorted(seen[0] + seen[1]) == keys
        assert all(seen)

    def test_what_was_fetched_and_not_begun_is_handed_back_at_once(self, harness: Harness, broker: Broker) -> None:
        """Not after the visibility timeout: a deployment must not stop the queue."""
        keys = [f"k{number}" for number in range(4)]
        _enqueue(broker, *keys)
        stopping = Worker(harness.open(), prefetch=4)
        kept, given_back = stopping.fetch(), stopping.fetch()
        stopping.consumer.requeue([given_back])
        stopping.consumer.close()

        _await(broker, ready=3, in_flight=1)
        other = Worker(broker)
        assert {_key(other.fetch()) for _ in range(3)} == set(keys) - {_key(kept)}

    def test_a_worker_that_stops_hands_back_what_it_had_not_begun(self, harness: Harness, broker: Broker) -> None:
        """Dramatiq's own threads: what was begun is finished, the rest goes back."""
        begun, go_on = threading.Event(), threading.Event()
        working = harness.open()

        def idem(**_payload: Any) -> None:
            message = dramatiq.middleware.CurrentMessage.get_current_message()
            assert message is not None
            begun.set()
            go_on.wait(30)
            dispose(message, Acknowledge())

        dramatiq.actor(broker=working, actor_name="idem", queue_name=QUEUE)(idem)  # type: ignore[call-overload]  # one of dramatiq's
        _enqueue(broker, *(f"k{number}" for number in range(5)))
        threads = dramatiq.Worker(working, worker_threads=1, worker_timeout=50)  # type: ignore[arg-type]  # the same
        threads.start()
        assert begun.wait(30)

        stopping = threading.Thread(target=threads.stop, args=(20_000,))
        stopping.start()
        go_on.set()
        stopping.join(30)

        assert not stopping.is_alive()
        found = wait_for(lambda: (seen := broker.backlog()).in_flight == 0 and seen)
        assert 0 < found.ready < 5


class _Accidents(_Contract):
    """What others do, and what breaks."""

    def test_the_messages_of_a_worker_that_died_come_to_another(self, harness: Harness, broker: Broker) -> None:
        keys = {"k1", "k2", "k3"}
        _enqueue(broker, *sorted(keys))
        gone = Worker(harness.open())
        assert {_key(gone.fetch()) for _ in keys} == keys

        harness.die(gone.broker)

        heir = Worker(broker)
        assert {_key(heir.fetch()) for _ in keys} == keys

    @pytest.mark.parametrize("said", [Acknowledge(), Retry(0), Bury("late"), None], ids=str)
    def test_a_worker_that_speaks_too_late_takes_nothing_from_its_heir(
        self, harness: Harness, broker: Broker, said: Disposition | None
    ) -> None:
        _enqueue(broker, "k")
        zombie = Worker(harness.open())
        stale = zombie.fetch()
        harness.retire(zombie.broker)
        harness.expire(zombie.broker)
        heir = Worker(broker)
        held = heir.fetch()

        zombie.finish(stale, said)
        heir.finish(held, Retry(0))

        assert _key(heir.fetch()) == "k"

    def test_messages_in_every_place_outlive_a_kill_of_the_server(self, harness: Harness, broker: Broker) -> None:
        worker = Worker(harness.open())
        _enqueue(broker, "held", "retried", "buried")
        for said in (None, Retry(60), Bury("because")):
            message = worker.fetch()
            if said is not None:
                worker.finish(message, said)
        _enqueue(broker, "ready")
        _enqueue(broker, "delayed", delay=60_000)

        harness.restart()

        # The first question may meet the connection that was lost with the server.
        wait_for(lambda: _answers(broker))
        _await(broker, ready=1, in_flight=1, delayed=2, dead=1)

    def test_a_server_that_does_not_answer_is_said_so(self, harness: Harness, broker: Broker) -> None:
        _enqueue(broker, "k")
        harness.refuse()

        for act in (lambda: _enqueue(broker, "k2"), lambda: _enqueue(broker, "k3", delay=10), broker.backlog):
            with pytest.raises(BrokerUnavailable) as caught:
                act()
            assert len(str(caught.value).splitlines()) == 1

    @pytest.mark.parametrize("data", [b"", b"\xff\x00", b"not json", b"[1]", b"7", b"{}", b'{"kwargs": 1}'])
    def test_what_cannot_be_decoded_is_kept_with_the_reason_and_stops_nobody(
        self, harness: Harness, broker: Broker, data: bytes
    ) -> None:
        harness.put(data)
        _enqueue(broker, "good")
        worker = Worker(broker)

        message = worker.fetch()
        assert _key(message) == "good"
        worker.finish(message, Acknowledge())
        wait_for(lambda: next(worker.consumer) is None and broker.backlog() == Backlog(0, 0, 0, 1))

        (letter,) = broker.dead_letters()
        assert letter.payload == data
        assert letter.reason
        assert (letter.key, letter.job) == (None, None)
        assert broker.requeue_dead(letter)
        wait_for(lambda: next(worker.consumer) is None and broker.backlog() == Backlog(0, 0, 0, 1))
        (letter,) = broker.dead_letters()
        assert letter.payload == data
        assert broker.drop_dead(letter)
        _await(broker)

    def test_a_message_for_another_actor_is_kept_with_the_reason(self, harness: Harness, broker: Broker) -> None:
        message, _ = email_message(make_email(), "k")
        broker.enqueue(Message(**(message.asdict() | {"actor_name": "other"})))
        worker = Worker(harness.open())

        worker.consumer.nack(worker.fetch())

        _await(broker, dead=1)
        (letter,) = broker.dead_letters()
        assert "other" in letter.reason

    def test_a_message_over_the_limit_is_refused_and_the_largest_one_is_not(
        self, harness: Harness, broker: Broker
    ) -> None:
        broker.enqueue(email_message(make_email(text="x" * 500_000), "large")[0])
        assert len(Worker(broker).fetch().kwargs["email"]["text"]) == 500_000
        if harness.limit_bytes is None:
            return
        with pytest.raises(IdemError) as caught:
            broker.enqueue(email_message(make_email(text="x" * harness.limit_bytes), "k")[0])
        assert not isinstance(caught.value, BrokerUnavailable)


class _DeadLetters(_Contract):
    """What a person can see and do."""

    @pytest.fixture
    def buried(self, harness: Harness, broker: Broker) -> Broker:
        """An email that was tried twice, and a job."""
        worker = Worker(harness.open())
        _enqueue(broker, "first")
        worker.finish(worker.fetch(), Retry(0))
        worker.finish(worker.fetch(), Retry(0))
        worker.finish(worker.fetch(), Bury("because"))
        broker.enqueue(job_message("report", [1], {}, "second")[0])
        worker.finish(worker.fetch(), Bury("no worker knew the job"))
        harness.retire(worker.broker)
        _await(broker, dead=2)
        return broker

    def test_they_say_what_they_are(self, buried: Broker) -> None:
        letters = {letter.key: letter for letter in buried.dead_letters()}

        assert {key: (one.job, one.reason, one.tries) for key, one in letters.items()} == {
            "first": ("email", "because", 2), "second": ("report", "no worker knew the job", 0)
        }  # fmt: skip
        assert all(letter.buried_at is None or letter.buried_at > 1e9 for letter in letters.values())
        assert "@" not in repr(letters)
        assert len({letter.id for letter in letters.values()}) == 2

    def test_looking_changes_nothing(self, buried: Broker) -> None:
        first = {letter.id for letter in buried.dead_letters()}

        assert {letter.id for letter in buried.dead_letters()} == first
        _await(buried, dead=2)

    def test_one_comes_again_under_its_key_with_its_tries_forgotten(self, harness: Harness, buried: Broker) -> None:
        letter = next(letter for letter in buried.dead_letters() if letter.key == "first")

        assert buried.requeue_dead(letter)

        again = Worker(harness.open()).fetch()
        assert (_key(again), again.options.get("tries", 0)) == ("first", 0)
        assert [letter.key for letter in buried.dead_letters()] == ["second"]

    def test_all_come_again_while_they_are_gone_through(self, buried: Broker) -> None:
        assert [buried.requeue_dead(letter) for letter in buried.dead_letters()] == [True, True]
        _await(buried, ready=2)

    def test_one_is_dropped_and_the_other_stays(self, buried: Broker) -> None:
        letter = next(letter for letter in buried.dead_letters() if letter.key == "first")

        assert buried.drop_dead(letter)

        assert [letter.key for letter in buried.dead_letters()] == ["second"]
        _await(buried, dead=1)

    def test_what_is_no_longer_dead_is_said_so(self, buried: Broker) -> None:
        letter = next(iter(buried.dead_letters()))
        assert buried.drop_dead(letter)

        assert not buried.requeue_dead(letter)
        assert not buried.drop_dead(letter)


class _Once(_Contract):
    """With the ledger behind it, whatever the queue does, one email a key is accepted."""

    @pytest.fixture
    def stage(self, harness: Harness) -> Iterator[Stage]:
        stage = Stage(harness)
        yield stage
        stage.stop()

    @pytest.mark.parametrize("seed", range(3))
    def test_duplicates_in_any_order(self, harness: Harness, stage: Stage, seed: int) -> None:
        keys = [f"k{number}" for number in range(12)]
        random.Random(seed).shuffle(keys)
        _enqueue(stage.producer, *keys)
        harness.disturb()
        harness.disturb()

        stage.run()

        assert stage.accepted() == Counter(keys)

    def test_an_ambiguous_enqueue_that_is_repeated(self, stage: Stage) -> None:
        messages = [email_message(make_email(), f"k{number}")[0] for number in range(6)]
        for message in (*messages, *messages):
            stage.producer.enqueue(message)

        stage.run()

        assert stage.accepted() == Counter(f"k{number}" for number in range(6))

    def test_deliveries_that_expire_while_they_are_worked_on(self, harness: Harness, stage: Stage) -> None:
        """Somebody else gets the message in the middle of the call; both finish."""
        keys = [f"k{number}" for number in range(4)]
        _enqueue(stage.producer, *keys)

        def expire(_key: str) -> None:
            for broker in stage.brokers:
                harness.expire(broker)

        stage.provider.on_call = expire
        stage.run()

        assert stage.accepted() == Counter(keys)

    def test_deliveries_that_are_late(self, stage: Stage) -> None:
        _enqueue(stage.producer, "k1", "k2", delay=400)
        _enqueue(stage.producer, "k1", "k2")

        stage.run()

        assert stage.accepted() == Counter(["k1", "k2"])


class Stage:
    """Two workers with dramatiq's threads on one queue, one ledger, and a provider with a log of its own."""

    def __init__(self, harness: Harness) -> None:
        self.producer = harness.open()
        self.provider = FakeProvider(FakeClock())
        policy = Policy(lease_seconds=1.0, http_timeout_seconds=0.5, window_seconds=86_400.0, backoff_seconds=0.1)
        clock = SystemClock()
        cells = MemoryStore()
        self.ledger = Ledger(cells, policy=policy, provider="fake", clock=clock)
        sender = Sender(self.ledger, self.provider, clock=clock, http_timeout_seconds=0.5, namespace="test")
        self.brokers = [harness.open() for _ in range(2)]
        self._keys: dict[str, str] = {}
        self._workers = []
        for broker in self.brokers:
            gate = Gate(cells, "fake", clock=clock, probe_seconds=1.0)
            performer = Performer(sender, broker, {}, ledger=self.ledger, gate=gate, policy=policy, clock=clock)
            declare_actor(broker, performer)  # type: ignore[arg-type]  # one of dramatiq's
            self._workers.append(dramatiq.Worker(broker, worker_threads=2, worker_timeout=50))  # type: ignore[arg-type]  # the same

    def run(self) -> None:
        """Until nothing is left."""
        for worker in self._workers:
            worker.start()
        wait_for(lambda: self.producer.backlog().pending == 0, seconds=60)

    def accepted(self) -> Counter[str]:
        """How often the provider accepted the email of each key; nothing may have ended in another way."""
        assert self.producer.backlog() == Backlog(0, 0, 0, 0)
        found = [record.key for record in self.ledger.list(State.SENT, 1_000)]
        calls = Counter(key for key, _ in self.provider.accepted)
        assert sum(calls.values()) == len(found)
        assert set(calls.values()) == {1}
        return Counter(found)

    def stop(self) -> None:
        for worker in self._workers:
            if worker.workers:
                worker.stop(5_000)


class BrokerContract(_Deliveries, _Accidents, _DeadLetters, _Once):
    """All of it: subclass this with a fixture `harness`."""
