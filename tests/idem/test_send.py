"""One email through the protocol: what a crash, a pause or an answer at any instant comes to.

The provider keeps a log of what it accepted, as the real one would; the tests count there, not in the ledger.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from idem.bulk import Part, Ready
from idem.email import Email
from idem.errors import EmailError, JobError, LedgerUnavailable
from idem.keys import provider_key
from idem.ledger import Ledger
from idem.policy import Policy
from idem.protocol import Intent, Record, State
from idem.send import Ended, Later, Point, Refused, Render, Result, Sender
from idem.stores.memory import MemoryStore
from tests.fakes import Answer, Crash, FakeClock, FakeProvider, Fault, FaultyStore, make_email, outage

WINDOW = 86_400.0
READY = Ready("k", make_email())
RENDER = Render("k", "report", make_email)
Source = Ready | Render


@dataclass(slots=True)
class Bench:
    """A ledger, a provider, and as many workers as are asked for."""

    keyed: bool = True
    clock: FakeClock = field(default_factory=FakeClock)
    store: FaultyStore = field(default_factory=lambda: FaultyStore(MemoryStore()))
    provider: FakeProvider = field(init=False)
    policy: Policy = field(init=False)

    def __post_init__(self) -> None:
        self.provider = FakeProvider(self.clock, WINDOW if self.keyed else None)
        self.policy = Policy(window_seconds=WINDOW if self.keyed else None)

    def sender(self, reach: Callable[[Point], None] = lambda _: None, namespace: str = "app") -> Sender:
        ledger = Ledger(self.store, policy=self.policy, provider="fake", clock=self.clock, jitter=lambda: 1.0)
        return Sender(
            ledger,
            self.provider,
            clock=self.clock,
            http_timeout_seconds=self.policy.http_timeout_seconds,
            namespace=namespace,
            reach=reach,
        )

    def stored(self, key: str = "k") -> Record:
        record = self.store.read(key)
        assert record is not None
        return record

    def deliver(self, source: Source | Part, reach: Callable[[Point], None] = lambda _: None) -> Result | None:
        """One delivery of the message; None when nothing came of it, after which the lease runs out."""
        try:
            return self.sender(reach).send(source)
        except (Crash, LedgerUnavailable):
            self.clock.sleep(self.policy.lease_seconds)
            return None

    def redeliver(self, source: Source | Part) -> Ended:
        """Deliver until the message has done its work, as a queue does."""
        for _ in range(10):
            result = self.deliver(source)
            if isinstance(result, Ended):
                return result
            if isinstance(result, Later):
                self.clock.sleep(max(result.ready_at - self.clock.now(), 0))
        raise AssertionError("the message never ends")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def crash_at(point: Point) -> Callable[[Point], None]:
    def reach(reached: Point) -> None:
        if reached is point:
            raise Crash

    return reach


# The floor.


def test_a_ready_email_costs_two_writes(bench: Bench) -> None:
    result = bench.sender().send(READY)
    assert result == Ended(bench.stored())
    assert bench.stored().state is State.SENT
    assert bench.stored().message_id == "m1"
    assert bench.store.counted["swap"] == 2
    assert bench.provider.accepted == [(provider_key("app", "k", 0), READY.email.canonical())]


def test_a_ready_email_reads_nothing(bench: Bench) -> None:
    bench.sender().send(READY)
    assert bench.store.counted == {"swap": 2}


def test_a_rendered_email_costs_three_writes(bench: Bench) -> None:
    bench.sender().send(RENDER)
    assert bench.store.counted == {"swap": 3}
    assert bench.stored().state is State.SENT
    assert bench.stored().body is None, "what was sent need not be kept"


def test_a_redelivery_of_a_sent_email_costs_one_failed_write(bench: Bench) -> None:
    bench.sender().send(READY)
    bench.store.counted.clear()
    assert bench.sender().send(READY) == Ended(bench.stored())
    assert len(bench.provider.calls) == 1
    assert bench.store.counted["swap"] == 1


@pytest.mark.parametrize("source", [READY, RENDER], ids=lambda source: type(source).__name__)
def test_the_claim_is_durable_before_the_request_leaves(bench: Bench, source: Source) -> None:
    """Rule 1, seen from the provider at the moment of the call: SENDING, this claim, these bytes."""
    seen: list[Record] = []
    bench.provider.on_call = lambda _key: seen.append(bench.stored())
    bench.sender().send(source)
    (record,) = seen
    assert record.state is State.SENDING
    assert record.lease_until is not None
    assert record.lease_until > bench.clock.now() + bench.policy.http_timeout_seconds
    assert record.fingerprint == make_email().fingerprint()
    assert record.body == (None if source is READY else make_email().canonical())


@pytest.mark.parametrize("answer", [Answer.ACCEPT, Answer.INVALID])
def test_a_settled_record_never_moves_back(bench: Bench, answer: Answer) -> None:
    """Redelivered after a minute, a day, a year, and by a worker that had been paused all along."""
    bench.provider.script = [answer]
    bench.sender().send(READY)
    settled = bench.stored()
    assert settled.ended
    for pause in (0, 60, WINDOW, 365 * WINDOW):
        bench.clock.sleep(pause)
        assert bench.sender().send(READY) == Ended(settled)
    assert bench.stored() == settled
    assert len(bench.provider.calls) == 1


def test_namespaces_have_different_provider_keys(bench: Bench) -> None:
    bench.sender().send(READY)
    bench.sender(namespace="other").send(Ready("k2", make_email()))
    assert len({key for key, _ in bench.provider.calls}) == 2


# Crashes: FAULTS C4..C12, at every named instant and inside the call.

_BEFORE_THE_CLAIM = {Point.BEFORE_CLAIM}
_WHILE_RENDERING = {Point.CLAIMED, Point.RENDERED}
_UNSURE = {Point.FROZEN, Point.BEFORE_CALL, Point.ANSWERED}


def _in_doubt_without_keys(source: Source, point: Point) -> bool:
    """Where the matrix allows it: from the durable SENDING to the durable outcome."""
    return point in _UNSURE or (point is Point.CLAIMED and isinstance(source, Ready))


@pytest.mark.parametrize("source", [READY, RENDER], ids=lambda source: type(source).__name__)
@pytest.mark.parametrize("point", Point)
def test_a_crash_at_any_point_with_keys_is_one_acceptance(bench: Bench, source: Source, point: Point) -> None:
    assert bench.deliver(source, crash_at(point)) is None or point in {Point.FROZEN, Point.RENDERED}
    ended = bench.redeliver(source)
    assert ended.record.state is State.SENT
    assert len(bench.provider.accepted) == 1
    assert len(set(bench.provider.calls)) == 1, "the same bytes under the same key"


@pytest.mark.parametrize("source", [READY, RENDER], ids=lambda source: type(source).__name__)
@pytest.mark.parametrize("point", Point)
def test_a_crash_at_any_point_without_keys_is_in_doubt_just_where_it_must_be(source: Source, point: Point) -> None:
    bench = Bench(keyed=False)
    crashed = bench.deliver(source, crash_at(point)) is None
    ended = bench.redeliver(source)
    sent_before = len(bench.provider.accepted)
    if crashed and _in_doubt_without_keys(source, point):
        assert ended.record.state is State.IN_DOUBT
        assert sent_before == (1 if point is Point.ANSWERED else 0)
    else:
        assert ended.record.state is State.SENT
        assert sent_before == 1
    assert bench.redeliver(source).record.state is ended.record.state
    assert len(bench.provider.accepted) == sent_before, "an email in doubt is never sent again by itself"


@pytest.mark.parametrize("source", [READY, RENDER], ids=lambda source: type(source).__name__)
@pytest.mark.parametrize("point", Point)
def test_a_crash_whose_redelivery_comes_after_the_window_is_never_repeated(
    bench: Bench, source: Source, point: Point
) -> None:
    """K> in the matrix: as if the provider had no keys."""
    crashed = bench.deliver(source, crash_at(point)) is None
    bench.clock.sleep(2 * WINDOW)
    ended = bench.redeliver(source)
    in_doubt = crashed and _in_doubt_without_keys(source, point)
    assert ended.record.state is (State.IN_DOUBT if in_doubt else State.SENT)
    assert len(bench.provider.accepted) == (0 if in_doubt and point is not Point.ANSWERED else 1)


_ANSWERS = [
    Answer.ACCEPT,
    Answer.ACCEPT_THEN_SILENCE,
    Answer.ACCEPT_THEN_CRASH,
    Answer.SILENCE,
    Answer.CRASH,
    Answer.REFUSE,
    Answer.FORBID,
    Answer.INVALID,
]


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "keyless"])
@pytest.mark.parametrize("source", [READY, RENDER], ids=lambda source: type(source).__name__)
@pytest.mark.parametrize("points", [(), *[(point,) for point in Point], *itertools.combinations(Point, 2)], ids=str)
def test_crashes_and_answers_in_every_combination(keyed: bool, source: Source, points: Sequence[Point]) -> None:  # noqa: FBT001 - a parameter of the test
    """Up to two crashes and two odd answers: never two acceptances, an end that agrees with the provider's own log."""
    for answers in itertools.product(_ANSWERS, repeat=2):
        bench = Bench(keyed=keyed)
        bench.provider.script = list(answers)
        for point in points:
            result = bench.deliver(source, crash_at(point))
            if isinstance(result, Later):
                bench.clock.sleep(max(result.ready_at - bench.clock.now(), 0))
        ended = bench.redeliver(source)
        accepted = len(bench.provider.accepted)
        assert accepted <= 1, answers
        state = ended.record.state
        assert state is not State.SENT or accepted == 1, answers
        assert state is not State.REJECTED or accepted == 0, answers
        assert state is not State.IN_DOUBT or not keyed, answers
        assert state in {State.SENT, State.REJECTED, State.IN_DOUBT}


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "keyless"])
@pytest.mark.parametrize("write", range(1, 7))
@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.ANSWER_LOST, Fault.RETRIED])
@pytest.mark.parametrize("source", [READY, RENDER], ids=lambda source: type(source).__name__)
def test_a_ledger_fault_at_every_write(keyed: bool, write: int, fault: Fault, source: Source) -> None:  # noqa: FBT001 - a parameter of the test
    """What the driver repeats by itself changes nothing; what is raised ends in a redelivery; never two acceptances."""
    for answer in _ANSWERS:
        plain, bench = Bench(keyed=keyed), Bench(keyed=keyed)
        plain.provider.script, bench.provider.script = [answer], [answer]
        bench.store.faults = {write: fault}
        ended = bench.redeliver(source)
        if fault is Fault.RETRIED:
            assert ended.record.state is plain.redeliver(source).record.state
            assert bench.store.counted["swap"] == plain.store.counted["swap"]
            assert bench.provider.accepted == plain.provider.accepted
        accepted = len(bench.provider.accepted)
        assert accepted <= 1
        assert ended.record.state is not State.SENT or accepted == 1
        assert ended.record.state is not State.REJECTED or accepted == 0
        assert ended.record.state is not State.IN_DOUBT or not keyed


