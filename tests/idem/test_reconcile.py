"""From in doubt to known: what a look-up may conclude, and when; and that two reconcilers are as good as one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date

import pytest
from msgspec.structs import replace

from idem.bulk import Ready
from idem.clock import Deadline
from idem.email import Email
from idem.errors import BodyTooLarge
from idem.events import EventNotes, Happened
from idem.keys import provider_key
from idem.ledger import Claim, Ledger
from idem.outcome import Accepted, NotSent, Outcome, Unknown
from idem.policy import Policy
from idem.protocol import MISSING, InDoubt, Intent, Record, Resolution, State
from idem.providers.base import USUAL, CannotTell, Contract, Events, Found, Lookup, Memory, Missing, Reply, Sighting
from idem.reconcile import Patience, Reconciler, Step
from idem.send import Empty, Ended, Render, Resume, Sender, intent_of
from idem.stores.memory import MemoryStore
from tests.fakes import FakeClock, make_email

LEASE, HTTP, LAG, HORIZON = 60.0, 20.0, 30.0, 86_400.0
PATIENCE = Patience.of(lease=LEASE, http_timeout=HTTP, evidence=900.0, visibility=90.0)
KEY = "order-1"
CONTRACT = Contract(
    name="searchable",
    title="Searchable",
    sources=("https://example.com",),
    checked=date(2026, 1, 1),
    base_url="https://example.com",
    memory=Memory.NONE,
    key=None,
    table=USUAL,
    reply=Reply(message_id=("id",)),
    lookup=Lookup(handle="tag", source="https://example.com", lag_seconds=LAG, horizon_seconds=HORIZON),
)


@dataclass
class SearchableProvider:
    """Accepts or goes silent by a script, and shows what it accepted a lag later; `sightings` overrule that."""

    clock: FakeClock
    contract: Contract = CONTRACT
    script: list[Outcome] = field(default_factory=list)
    accepts: bool = True
    sightings: list[Sighting] = field(default_factory=list)
    fails: Callable[[str], bool] = lambda _key: False
    accepted: list[tuple[str, float]] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)

    def check(self, email: Email) -> None:
        assert email

    def send(self, email: Email, provider_key: str, deadline: Deadline) -> Outcome:  # noqa: ARG002 - it has no keys
        assert deadline.left() > 0
        outcome = self.script.pop(0) if self.script else Accepted("m1")
        if self.accepts and not isinstance(outcome, NotSent):
            self.accepted.append((provider_key, self.clock.now()))
        return outcome

    def find(self, provider_key: str, since: float, deadline: Deadline) -> Sighting:
        assert deadline.left() > 0
        self.asked.append(self.clock.now())
        if self.fails(provider_key):
            return CannotTell("HTTP 500")
        if self.sightings:
            return self.sightings.pop(0)
        shown = [key for key, at in self.accepted if since <= at <= self.clock.now() - LAG]
        return Found("m1") if provider_key in shown else Missing()


class Bench:
    """One ledger, one provider, one queue of resumed keys."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.provider = SearchableProvider(self.clock)
        self.resumed: list[str] = []

    @property
    def ledger(self) -> Ledger:
        return Ledger(
            self.store,
            policy=Policy(lease_seconds=LEASE, http_timeout_seconds=HTTP),
            provider="searchable",
            clock=self.clock,
            jitter=lambda: 1.0,
        )

    def sender(self) -> Sender:
        return Sender(self.ledger, self.provider, clock=self.clock, http_timeout_seconds=HTTP, namespace="default")

    def reconciler(self, in_doubt: InDoubt = InDoubt.HOLD) -> Reconciler:
        return Reconciler(
            self.ledger,
            {"searchable": self.provider},
            clock=self.clock,
            namespace="default",
            patience=PATIENCE,
            resume=self.resumed.append,
            in_doubt=in_doubt,
            events=self.notes,
        )

    @property
    def notes(self) -> EventNotes:
        return EventNotes(self.store, clock=self.clock, keep_seconds=1e6)

    def tell(self, key: str, kind: Happened = Happened.DELIVERED) -> None:
        self.notes.add(key, kind, source="ses", event_id="event-1", message_id="m1")

    def doubt(self, *, accepted: bool, choice: InDoubt | None = None) -> None:
        """An email whose answer was lost."""
        self.provider.script = [Unknown("no answer")]
        self.provider.accepts = accepted
        result = self.sender().send(Ready(KEY, make_email(), choice))
        self.provider.accepts = True
        assert isinstance(result, Ended)
        assert result.record.state is State.IN_DOUBT

    def record(self) -> Record:
        record = self.store.read(KEY)
        assert record is not None
        return record


