"""What must hold when everything has come to rest, judged by the provider's log and by what was heard."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from idem.keys import range_key
from idem.outcome import Accepted, Rejected, Unknown
from idem.policy import MAX_DELAY_SECONDS
from idem.protocol import ACCEPTANCE, InDoubt, Record, Resolution, State
from tests.sim.faults import Kind
from tests.sim.provider import INVALID, Offer
from tests.sim.world import LEASE, VISIBILITY, Call, Job, World

#: When a reconciler believes at the latest that the queue has lost the message of a durable job, or never had it.
_LONGEST_ASKED_SECONDS = 64 * MAX_DELAY_SECONDS


@dataclass(frozen=True, slots=True)
class Tally:
    """What a run came to: `ends` says of the emails how many are in each state, all of them together `emails`.

    `doubted` is how many are in doubt by the oracle, `accepted_in_doubt` how many of those in doubt were accepted.
    `took` says how many emails ended within so many seconds, where pauses of days are not what is tried.
    """

    jobs: int
    emails: int
    accepted: int
    ends: Mapping[State, int]
    doubted: int
    accepted_in_doubt: int
    faults: int
    took: Mapping[int, int]


def problems(world: World) -> Iterator[str]:
    """Every invariant that does not hold, its letter first."""
    jobs = {job.name: job for job in world.scenario.jobs}
    for letter, reason in world.queue.dead:
        named = letter.job.partition("/")[0]
        # An old copy of what was opened again may come before the new one, which is then another email.
        if named not in jobs or not (jobs[named].conflict or jobs[named].key in world.mended):
            yield f"L0 {letter.job}: buried, as {reason}"
    log: defaultdict[str, list[str]] = defaultdict(list)
    for acceptance in world.log:
        log[acceptance.subject].append(acceptance.message_id)
    refused = {letter.job for letter, _ in world.queue.dead}
    for job in world.scenario.jobs:
        if job.conflict and job.name not in refused:
            yield f"L0 {job.name}: another email under its key was dropped in silence"
    for name, key in world.keys.items():
        job = jobs[_job_of(name)]
        record = _record_of(world, job, key)
        subjects = {job.subject(name), name} if key in world.mended else {job.subject(name)}
        yield from _of_email(world, job, key, record, [one for subject in subjects for one in log[subject]])
    yield from _of_rest(world)
    unknown = _unknown_keys(world)
    doubted = _doubted_keys(world, unknown)
    yield from _of_doubt(world, unknown, doubted)
    yield from _of_time(world, doubted)
    for subject, ids in log.items():
        if len(ids) > 1 and subject.removeprefix(f"{INVALID} ") not in world.keys:
            yield f"D0 {subject}: accepted {len(ids)} times"


def _of_rest(world: World) -> Iterator[str]:
    """Nothing waits any more, be it no email's own: the request that several went out in, or the list that they are."""
    if world.queue.letters:
        yield f"L0 {len(world.queue.letters)} messages are left in the queue"
    for record in world.table.records():
        if not record.ended:
            yield f"L0 {record.key}: {record.state}"


def _record_of(world: World, job: Job, key: str) -> Record | None:
    """What says what became of an email: its own record, that of its request, or that of a list that came too late."""
    several = job.bulk or job.emails or 0
    own = world.table.read(key)
    if own is not None or several < 2:
        return own
    stem = key.rpartition("/")[0]
    whole = world.table.read(stem)
    expired = whole is not None and whole.state is State.EXPIRED
    return whole if expired else world.table.read(range_key(stem, 1, several))


def _of_email(world: World, job: Job, key: str, record: Record | None, accepted: Sequence[str]) -> Iterator[str]:
    """One email; `accepted` are the ids that the provider gave it."""
    if record is None or not record.ended:
        yield f"L0 {key}: {'absent' if record is None else record.state}"
        return
    resent = _resent(record)
    if len(accepted) > 1 + resent:
        yield f"D0 {key}: accepted {len(accepted)} times{f', sent again {resent} times' if resent else ''}"
    if resent and job.choice is not InDoubt.RESEND:
        yield f"Q {key}: sent again, although its job did not choose that it may arrive twice"
    if (job.emails == 0) is not (record.state is State.SPLIT):
        yield f"L0 {key}: a job with {'an' if job.emails != 0 else 'no'} email is {record.state}"
    if key in world.called_back and record.state is not State.CANCELLED and not resent:
        yield f"L0 {key}: {record.state}, although somebody was told that it is called back"
    yield from _of_late(world, job, record.key)
    yield from _of_end(world, job, key, record, accepted)
    noted = record.state is State.SENT or any(item.kind == ACCEPTANCE for item in record.evidence)
    if record.key in world.known and not noted:
        yield f"E {key}: {record.state}, although a worker heard that it was accepted"


