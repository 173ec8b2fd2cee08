"""What must hold when everything has come to rest, judged by the provider's log and by what was heard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from idem.keys import range_key
from idem.outcome import Unknown
from idem.protocol import ACCEPTANCE, InDoubt, Record, Resolution, State
from tests.sim.provider import INVALID, Offer
from tests.sim.world import Call, Job, World


@dataclass(frozen=True, slots=True)
class Tally:
    """What a run came to; `doubted` is how many in doubt the oracle counts, `accepted_in_doubt` those of them sent."""

    jobs: int
    emails: int
    accepted: int
    in_doubt: int
    doubted: int
    accepted_in_doubt: int
    faults: int


def problems(world: World) -> Iterator[str]:
    """Every invariant that does not hold, its letter first."""
    if world.queue.letters:
        yield f"L0 {len(world.queue.letters)} messages are left in the queue"
    jobs = {job.name: job for job in world.scenario.jobs}
    for letter, reason in world.queue.dead:
        named = letter.job.partition("/")[0]
        if named not in jobs or not jobs[named].conflict:
            yield f"L0 {letter.job}: buried, as {reason}"
    doubted = doubted_keys(world)
    counts = Counter(acceptance.subject for acceptance in world.side.log)
    refused = {letter.job for letter, _ in world.queue.dead}
    for job in world.scenario.jobs:
        if job.conflict and job.name not in refused:
            yield f"L0 {job.name}: another email under its key was dropped in silence"
    for name, key in world.keys.items():
        job = jobs[name.partition("/")[0]]
        record = _record_of(world, job, key)
        subject = f"{INVALID} {name}" if job.invalid else name
        accepted = counts[subject]
        yield from _of_email(world, job, key, record, accepted)
        if record is not None:
            yield from _of_doubt(world, job, record, accepted, doubted=record.key in doubted)
    for subject, times in counts.items():
        if times > 1 and subject.removeprefix(f"{INVALID} ") not in world.keys:
            yield f"D0 {subject}: accepted {times} times"


def _record_of(world: World, job: Job, key: str) -> Record | None:
    """What says what became of an email: its own record, or that of the request that it was to go out in."""
    several = job.bulk or job.emails or 0
    own = world.table.read(key)
    return own if own is not None or several < 2 else world.table.read(range_key(key.rpartition("/")[0], 1, several))


def _of_email(world: World, job: Job, key: str, record: Record | None, accepted: int) -> Iterator[str]:
    if record is None or not record.ended:
        yield f"L0 {key}: {'absent' if record is None else record.state}"
        return
    twice_is_wanted = any(item.kind == Resolution.RESEND.value for item in record.evidence)
    if accepted > 1 and not twice_is_wanted:
        yield f"D0 {key}: accepted {accepted} times"
    if record.state is State.SENT and not accepted:
        yield f"L0 {key}: sent, and never accepted"
    given_up = record.state is State.DROPPED and (job.choice is InDoubt.DROP or twice_is_wanted)
    if record.state in {State.REJECTED, State.DROPPED} and accepted and not given_up:
        yield f"L0 {key}: {record.state}, and accepted"
    if record.state is State.REJECTED and not (job.invalid or _may_give_up(world, record)):
        yield f"L0 {key}: rejected, as {record.reason}"
    if job.emails == 0 and record.state is not State.SPLIT:
        yield f"L0 {key}: a job without an email is {record.state}"
    noted = record.state is State.SENT or any(item.kind == ACCEPTANCE for item in record.evidence)
    if record.key in world.known and not noted:
        yield f"E {key}: {record.state}, although a worker heard that it was accepted"


def _may_give_up(world: World, record: Record) -> bool:
    """A refusal at the gate is final where nothing is in doubt; so is having tried for long enough."""
    refused = record.reason is not None and "403" in record.reason
    begun = record.opened_at if record.opened_at is not None else record.created_at
    return refused or record.updated_at - begun >= world.policy.give_up_seconds


def _of_doubt(world: World, job: Job, record: Record, accepted: int, *, doubted: bool) -> Iterator[str]:
    if record.state is State.IN_DOUBT and not doubted:
        yield f"Q {record.key}: in doubt without a cause: {record.reason}"
    if record.state is State.IN_DOUBT and world.scenario.events and accepted:
        yield f"E {record.key}: in doubt, although the provider told that it was accepted"
    keyless = world.scenario.offer is Offer.NEITHER and job.choice in {None, InDoubt.HOLD}
    if doubted and keyless and record.state not in {State.IN_DOUBT, State.SENT}:
        yield f"Q {record.key}: {record.state}, although nobody knows what became of an attempt"


def doubted_keys(world: World) -> set[str]:
    """The keys that may be in doubt for who looks from outside.

    None of a provider that can be searched, nor of one with keys whose window nobody outlasted; but for an email that
    it refuses: a refusal does not say what became of an earlier request that was not heard of (rule 5).
    """
    opened = {call.key for call in world.calls.values() if _is_open(call)}
    match world.scenario.offer:
        case Offer.SEARCHABLE:
            return set()
        case Offer.KEYED | Offer.REFUSING:
            invalid = {job.name for job in world.scenario.jobs if job.invalid}
            return opened & {key for name, key in world.keys.items() if name in invalid}
    return opened


def _is_open(call: Call) -> bool:
    """Whether an attempt may have been accepted for all that was heard of it and written down."""
    if not call.recorded:
        return True
    return (call.asked and call.outcome is None) or isinstance(call.outcome, Unknown)


def tally(world: World) -> Tally:
    """The figures of a run."""
    records = {record.key: record for record in world.table.records()}
    in_doubt = {key for key, record in records.items() if record.state is State.IN_DOUBT}
    settled = {key for key, record in records.items() if record.state in {State.SENT, State.DROPPED, State.REJECTED}}
    accepted = {acceptance.subject for acceptance in world.side.log}
    sent = {name for name, key in world.keys.items() if key in in_doubt and name in accepted}
    return Tally(
        jobs=len(world.scenario.jobs),
        emails=len(world.keys),
        accepted=len(world.side.log),
        in_doubt=len(in_doubt),
        doubted=len(doubted_keys(world) - settled),
        accepted_in_doubt=len(sent),
        faults=len(world.faults.done),
    )