# Pauses: the worker stops at a point while the world goes on, and then goes on itself (FAULTS F21, F22).


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "keyless"])
@pytest.mark.parametrize("source", [READY, RENDER], ids=lambda source: type(source).__name__)
@pytest.mark.parametrize("before", [0.0, 61.0, 2 * WINDOW], ids=lambda seconds: f"{seconds:g}s")
@pytest.mark.parametrize("after", [0.0, 61.0, 2 * WINDOW], ids=lambda seconds: f"{seconds:g}s")
@pytest.mark.parametrize("point", Point)
def test_a_pause_at_any_point_is_never_a_second_acceptance(
    keyed: bool,  # noqa: FBT001 - a parameter of the test
    source: Source,
    before: float,
    after: float,
    point: Point,
) -> None:
    """Paused, another worker comes, paused on, awake: at most one, and what is known is recorded."""
    bench = Bench(keyed=keyed)
    results: list[Result | None] = []

    def pause(reached: Point) -> None:
        if reached is point:
            bench.clock.sleep(before)
            results.append(bench.deliver(source))
            bench.clock.sleep(after)

    results.append(bench.deliver(source, pause))
    ended = bench.redeliver(source)
    accepted = len(bench.provider.accepted)
    assert accepted <= 1
    assert (ended.record.state is State.SENT) == (accepted == 1), "an acceptance that a worker heard of is never lost"
    given_up = max(before, after) >= bench.policy.give_up_seconds
    assert ended.record.state in {State.SENT, State.IN_DOUBT} | ({State.REJECTED} if given_up else set())
    assert all(not isinstance(result, Ended) or result.record.ended for result in results)


