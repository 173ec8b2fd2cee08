"""The ledger on a store whose writes fail, are applied without an answer, are repeated, or come late."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from idem import protocol
from idem.errors import LedgerUnavailable
from idem.ledger import Claim, Ledger, Lost
from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.policy import Policy
from idem.protocol import Conflict, Done, Evidence, Intent, Record, State, Wait
from idem.stores.memory import MemoryStore
from tests.fakes import FakeClock, Fault, FaultyStore, outage

POLICY = Policy(window_seconds=86_400.0)
KEYLESS = Policy()
READY = Intent("k", fingerprint="f")
JOB = Intent("k", job="report")
SENT = Accepted("m1")


@dataclass(slots=True)
class Bench:
    """Any number of workers, each with a faulty way to one store."""

    policy: Policy = POLICY
    provider: str = "fake"
    clock: FakeClock = field(default_factory=FakeClock)
    base: MemoryStore = field(default_factory=MemoryStore)
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def worker(self, faults: dict[int, Fault] | None = None) -> tuple[Ledger, FaultyStore]:
        store = FaultyStore(self.base, faults)
        return Ledger(
            store,
            policy=self.policy,
            provider=self.provider,
            clock=self.clock,
            new_id=lambda: f"c{next(self._ids)}",
            jitter=lambda: 1.0,
        ), store

    def stored(self) -> Record:
        record = self.base.read("k")
        assert record is not None
        return record

    def lease_over(self) -> None:
        self.clock.sleep(self.policy.lease_seconds)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def taken(ledger: Ledger, intent: Intent = READY) -> Claim:
    claim = ledger.claim(intent)
    assert isinstance(claim, Claim)
    return claim


# One worker.


def test_a_happy_path_is_two_writes_and_no_read(bench: Bench) -> None:
    ledger, store = bench.worker()
    settled = ledger.settle(taken(ledger), SENT)
    assert settled == bench.stored()
    assert (bench.stored().state, bench.stored().message_id) == (State.SENT, "m1")
    assert store.counted == {"swap": 2}


def test_a_rendered_email_is_three(bench: Bench) -> None:
    ledger, store = bench.worker()
    frozen = ledger.freeze(taken(ledger, JOB), b"body", "f")
    assert isinstance(frozen, Claim)
    ledger.settle(frozen, SENT)
    assert store.counted == {"swap": 3}


def test_an_ended_key_is_one_failed_write(bench: Bench) -> None:
    ledger, store = bench.worker()
    ledger.settle(taken(ledger), SENT)
    again = ledger.claim(READY)
    assert again == Done(bench.stored())
    assert store.counted == {"swap": 3}


def test_a_lease_never_outlives_the_one_that_others_see(bench: Bench) -> None:
    """Also when the store is slow: what the holder counts from is taken before the write."""
    ledger, store = bench.worker()
    swap = store.swap

    def slow_swap(old: Record | None, new: Record) -> Record | None:
        bench.clock.sleep(5)
        return swap(old, new)

    store.swap = slow_swap  # type: ignore[method-assign]  # a slower store
    claim = taken(ledger)
    assert claim.record.lease_until is not None
    assert claim.lease.wall <= claim.record.lease_until
    assert claim.lease.left() == POLICY.lease_seconds - 5


def test_the_lease_runs_out_by_whichever_clock_says_so_first(bench: Bench) -> None:
    """A suspended machine (only the boot clock knows) and a clock that was set back (only it does not)."""
    ledger, _ = bench.worker()
    claim = taken(ledger)
    bench.clock.wall -= 7_200
    assert claim.lease.left() == POLICY.lease_seconds
    bench.clock.booted += 61
    assert claim.lease.left() == -1
    bench.clock.booted -= 61
    bench.clock.wall += 7_200 + 90
    assert claim.lease.left() == -30


# Faults at every write.

_RUNS: dict[str, Callable[[Ledger], object]] = {
    "ready": lambda ledger: ledger.settle(taken(ledger), SENT),
    "rendered": lambda ledger: ledger.settle(_frozen(ledger), SENT),
    "split": lambda ledger: ledger.split(taken(ledger, JOB), b"[]", "f"),
    "failed to render": lambda ledger: ledger.settle(taken(ledger, JOB), NotSent("it raised")),
    "not known": lambda ledger: ledger.settle(taken(ledger), Unknown("no answer")),
    "rejected": lambda ledger: ledger.settle(taken(ledger), Rejected("no")),
    "noted": lambda ledger: ledger.note_conflict(taken(ledger).record, "g"),
}


def _frozen(ledger: Ledger) -> Claim:
    frozen = ledger.freeze(taken(ledger, JOB), b"body", "f")
    assert isinstance(frozen, Claim)
    return frozen


@pytest.mark.parametrize("run", _RUNS)
@pytest.mark.parametrize("write", [1, 2, 3])
def test_a_write_that_the_driver_repeats_by_itself_is_recognised(bench: Bench, run: str, write: int) -> None:
    """Applied, its answer lost, sent again by the driver: the condition fails on one's own record. That is success."""
    ledger, _ = bench.worker()
    expected = _RUNS[run](ledger)
    want = bench.stored()
    again = Bench()
    ledger, store = again.worker({write: Fault.RETRIED})
    assert _RUNS[run](ledger) == expected
    assert again.stored() == want
    assert store.counted["swap"] <= 3


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.ANSWER_LOST, Fault.LATE])
def test_a_claim_without_an_answer_is_not_acted_on(bench: Bench, fault: Fault) -> None:
    """Whether or not it was written, the caller hears of it, and the key is free again after a lease at most."""
    ledger, store = bench.worker(outage(1, fault))
    with pytest.raises(LedgerUnavailable):
        ledger.claim(READY)
    store.faults = {}
    store.apply_late()
    bench.lease_over()
    assert isinstance(ledger.claim(READY), Claim)


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.ANSWER_LOST])
@pytest.mark.parametrize(
    "outcome", [SENT, Unknown("?"), NotSent("429"), Rejected("422")], ids=lambda o: type(o).__name__
)
def test_a_settle_insists_while_the_lease_lasts(bench: Bench, fault: Fault, outcome: Outcome) -> None:
    """Two hundred times without an answer, then it holds: exactly the record of a settle that went well."""
    ledger, _ = bench.worker()
    claim = taken(ledger)
    other = Bench()
    plain, _ = other.worker()
    expected = plain.settle(taken(plain), outcome)
    flaky, store = bench.worker(dict.fromkeys(range(1, 201), fault))
    settled = flaky.settle(claim, outcome)
    assert isinstance(settled, Record | Lost)
    assert store.counted["swap"] == 201 if fault is Fault.REFUSED else store.counted["swap"] > 1
    stored = bench.stored()
    assert isinstance(expected, Record)
    assert (stored.state, stored.version, stored.message_id) == (expected.state, 2, expected.message_id)


