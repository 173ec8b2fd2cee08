"""Any order of deliveries, words, deaths and restarts, on real queues beside a dictionary that says where each job is.

A job is in the queue, in a worker's hand, among the dead letters, or done with. What a worker gets must be in the queue
by the dictionary: nothing that was acknowledged comes back. In the end everything that should be there is fetched:
nothing was lost. `--hypothesis-profile=nightly` runs a hundred times as many examples.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Protocol, TypeVar

import pytest
import redis
from dramatiq.broker import MessageProxy
from dramatiq.errors import ConnectionClosed
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from idem.errors import BrokerUnavailable
from tests import services
from tests.contracts.brokers import Broker, Worker
from tests.contracts.redis_harness import RedisHarness
from tests.contracts.sqs_harness import SqsHarness
from tests.fakes import make_email
from tests.valkey import DURABLE, Server
from tests.workers.brokers.sqs.parts import NO_WAIT
from workers.brokers.base import Acknowledge, Bury, Disposition, Retry
from workers.brokers.redis import RedisBroker
from workers.brokers.servers import connect
from workers.jobs import QUEUE, email_message

_PATIENCE_SECONDS: Final = 10.0
_WORKERS: Final = 2
#: No worker of a test is silent for so long: only the machine says who is dead.
_VISIBILITY_SECONDS: Final = 600.0
#: After so many deaths without a word, `queue.lua` takes a message for what kills.
_DEATHS: Final = 10

_T = TypeVar("_T")

_said: st.SearchStrategy[Disposition | None] = st.sampled_from(
    [Acknowledge(), Acknowledge(), Retry(0), Retry(0.02), Bury("because"), None]
)
_numbers = st.integers(0, 9)


class Place(Enum):
    """Where a job is, as far as anybody was told."""

    QUEUE = auto()
    HAND = auto()
    DEAD = auto()
    DONE = auto()


class Harness(Protocol):
    """What the machine does to a queue; see `tests.contracts.brokers.Harness`."""

    def open(self) -> Any: ...
    def die(self, broker: Any) -> None: ...
    def expire(self, broker: Any) -> None: ...
    def restart(self) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class _Hand:
    """One worker and the job that it has; `lost`: others were given it, and it does not know."""

    broker: Broker
    worker: Worker
    message: MessageProxy | None = None
    lost: bool = False


class BrokerMachine(RuleBasedStateMachine):
    """`exact`: the broker counts at one instant, forgets a stranger's words, and knows who has died how often."""

    def __init__(self, harness: Harness, *, exact: bool) -> None:
        super().__init__()
        self._harness = harness
        self._exact = exact
        self._places: dict[str, Place] = {}
        self._deaths: Counter[str] = Counter()
        self._producer: Broker = harness.open()
        self._hands = [self._hire() for _ in range(_WORKERS)]

    def teardown(self) -> None:
        try:
            self._drain()
        finally:
            self._harness.close()

    @rule(delay=st.sampled_from([None, None, 30]))
    def enqueue(self, delay: int | None) -> None:
        key = f"k{len(self._places)}"
        self._producer.enqueue(email_message(make_email(key), key)[0], delay=delay)
        self._places[key] = Place.QUEUE

    @precondition(lambda self: self._any(Place.QUEUE) and self._free())
    @rule()
    def receive(self) -> None:
        """By whichever worker gets it: one of them may have it in store already."""
        hand, message = self._fetch(self._free())
        key = message.kwargs["key"]
        assert self._places[key] is Place.QUEUE, f"{key} came, although it is {self._places[key].name}"
        hand.message, hand.lost = message, False
        self._places[key] = Place.HAND

    @precondition(lambda self: self._busy())
    @rule(number=_numbers, said=_said)
    def finish(self, number: int, said: Disposition | None) -> None:
        hand, message, key = self._in_hand(number)
        hand.message = None
        hand.worker.finish(message, said)
        if hand.lost:
            return
        self._deaths[key] = 0
        self._places[key] = _place_after(said)

    @precondition(lambda self: self._busy())
    @rule(number=_numbers)
    def give_back(self, number: int) -> None:
        hand, message, key = self._in_hand(number)
        hand.message = None
        hand.worker.consumer.requeue([message])
        if not hand.lost:
            self._places[key] = Place.QUEUE

    @rule(number=st.integers(0, _WORKERS - 1))
    def die(self, number: int) -> None:
        hand = self._hands[number]
        if self._spared(hand):
            return
        self._harness.expire(hand.broker)
        self._harness.die(hand.broker)
        self._bereave(hand)
        self._hands[number] = self._hire()

    @precondition(lambda self: self._exact and self._busy())
    @rule(number=_numbers)
    def lose(self, number: int) -> None:
        """It lives, but was not heard of for too long: what it says of its job later is nobody's business."""
        hand, _, _ = self._in_hand(number)
        self._harness.expire(hand.broker)
        self._bereave(hand)
        hand.lost = True

    @precondition(lambda self: self._exact)
    @rule()
    def restart(self) -> None:
        self._harness.restart()
        for hand in self._hands:
            hand.worker = self._connect(hand.broker)

    @precondition(lambda self: self._any(Place.DEAD))
    @rule(number=_numbers, again=st.booleans())
    def decide(self, number: int, again: bool) -> None:  # noqa: FBT001 - drawn by name
        """What a person does about a dead letter."""
        letters = sorted(self._letters().items())
        key, letter = letters[number % len(letters)]
        assert self._producer.requeue_dead(letter) if again else self._producer.drop_dead(letter)
        self._places[key] = Place.QUEUE if again else Place.DONE
        self._deaths[key] = 0

    @precondition(lambda self: self._exact)
    @invariant()
    def the_counts_are_right(self) -> None:
        backlog, places = self._answered(self._producer.backlog), Counter(self._places.values())
        assert (backlog.pending, backlog.dead) == (places[Place.QUEUE] + places[Place.HAND], places[Place.DEAD])

    def _drain(self) -> None:
        """Everything that should be there is, and nothing else."""
        for number, hand in enumerate(self._hands):
            if not self._spared(hand):
                self.die(number)
            elif hand.message is not None:
                self.give_back(self._busy().index(hand))
        while self._any(Place.QUEUE):
            hand, message = self._fetch(self._free())
            key = message.kwargs["key"]
            assert self._places[key] is Place.QUEUE, f"{key} came, although it is {self._places[key].name}"
            hand.worker.finish(message, Acknowledge())
            self._places[key] = Place.DONE
        assert set(self._letters()) == {key for key, place in self._places.items() if place is Place.DEAD}
        for hand in self._hands:
            assert next(hand.worker.consumer) is None

    def _fetch(self, hands: list[_Hand]) -> tuple[_Hand, MessageProxy]:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for hand in hands:
                message = next(hand.worker.consumer)
                if isinstance(message, MessageProxy):
                    return hand, message
        raise AssertionError(f"nothing comes any more of {self._places}")

    def _letters(self) -> dict[str, Any]:
        """Until there are as many as there must be: a queue of dead letters may show them one by one."""
        expected = sum(place is Place.DEAD for place in self._places.values())
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while len(found := {str(letter.key): letter for letter in self._producer.dead_letters()}) < expected:
            assert time.monotonic() < deadline, f"{expected} dead letters, and {len(found)} are found"
        return found

    def _hire(self) -> _Hand:
        broker: Broker = self._harness.open()
        return _Hand(broker, self._connect(broker))

    def _connect(self, broker: Broker) -> Worker:
        return self._answered(lambda: Worker(broker, prefetch=1))

    def _answered(self, ask: Callable[[], _T]) -> _T:
        """A server that was started again has cut every connection: the first word on each is lost."""
        for _ in range(20):
            try:
                return ask()
            except (ConnectionClosed, BrokerUnavailable, redis.RedisError):
                time.sleep(0.01)
        return ask()

    def _bereave(self, hand: _Hand) -> None:
        if hand.message is None or hand.lost:
            return
        key = hand.message.kwargs["key"]
        self._deaths[key] += 1
        buried = self._exact and self._deaths[key] >= _DEATHS
        self._places[key] = Place.DEAD if buried else Place.QUEUE

    def _spared(self, hand: _Hand) -> bool:
        """Where deaths are counted by the queue itself, too many would bury the job."""
        return not self._exact and hand.message is not None and self._deaths[hand.message.kwargs["key"]] >= 2

    def _any(self, place: Place) -> bool:
        return place in self._places.values()

    def _free(self) -> list[_Hand]:
        return [hand for hand in self._hands if hand.message is None]

    def _busy(self) -> list[_Hand]:
        return [hand for hand in self._hands if hand.message is not None]

    def _in_hand(self, number: int) -> tuple[_Hand, MessageProxy, str]:
        busy = self._busy()
        hand = busy[number % len(busy)]
        assert hand.message is not None
        return hand, hand.message, hand.message.kwargs["key"]