def test_a_pause_between_the_lease_check_and_the_request_counts(bench: Bench) -> None:
    """The deadline starts before the lease is looked at. Otherwise: taken over, accepted, forgotten, sent again."""

    def pause(reached: Point) -> None:
        if reached is Point.BEFORE_CALL:
            bench.clock.sleep(bench.policy.lease_seconds)
            assert bench.redeliver(READY).record.state is State.SENT
            bench.clock.sleep(2 * WINDOW)

    assert isinstance(bench.deliver(READY, pause), Ended)
    assert len(bench.provider.accepted) == 1


@pytest.mark.parametrize("clock", ["wall", "booted"])
def test_a_suspended_machine_does_not_call(bench: Bench, clock: str) -> None:
    """A clock that stood still or was set back does not make a lease longer: the other one knows."""

    def suspend(reached: Point) -> None:
        if reached is Point.CLAIMED:
            setattr(bench.clock, clock, getattr(bench.clock, clock) + 45)

    result = bench.deliver(READY, suspend)
    assert isinstance(result, Later)
    assert bench.provider.calls == []
    assert bench.stored().state is State.RETRY
    assert bench.redeliver(READY).record.state is State.SENT


def test_too_little_lease_is_no_call(bench: Bench) -> None:
    """Not even with one second too few; with one more it is made."""
    for left, calls in ((20.0, 0), (20.5, 1)):
        bench = Bench()

        def pause(reached: Point, bench: Bench = bench, left: float = left) -> None:
            if reached is Point.CLAIMED:
                bench.clock.sleep(bench.policy.lease_seconds - left)

        bench.deliver(READY, pause)
        assert len(bench.provider.calls) == calls


