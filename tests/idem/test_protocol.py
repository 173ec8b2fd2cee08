"""The three tables, row by row, and what each transition writes into the record."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from idem import protocol
from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.policy import Policy
from idem.protocol import (
    CLAIM,
    ENDED,
    EVIDENCE,
    MAX_HISTORY,
    RESOLVE,
    SETTLE,
    Attempt,
    Close,
    Conflict,
    Done,
    Doubt,
    Evidence,
    InDoubt,
    Intent,
    Move,
    Record,
    Resolution,
    Rules,
    Standing,
    State,
    Take,
    Verdict,
    Wait,
)

NOW = 1_700_000_000.0
POLICY = Policy(window_seconds=86_400.0)
KEYLESS = Policy()
RULES = Rules(POLICY, "fake")
INTENT = Intent("k", fingerprint="f")
MARGIN = POLICY.margin_seconds
PROOF = Evidence(at=NOW - 5, kind="accepted", claim_id="c0", message_id="m0")


def record(state: State, **changes: Any) -> Record:
    base: dict[str, Any] = {
        "key": "k",
        "state": state,
        "version": 7,
        "claim_id": "c1",
        "created_at": NOW - 100,
        "updated_at": NOW - 50,
        "provider": "fake",
        "fingerprint": "f",
        "attempts": 3,
    }
    return Record(**base | changes)


def sending(**changes: Any) -> Record:
    """An attempt under way, begun ten seconds ago."""
    history = (Attempt(number=3, claim_id="c1", started_at=NOW - 10),)
    base: dict[str, Any] = {"started_at": NOW - 10, "lease_until": NOW + 50, "history": history}
    return record(State.SENDING, **base | changes)


#: A record for each standing; several where several forms stand alike.
STANDING: list[tuple[Standing, Record | None]] = [
    (Standing.ABSENT, None),
    (Standing.RENDERING_LIVE, record(State.RENDERING, lease_until=NOW + 1, fingerprint=None)),
    (Standing.RENDERING_OVER, record(State.RENDERING, lease_until=NOW, fingerprint=None)),
    (Standing.SENDING_LIVE, sending(lease_until=NOW + 1)),
    (Standing.SENDING_LIVE, sending(lease_until=NOW + 1, evidence=(PROOF,))),
    (Standing.RETRY_EARLY, record(State.RETRY, ready_at=NOW + 1)),
    (Standing.RETRY_DUE, record(State.RETRY, ready_at=NOW)),
    (Standing.RETRY_DUE, record(State.RETRY)),
    (Standing.UNSURE_EARLY, record(State.UNSURE, ready_at=NOW + 1, unsure_since=NOW - 10)),
    (Standing.UNSURE_OPEN, record(State.UNSURE, ready_at=NOW, unsure_since=NOW - 10)),
    (Standing.UNSURE_OPEN, sending(lease_until=NOW)),
    (Standing.UNSURE_OPEN, sending(lease_until=NOW, started_at=NOW - 86_400 + MARGIN + 1)),
    (Standing.UNSURE_CLOSED, sending(lease_until=NOW, started_at=NOW - 86_400 + MARGIN)),
    (Standing.UNSURE_CLOSED, sending(lease_until=NOW, unsure_since=NOW - 86_400 + MARGIN)),
    (Standing.UNSURE_CLOSED, sending(lease_until=NOW, provider="other")),
    (Standing.UNSURE_CLOSED, record(State.UNSURE)),
    (Standing.UNSURE_PROVED, sending(lease_until=NOW, evidence=(PROOF,))),
    (Standing.UNSURE_PROVED, sending(lease_until=NOW, evidence=(PROOF,), provider="other", started_at=0.0)),
    (Standing.UNSURE_PROVED, record(State.UNSURE, ready_at=NOW + 1, unsure_since=NOW - 10, evidence=(PROOF,))),
    (Standing.SENT, record(State.SENT)),
    (Standing.REJECTED, record(State.REJECTED)),
    (Standing.IN_DOUBT, record(State.IN_DOUBT, unsure_since=NOW - 100)),
    (Standing.DROPPED, record(State.DROPPED)),
    (Standing.SPLIT, record(State.SPLIT, job="report")),
    (Standing.PENDING, record(State.PENDING, attempts=0)),
    (Standing.PENDING, record(State.PENDING, attempts=0, ready_at=NOW + 1)),
    (Standing.PENDING, record(State.PENDING, attempts=0, job="report", fingerprint=None)),
    (Standing.EXPIRED, record(State.EXPIRED)),
    (Standing.CANCELLED, record(State.CANCELLED)),
]


def one(standing: Standing) -> Record:
    found = next(item for name, item in STANDING if name is standing)
    assert found is not None
    return found


# The tables are total, and say what the page says.


def test_the_tables_hold_every_pair_once() -> None:
    """No missing row, no row for what cannot happen."""
    assert set(CLAIM) == set(Standing)
    assert set(EVIDENCE) == set(Standing) - {Standing.ABSENT}
    pairs = {(verdict, doubt) for verdict in Verdict for doubt in Doubt}
    assert set(SETTLE) == pairs - {(Verdict.UNKNOWN, Doubt.NONE), (Verdict.UNKNOWN, Doubt.WAIVED)}
    assert set(RESOLVE) <= {(standing, resolution) for standing in Standing for resolution in Resolution}
    assert {standing for standing, _ in STANDING} == set(Standing), "and these tests have a record for each"


def test_ended_is_what_may_be_acknowledged() -> None:
    unsent = {State.EXPIRED, State.CANCELLED}
    assert frozenset({State.SENT, State.REJECTED, State.IN_DOUBT, State.DROPPED, State.SPLIT}) | unsent == ENDED
    for state in State:
        assert record(state).ended == (state in ENDED)


@pytest.mark.parametrize(
    ("verdict", "none", "open_", "closed"),
    [
        (Verdict.ACCEPTED, State.SENT, State.SENT, State.SENT),
        (Verdict.CONFLICT, State.REJECTED, State.IN_DOUBT, State.IN_DOUBT),
        (Verdict.REJECTED, State.REJECTED, State.UNSURE, State.IN_DOUBT),
        (Verdict.NOT_SENT, State.RETRY, State.UNSURE, State.IN_DOUBT),
        (Verdict.NOT_SENT_GIVING_UP, State.REJECTED, State.UNSURE, State.IN_DOUBT),
        (Verdict.UNKNOWN, None, State.UNSURE, State.IN_DOUBT),
        (Verdict.REJECTED_FOR_KEY, State.REJECTED, State.REJECTED, State.IN_DOUBT),
        (Verdict.NOT_SENT_FOR_KEY, State.RETRY, State.RETRY, State.IN_DOUBT),
    ],
)
def test_rule_5_line_by_line(verdict: Verdict, none: State | None, open_: State, closed: State) -> None:
    assert SETTLE.get((verdict, Doubt.NONE)) is none
    assert SETTLE[verdict, Doubt.OPEN] is open_
    assert SETTLE[verdict, Doubt.CLOSED] is closed
    assert SETTLE[verdict, Doubt.PROVED] is State.SENT
    # What was sent again on purpose may have been accepted before: it is as if there were no doubt, but never rejected.
    assert SETTLE.get((verdict, Doubt.WAIVED)) is (State.DROPPED if none is State.REJECTED else none)


# Claims.


@pytest.mark.parametrize(("standing", "stored"), STANDING)
def test_what_a_record_stands_for(standing: Standing, stored: Record | None) -> None:
    assert protocol.standing(stored, NOW, RULES) is standing


def test_without_keys_nothing_is_open() -> None:
    rules = Rules(KEYLESS, "fake")
    for standing, stored in STANDING:
        expected = Standing.UNSURE_CLOSED if standing is Standing.UNSURE_OPEN else standing
        assert protocol.standing(stored, NOW, rules) is expected


def _claim(stored: Record | None) -> protocol.Decision:
    intent = Intent("k", job=stored.job) if stored is not None and (stored.job or not stored.fingerprint) else INTENT
    return protocol.claim(stored, intent, now=NOW, claim_id="new", rules=RULES)


@pytest.mark.parametrize(("standing", "stored"), STANDING)
def test_what_a_claim_comes_to(standing: Standing, stored: Record | None) -> None:
    decision = _claim(stored)
    match CLAIM[standing]:
        case Move.BEGIN | Move.REPLAY:
            assert isinstance(decision, Take)
        case Move.DOUBT | Move.PROVE:
            assert isinstance(decision, Close)
        case Move.WAIT:
            assert isinstance(decision, Wait)
            assert decision.record is stored
            assert decision.until > NOW
        case Move.END:
            assert stored is not None
            assert decision == Done(stored)


@pytest.mark.parametrize(("standing", "stored"), STANDING)
def test_what_a_claim_writes(standing: Standing, stored: Record | None) -> None:
    decision = _claim(stored)
    if not isinstance(decision, Take):
        return
    before, taken = stored or record(State.RETRY, version=0, attempts=0, created_at=NOW), decision.record
    assert taken.version == before.version + 1
    assert taken.claim_id == "new"
    assert taken.lease_until == NOW + POLICY.lease_seconds
    assert (taken.ready_at, taken.updated_at, taken.created_at) == (None, NOW, before.created_at)
    if taken.fingerprint is None or standing is Standing.RENDERING_OVER:
        assert (taken.state, taken.attempts, taken.started_at) == (State.RENDERING, before.attempts, None)
        return
    assert (taken.state, taken.attempts, taken.started_at) == (State.SENDING, before.attempts + 1, NOW)
    assert taken.history == (*before.history, Attempt(number=taken.attempts, claim_id="new", started_at=NOW))
    since = before.unsure_since if before.unsure_since is not None else before.started_at
    assert taken.unsure_since == (since if standing is Standing.UNSURE_OPEN else None)


@pytest.mark.parametrize(("standing", "stored"), STANDING)
def test_what_closing_writes(standing: Standing, stored: Record | None) -> None:
    decision = _claim(stored)
    if not isinstance(decision, Close):
        return
    assert stored is not None
    closed = decision.record
    proved = standing is Standing.UNSURE_PROVED
    assert closed.state is (State.SENT if proved else State.IN_DOUBT)
    assert closed.message_id == ("m0" if proved else None)
    assert bool(closed.reason) is not proved, "a person is told why"
    assert (closed.version, closed.claim_id) == (stored.version + 1, "new")
    assert (closed.lease_until, closed.ready_at, closed.updated_at) == (None, None, NOW)
    assert closed.attempts == stored.attempts


@pytest.mark.parametrize(
    ("stored", "until"),
    [
        (sending(lease_until=NOW + 33), NOW + 33),
        (record(State.RENDERING, lease_until=NOW + 33, fingerprint=None, job="report"), NOW + 33),
        (record(State.RETRY, ready_at=NOW + 44), NOW + 44),
        (record(State.UNSURE, ready_at=NOW + 44, unsure_since=NOW), NOW + 44),
    ],
)
def test_one_is_told_until_when_to_wait(stored: Record, until: float) -> None:
    assert _claim(stored) == Wait(until, stored)


@pytest.mark.parametrize(("standing", "stored"), STANDING)
def test_another_intent_is_a_conflict_in_every_standing(standing: Standing, stored: Record | None) -> None:
    if stored is None or (standing is Standing.PENDING and stored.job):
        return
    for intent in (Intent("k", fingerprint="other"), Intent("k", job="other")):
        if standing is Standing.CANCELLED:
            assert protocol.claim(stored, intent, now=NOW, claim_id="new", rules=RULES) == Done(stored)
            continue
        assert protocol.claim(stored, intent, now=NOW, claim_id="new", rules=RULES) == Conflict(stored), standing


def test_a_job_agrees_with_its_record_whatever_it_built() -> None:
    stored = record(State.SENT, job="report", fingerprint="built")
    assert protocol.claim(stored, Intent("k", job="report"), now=NOW, claim_id="n", rules=RULES) == Done(stored)


def test_the_first_claim_of_each_kind() -> None:
    ready = protocol.claim(None, INTENT, now=NOW, claim_id="c", rules=RULES)
    assert isinstance(ready, Take)
    assert ready.record == Record(
        key="k",
        state=State.SENDING,
        version=1,
        claim_id="c",
        created_at=NOW,
        updated_at=NOW,
        provider="fake",
        fingerprint="f",
        marked=True,
        attempts=1,
        started_at=NOW,
        lease_until=NOW + 60,
        history=(Attempt(number=1, claim_id="c", started_at=NOW),),
    )
    job = protocol.claim(None, Intent("k", job="report"), now=NOW, claim_id="c", rules=RULES)
    assert isinstance(job, Take)
    assert (job.record.state, job.record.job, job.record.attempts) == (State.RENDERING, "report", 0)


def test_a_retry_goes_through_the_provider_of_the_day() -> None:
    """Nothing was sent, so another provider may be asked; while in doubt, it may not."""
    decision = protocol.claim(one(Standing.RETRY_DUE), INTENT, now=NOW, claim_id="n", rules=Rules(POLICY, "other"))
    assert isinstance(decision, Take)
    assert decision.record.provider == "other"


def test_the_history_has_an_end() -> None:
    stored = record(State.RETRY, history=tuple(Attempt(number=n, claim_id="c", started_at=0.0) for n in range(30)))
    decision = protocol.claim(stored, INTENT, now=NOW, claim_id="n", rules=RULES)
    assert isinstance(decision, Take)
    assert len(decision.record.history) == MAX_HISTORY
    assert decision.record.history[-1].claim_id == "n"
    assert decision.record.attempts == 4


# Settling.

OLD = NOW - 86_400 + MARGIN
DOUBTS: dict[Doubt, Record] = {
    Doubt.NONE: sending(),
    Doubt.OPEN: sending(unsure_since=NOW - 20),
    Doubt.CLOSED: sending(unsure_since=OLD),
    Doubt.WAIVED: sending(evidence=(Evidence(at=NOW - 30, kind=Resolution.RESEND.value),)),
    Doubt.PROVED: sending(unsure_since=NOW - 20, evidence=(PROOF,)),
}
UNDOUBTED = {Doubt.NONE, Doubt.WAIVED}
LATE: dict[str, Any] = {"created_at": NOW - POLICY.give_up_seconds}
OUTCOMES: list[tuple[Verdict, Outcome, dict[str, Any]]] = [
    (Verdict.ACCEPTED, Accepted("m1"), {}),
    (Verdict.ACCEPTED, Accepted(None, replayed=True), {}),
    (Verdict.CONFLICT, Rejected("409", Ground.CONFLICT), {}),
    (Verdict.REJECTED, Rejected("422"), {}),
    (Verdict.REJECTED, Rejected("403", Ground.GATE), {}),
    (Verdict.NOT_SENT, NotSent("429", retry_after=17.0), {}),
    (Verdict.NOT_SENT_GIVING_UP, NotSent("429"), LATE),
    (Verdict.UNKNOWN, Unknown("timeout"), {}),
    (Verdict.UNKNOWN, Unknown("503", retry_after=17.0), LATE),
]


def _settle(stored: Record, outcome: Outcome, policy: Policy = POLICY, now: float = NOW) -> Record:
    return protocol.settle(stored, outcome, now=now, policy=policy, jitter=1.0)


@pytest.mark.parametrize("doubt", Doubt)
@pytest.mark.parametrize(("verdict", "outcome", "changes"), OUTCOMES)
def test_what_a_settle_writes(doubt: Doubt, verdict: Verdict, outcome: Outcome, changes: dict[str, Any]) -> None:
    stored = replace(DOUBTS[doubt], body=b"frozen", **changes)
    settled = _settle(stored, outcome)
    # From its own start on, an attempt whose outcome is not known is in doubt itself.
    effective = Doubt.OPEN if verdict is Verdict.UNKNOWN and doubt in UNDOUBTED else doubt
    assert settled.state is SETTLE[verdict, effective]
    assert settled.version == stored.version + 1
    assert (settled.claim_id, settled.attempts, settled.created_at) == ("c1", 3, stored.created_at)
    assert (settled.lease_until, settled.started_at, settled.updated_at) == (None, None, NOW)
    since = stored.started_at if effective is not doubt else stored.unsure_since
    assert settled.unsure_since == since
    assert settled.body == (None if settled.state is State.SENT else b"frozen")
    if settled.state in {State.RETRY, State.UNSURE}:
        assert settled.ready_at is not None
        asked = getattr(outcome, "retry_after", None) or 0.0
        assert settled.ready_at >= NOW + max(asked, 0.1)
    else:
        assert settled.ready_at is None
    if settled.state is State.SENT:
        assert settled.reason is None
        assert settled.message_id == (outcome.message_id if isinstance(outcome, Accepted) else "m0")
    elif not isinstance(outcome, Accepted):
        assert settled.reason == outcome.detail
        assert settled.message_id is None


@pytest.mark.parametrize(
    ("outcome", "name", "detail"),
    [
        (Accepted("m1"), "Accepted", "m1"),
        (Accepted("m1", replayed=True), "Replayed", "m1"),
        (Rejected("422"), "Rejected", "422"),
        (NotSent("429"), "NotSent", "429"),
        (Unknown("?"), "Unknown", "?"),
    ],
)
def test_the_history_keeps_the_outcome(outcome: Outcome, name: str, detail: str) -> None:
    earlier = Attempt(number=2, claim_id="c0", started_at=NOW - 99)
    settled = _settle(sending(history=(earlier, *sending().history)), outcome)
    closed = Attempt(number=3, claim_id="c1", started_at=NOW - 10, ended_at=NOW, outcome=name, detail=detail)
    assert settled.history == (earlier, closed)


def test_the_window_counts_from_the_first_attempt_that_may_have_been_accepted() -> None:
    """Not from the first try, which was refused, and not from the last one."""
    begun = protocol.claim(None, INTENT, now=NOW, claim_id="c1", rules=RULES)
    assert isinstance(begun, Take)
    now, stored = NOW, begun.record
    outcomes: list[Outcome] = [NotSent("429"), Unknown("?"), NotSent("429"), Unknown("?")]
    for number, outcome in enumerate(outcomes, 2):
        stored = protocol.settle(stored, outcome, now=now, policy=POLICY, jitter=1.0)
        assert stored.unsure_since == (None if number == 2 else NOW + 1_000)
        now += 1_000
        taken = protocol.claim(stored, INTENT, now=now, claim_id=f"c{number}", rules=RULES)
        assert isinstance(taken, Take)
        stored = taken.record
    assert stored.unsure_since == NOW + 1_000
    lapsed = protocol.claim(stored, INTENT, now=NOW + 1_000 + 86_400 - MARGIN, claim_id="late", rules=RULES)
    assert isinstance(lapsed, Close)


def test_an_unknown_outcome_without_keys_is_in_doubt_at_once() -> None:
    assert _settle(sending(), Unknown("?"), KEYLESS).state is State.IN_DOUBT
    assert _settle(sending(), NotSent("?"), KEYLESS).state is State.RETRY


@pytest.mark.parametrize(
    ("outcome", "state"), [(NotSent("it raised"), State.RETRY), (Rejected("junk"), State.REJECTED)]
)
def test_a_rendering_that_fails(outcome: Outcome, state: State) -> None:
    """Nothing was sent, and no attempt was made: the history stays as it is."""
    stored = record(
        State.RENDERING,
        job="report",
        fingerprint=None,
        lease_until=NOW + 1,
        history=(Attempt(number=1, claim_id="x", started_at=0.0),),
    )
    settled = _settle(stored, outcome)
    assert (settled.state, settled.history, settled.unsure_since) == (state, stored.history, None)


@pytest.mark.parametrize("outcome", [Accepted("m"), Unknown("?")])
def test_rendering_cannot_have_been_accepted(outcome: Outcome) -> None:
    with pytest.raises(ValueError, match="not an outcome of rendering"):
        _settle(record(State.RENDERING, fingerprint=None), outcome)


def test_attempts_come_less_often() -> None:
    """Each failure doubles the pause up to the limit; what the provider asks for is never cut short."""
    pauses = []
    for version in range(1, 40, 2):
        settled = _settle(sending(version=version), NotSent("429"))
        assert settled.ready_at is not None
        pauses.append(settled.ready_at - NOW)
    assert pauses[:4] == [1, 2, 4, 8]
    assert pauses[-1] == 900
    asked = _settle(sending(), NotSent("429", retry_after=5_000.0))
    assert asked.ready_at == NOW + 5_000


def test_a_replay_comes_early_for_the_end_of_the_window_and_never_at_once() -> None:
    last = POLICY.last_replay(NOW)
    early = _settle(sending(unsure_since=NOW, version=39), NotSent("429"), now=last - 1)
    assert early.ready_at == last
    late = _settle(sending(unsure_since=NOW, version=39), NotSent("429"), now=last)
    assert late.ready_at == last + 900


# Freezing, splitting, evidence, notes.


def test_a_freeze_fixes_the_body_and_begins_the_attempt() -> None:
    stored = record(State.RENDERING, job="report", fingerprint=None, attempts=0, lease_until=NOW + 1)
    frozen = protocol.freeze(stored, b"body", "f", now=NOW, policy=POLICY)
    assert (frozen.state, frozen.body, frozen.fingerprint) == (State.SENDING, b"body", "f")
    assert (frozen.version, frozen.claim_id, frozen.attempts) == (8, "c1", 1)
    assert (frozen.lease_until, frozen.started_at) == (NOW + 60, NOW)
    assert frozen.history == (Attempt(number=1, claim_id="c1", started_at=NOW),)


def test_a_durable_list_that_is_fixed_is_never_sent_as_one() -> None:
    """Its emails may have been asked for, each by itself, although its claim is lost and a provider would take all."""
    stored = record(State.RENDERING, attempts=0, lease_until=NOW, durable=True)
    fixed = protocol.freeze_list(stored, b"[]", 2, now=NOW)
    assert (fixed.state, fixed.body, fixed.cut, fixed.version) == (State.RENDERING, b"[]", 2, 8)
    taken = protocol.claim(fixed, INTENT, now=NOW, claim_id="c9", rules=RULES)
    assert isinstance(taken, Take)
    assert (taken.record.state, taken.record.cut) == (State.RENDERING, 2)


def test_a_doubt_that_was_answered_since_is_not_waived_any_more() -> None:
    evidence = [Evidence(at=NOW, kind=kind.value) for kind in (Resolution.RESEND, Resolution.NOT_SENT)]
    assert _settle(sending(evidence=tuple(evidence)), Rejected("422")).state is State.REJECTED


def test_a_split_ends_the_record() -> None:
    stored = record(State.RENDERING, job="report", fingerprint=None, attempts=0, lease_until=NOW + 1)
    ended = protocol.split(stored, b"[]", "f", now=NOW)
    assert (ended.state, ended.body, ended.fingerprint) == (State.SPLIT, b"[]", "f")
    assert (ended.version, ended.lease_until, ended.attempts) == (8, None, 0)


@pytest.mark.parametrize(("standing", "stored"), STANDING)
def test_an_acceptance_from_outside_is_never_lost(standing: Standing, stored: Record | None) -> None:
    if stored is None:
        return
    found = protocol.testify(stored, Accepted("m9"), claim_id="zombie", now=NOW, rules=RULES, detail=None)
    assert found.state is EVIDENCE[standing]
    assert found.version == stored.version + 1
    assert found.claim_id == stored.claim_id
    assert found.evidence == (
        *stored.evidence,
        Evidence(at=NOW, kind="accepted", claim_id="zombie", message_id="m9"),
    )
    if found.state is stored.state:
        assert replace(found, version=stored.version, evidence=stored.evidence, updated_at=stored.updated_at) == stored
    else:
        assert found.state is State.SENT
        assert found.message_id == found.evidence[0].message_id
        assert (found.lease_until, found.ready_at, found.started_at) == (None, None, None)


@pytest.mark.parametrize(("standing", "stored"), STANDING)
def test_a_note_changes_nothing_else(standing: Standing, stored: Record | None) -> None:
    if stored is None:
        return
    noted = protocol.note(stored, Evidence(at=NOW, kind="conflict", detail="g"), now=NOW)
    assert noted.evidence[:-1] == stored.evidence
    assert noted.version == stored.version + 1
    unchanged = set(Record.__struct_fields__) - {"evidence", "version", "updated_at"}
    assert all(getattr(noted, name) == getattr(stored, name) for name in unchanged), standing
    assert protocol.standing(noted, NOW, RULES) is protocol.standing(stored, NOW, RULES), "a conflict proves nothing"


def test_who_holds_a_claim() -> None:
    for state in State:
        assert protocol.holds(record(state), "c1") is (state in {State.RENDERING, State.SENDING})
        assert not protocol.holds(record(state), "c2")


# Whatever comes, in whatever order.

_outcomes = st.sampled_from([outcome for _, outcome, _ in OUTCOMES])
_inputs = st.lists(
    st.tuples(st.sampled_from(["claim", "settle", "testify", "note"]), st.floats(0, 200_000), _outcomes), max_size=12
)


@given(_inputs, st.booleans())
def test_what_has_ended_stays_as_it_is(inputs: list[tuple[str, float, Outcome]], keyed: bool) -> None:  # noqa: FBT001 - drawn
    """Any sequence of inputs, as a ledger would apply them: SENT and REJECTED never move, versions rise by one."""
    policy = POLICY if keyed else KEYLESS
    stored: Record | None = None
    now = NOW
    for number, (kind, pause, outcome) in enumerate(inputs):
        now += pause
        following = _apply(stored, (kind, outcome), f"c{number}", now, policy)
        if following is None:
            continue
        if stored is not None:
            assert following.version == stored.version + 1
            assert stored.state not in {State.SENT, State.REJECTED, State.SPLIT} or following.state is stored.state
            assert following.attempts >= stored.attempts
            assert following.evidence[: len(stored.evidence)] == stored.evidence
            assert (following.key, following.fingerprint) == (stored.key, stored.fingerprint)
        live = following.state in {State.SENDING, State.RENDERING}
        assert live == (following.lease_until is not None)
        assert following.state not in {State.UNSURE, State.IN_DOUBT} or following.unsure_since is not None
        stored = following


def _apply(stored: Record | None, given: tuple[str, Outcome], name: str, now: float, policy: Policy) -> Record | None:
    (kind, outcome), rules = given, Rules(policy, "fake")
    if kind == "claim":
        decision = protocol.claim(stored, INTENT, now=now, claim_id=name, rules=rules)
        return decision.record if isinstance(decision, Take | Close) else None
    if stored is None:
        return None
    if kind == "settle":
        held = protocol.holds(stored, stored.claim_id)
        return protocol.settle(stored, outcome, now=now, policy=policy, jitter=0.5) if held else None
    if kind == "testify":
        return protocol.testify(stored, Accepted(name), claim_id=name, now=now, rules=rules, detail=None)
    return protocol.note(stored, Evidence(at=now, kind="conflict", detail=name), now=now)


# Resolutions: from outside a claim, and only where no attempt can be under way.


@pytest.mark.parametrize("resolution", Resolution)
@pytest.mark.parametrize(("standing", "stored"), [item for item in STANDING if item[1] is not None])
def test_a_resolution_is_what_its_table_says_in_every_standing(
    standing: Standing, stored: Record, resolution: Resolution
) -> None:
    resolved = protocol.resolve(stored, resolution, claim_id="r1", by="by a test", now=NOW, rules=RULES)
    expected = RESOLVE.get((standing, resolution))
    if expected is None:
        assert resolved is None
        return
    assert resolved is not None
    assert resolved.state is expected
    assert (resolved.version, resolved.claim_id) == (stored.version + 1, "r1")
    assert (resolved.lease_until, resolved.started_at) == (None, None)
    assert resolved.evidence[-1] == Evidence(at=NOW, kind=resolution.value, claim_id="r1", detail="by a test")


@pytest.mark.parametrize(("standing", "resolution"), sorted(RESOLVE, key=str))
def test_no_resolution_touches_what_a_worker_may_still_replay_or_has_ended_well(
    standing: Standing, resolution: Resolution
) -> None:
    """Never while in doubt: a new generation is for what was rejected, and only for that (rule 9)."""
    assert standing in {Standing.IN_DOUBT, Standing.UNSURE_CLOSED, Standing.DROPPED, Standing.REJECTED}
    assert (resolution is Resolution.REOPEN) == (standing is Standing.REJECTED)


def test_what_is_sent_again_counts_its_doubt_and_its_time_anew() -> None:
    stored = record(State.IN_DOUBT, unsure_since=NOW - 10**6, created_at=NOW - 10**6, body=b"{}", reason="no answer")
    reopened = protocol.resolve(stored, Resolution.NOT_SENT, claim_id="r", by="x", now=NOW, rules=RULES)
    assert reopened is not None
    assert (reopened.unsure_since, reopened.ready_at, reopened.opened_at) == (None, NOW, NOW)
    assert (reopened.body, reopened.fingerprint, reopened.generation) == (b"{}", "f", 0)
    taken = protocol.claim(reopened, INTENT, now=NOW, claim_id="c9", rules=RULES)
    assert isinstance(taken, Take)
    settled = protocol.settle(taken.record, NotSent("HTTP 429"), now=NOW + 1, policy=POLICY, jitter=1.0)
    assert settled.state is State.RETRY, "it was opened a moment ago, however old the key is"


def test_a_rejection_is_opened_under_the_next_generation() -> None:
    reopened = protocol.resolve(record(State.REJECTED), Resolution.REOPEN, claim_id="r", by="x", now=NOW, rules=RULES)
    assert reopened is not None
    assert reopened.generation == 1
    assert reopened.fingerprint is None, "the ledger has no email: the next that comes is bound to the key"
    taken = protocol.claim(reopened, Intent("k", fingerprint="other"), now=NOW, claim_id="c", rules=RULES)
    assert isinstance(taken, Take)
    assert (taken.record.state, taken.record.fingerprint) == (State.SENDING, "other")
    late = protocol.claim(taken.record, INTENT, now=NOW, claim_id="d", rules=RULES)
    assert isinstance(late, Conflict), "the rejected email comes again: it does not get in between"


def test_a_rejected_job_is_built_again_unless_its_email_is_frozen() -> None:
    for body in (None, b"{}"):
        stored = record(State.REJECTED, job="report", body=body)
        reopened = protocol.resolve(stored, Resolution.REOPEN, claim_id="r", by="x", now=NOW, rules=RULES)
        assert reopened is not None
        taken = protocol.claim(reopened, Intent("k", job="report"), now=NOW, claim_id="c", rules=RULES)
        assert isinstance(taken, Take)
        assert taken.record.state is (State.SENDING if body else State.RENDERING)


# A doubt keeps the email, and what its job chose.


def test_a_doubt_keeps_the_email_that_came_with_the_message() -> None:
    intent = Intent("k", fingerprint="f", body=b"email", in_doubt=InDoubt.RESEND)
    rules = Rules(KEYLESS, "fake")
    taken = protocol.claim(None, intent, now=NOW, claim_id="c", rules=rules)
    assert isinstance(taken, Take)
    assert (taken.record.body, taken.record.in_doubt) == (None, InDoubt.RESEND)
    settled = protocol.settle(taken.record, Unknown("?"), now=NOW, policy=KEYLESS, jitter=1.0, body=b"email")
    assert (settled.state, settled.body) == (State.IN_DOUBT, b"email")
    after_a_crash = protocol.claim(taken.record, intent, now=NOW + 61, claim_id="d", rules=rules)
    assert isinstance(after_a_crash, Close)
    assert (after_a_crash.record.state, after_a_crash.record.body) == (State.IN_DOUBT, b"email")
    found = protocol.testify(settled, Accepted("m"), claim_id="e", now=NOW, rules=rules, detail="a look-up")
    assert (found.state, found.body, found.evidence[-1].detail) == (State.SENT, None, "a look-up")


@pytest.mark.parametrize("outcome", [Accepted("m"), Rejected("no"), NotSent("later")])
def test_no_other_end_keeps_it(outcome: Outcome) -> None:
    settled = protocol.settle(sending(), outcome, now=NOW, policy=POLICY, jitter=1.0, body=b"email")
    assert settled.body is None


# Several providers.

BOTH = Rules(POLICY, "fake", {"second": POLICY}, fallback="second")


def test_an_attempt_in_doubt_is_repeated_through_its_own_provider() -> None:
    stored = record(State.UNSURE, unsure_since=NOW - 10, provider="second")
    taken = protocol.claim(stored, INTENT, now=NOW, claim_id="c", rules=BOTH)
    assert isinstance(taken, Take)
    assert taken.record.provider == "second"
    assert isinstance(protocol.claim(stored, INTENT, now=NOW, claim_id="c", rules=RULES), Close), "unknown to it"


@pytest.mark.parametrize(
    ("provider", "outcome", "expected"),
    [
        ("fake", "NotSent", "second"),
        ("second", "NotSent", "fake"),
        ("fake", None, "fake"),
        ("second", None, "fake"),
    ],
)
def test_a_definite_failure_moves_on_to_the_second_choice_and_back(
    provider: str, outcome: str | None, expected: str
) -> None:
    history = (Attempt(number=1, claim_id="c1", started_at=NOW - 9, outcome=outcome),) if outcome else ()
    stored = record(State.RETRY, provider=provider, history=history)
    taken = protocol.claim(stored, INTENT, now=NOW, claim_id="c", rules=BOTH)
    assert isinstance(taken, Take)
    assert taken.record.provider == expected


# Keys that stay bound to a refusal.


@pytest.mark.parametrize(
    ("outcome", "unsure_since", "state", "generation"),
    [
        (NotSent("HTTP 429", burnt=True), None, State.RETRY, 1),
        (NotSent("HTTP 429", burnt=True), NOW - 20, State.UNSURE, 0),
        (NotSent("HTTP 429", burnt=True, replayed=True), NOW - 20, State.RETRY, 1),
        (NotSent("HTTP 429", burnt=True, replayed=True), NOW - 10**6, State.IN_DOUBT, 0),
        (Rejected("HTTP 422", replayed=True), NOW - 20, State.REJECTED, 0),
        (Rejected("HTTP 422", replayed=True), NOW - 10**6, State.IN_DOUBT, 0),
        (Rejected("HTTP 422"), NOW - 20, State.UNSURE, 0),
    ],
)
def test_a_refusal_that_sticks_to_the_key(
    outcome: Outcome, unsure_since: float | None, state: State, generation: int
) -> None:
    """The next attempt takes another key, but never while in doubt; and a replayed refusal ends a doubt."""
    settled = protocol.settle(sending(unsure_since=unsure_since), outcome, now=NOW, policy=POLICY, jitter=1.0)
    assert (settled.state, settled.generation) == (state, generation)
    assert state is not State.RETRY or settled.unsure_since is None