def _place_after(said: Disposition | None) -> Place:
    match said:
        case Acknowledge():
            return Place.DONE
        case Bury():
            return Place.DEAD
        case _:
            return Place.QUEUE


class _Redis(RedisHarness):
    """Only whom the machine says to be dead is taken for it."""

    def expire(self, broker: RedisBroker) -> None:
        self._own.link.client.zadd(f"{self._own.namespace}:__heartbeats__", {broker.broker_id: 1})
        self._own.move("maintain", QUEUE, int(_VISIBILITY_SECONDS * 1000), QUEUE)


@pytest.fixture
def server(tmp_path: Any) -> Iterator[Server]:
    server = Server(tmp_path / "valkey", *DURABLE)
    server.start()
    yield server
    server.kill()


def _run(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max(1, examples * settings().max_examples // 100),
            stateful_step_count=steps,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.brokers.base.UNSAID_SECONDS", 0.02)


def test_a_queue_on_valkey_loses_nothing_and_repeats_nothing_that_is_done(server: Server) -> None:
    def make(namespace: str) -> RedisBroker:
        return RedisBroker(connect(server.url), namespace=namespace, visibility_seconds=_VISIBILITY_SECONDS)

    def restart() -> None:
        server.kill()
        server.start()

    class Machine(BrokerMachine):
        def __init__(self) -> None:
            super().__init__(_Redis(make, restart=restart), exact=True)

    _run(Machine, 8, 30)


def test_a_queue_on_sqs_loses_nothing_and_repeats_nothing_that_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*NO_WAIT)
    endpoint = services.ministack()

    class Machine(BrokerMachine):
        def __init__(self) -> None:
            super().__init__(SqsHarness(endpoint), exact=False)

    _run(Machine, 2, 12)