def test_a_settle_gives_up_when_the_lease_is_over(bench: Bench) -> None:
    """Then the message stays unacknowledged, and its redelivery finds the record as a crash would have left it."""
    ledger, store = bench.worker()
    claim = taken(ledger)
    began = bench.clock.now()
    store.faults = dict.fromkeys(range(2, 100_000), Fault.REFUSED)
    with pytest.raises(LedgerUnavailable):
        ledger.settle(claim, Unknown("?"))
    assert POLICY.lease_seconds - 1 <= bench.clock.now() - began <= POLICY.lease_seconds
    store.faults = {}
    assert bench.stored() == claim.record
    bench.lease_over()
    assert isinstance(ledger.claim(READY), Claim)


def test_an_acceptance_is_insisted_on_for_one_more_lease(bench: Bench) -> None:
    """The worker was paused until its lease was over, and then the ledger hiccups: nobody else may ever know of it."""
    bench.policy = KEYLESS
    ledger, store = bench.worker()
    claim = taken(ledger)
    bench.lease_over()
    assert isinstance(bench.worker()[0].claim(READY), Done)
    assert bench.stored().state is State.IN_DOUBT
    store.faults = dict.fromkeys(range(2, 50), Fault.REFUSED)
    settled = ledger.settle(claim, SENT)
    assert isinstance(settled, Lost)
    assert bench.stored().state is State.SENT
    store.faults = dict.fromkeys(range(2, 100_000), Fault.REFUSED)
    began = bench.clock.now()
    with pytest.raises(LedgerUnavailable):
        ledger.settle(claim, Accepted("m2"))
    assert bench.clock.now() - began <= KEYLESS.lease_seconds