def _of_end(world: World, job: Job, key: str, record: Record, accepted: Sequence[str]) -> Iterator[str]:
    """What an email may end as, and with which cause; what is in doubt is judged by `_of_doubt`."""
    match record.state:
        case State.SENT:
            yield from _of_sent(world, key, record, accepted)
        case State.REJECTED:
            if accepted:
                yield f"L0 {key}: rejected, and accepted"
            if not _may_give_up(world, record):
                yield f"L0 {key}: rejected, as {record.reason}"
        case State.DROPPED:
            yield from _of_dropped(world, job, key, record)
        case State.EXPIRED:
            yield from _of_expired(world, job, record.key, accepted)
        case State.CANCELLED if key in world.called:
            if accepted:
                yield f"L0 {key}: cancelled, and accepted"
        case State.IN_DOUBT | State.SPLIT:
            return
        case end:
            yield f"L0 {key}: {end}, which nobody asked for"


def _of_dropped(world: World, job: Job, key: str, record: Record) -> Iterator[str]:
    # Sent again although it may arrive twice, and refused or called back that time: it is not known to be rejected.
    given_up = _may_give_up(world, record) or key in world.called
    resent = job.choice is InDoubt.RESEND and _resent(record) > 0 and given_up
    if not resent and job.choice is not InDoubt.DROP:
        yield f"L0 {key}: dropped, as {record.reason}"
    if job.choice is InDoubt.DROP and not any(map(_is_open, world.attempts[record.key])):
        yield f"L0 {key}: dropped, and nothing about it was in doubt"


def _of_sent(world: World, key: str, record: Record, accepted: Sequence[str]) -> Iterator[str]:
    if not accepted:
        yield f"L0 {key}: sent, and never accepted"
    elif world.sides[record.provider].offer is Offer.REFUSING and record.message_id is None:
        # A refusal that proves an acceptance names no email, nor how many there were.
        return
    elif record.key != key:
        yield f"L0 {key}: sent, and without a record of its own"
    elif record.message_id not in accepted:
        yield f"L0 {key}: sent as {record.message_id}, which is not its own"


def _of_expired(world: World, job: Job, key: str, accepted: Sequence[str]) -> Iterator[str]:
    if accepted:
        yield f"L0 {key}: expired, and accepted"
    ended = world.ended.get(key, world.scheduler.now)
    if job.expires_at is None or ended < job.expires_at - world.spread_seconds:
        yield f"L0 {key}: expired before its time"


def _of_late(world: World, job: Job, key: str) -> Iterator[str]:
    """What begins too late, by the clock of who begins it."""
    first = next(iter(world.attempts[key]), None)
    if first is not None and job.expires_at is not None and first.started >= job.expires_at:
        yield f"L0 {key}: its first attempt began {first.started - job.expires_at:,.0f} s too late"


def _resent(record: Record) -> int:
    """How often it was sent again although it may arrive twice."""
    return sum(item.kind == Resolution.RESEND.value for item in record.evidence)


def _may_give_up(world: World, record: Record) -> bool:
    """Whether one of its attempts was refused; or it was tried for long enough."""
    refused = any(isinstance(call.outcome, Rejected) for call in world.attempts[record.key])
    begun = record.opened_at if record.opened_at is not None else record.created_at
    return refused or record.updated_at - begun >= world.policy.give_up_seconds


def _of_doubt(world: World, unknown: set[str], doubted: set[str]) -> Iterator[str]:
    """What the ledger has in doubt, against what is: the same keys."""
    told = _told(world)
    in_doubt = {record.key: record for record in world.table.records() if record.state is State.IN_DOUBT}
    for key, record in in_doubt.items():
        if key in told:
            yield f"E {key}: in doubt, although the provider told that it was accepted"
        if key not in unknown:
            yield f"Q {key}: in doubt without a cause: {record.reason}"
        elif key not in doubted:
            yield f"Q {key}: in doubt while its provider key could be used again"
    for key in unknown - in_doubt.keys():
        found = world.table.read(key)
        yield f"Q {key}: {found and found.state}, although nobody knows what became of an attempt"


def _doubted_keys(world: World, unknown: set[str]) -> set[str]:
    """Of those, the keys that have to be in doubt for who looks from outside: nobody can find out any more.

    What is taken from the ledger is which writes there were and when, as nothing else tells whether who heard an answer
    wrote it down, that a key was sent again by choice, and when nobody would send again; never what they made of a key.
    """
    return {key for key in unknown if not _may_replay(world, key)}


def _unknown_keys(world: World) -> set[str]:
    """The keys of which an attempt may have been accepted, without anybody having learnt that one was.

    None of a provider that can be searched, in the end, and none of a job that has it dropped. An email that a provider
    refuses stays among them: a refusal does not say what became of an earlier request that was not heard of (rule 5).
    """
    dropped = {job.name for job in world.scenario.jobs if job.choice is InDoubt.DROP}
    told = _told(world) | {key for name, key in world.keys.items() if _job_of(name) in dropped}
    return {
        key
        for key, calls in world.attempts.items()
        if key not in told and any(_stays_open(world, call) for call in calls) and not any(map(_is_proved, calls))
    }