@pytest.fixture
def bench() -> Bench:
    return Bench()


def after(bench: Bench, seconds: float) -> dict[Step, int]:
    bench.clock.sleep(seconds)
    return dict(bench.reconciler().run())


def test_an_acceptance_that_a_look_up_shows_settles_it(bench: Bench) -> None:
    bench.doubt(accepted=True)
    assert after(bench, LEASE + LAG) == {Step.FOUND: 1}
    assert (bench.record().state, bench.record().message_id) == (State.SENT, "m1")
    assert bench.record().evidence[-1].detail == "a look-up at searchable"
    assert bench.resumed == []


def test_nobody_looks_before_the_attempt_is_over(bench: Bench) -> None:
    bench.doubt(accepted=True)
    assert after(bench, LEASE - 1) == {}
    assert bench.provider.asked == []


def test_an_acceptance_that_shows_early_settles_it_early(bench: Bench) -> None:
    bench.doubt(accepted=True)
    bench.provider.sightings = [Found("m1")]
    assert after(bench, LEASE) == {Step.FOUND: 1}


def test_early_looks_are_ever_further_apart_and_prove_nothing(bench: Bench) -> None:
    """A request may reach the provider after its client gave up; one that is looked for too early is not missing."""
    assert CONTRACT.lookup is not None
    bench.provider.contract = dataclasses.replace(
        CONTRACT, lookup=dataclasses.replace(CONTRACT.lookup, lag_seconds=15 * LEASE)
    )
    bench.doubt(accepted=False)
    begun = bench.clock.now()
    while bench.clock.now() < begun + 16 * LEASE:
        assert after(bench, LEASE / 4) == {}
    assert [at - begun for at in bench.provider.asked] == [LEASE, 2 * LEASE, 4 * LEASE, 8 * LEASE, 16 * LEASE]
    assert after(bench, 16 * LEASE) == {}, "of five early and late looks only the fifth had counted"
    assert after(bench, 16 * LEASE) == {Step.NOT_FOUND: 1}


def test_one_look_that_shows_nothing_proves_nothing(bench: Bench) -> None:
    bench.doubt(accepted=False)
    assert after(bench, LEASE + LAG) == {}
    assert bench.record().state is State.IN_DOUBT
    assert after(bench, LEASE + LAG - 1) == {}
    assert len(bench.provider.asked) == 1, "nor does a second one at once"


def test_three_do_and_the_email_goes_out_without_its_message(bench: Bench) -> None:
    bench.doubt(accepted=False)
    assert [after(bench, LEASE + LAG) for _ in range(3)] == [{}, {}, {Step.NOT_FOUND: 1}]
    assert bench.resumed == [KEY]
    result = bench.sender().send(Resume(KEY))
    assert isinstance(result, Ended)
    assert result.record.state is State.SENT
    assert len(bench.provider.accepted) == 1
    kinds = [item.kind for item in bench.record().evidence]
    assert kinds == [MISSING, MISSING, MISSING, Resolution.NOT_SENT.value]


def test_an_email_that_never_arrives_is_given_up_in_the_end(bench: Bench) -> None:
    """One that a provider hangs over each time: it is tried again for a day, and no longer."""
    bench.doubt(accepted=False)
    begun = bench.clock.now()
    bench.provider.accepts = False
    while bench.record().state is State.IN_DOUBT:
        after(bench, LEASE + LAG)
        if bench.resumed:
            bench.provider.script = [Unknown("no answer")]
            bench.sender().send(Resume(bench.resumed.pop()))
    assert (bench.record().state, bench.record().reason) == (
        State.REJECTED,
        "given up: 3 look-ups at searchable showed none",
    )
    assert 86_400 <= bench.clock.now() - begun < 86_400 + 10 * (LEASE + LAG)
    assert bench.ledger.resolve(bench.record(), Resolution.REOPEN, by="by a person") is not None


def test_a_clock_that_is_wrong_and_a_false_negative_together_prove_nothing(bench: Bench) -> None:
    """The sender's clock was minutes behind, so that the first look came before the request; the second one failed."""
    bench.clock.wall -= 300
    bench.doubt(accepted=False)
    bench.clock.wall += 300
    assert after(bench, 1) == {}, "by the sender's clock it is late enough"
    bench.provider.accepted.append((provider_key("default", KEY, 0), bench.clock.now()))
    bench.provider.sightings = [Missing()]
    assert after(bench, LEASE + LAG) == {}
    assert after(bench, LEASE + LAG) == {Step.FOUND: 1}


