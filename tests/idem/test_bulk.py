"""A list of emails as one job: the same result for the caller, however its provider takes many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem import bulk
from idem.bulk import Bulk, Group, Ready, cut
from idem.clock import Deadline
from idem.email import Attachment, Email
from idem.errors import LedgerUnavailable
from idem.events import EventNotes, Happened
from idem.keys import is_range, provider_key
from idem.ledger import Ledger
from idem.outcome import Accepted, NotSent, Outcome, Rejected, Unknown
from idem.policy import Policy
from idem.protocol import InDoubt, Record, Resolution, State
from idem.providers.base import Batch, Batched, BatchKeys, Contract
from idem.reconcile import Patience, Reconciler, Step
from idem.send import Ended, Later, Point, Refused, Render, Resume, Sender
from idem.stores.memory import MemoryStore
from tests.fakes import Answer, Crash, FakeClock, FakeProvider, make_email

EMAILS = tuple(make_email(f"number {number}") for number in range(1, 5))
KEYS = [f"news/{number}" for number in range(1, 5)]
RANGE = Bulk("news/1-4", EMAILS)


@dataclass(slots=True)
class BatchProvider(FakeProvider):
    """Takes several emails in one request, in one of the two ways; `requests` are the sizes of those it took."""

    keys: BatchKeys | None = None
    most: int = 100
    answers: list[Batched | Outcome] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    limited: float | None = None

    @property
    def contract(self) -> Contract:
        batch = None if self.keys is None else Batch(path="/batch", most=self.most, keys=self.keys, attachments=False)
        # Named, as a class with slots is another one than `super()` without arguments looks for.
        contract: Contract = FakeProvider.contract.fget(self)  # type: ignore[attr-defined]
        return replace(contract, batch=batch)

    def send_all(self, emails: Sequence[Email], provider_key: str, deadline: Deadline) -> Batched:
        assert deadline.left() > 0
        self.requests.append(len(emails))
        whole = self.send(_joined(emails), provider_key, deadline)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Batched):
            return answer
        if not isinstance(whole, Accepted):
            return Batched(whole)
        return Batched(whole, tuple(Accepted(f"{whole.message_id}-{number}") for number in range(len(emails))))

    def send_each(self, emails: Sequence[tuple[Email, str]], deadline: Deadline) -> tuple[Outcome, ...]:
        self.requests.append(len(emails))
        if self.limited is not None:
            return tuple(NotSent("HTTP 429", limited=True, retry_after=self.limited) for _ in emails)
        return tuple(self.send(email, key, deadline) for email, key in emails)


def _joined(emails: Sequence[Email]) -> Email:
    return make_email("\n".join(email.subject for email in emails)[:900].replace("\n", " | "))


class Bench:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.provider = BatchProvider(self.clock)
        self.second: FakeProvider | None = None

    @property
    def ledger(self) -> Ledger:
        policy = Policy(window_seconds=self.provider.window_seconds)
        others = {} if self.second is None else {"second": Policy(window_seconds=self.second.window_seconds)}
        return Ledger(
            self.store,
            policy=policy,
            provider="fake",
            clock=self.clock,
            others=others,
            fallback=next(iter(others), None),
            jitter=lambda: 1.0,
        )

    def sender(self, reach: Callable[[Point], None] = lambda _: None) -> Sender:
        return Sender(
            self.ledger,
            self.provider,
            others=[] if self.second is None else [self.second],
            clock=self.clock,
            http_timeout_seconds=20.0,
            namespace="default",
            reach=reach,
        )

    def drain(self, parts: Sequence[bulk.Part]) -> None:
        """Every message until it has ended, as workers do."""
        queue = list(parts)
        for _ in range(1_000):
            if not queue:
                return
            part = queue.pop(0)
            result = self.sender().send(part)
            if isinstance(result, Later):
                self.clock.sleep(max(0.0, result.ready_at - self.clock.now()))
                queue.append(part)
            elif isinstance(result, Ended):
                queue += result.emails
        raise AssertionError("it never ends")

    def states(self) -> list[State]:
        return [self.record(key).state for key in KEYS]

    def record(self, key: str) -> Record:
        record = self.store.read(key)
        assert record is not None, key
        return record


@pytest.fixture(params=[None, *BatchKeys], ids=["one at a time", "a key each", "a key for all"])
def bench(request: pytest.FixtureRequest) -> Bench:
    bench = Bench()
    bench.provider.keys = request.param
    return bench


@pytest.fixture
def whole() -> Bench:
    bench = Bench()
    bench.provider.keys = BatchKeys.REQUEST
    return bench


@pytest.fixture
def each() -> Bench:
    bench = Bench()
    bench.provider.keys = BatchKeys.EACH
    return bench


# The same for every provider.


def test_each_email_is_sent_and_found_under_its_key(bench: Bench) -> None:
    bench.drain(list(cut("news", EMAILS)))
    assert bench.states() == [State.SENT] * 4
    assert len({bench.record(key).message_id for key in KEYS}) == 4
    assert [bench.record(key).fingerprint for key in KEYS] == [email.fingerprint() for email in EMAILS]
    one_by_one = bench.provider.keys is None
    assert bench.provider.requests == ([] if one_by_one else [4])


def test_the_same_bulk_again_sends_nothing(bench: Bench) -> None:
    for _ in range(3):
        bench.drain(list(cut("news", EMAILS)))
    assert len(bench.provider.accepted) == (1 if bench.provider.keys is BatchKeys.REQUEST else 4)


def test_nor_does_one_of_its_emails_alone(bench: Bench) -> None:
    bench.drain(list(cut("news", EMAILS)))
    before = len(bench.provider.calls)
    assert isinstance(bench.sender().send(Ready("news/2", EMAILS[1])), Ended)
    assert isinstance(bench.sender().send(Ready("news/2", EMAILS[2])), Refused)
    assert len(bench.provider.calls) == before


def test_another_list_under_the_same_key_is_refused(bench: Bench) -> None:
    bench.drain([RANGE])
    assert isinstance(bench.sender().send(Bulk("news/1-4", EMAILS[::-1])), Refused)


@pytest.mark.parametrize("point", Point)
def test_a_crash_anywhere_costs_nothing(bench: Bench, point: Point) -> None:
    def crash(reached: Point) -> None:
        if reached is point:
            raise Crash

    for part in cut("news", EMAILS):
        try:
            bench.sender(crash).send(part)
        except Crash:
            bench.clock.sleep(61)
    bench.drain(list(cut("news", EMAILS)))
    assert bench.states() == [State.SENT] * 4
    keys = [key for key, _ in bench.provider.accepted]
    assert len(keys) == len(set(keys)) == (1 if bench.provider.keys is BatchKeys.REQUEST else 4)


def test_a_jobs_list_goes_the_same_way(bench: Bench) -> None:
    result = bench.sender().send(Render("news", "letters", lambda: list(EMAILS)))
    assert isinstance(result, Ended)
    bench.drain(result.emails)
    assert bench.states() == [State.SENT] * 4


def test_a_change_of_provider_in_between_sends_nothing_twice() -> None:
    """What its record says of a range was decided once: split, or one request."""
    for before in (None, *BatchKeys):
        for after in (None, *BatchKeys):
            bench = Bench()
            bench.provider.keys = before
            bench.drain(list(cut("news", EMAILS)))
            accepted = len(bench.provider.accepted)
            bench.provider.keys = after
            bench.drain(list(cut("news", EMAILS)))
            assert len(bench.provider.accepted) == accepted, (before, after)


# One key for the request.


def test_a_request_is_the_effect_and_costs_one_attempt(whole: Bench) -> None:
    whole.drain([RANGE])
    ((key, _),) = whole.provider.accepted
    assert key == provider_key("default", "news/1-4", 0)
    assert whole.record("news/1-4").state is State.SENT
    assert whole.record("news/3").evidence[-1].detail == "in the request of news/1-4"


def test_each_status_of_an_accepted_request_is_recorded(whole: Bench) -> None:
    whole.provider.answers = [
        Batched(Accepted("b"), (Accepted("m1"), Rejected("suppressed"), Accepted("m3"), Accepted("m4")))
    ]
    whole.drain([RANGE])
    assert whole.states() == [State.SENT, State.REJECTED, State.SENT, State.SENT]
    assert whole.record("news/2").reason == "suppressed"


@pytest.mark.parametrize("refused", [NotSent("HTTP 429"), Unknown("no answer")])
def test_a_request_that_fails_is_repeated_with_the_same_bytes(whole: Bench, refused: Outcome) -> None:
    whole.provider.answers = [Batched(refused)]
    whole.drain([RANGE])
    assert whole.states() == [State.SENT] * 4
    bodies = {body for _, body in whole.provider.calls}
    assert len(bodies) == 1
    assert len(whole.provider.accepted) == 1


def test_a_crash_between_the_records_of_its_emails_is_made_good(whole: Bench) -> None:
    """Some of them are written, the request is not settled: it is replayed, and the others are written then."""
    written: list[str] = []

    class Failing(MemoryStore):
        def swap(self, old: Record | None, new: Record) -> Record | None:
            if new.key in KEYS:
                written.append(new.key)
                if len(written) == 3:
                    raise Crash
            return super().swap(old, new)

    whole.store = Failing()
    with pytest.raises(Crash):
        whole.sender().send(RANGE)
    assert whole.store.read("news/4") is None
    whole.clock.sleep(61)
    whole.drain([RANGE])
    assert whole.states() == [State.SENT] * 4
    assert len(whole.provider.accepted) == 1


def test_a_ledger_that_goes_silent_in_between_settles_nothing(whole: Bench) -> None:
    class Silent(MemoryStore):
        def swap(self, old: Record | None, new: Record) -> Record | None:
            if new.key in KEYS:
                raise LedgerUnavailable("it does not answer")
            return super().swap(old, new)

    whole.store = Silent()
    with pytest.raises(LedgerUnavailable):
        whole.sender().send(RANGE)
    assert whole.record("news/1-4").state is State.SENDING


def test_what_the_provider_takes_fewer_of_is_cut_once_more(whole: Bench) -> None:
    whole.provider.most = 3
    whole.drain([RANGE])
    assert whole.provider.requests == [3]
    assert whole.states() == [State.SENT] * 4
    assert whole.record("news/1-3").state is State.SENT
    whole.provider.most = 100
    whole.drain([RANGE])
    assert whole.provider.requests == [3], "how it was cut is in its record"


def test_emails_that_cannot_go_together_go_alone(whole: Bench) -> None:
    file = Attachment(filename="a.txt", content=b"x")
    emails = (*EMAILS[:3], make_email("with a file", attachments=[file]))
    whole.drain([Bulk("news/1-4", emails)])
    assert whole.provider.requests == []
    assert whole.states() == [State.SENT] * 4


def test_one_in_doubt_keeps_its_list_and_is_resumed(whole: Bench) -> None:
    whole.provider.window_seconds = 200.0
    whole.provider.answers = [Batched(Unknown("no answer"))]
    first = whole.sender().send(RANGE)
    assert isinstance(first, Later)
    whole.clock.sleep(300)
    assert isinstance(whole.sender().send(RANGE), Ended)
    stored = whole.record("news/1-4")
    assert stored.state is State.IN_DOUBT
    assert bulk.decode(stored.body or b"") == EMAILS
    ledger = Ledger(whole.store, policy=Policy(window_seconds=200.0), provider="fake", clock=whole.clock)
    ledger.testify(stored, Accepted("b"), witness="w", detail="a test")
    assert isinstance(whole.sender().send(Resume("news/1-4")), Ended)
    assert len(whole.provider.accepted) == 1


def test_one_that_is_to_be_sent_again_through_a_provider_without_such_requests_is_split(whole: Bench) -> None:
    whole.provider.window_seconds = 200.0
    whole.provider.answers = [Batched(Unknown("no answer"))]
    whole.sender().send(RANGE)
    whole.clock.sleep(300)
    whole.sender().send(RANGE)
    ledger = Ledger(whole.store, policy=Policy(window_seconds=200.0), provider="fake", clock=whole.clock)
    assert ledger.resolve(whole.record("news/1-4"), Resolution.NOT_SENT, by="a test") is not None
    whole.provider.keys = None
    result = whole.sender().send(Resume("news/1-4"))
    assert isinstance(result, Ended)
    whole.drain(result.emails)
    assert whole.states() == [State.SENT] * 4


@pytest.mark.parametrize("known", [State.SENT, State.CANCELLED])
def test_one_that_has_a_record_of_its_own_is_not_in_the_request(whole: Bench, known: State) -> None:
    if known is State.SENT:
        whole.drain([Ready("news/2", EMAILS[1])])
    else:
        whole.ledger.cancel("news/2", by="by a person")
    before = len(whole.provider.accepted)
    whole.drain([RANGE])
    assert len(whole.provider.accepted) == before + 3
    assert whole.states() == [State.SENT, known, State.SENT, State.SENT]
    assert whole.provider.requests == []


def test_a_list_that_is_cut_otherwise_sends_nothing_twice(whole: Bench) -> None:
    whole.drain([Bulk("news/1-2", EMAILS[:2]), Bulk("news/3-4", EMAILS[2:])])
    whole.drain([Bulk("news/1-3", EMAILS[:3]), Ready("news/4", EMAILS[3])])
    assert whole.provider.requests == [2, 2]
    assert len(whole.provider.accepted) == 2


def test_one_that_is_called_back_while_the_request_is_out_is_known_as_sent(whole: Bench) -> None:
    def call_back(_key: str) -> None:
        assert whole.ledger.cancel("news/2", by="by a person") is not None

    whole.provider.on_call = call_back
    whole.drain([RANGE])
    assert whole.states() == [State.SENT] * 4
    assert [item.kind for item in whole.record("news/2").evidence] == ["cancelled", "accepted"]


@pytest.mark.parametrize("choice", [InDoubt.RESEND, InDoubt.HOLD])
def test_an_event_of_one_of_its_emails_ends_the_doubt_of_a_request(whole: Bench, choice: InDoubt) -> None:
    """All of its emails were accepted or none; each carries its own key, which the event brings back."""
    whole.provider.window_seconds = 200.0
    whole.provider.script = [Answer.ACCEPT_THEN_SILENCE]
    part = replace(RANGE, in_doubt=choice)
    whole.sender().send(part)
    whole.clock.sleep(300)
    whole.sender().send(part)
    notes = EventNotes(whole.store, clock=whole.clock, keep_seconds=1e6)
    derived = provider_key("default", "news/3", 0)
    notes.add(derived, Happened.DELIVERED, source="fake", event_id="e", message_id="m3")
    assert dict(_reconciler(whole, notes).run()) == {Step.HEARD: 1}
    assert whole.record("news/1-4").state is State.SENT
    assert whole.states() == [State.SENT] * 4
    assert [whole.record(key).message_id for key in KEYS] == [None, None, "m3", None]
    assert len(whole.provider.accepted) == 1


def _reconciler(bench: Bench, notes: EventNotes) -> Reconciler:
    return Reconciler(
        bench.ledger,
        {"fake": bench.provider},
        clock=bench.clock,
        namespace="default",
        patience=Patience.of(lease=60.0, http_timeout=20.0, evidence=0.0, visibility=90.0),
        resume=pytest.fail,
        events=notes,
    )


# A key for each email.


def test_one_that_cannot_be_settled_leaves_none_of_the_others_unsettled(each: Bench) -> None:
    class Silent(MemoryStore):
        def swap(self, old: Record | None, new: Record) -> Record | None:
            if new.key == KEYS[0] and new.state is State.SENT:
                raise LedgerUnavailable("it does not answer")
            return super().swap(old, new)

    each.store = Silent()
    group = Group(tuple(Ready(key, email) for key, email in zip(KEYS, EMAILS, strict=True)))
    with pytest.raises(LedgerUnavailable):
        each.sender().send(group)
    assert each.states() == [State.SENDING, State.SENT, State.SENT, State.SENT]


def test_one_that_is_refused_is_told_of_once_the_others_have_ended(each: Bench) -> None:
    """Its message would be acknowledged otherwise, and nobody would know."""
    each.drain([Ready("welcome", EMAILS[0])])
    group = Group((Ready("welcome", EMAILS[1]), Ready(KEYS[0], EMAILS[0])))
    result = each.sender().send(group)
    assert isinstance(result, Refused)
    assert result.record.key == "welcome"
    assert each.record(KEYS[0]).state is State.SENT


def test_one_in_doubt_does_not_wait_for_the_others(each: Bench) -> None:
    """However long a provider wants them to wait, the window of the first would be over by then."""
    each.provider.script = [Answer.SILENCE]
    group = Group(tuple(Ready(key, email) for key, email in zip(KEYS, EMAILS, strict=True)))
    assert isinstance(each.sender().send(Group(group.emails[:1])), Later)
    each.provider.limited = 80_000.0
    each.clock.sleep(1_000)
    again = each.sender().send(group)
    assert isinstance(again, Later)
    assert again.record.key == KEYS[0]
    assert each.record(KEYS[1]).ready_at == each.clock.now() + 80_000
    assert again.ready_at < each.clock.now() + 80_000


def test_a_group_goes_on_at_the_second_choice_one_by_one(each: Bench) -> None:
    group = Group(tuple(Ready(key, email) for key, email in zip(KEYS, EMAILS, strict=True)))
    each.second = FakeProvider(each.clock, name="second")
    each.provider.script = [Answer.REFUSE] * 4
    each.drain([group])
    assert each.states() == [State.SENT] * 4
    assert (len(each.provider.accepted), len(each.second.accepted)) == (0, 4)
    assert [each.record(key).provider for key in KEYS] == ["second"] * 4


def test_what_is_in_doubt_at_the_second_choice_is_repeated_there(each: Bench) -> None:
    each.second = FakeProvider(each.clock, name="second", script=[Answer.ACCEPT_THEN_SILENCE])
    each.provider.script = [Answer.REFUSE]
    each.drain([Ready(KEYS[0], EMAILS[0])])
    assert (each.record(KEYS[0]).state, each.record(KEYS[0]).attempts) == (State.SENT, 3)
    assert (len(each.provider.calls), len(each.provider.accepted)) == (1, 0)
    assert (len(each.second.calls), len(each.second.accepted)) == (2, 1)


def test_those_that_ended_are_left_out_of_the_next_request(each: Bench) -> None:
    group = Group(tuple(Ready(key, email) for key, email in zip(KEYS, EMAILS, strict=True)))
    each.drain([group.emails[1]])
    each.drain([group])
    assert each.provider.requests == [3]
    assert each.states() == [State.SENT] * 4


def test_one_that_waits_makes_the_group_come_again(each: Bench) -> None:
    each.provider.script = []
    group = Group(tuple(Ready(key, email) for key, email in zip(KEYS, EMAILS, strict=True)))
    result = each.sender(_stop_at_second_claim()).send
    with pytest.raises(Crash):
        result(group)
    again = each.sender().send(group)
    assert isinstance(again, Later), "the first one's claim is still out"
    each.clock.sleep(61)
    each.drain([group])
    assert each.states() == [State.SENT] * 4
    assert len(each.provider.accepted) == 4


def _stop_at_second_claim() -> Callable[[Point], None]:
    reached: list[Point] = []

    def stop(point: Point) -> None:
        reached.append(point)
        if reached.count(Point.CLAIMED) == 2:
            raise Crash

    return stop


def test_a_group_is_taken_to_a_provider_without_batches_too(each: Bench) -> None:
    group = Group(tuple(Ready(key, email) for key, email in zip(KEYS, EMAILS, strict=True)))
    each.provider.keys = None
    each.drain([group])
    assert each.provider.requests == []
    assert each.states() == [State.SENT] * 4


@pytest.mark.parametrize("alone_first", [True, False])
def test_what_may_have_been_accepted_by_one_door_is_repeated_there(each: Bench, *, alone_first: bool) -> None:
    """A provider may keep the keys of emails in a request apart from those of requests."""
    ready = Ready(KEYS[0], EMAILS[0])
    group = Group((ready, Ready(KEYS[1], EMAILS[1])))
    first, second = (ready, group) if alone_first else (group, ready)
    each.provider.script = [Answer.ACCEPT_THEN_SILENCE]
    assert isinstance(each.sender().send(first), Later)
    each.clock.sleep(1_000)
    requests = len(each.provider.requests)
    each.drain([second])
    assert len(each.provider.requests) == requests + 1, "what is in doubt apart, what is new together"
    assert each.record(KEYS[0]).batched is (None if alone_first else True)
    assert len(each.provider.accepted) == 2


# Cutting.


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 7), st.integers(1, 300))
def test_cutting_keeps_every_email_once_under_its_own_number(kinds: list[int], most: int, length: int) -> None:
    emails = [
        make_email(f"s{number}", headers={"Idempotency-Key": f"own-{number}"} if kind == 3 else {})
        for number, kind in enumerate(kinds, 1)
    ]
    key = "k" * min(length, 255)
    found: list[tuple[str, str]] = []
    for part in cut(key, emails, most=most):
        members = [(part.key, part.email)] if isinstance(part, Ready) else list(part.members())
        assert 1 <= len(members) <= most
        assert isinstance(part, Ready) or is_range(part.key, len(part.emails))
        assert all(len(name) <= 255 for name, _ in members)
        found += [(name, email.subject) for name, email in members]
    assert [subject for _, subject in found] == [email.subject for email in emails]
    numbers = [name for name, _ in found]
    assert [name.rpartition("/")[2].rpartition("-")[2] for name in numbers] == [
        str(n) for n in range(1, len(emails) + 1)
    ]


def test_large_emails_travel_apart() -> None:
    emails = [make_email("x", text="y" * 90_000) for _ in range(5)]
    assert [part.key for part in cut("k", emails)] == ["k/1-2", "k/3-4", "k/5"]