# What is refused, and what is tried again.


def test_an_email_that_the_provider_cannot_express_is_rejected_without_a_call(bench: Bench) -> None:
    bench.provider.unsupported = True
    result = bench.sender().send(READY)
    assert isinstance(result, Ended)
    assert result.record.state is State.REJECTED
    assert result.record.reason is not None
    assert "tags" in result.record.reason
    assert bench.provider.calls == []


def test_a_refusal_is_tried_again_when_it_may_be(bench: Bench) -> None:
    bench.provider.script = [Answer.REFUSE]
    result = bench.sender().send(READY)
    assert isinstance(result, Later)
    assert result.cause is not None
    assert result.ready_at > bench.clock.now()
    early = bench.sender().send(READY)
    assert early == Later(result.ready_at, bench.stored())
    assert len(bench.provider.calls) == 1
    bench.clock.sleep(result.ready_at - bench.clock.now())
    assert isinstance(bench.sender().send(READY), Ended)
    assert len(bench.provider.accepted) == 1


def test_a_message_that_comes_twice_at_once_waits_for_the_claim(bench: Bench) -> None:
    """The second is told when the first one's lease ends."""
    second: list[Result | None] = []
    bench.provider.on_call = lambda _key: second.append(bench.deliver(READY))
    bench.sender().send(READY)
    (waiting,) = second
    assert isinstance(waiting, Later)
    assert waiting.ready_at == waiting.record.lease_until
    assert len(bench.provider.calls) == 1


def test_many_threads_with_one_message_make_one_call(bench: Bench) -> None:
    senders = [bench.sender() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda sender: sender.send(READY), senders))
    assert len(bench.provider.calls) == 1
    assert Counter(type(result) for result in results)[Refused] == 0
    assert bench.stored().state is State.SENT


def test_a_conflict_is_refused_and_noted(bench: Bench) -> None:
    """The first email stands; the second is not sent, not even later, and the record says that it was asked for."""
    bench.sender().send(READY)
    other = Ready("k", make_email("Another subject"))
    for _ in range(2):
        refused = bench.sender().send(other)
        assert isinstance(refused, Refused)
        assert refused.record.fingerprint == READY.email.fingerprint()
    assert isinstance(bench.sender().send(Render("k", "report", make_email)), Refused)
    assert [item.detail for item in bench.stored().evidence] == [other.email.fingerprint(), None]
    assert bench.stored().state is State.SENT
    assert len(bench.provider.calls) == 1


def test_a_key_that_the_provider_has_under_other_bytes_is_rejected_at_first(bench: Bench) -> None:
    bench.provider.script = [Answer.CONFLICT]
    result = bench.sender().send(READY)
    assert isinstance(result, Ended)
    assert result.record.state is State.REJECTED


def test_such_an_answer_to_a_replay_is_for_a_person(bench: Bench) -> None:
    bench.provider.script = [Answer.SILENCE, Answer.CONFLICT]
    assert bench.redeliver(READY).record.state is State.IN_DOUBT


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.ANSWER_LOST, Fault.LATE])
@pytest.mark.parametrize("source", [READY, RENDER], ids=lambda source: type(source).__name__)
def test_a_ledger_that_does_not_answer_means_do_not_send(bench: Bench, fault: Fault, source: Source) -> None:
    bench.store.faults = outage(1, fault)
    with pytest.raises(LedgerUnavailable):
        bench.sender().send(source)
    assert bench.provider.calls == []