def test_a_false_negative_is_mended_by_the_second_look(bench: Bench) -> None:
    bench.doubt(accepted=True)
    bench.provider.sightings = [Missing()]
    assert after(bench, LEASE + LAG) == {}
    assert after(bench, LEASE + LAG) == {Step.FOUND: 1}
    assert len(bench.provider.accepted) == 1


def test_looks_of_an_earlier_doubt_do_not_count(bench: Bench) -> None:
    """Sent again, and in doubt again: what was missing before the new attempt says nothing about it."""
    bench.doubt(accepted=False)
    for _ in range(3):
        after(bench, LEASE + LAG)
    bench.provider.script = [Unknown("no answer")]
    bench.sender().send(Resume(KEY))
    assert bench.record().state is State.IN_DOUBT
    bench.provider.sightings = [Missing()]
    assert after(bench, LEASE + LAG) == {}, "one look is one look"
    assert after(bench, LEASE + LAG) == {Step.FOUND: 1}
    assert len(bench.provider.accepted) == 1


def test_what_look_ups_showed_of_one_doubt_ends_no_later_one(bench: Bench) -> None:
    """A reconciler stood still before it wrote its conclusion down, while the email was sent again, and accepted."""
    bench.doubt(accepted=False)
    looked_up = bench.record()
    for _ in range(3):
        after(bench, LEASE + LAG)
    bench.provider.script = [Unknown("no answer")]
    bench.sender().send(Resume(KEY))
    assert (bench.record().state, len(bench.provider.accepted)) == (State.IN_DOUBT, 1)
    assert bench.ledger.resolve(looked_up, Resolution.NOT_SENT, by="look-ups showed none") is None
    assert bench.record().state is State.IN_DOUBT
    assert after(bench, LEASE + LAG) == {Step.FOUND: 1}
    assert len(bench.provider.accepted) == 1


def test_a_note_that_came_since_is_no_other_doubt(bench: Bench) -> None:
    bench.doubt(accepted=False)
    looked_up = bench.record()
    bench.ledger.note_missing(looked_up, "searchable")
    resolved = bench.ledger.resolve(looked_up, Resolution.NOT_SENT, by="by a person")
    assert resolved is not None
    assert [item.kind for item in resolved.evidence] == [MISSING, Resolution.NOT_SENT.value]


def test_a_provider_that_cannot_tell_is_asked_once_a_run(bench: Bench) -> None:
    bench.doubt(accepted=True)
    for number in range(3):
        bench.provider.script = [Unknown("no answer")]
        bench.sender().send(Ready(f"other-{number}", make_email()))
    bench.provider.sightings = [CannotTell("HTTP 503")] * 9
    assert after(bench, LEASE + LAG) == {}
    assert len(bench.provider.asked) == 1
    assert bench.record().state is State.IN_DOUBT


def test_emails_that_it_cannot_tell_of_hold_up_no_other(bench: Bench) -> None:
    """Two that always fail, and are the first of all: the third is looked up in the third run."""
    reconciler = bench.reconciler()
    for key in ("bad-1", "bad-2", KEY):
        bench.provider.script = [Unknown("no answer")]
        bench.sender().send(Ready(key, make_email()))
        bench.clock.sleep(1)
    failing = {provider_key("default", key, 0) for key in ("bad-1", "bad-2")}
    bench.provider.fails = failing.__contains__
    bench.clock.sleep(LEASE + LAG)
    assert [dict(reconciler.run()) for _ in range(3)] == [{}, {}, {Step.FOUND: 1}]
    bench.provider.fails = lambda _: False
    assert dict(reconciler.run()) == {Step.FOUND: 2}


def test_beyond_the_horizon_nothing_is_concluded(bench: Bench) -> None:
    """An email that is no longer kept is not missing."""
    bench.doubt(accepted=True)
    assert after(bench, HORIZON) == {}
    assert bench.provider.asked == []