def test_a_freeze_that_is_not_answered_is_not_acted_on(bench: Bench) -> None:
    """The body may be fixed already; the next claim sends that one."""
    ledger, store = bench.worker(outage(2, Fault.ANSWER_LOST))
    with pytest.raises(LedgerUnavailable):
        ledger.freeze(taken(ledger, JOB), b"body", "f")
    store.faults = {}
    bench.lease_over()
    claim = taken(ledger, JOB)
    assert (claim.record.body, claim.record.fingerprint) == (b"body", "f")


def test_a_renewed_claim_is_held_for_one_more_lease(bench: Bench) -> None:
    ledger, store = bench.worker()
    claim = taken(ledger, JOB)
    bench.clock.sleep(POLICY.lease_seconds - 1)
    renewed = ledger.renew(claim)
    assert isinstance(renewed, Claim)
    assert store.counted == {"swap": 2}
    bench.clock.sleep(POLICY.lease_seconds - 1)
    assert isinstance(bench.worker()[0].claim(JOB), Wait)
    assert isinstance(ledger.freeze(renewed, b"body", "f"), Claim)


def test_what_was_frozen_is_not_renewed(bench: Bench) -> None:
    """Not by a renewal that was under way when the build came to its end, and not by one that arrives later still."""
    ledger, store = bench.worker({2: Fault.LATE})
    claim = taken(ledger, JOB)
    with pytest.raises(LedgerUnavailable):
        ledger.renew(claim)
    assert isinstance(ledger.freeze(claim, b"body", "f"), Claim)
    frozen = bench.stored()
    assert ledger.renew(claim) == Lost(frozen)
    assert store.apply_late() == [frozen]
    assert bench.stored() == frozen


@pytest.mark.parametrize("fault", [Fault.ANSWER_LOST, Fault.RETRIED])
def test_a_renewal_whose_answer_was_lost_is_renewed_on_top(bench: Bench, fault: Fault) -> None:
    """Else the lease that its holder counts on would outlive the one that others see."""
    ledger, _ = bench.worker({2: fault})
    claim = taken(ledger, JOB)
    bench.clock.sleep(10)
    with suppress(LedgerUnavailable):
        ledger.renew(claim)
    bench.clock.sleep(10)
    renewed = ledger.renew(claim)
    assert isinstance(renewed, Claim)
    assert renewed.record == bench.stored()
    assert renewed.lease.wall == bench.stored().lease_until
    assert isinstance(ledger.freeze(renewed, b"body", "f"), Claim)


def test_a_renewal_under_way_does_not_hinder_the_freeze(bench: Bench) -> None:
    """The build ends before it hears that its claim was renewed."""
    ledger, _ = bench.worker()
    claim = taken(ledger, JOB)
    ledger.renew(claim)
    assert isinstance(ledger.freeze(claim, b"body", "f"), Claim)


def test_a_renewal_whose_answer_was_lost_does_not_pass_for_the_list(bench: Bench) -> None:
    """Both leave the record at the same state, version and claim: the list has to be in it."""
    ledger, _ = bench.worker({2: Fault.ANSWER_LOST})
    claim = taken(ledger, JOB)
    with pytest.raises(LedgerUnavailable):
        ledger.renew(claim)
    fixed = ledger.freeze_list(claim, b"list", 2)
    assert isinstance(fixed, Claim)
    assert (fixed.record.body, bench.stored()) == (b"list", fixed.record)