def _told(world: World) -> set[str]:
    """The keys of which the provider told that it has accepted them."""
    return {world.keys[each.subject] for each in world.log} if world.scenario.events else set()


def _may_replay(world: World, key: str) -> bool:
    """Whether its provider still knew the key well when nobody would send again, however wrong the clocks are."""
    first = min((call for call in world.attempts[key] if _stays_open(world, call)), key=lambda call: call.started)
    window = world.sides[first.provider].offer.window_seconds
    if window is None:
        return False
    ended = world.ended.get(key, world.scheduler.now)
    return ended < first.started + window - world.policies[first.provider].margin_seconds - world.spread_seconds


def _is_open(call: Call) -> bool:
    """Whether an attempt may have been accepted for all that was heard of it and written down, and that matters."""
    if call.waived:
        return False
    return not call.recorded or (call.asked and call.outcome is None) or isinstance(call.outcome, Unknown)


def _stays_open(world: World, call: Call) -> bool:
    """Whether that is so, and its provider cannot be searched for it either."""
    return world.sides[call.provider].offer is not Offer.SEARCHABLE and _is_open(call)


def _is_proved(call: Call) -> bool:
    """Whether an attempt was accepted, and who heard it wrote it down."""
    return call.recorded and isinstance(call.outcome, Accepted)


def _of_time(world: World, unsettled: set[str]) -> Iterator[str]:
    """Everything ends within what the faults and what they lead to can take."""
    jobs = {job.name: job for job in world.scenario.jobs}
    enough = {job.name: seconds for job, seconds in _enough_seconds(world)}
    window = max(side.offer.window_seconds or 0.0 for side in world.sides.values())
    for name, key in world.keys.items():
        job = jobs[_job_of(name)]
        record = _record_of(world, job, key)
        if record is None or record.key not in world.ended:
            continue
        took = world.ended[record.key] - world.asked[name]
        # What is in doubt, or was until its job gave it up, may have been tried for as long as its key was known.
        doubted = record.key in unsettled or record.state is State.DROPPED
        late = world.scenario.offer is Offer.KEYED_LATE or doubted
        most = enough[job.name] + (window if late else 0.0)
        if took > most:
            yield f"L0 {key}: ended after {took:,.0f} s, and {most:,.0f} s are enough"


def _job_of(name: str) -> str:
    """The job that an email, or a run of a schedule, belongs to."""
    return name.partition("/")[0]


def _enough_seconds(world: World) -> Iterator[tuple[Job, float]]:
    """How long an email of each job may take in true time, the window of its provider apart.

    Each of its own faults costs a claim, a delivery and the longest pause, by a clock that is wrong. What all faults
    take by themselves counts for everybody, as they hold up workers that others wait for.
    """
    faults = world.faults.done
    met = Counter(_job_of(spot.name) for spot in faults)
    unqueued = {_job_of(spot.name) for spot, fault in faults.items() if fault.kind in {Kind.VANISHED, Kind.BEFORE}}
    spent = sum(abs(fault.size) for fault in faults.values())
    # A reconciler goes on with it, unless it meets a fault itself.
    others = met.total() - sum(met[job.name] for job in world.scenario.jobs)
    reconciled = (1 + others) * world.pause_seconds
    for job in world.scenario.jobs:
        each = MAX_DELAY_SECONDS + VISIBILITY + 2 * LEASE + job.long * LEASE / 3 + world.spread_seconds
        waits = job.durable or job.choice is not None or world.searchable
        enough = spent + job.unknown_until + (1 + met[job.name]) * each + (reconciled if waits else 0.0)
        yield job, enough + (_LONGEST_ASKED_SECONDS if job.durable and job.name in unqueued else 0.0)


def tally(world: World) -> Tally:
    """The figures of a run; a request for several emails that is in doubt counts for each of them."""
    jobs = {job.name: job for job in world.scenario.jobs}
    found = {name: _record_of(world, jobs[_job_of(name)], key) for name, key in world.keys.items()}
    records = {name: record for name, record in found.items() if record is not None}
    in_doubt = {name for name, record in records.items() if record.state is State.IN_DOUBT}
    doubted = _doubted_keys(world, _unknown_keys(world))
    return Tally(
        jobs=len(world.scenario.jobs),
        emails=len(world.keys),
        accepted=len(world.log),
        ends=Counter(record.state for record in records.values()),
        doubted=sum(record.key in doubted for record in records.values()),
        accepted_in_doubt=len(in_doubt & {acceptance.subject for acceptance in world.log}),
        faults=len(world.faults.done),
        took=Counter(
            math.ceil(world.ended[record.key] - world.asked[name])
            for name, record in records.items()
            if record.key in world.ended and world.scenario.offer is not Offer.KEYED_LATE
        ),
    )