def test_two_reconcilers_are_as_good_as_one(bench: Bench) -> None:
    """Both look, both find nothing, both conclude: one write holds, and one message is made."""
    bench.doubt(accepted=False)
    bench.clock.sleep(LEASE + LAG)
    first, second = bench.reconciler(), bench.reconciler()
    meanwhile: list[Callable[[], object]] = [second.run]
    find = bench.provider.find

    def find_while_another_does(provider_key: str, since: float, deadline: Deadline) -> Sighting:
        if meanwhile:
            meanwhile.pop()()
        return find(provider_key, since, deadline)

    bench.provider.find = find_while_another_does  # type: ignore[method-assign]
    first.run()
    assert sum(item.kind == MISSING for item in bench.record().evidence) == 1, "two looks at once are one"
    for _ in range(2):
        bench.clock.sleep(LEASE + LAG)
        meanwhile.append(second.run)
        first.run()
    assert bench.resumed == [KEY]
    assert bench.record().state is State.RETRY


def test_a_crash_before_the_message_is_made_loses_nothing(bench: Bench) -> None:
    bench.doubt(accepted=False)
    assert bench.ledger.resolve(bench.record(), Resolution.NOT_SENT, by="somebody who died") is not None
    assert after(bench, PATIENCE.message - 1) == {}
    assert after(bench, 1) == {Step.RESUMED: 1}
    assert bench.resumed == [KEY]
    assert after(bench, 1) == {}, "and not again at once"


def test_a_job_whose_message_was_lost_is_found(bench: Bench) -> None:
    """Its email is frozen, so that it can be sent without anybody remembering the job."""
    bench.provider.script = [NotSent("HTTP 503")]
    bench.sender().send(Render(KEY, "report", make_email))
    assert after(bench, PATIENCE.message + 1) == {Step.RESUMED: 1}
    result = bench.sender().send(Resume(KEY))
    assert isinstance(result, Ended)
    assert result.record.state is State.SENT


def test_an_email_that_only_its_message_has_cannot_be_resumed(bench: Bench) -> None:
    bench.provider.script = [NotSent("HTTP 503")]
    bench.sender().send(Ready(KEY, make_email()))
    assert after(bench, 10 * PATIENCE.message) == {}
    assert isinstance(bench.sender().send(Resume(KEY)), Empty)
    assert isinstance(bench.sender().send(Resume("never heard of")), Empty)


# What a job chose, and what its provider offers.


def unsearchable(bench: Bench, events: Events | None = None) -> None:
    bench.provider.contract = dataclasses.replace(CONTRACT, lookup=None, events=events)


@pytest.mark.parametrize("job", [InDoubt.RESEND, None])
def test_resend_is_at_once_where_nothing_can_be_learnt(bench: Bench, job: InDoubt | None) -> None:
    unsearchable(bench)
    bench.doubt(accepted=True, choice=job)
    assert dict(bench.reconciler(InDoubt.RESEND).run()) == {Step.RESENT: 1}
    bench.sender().send(Resume(KEY))
    assert bench.record().state is State.SENT
    assert len(bench.provider.accepted) == 2, "as the job chose, and it is written down"
    assert bench.record().evidence[-1].kind == Resolution.RESEND.value


def test_it_is_sent_again_once_and_then_waits_for_a_person(bench: Bench) -> None:
    """A server that accepts, and never answers in time, would otherwise be sent it for ever."""
    unsearchable(bench)
    bench.doubt(accepted=True, choice=InDoubt.RESEND)
    assert after(bench, 0) == {Step.RESENT: 1}
    bench.provider.script = [Unknown("no answer")]
    bench.sender().send(Resume(KEY))
    assert bench.record().state is State.IN_DOUBT
    assert after(bench, 10**5) == {}
    assert len(bench.provider.accepted) == 2
    assert bench.ledger.resolve(bench.record(), Resolution.RESEND, by="by a person") is not None


def test_what_was_given_up_meanwhile_is_not_sent_again(bench: Bench) -> None:
    """A reconciler stood still before it did what the job chose; what was dropped by then came back to life."""
    unsearchable(bench)
    bench.doubt(accepted=True, choice=InDoubt.RESEND)
    judged = bench.record()
    assert bench.ledger.resolve(judged, Resolution.DROP, by="by a person") is not None
    assert bench.ledger.resolve(judged, Resolution.RESEND, by="as its job chose") is None
    assert bench.record().state is State.DROPPED


def test_nothing_is_sent_again_that_would_come_too_late(bench: Bench) -> None:
    unsearchable(bench)
    bench.provider.script = [Unknown("no answer")]
    until = bench.clock.now() + 600
    bench.sender().send(Ready(KEY, make_email(), InDoubt.RESEND, expires_at=until))
    bench.clock.sleep(600)
    assert after(bench, 0) == {}
    assert bench.record().state is State.IN_DOUBT