def test_a_claim_that_was_taken_is_not_renewed(bench: Bench) -> None:
    """Its lease was over and another worker builds: of the two, that one may freeze."""
    slow, _ = bench.worker()
    claim = taken(slow, JOB)
    bench.lease_over()
    other, _ = bench.worker()
    current = taken(other, JOB)
    assert slow.renew(claim) == Lost(current.record)
    assert slow.freeze(claim, b"late", "l") == Lost(current.record)
    assert isinstance(other.freeze(current, b"body", "f"), Claim)


def test_a_claim_that_nobody_took_is_renewed_after_its_lease(bench: Bench) -> None:
    ledger, _ = bench.worker()
    claim = taken(ledger, JOB)
    bench.clock.sleep(10 * POLICY.lease_seconds)
    assert isinstance(ledger.renew(claim), Claim)
    assert isinstance(bench.worker()[0].claim(JOB), Wait)


def test_what_is_built_too_late_expires(bench: Bench) -> None:
    """A build may take longer than its email is worth; then no attempt begins."""
    ledger, _ = bench.worker()
    claim = taken(ledger, replace(JOB, expires_at=bench.clock.now() + 30))
    bench.clock.sleep(30)
    assert ledger.freeze(claim, b"body", "f") == bench.stored()
    assert (bench.stored().state, bench.stored().attempts) == (State.EXPIRED, 0)
    assert bench.stored().body is None


@pytest.mark.parametrize("further", range(1, 6))
def test_a_claim_that_arrives_late_changes_nothing(bench: Bench, further: int) -> None:
    """Its first write is delayed while others take the key through one to five further transitions."""
    slow, slow_store = bench.worker(outage(1, Fault.LATE))
    with pytest.raises(LedgerUnavailable):
        slow.claim(READY)
    other, _ = bench.worker()
    _make_transitions(bench, other, further)
    before = bench.stored()
    assert slow_store.apply_late() == [before]
    assert bench.stored() == before


@pytest.mark.parametrize("further", range(1, 6))
@pytest.mark.parametrize(
    "outcome", [SENT, Unknown("?"), NotSent("429"), Rejected("422")], ids=lambda o: type(o).__name__
)
def test_a_settle_that_arrives_late_changes_nothing(bench: Bench, further: int, outcome: Outcome) -> None:
    ledger, store = bench.worker({2: Fault.LATE})
    claim = taken(ledger)
    bench.clock.sleep(POLICY.lease_seconds + (0 if isinstance(outcome, Accepted) else 1))
    with pytest.raises(LedgerUnavailable):
        _settle_once(ledger, store, claim, outcome)
    other, _ = bench.worker()
    _make_transitions(bench, other, further)
    before = bench.stored()
    assert store.apply_late() == [before]
    assert bench.stored() == before


def _settle_once(ledger: Ledger, store: FaultyStore, claim: Claim, outcome: Outcome) -> object:
    """Settle; whatever is tried after the delayed write is refused, so that it raises in the end."""
    store.faults |= dict.fromkeys(range(3, 100_000), Fault.REFUSED)
    return ledger.settle(claim, outcome)


def _make_transitions(bench: Bench, ledger: Ledger, number: int) -> None:
    """So many transitions of other workers, the record alive until the last."""
    claim: Claim | None = None
    for _ in range(number):
        if claim is None:
            bench.clock.sleep(1_000)
            claim = taken(ledger)
        else:
            assert isinstance(ledger.settle(claim, NotSent("429")), Record)
            claim = None


def test_two_claims_by_one_late_and_one_prompt_worker_are_one(bench: Bench) -> None:
    """The delayed claim comes while the key is free again: it holds, nobody acts on it, and it only costs a lease."""
    ledger, _ = bench.worker()
    ledger.settle(taken(ledger), NotSent("429"))
    bench.clock.sleep(1_000)
    slow, slow_store = bench.worker(outage(2, Fault.LATE))
    with pytest.raises(LedgerUnavailable):
        slow.claim(READY)
    assert slow_store.apply_late() == [None]
    assert isinstance(ledger.claim(READY), Wait)
    bench.lease_over()
    assert isinstance(ledger.claim(READY), Claim)