@pytest.mark.parametrize("window", [86_400.0, None], ids=["keyed", "keyless"])
@pytest.mark.parametrize("write", [1, 2, 3])
def test_an_answer_that_the_ledger_lost_costs_nothing(bench: Bench, write: int, window: float | None) -> None:
    """Claim, freeze or settle was applied, and the ledger answers again at once: the own write is recognised."""
    bench.provider.window_seconds = window
    bench.store.faults = {write: Fault.ANSWER_LOST}
    result = bench.sender().send(RENDER)
    assert isinstance(result, Ended)
    assert result.record.state is State.SENT
    assert len(bench.provider.accepted) == 1


def test_a_freeze_that_is_not_answered_means_do_not_send(bench: Bench) -> None:
    bench.store.faults = outage(2, Fault.ANSWER_LOST)
    with pytest.raises(LedgerUnavailable):
        bench.sender().send(RENDER)
    assert bench.provider.calls == []


# Jobs that build their emails.


def test_the_frozen_bytes_are_sent_whatever_the_function_would_build_now(bench: Bench) -> None:
    """Also after a crash, and the function is not even asked."""
    built: list[Email] = []

    def build() -> Email:
        built.append(make_email(f"Built {len(built)}"))
        return built[-1]

    source = Render("k", "report", build)
    bench.provider.script = [Answer.SILENCE, Answer.REFUSE, Answer.CRASH]
    bench.redeliver(source)
    assert len(built) == 1
    assert len(bench.provider.calls) == 4
    assert {body for _, body in bench.provider.calls} == {built[0].canonical()}


def test_a_crash_before_the_freeze_builds_again(bench: Bench) -> None:
    subjects = iter(["first", "second"])
    source = Render("k", "report", lambda: make_email(next(subjects)))
    assert bench.deliver(source, crash_at(Point.RENDERED)) is None
    bench.redeliver(source)
    assert [body for _, body in bench.provider.accepted] == [make_email("second").canonical()]


def test_a_function_that_raises_is_tried_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """And what it says of an address does not get into the record."""
    caplog.set_level(logging.CRITICAL, "idem.send")
    attempts = iter([ValueError("no such user ann@example.com"), None])

    def build() -> Email:
        error = next(attempts)
        if error is not None:
            raise error
        return make_email()

    source = Render("k", "report", build)
    result = bench.sender().send(source)
    assert isinstance(result, Later)
    assert bench.stored().state is State.RETRY
    assert bench.stored().reason == "job report raised ValueError: no such user <address>"
    assert bench.stored().attempts == 0
    bench.redeliver(source)
    assert len(bench.provider.accepted) == 1


def test_a_function_that_keeps_raising_is_given_up(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "idem.send")

    def build() -> Email:
        raise ValueError("never")

    source = Render("k", "report", build)
    bench.sender().send(source)
    bench.clock.sleep(bench.policy.give_up_seconds)
    result = bench.sender().send(source)
    assert isinstance(result, Ended)
    assert result.record.state is State.REJECTED


@pytest.mark.parametrize("error", [EmailError("to", "is missing"), JobError("no such order")], ids=repr)
def test_a_function_that_cannot_succeed_is_rejected(bench: Bench, error: Exception) -> None:
    def build() -> Email:
        raise error

    result = bench.sender().send(Render("k", "report", build))
    assert isinstance(result, Ended)
    assert result.record.state is State.REJECTED
    assert str(error) in (result.record.reason or "")


@pytest.mark.parametrize("junk", ["an email", 7, {"to": "x"}, [make_email(), "x"], (email for email in [make_email()])])
def test_a_function_that_returns_junk_is_rejected(bench: Bench, junk: object) -> None:
    result = bench.sender().send(Render("k", "report", lambda: junk))  # type: ignore[arg-type,return-value]  # junk
    assert isinstance(result, Ended)
    assert result.record.state is State.REJECTED
    assert "must return" in (result.record.reason or "")
    assert bench.provider.calls == []