def test_what_is_to_be_sent_again_and_is_called_back_is_given_up(bench: Bench) -> None:
    """It may have been accepted, so nobody can say that it was not sent."""
    unsearchable(bench)
    bench.doubt(accepted=True, choice=InDoubt.RESEND)
    assert after(bench, 0) == {Step.RESENT: 1}
    bench.ledger.cancel(KEY, by="by a person")
    assert (bench.record().state, bench.record().reason) == (State.DROPPED, "cancelled by a person")


def test_resend_waits_for_what_a_look_up_or_an_event_may_tell(bench: Bench) -> None:
    unsearchable(bench, events=Events(handle="tag", source="https://example.com"))
    bench.doubt(accepted=True, choice=InDoubt.RESEND)
    assert after(bench, LEASE + PATIENCE.evidence - 1) == {}
    bench.tell(provider_key("default", KEY, 0))
    assert dict(bench.reconciler().run()) == {Step.HEARD: 1}
    assert bench.record().state is State.SENT
    assert after(bench, 10**5) == {}
    assert len(bench.provider.accepted) == 1


def test_drop_ends_it_and_a_late_acceptance_is_still_heard(bench: Bench) -> None:
    unsearchable(bench)
    bench.doubt(accepted=True, choice=InDoubt.DROP)
    assert after(bench, 0) == {Step.DROPPED: 1}
    assert bench.record().state is State.DROPPED
    settled = bench.ledger.testify(bench.record(), Accepted("m1"), witness="event", detail="an event")
    assert settled.state is State.SENT


def test_hold_holds_for_ever(bench: Bench) -> None:
    unsearchable(bench)
    bench.doubt(accepted=True, choice=InDoubt.HOLD)
    assert dict(bench.reconciler(InDoubt.DROP).run()) == {}
    assert after(bench, 10**7) == {}


@pytest.mark.parametrize("heard", ["not a key of ours", provider_key("other", KEY, 0)])
def test_an_event_about_something_else_changes_nothing(bench: Bench, heard: str) -> None:
    bench.doubt(accepted=True)
    bench.tell(heard)
    assert dict(bench.reconciler().run()) == {}
    assert bench.record().state is State.IN_DOUBT


def test_an_event_that_came_before_the_doubt_ends_it(bench: Bench) -> None:
    """As it does while the worker still waits for the provider's answer."""
    bench.tell(provider_key("default", KEY, 0))
    bench.doubt(accepted=True)
    assert dict(bench.reconciler().run()) == {Step.HEARD: 1}
    record = bench.record()
    assert (record.state, record.message_id, len(bench.provider.accepted)) == (State.SENT, "m1", 1)
    assert record.evidence[-1].detail == "an event of ses: delivered"


def test_what_is_dropped_by_the_provider_proves_nothing(bench: Bench) -> None:
    bench.doubt(accepted=False)
    bench.tell(provider_key("default", KEY, 0), Happened.DROPPED)
    assert dict(bench.reconciler().run()) == {}


def test_what_waits_for_a_person_is_looked_for_less_and_less(bench: Bench) -> None:
    """And an event that comes is found after a tenth of the time that it took."""
    unsearchable(bench)
    bench.doubt(accepted=True, choice=InDoubt.HOLD)
    reconciler, reads = bench.reconciler(), Counter[str]()

    def read(name: str) -> bytes | None:
        reads[name] += 1
        return MemoryStore.read_cell(bench.store, name)

    bench.store.read_cell = read  # type: ignore[method-assign]  # to count
    for _ in range(1_000):
        bench.clock.sleep(60)
        reconciler.run()
    assert 0 < sum(reads.values()) < 100
    bench.tell(provider_key("default", KEY, 0))
    bench.clock.sleep(6_100)
    assert dict(reconciler.run()) == {Step.HEARD: 1}


def test_an_event_that_comes_before_the_last_look_up_counts_more(bench: Bench) -> None:
    """The look-ups show nothing, and the event tells of an acceptance: it is not sent again."""
    bench.doubt(accepted=False)
    reconciler = bench.reconciler()
    for _ in range(2):
        bench.clock.sleep(LEASE + LAG)
        assert dict(reconciler.run()) == {}
    bench.clock.sleep(LEASE + LAG)
    bench.provider.sightings = [Missing()]
    reconciler._listen_at[KEY] = bench.clock.now() + 1
    bench.tell(provider_key("default", KEY, 0))
    assert dict(reconciler.run()) == {Step.HEARD: 1}
    assert bench.record().state is State.SENT