# Claims that were lost, and what their holders bring.


def test_a_zombies_acceptance_ends_a_doubt(bench: Bench) -> None:
    bench.policy = KEYLESS
    ledger, _ = bench.worker()
    claim = taken(ledger)
    bench.lease_over()
    assert isinstance(ledger.claim(READY), Done)
    settled = ledger.settle(claim, SENT)
    assert settled == Lost(bench.stored())
    assert (bench.stored().state, bench.stored().message_id) == (State.SENT, "m1")
    assert [item.claim_id for item in bench.stored().evidence] == [claim.record.claim_id]


@pytest.mark.parametrize("fault", list(Fault))
def test_a_zombies_acceptance_survives_a_fault(bench: Bench, fault: Fault) -> None:
    ledger, store = bench.worker()
    zombie = taken(ledger)
    bench.lease_over()
    unsure = ledger.settle(taken(ledger), NotSent("429"))
    assert isinstance(unsure, Record)
    assert unsure.state is State.UNSURE
    store.faults = {store.counted["swap"] + 2: fault}
    assert isinstance(ledger.settle(zombie, SENT), Lost)
    before = bench.stored()
    assert before.state is State.SENT
    assert len(before.evidence) == 1
    store.apply_late()
    assert bench.stored() == before


@pytest.mark.parametrize("last", [NotSent("429"), Unknown("?"), Rejected("403", Ground.GATE), None], ids=repr)
def test_what_a_zombie_brings_during_another_attempt_counts_when_that_is_over(
    bench: Bench, last: Outcome | None
) -> None:
    """However the other attempt ends, in silence too, an acceptance that the ledger knows of is not in doubt."""
    ledger, _ = bench.worker()
    zombie = taken(ledger)
    bench.lease_over()
    current = taken(ledger)
    assert isinstance(ledger.settle(zombie, SENT), Lost)
    assert bench.stored().state is State.SENDING
    if last is None:
        bench.clock.sleep(200_000)
        assert isinstance(ledger.claim(READY), Done)
    else:
        assert isinstance(ledger.settle(current, last), Record)
    stored = bench.stored()
    assert (stored.state, stored.message_id, stored.body) == (State.SENT, "m1", None)


def test_a_second_acceptance_is_noted_on_a_sent_record(bench: Bench) -> None:
    """A provider that forgot its key too early: the duplicate is there for a person to see."""
    ledger, _ = bench.worker()
    zombie = taken(ledger)
    bench.lease_over()
    ledger.settle(taken(ledger), Accepted("m2"))
    ledger.settle(zombie, SENT)
    stored = bench.stored()
    assert (stored.state, stored.message_id) == (State.SENT, "m2")
    assert [item.message_id for item in stored.evidence] == ["m1"]


def test_the_same_acceptance_is_not_evidence(bench: Bench) -> None:
    """A replay gives the same message id: nothing new is known, and nothing is written."""
    ledger, store = bench.worker()
    zombie = taken(ledger)
    bench.lease_over()
    ledger.settle(taken(ledger), SENT)
    before, writes = bench.stored(), store.counted["swap"]
    assert ledger.settle(zombie, SENT) == Lost(before)
    assert bench.stored() == before
    assert store.counted["swap"] == writes + 1, "the settle that found its claim lost"


@pytest.mark.parametrize("outcome", [Unknown("?"), NotSent("429"), Rejected("422")], ids=repr)
def test_a_zombie_that_knows_nothing_changes_nothing(bench: Bench, outcome: Outcome) -> None:
    ledger, _ = bench.worker()
    zombie = taken(ledger)
    bench.lease_over()
    claim = taken(ledger)
    assert ledger.settle(zombie, outcome) == Lost(claim.record)
    assert bench.stored() == claim.record
    assert isinstance(ledger.settle(claim, SENT), Record)
    assert ledger.settle(zombie, outcome) == Lost(bench.stored())