@pytest.mark.parametrize("nothing", [None, [], ()])
def test_a_function_may_build_nothing(bench: Bench, nothing: list[Email] | None) -> None:
    result = bench.sender().send(Render("k", "report", lambda: nothing))
    assert result == Ended(bench.stored())
    assert bench.stored().state is State.SPLIT
    assert bench.provider.calls == []


def test_a_list_is_split_into_sub_keys_that_never_change(bench: Bench) -> None:
    """Also when the function would now build others: what was built first is what the keys stand for."""
    emails = [make_email("one"), make_email("two")]
    first = bench.sender().send(Render("k", "report", lambda: emails))
    assert isinstance(first, Ended)
    assert first.emails == (Ready("k/1", emails[0]), Ready("k/2", emails[1]))
    again = bench.sender().send(Render("k", "report", lambda: [make_email("three")]))
    assert again == first
    for _ in range(2):
        for email in first.emails:
            assert isinstance(bench.sender().send(email), Ended)
    assert len(bench.provider.accepted) == 2
    assert bench.stored("k/1").state is State.SENT


@pytest.mark.parametrize("point", [Point.CLAIMED, Point.RENDERED])
def test_a_crash_before_a_split_costs_nothing(bench: Bench, point: Point) -> None:
    source = Render("k", "report", lambda: [make_email("one"), make_email("two")])
    assert bench.deliver(source, crash_at(point)) is None
    assert len(bench.redeliver(source).emails) == 2


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.ANSWER_LOST])
@pytest.mark.parametrize("write", range(1, 6))
def test_what_was_asked_for_of_a_durable_list_is_what_takes_over(bench: Bench, write: int, fault: Fault) -> None:
    """The function builds something else each time; a crash amid the asking must not mix two of them."""
    built = itertools.count()
    source = Render("k", "report", lambda: [make_email(f"{next(built)}"), make_email("two")])
    ledger = Ledger(bench.store, policy=bench.policy, provider="fake", clock=bench.clock)
    ledger.ask(Intent("k", job="report", call="{}"))
    bench.store.faults = outage(1 + write, fault)
    assert bench.deliver(source) is None
    bench.store.faults.clear()
    for email in bench.redeliver(source).emails:
        assert isinstance(bench.redeliver(email), Ended)
    assert [bench.stored(key).state for key in ("k", "k/1", "k/2")] == [State.SPLIT, State.SENT, State.SENT]
    assert len(bench.provider.accepted) == 2
    assert bench.stored("k/1").evidence == ()


def test_an_explicit_key_beats_the_sub_key(bench: Bench) -> None:
    """It is taken out of the email: no recipient sees it."""
    emails = [make_email("one", headers={"idempotency-KEY": "mine", "X-Kept": "yes"}), make_email("two")]
    result = bench.sender().send(Render("k", "report", lambda: emails))
    assert isinstance(result, Ended)
    assert result.emails == (
        Ready("mine", make_email("one", headers={"X-Kept": "yes"})),
        Ready("k/2", make_email("two")),
    )


def test_one_email_with_a_key_of_its_own_lives_under_that(bench: Bench) -> None:
    result = bench.sender().send(Render("k", "report", lambda: make_email(headers={"Idempotency-Key": "mine"})))
    assert isinstance(result, Ended)
    assert result.emails == (Ready("mine", make_email()),)
    assert isinstance(bench.sender().send(result.emails[0]), Ended)
    assert bench.stored("mine").state is State.SENT


def test_one_email_that_names_the_jobs_own_key_is_just_that(bench: Bench) -> None:
    """It must not be split off under the key that the job itself holds, where it would be refused for ever."""
    result = bench.sender().send(Render("k", "report", lambda: make_email(headers={"Idempotency-Key": "k"})))
    assert isinstance(result, Ended)
    assert result.record.state is State.SENT
    assert [body for _, body in bench.provider.accepted] == [make_email().canonical()]


@pytest.mark.parametrize("key", ["", "x" * 256, "\u200b"], ids=repr)
@pytest.mark.parametrize("several", [True, False])
def test_a_header_that_is_no_key_is_rejected(bench: Bench, key: str, several: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """It is found before anything is fixed: later, the others of a list could never be sent either."""
    email = make_email(headers={"Idempotency-Key": key})
    result = bench.sender().send(Render("k", "report", lambda: [email, make_email()] if several else email))
    assert isinstance(result, Ended)
    assert result.record.state is State.REJECTED
    assert "Idempotency-Key" in (result.record.reason or "")
    assert bench.provider.calls == []