def test_the_same_event_twice_is_noted_once(bench: Bench) -> None:
    bench.doubt(accepted=True)
    for _ in range(2):
        bench.ledger.testify(bench.record(), Accepted("m1"), witness="event-1", detail="an event")
    assert len(bench.record().evidence) == 1


# Who brings what the ledger holds.


def test_a_resumed_key_is_never_sent_twice(bench: Bench) -> None:
    """Its first message may still be about, and the resumed one may come in two copies."""
    bench.doubt(accepted=False)
    bench.ledger.resolve(bench.record(), Resolution.NOT_SENT, by="a person")
    results: Sequence[object] = [
        bench.sender().send(Resume(KEY)),
        bench.sender().send(Resume(KEY)),
        bench.sender().send(Ready(KEY, make_email())),
    ]
    assert all(isinstance(result, Ended) for result in results)
    assert len(bench.provider.accepted) == 1


def test_a_body_that_the_ledger_cannot_keep_leaves_the_doubt_without_it(bench: Bench) -> None:
    bench.store = Small()
    bench.doubt(accepted=False)
    assert bench.record().body is None
    assert bench.ledger.resolve(bench.record(), Resolution.NOT_SENT, by="a person") is not None
    again = bench.sender().send(Ready(KEY, make_email()))
    assert isinstance(again, Ended), "enqueued once more, it goes"
    assert again.record.state is State.SENT


class Small(MemoryStore):
    """Has no room for any email."""

    def swap(self, old: Record | None, new: Record) -> Record | None:
        if new.body is not None:
            raise BodyTooLarge("too large")
        return super().swap(old, new)


class TestDurable:
    """What a producer wrote down first is enqueued again for as long as it has not ended."""

    def test_what_nobody_took_up_comes_again_and_then_after_twice_as_long(self, bench: Bench) -> None:
        bench.ledger.ask(intent_of(Ready(KEY, make_email())))
        bench.clock.sleep(PATIENCE.asked - 1)
        assert bench.reconciler().run() == {}
        bench.clock.sleep(1)
        assert bench.reconciler().run() == {Step.RESUMED: 1}
        assert bench.reconciler().run() == {}, "once for all reconcilers"
        bench.clock.sleep(PATIENCE.asked)
        assert bench.reconciler().run() == {}
        bench.clock.sleep(PATIENCE.asked)
        assert bench.reconciler().run() == {Step.RESUMED: 1}
        assert bench.resumed == [KEY, KEY]

    def test_a_resumed_one_is_sent_from_its_record(self, bench: Bench) -> None:
        bench.ledger.ask(intent_of(Ready(KEY, make_email())))
        assert isinstance(bench.sender().send(Resume(KEY)), Ended)
        record = bench.ledger.read(KEY)
        assert record is not None
        assert (record.state, record.body) == (State.SENT, None)

    @pytest.mark.parametrize("intent", [intent_of(Ready(KEY, make_email())), Intent(KEY, job="report", call="{}")])
    def test_a_worker_that_died_together_with_the_queue(self, bench: Bench, intent: Intent) -> None:
        bench.ledger.ask(intent)
        assert isinstance(bench.ledger.claim(replace(intent, call=None)), Claim)
        bench.clock.sleep(LEASE + PATIENCE.asked - 1)
        assert bench.reconciler().run() == {}
        bench.clock.sleep(1)
        assert bench.reconciler().run() == {Step.RESUMED: 1}

    def test_of_two_that_touch_it_at_once_one_enqueues_it(self, bench: Bench) -> None:
        """They hold the same claim id, so that it does not tell whose touch was written."""
        asked = bench.ledger.ask(intent_of(Ready(KEY, make_email())))
        assert isinstance(asked, Record)
        assert bench.ledger.touch(asked)
        bench.clock.sleep(0.001)
        assert not bench.ledger.touch(asked)

    def test_how_long_to_try_counts_from_the_first_who_took_it_up(self, bench: Bench) -> None:
        """It may have been asked for long before: a day of waiting is no day of failing."""
        bench.ledger.ask(intent_of(Ready(KEY, make_email())))
        bench.clock.sleep(200_000)
        bench.provider.script = [NotSent("HTTP 503")]
        bench.sender().send(Resume(KEY))
        record = bench.ledger.read(KEY)
        assert record is not None
        assert record.state is State.RETRY