@pytest.mark.parametrize("ended", ["freeze", "split", "settle"])
def test_a_zombie_that_was_rendering_is_told_so(bench: Bench, ended: str) -> None:
    ledger, _ = bench.worker()
    zombie = taken(ledger, JOB)
    bench.lease_over()
    claim = taken(ledger, JOB)
    result: object
    if ended == "freeze":
        result = ledger.freeze(zombie, b"other", "g")
    elif ended == "split":
        result = ledger.split(zombie, b"[]", "g")
    else:
        result = ledger.settle(zombie, Rejected("no"))
    assert result == Lost(claim.record)
    assert bench.stored() == claim.record


# Notes beside a claim.


@pytest.mark.parametrize("step", ["freeze", "split", "settle"])
def test_a_conflict_beside_a_claim_does_not_break_it(bench: Bench, step: str) -> None:
    """Somebody notes a conflict while the holder works: both are in the record in the end."""
    ledger, _ = bench.worker()
    intent = READY if step == "settle" else JOB
    claim = taken(ledger, intent)
    other, _ = bench.worker()
    conflict = other.claim(Intent("k", fingerprint="g"))
    assert isinstance(conflict, Conflict)
    other.note_conflict(conflict.record, "g")
    if step == "settle":
        assert isinstance(ledger.settle(claim, SENT), Record)
    elif step == "split":
        assert isinstance(ledger.split(claim, b"[]", "f"), Record)
    else:
        frozen = ledger.freeze(claim, b"body", "f")
        assert isinstance(frozen, Claim)
        assert isinstance(ledger.settle(frozen, SENT), Record)
    stored = bench.stored()
    assert stored.state is (State.SPLIT if step == "split" else State.SENT)
    assert [item.detail for item in stored.evidence] == ["g"]


def test_a_conflict_is_noted_once_for_each_email(bench: Bench) -> None:
    """However often the wrong message comes back, and whoever holds an old copy of the record."""
    ledger, _ = bench.worker()
    old = taken(ledger).record
    for fingerprint in ("g", "h", "g", None, "g", None):
        ledger.note_conflict(old, fingerprint)
        ledger.note_conflict(bench.stored(), fingerprint)
    assert [item.detail for item in bench.stored().evidence] == ["g", "h", None]


def test_two_conflicts_noted_at_one_moment_are_both_there(bench: Bench) -> None:
    """Two notes on one claim differ in nothing but themselves; one must not pass for the other."""
    ledger, _ = bench.worker()
    record = taken(ledger).record
    bench.worker()[0].note_conflict(record, "g")
    ledger.note_conflict(record, "h")
    assert [item.detail for item in bench.stored().evidence] == ["g", "h"]


@pytest.mark.parametrize("fault", [Fault.RETRIED, Fault.ANSWER_LOST, Fault.REFUSED])
def test_a_note_under_a_fault_is_there_once(bench: Bench, fault: Fault) -> None:
    ledger, store = bench.worker()
    record = taken(ledger).record
    store.faults = {2: fault}
    for _ in range(2):
        try:
            ledger.note_conflict(record, "g")
        except LedgerUnavailable:
            continue
    assert [item.detail for item in bench.stored().evidence] == ["g"]
    assert bench.stored().version == 2


def test_a_settle_whose_answer_was_lost_is_recognised_under_a_note(bench: Bench) -> None:
    """Applied, then a conflict was noted on top of it, then the holder asks again: it is its own write all the same."""
    ledger, store = bench.worker()
    claim = taken(ledger)
    noted = bench.worker()[0]
    store.faults = {2: Fault.ANSWER_LOST}
    sleep = bench.clock.sleep

    def note_then_sleep(seconds: float) -> None:
        if not bench.stored().evidence:
            noted.note_conflict(bench.stored(), "g")
        sleep(seconds)

    bench.clock.sleep = note_then_sleep  # type: ignore[method-assign]  # the instant between the two tries
    assert isinstance(ledger.settle(claim, SENT), Record)
    assert bench.stored().state is State.SENT
    assert [item.kind for item in bench.stored().evidence] == ["conflict"]


# Races, and what is seen from outside.


def test_of_claims_that_race_one_wins(bench: Bench) -> None:
    """Eight threads, fifty keys: one claim each, and the others are told to wait for just that one."""
    ledgers = [bench.worker()[0] for _ in range(8)]

    def race(ledger: Ledger) -> list[object]:
        return [ledger.claim(Intent(f"k{number}", fingerprint="f")) for number in range(50)]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(race, ledgers))
    for decisions in zip(*results, strict=True):
        winners = [decision for decision in decisions if isinstance(decision, Claim)]
        assert len(winners) == 1
        waiting = [decision for decision in decisions if isinstance(decision, Wait)]
        assert len(waiting) == 7
        assert {decision.record.claim_id for decision in waiting} == {winners[0].record.claim_id}


def test_of_takeovers_that_race_one_wins(bench: Bench) -> None:
    taken(bench.worker()[0])
    bench.lease_over()
    ledgers = [bench.worker()[0] for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        decisions = list(pool.map(lambda ledger: ledger.claim(READY), ledgers))
    assert sum(isinstance(decision, Claim) for decision in decisions) == 1
    assert bench.stored().version == 2


def test_another_email_or_job_under_the_key_is_a_conflict(bench: Bench) -> None:
    ledger, store = bench.worker()
    record = taken(ledger).record
    for intent in (Intent("k", fingerprint="g"), JOB, Intent("k", fingerprint="f", job="report")):
        assert ledger.claim(intent) == Conflict(record)
    assert bench.stored() == record
    assert store.counted["read"] == 0


def test_another_provider_never_repeats_what_the_first_may_have_accepted(bench: Bench) -> None:
    """It does not know the key; only the provider that was asked does."""
    taken(bench.worker()[0])
    bench.lease_over()
    bench.provider = "other"
    assert isinstance(bench.worker()[0].claim(READY), Done)
    assert bench.stored().state is State.IN_DOUBT


def test_reading_listing_and_counting(bench: Bench) -> None:
    ledger, _ = bench.worker()
    assert ledger.read("k") is None
    ledger.settle(taken(ledger), SENT)
    assert ledger.read("k") == bench.stored()
    assert list(ledger.list(State.SENT, 10)) == [bench.stored()]
    assert ledger.count() == {state: int(state is State.SENT) for state in State}
    ledger.close()


def test_own_writes_are_told_from_others(bench: Bench) -> None:
    """Claim id, state, version and evidence together; each differing is somebody else's write."""
    from idem.ledger import _is_own  # noqa: PLC0415 - the one look behind the curtain, beside what it checks

    mine = taken(bench.worker()[0]).record
    item = Evidence(at=1.0, kind="conflict", detail="g")
    assert _is_own(mine, mine)
    assert _is_own(protocol.note(mine, item, now=1.0), mine), "with a note on top"
    assert not _is_own(mine, replace(mine, claim_id="c9"))
    assert not _is_own(mine, replace(mine, state=State.SENT))
    assert not _is_own(mine, replace(mine, version=9))
    assert not _is_own(mine, replace(mine, evidence=(item,)))


def test_a_producer_that_repeats_its_mistake_does_not_make_the_record_grow(bench: Bench) -> None:
    ledger, _ = bench.worker()
    taken(ledger)
    for number in range(50):
        ledger.note_conflict(bench.stored(), f"other-{number}")
    assert len(bench.stored().evidence) == 20


def test_a_pause_that_outlasts_the_window_is_cut_short(bench: Bench) -> None:
    """The provider asks for two days; the last replay inside its window is tried all the same, and can settle it."""
    ledger, _ = bench.worker()
    began = bench.clock.now()
    settled = ledger.settle(taken(ledger), Unknown("HTTP 503", retry_after=172_800.0))
    assert isinstance(settled, Record)
    assert settled.ready_at is not None
    assert settled.ready_at == began + 86_400.0 - POLICY.margin_seconds - POLICY.lease_seconds
    bench.clock.sleep(settled.ready_at - began)
    assert isinstance(ledger.claim(READY), Claim)
