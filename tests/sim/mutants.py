"""Bugs that others have shipped, put into the real code one at a time: the simulation has to catch every one.

    python -m tests.sim.mutants       which tiers catch which bug, in how many runs

Each replaces one function, table row or constant of a module for as long as the run lasts; a patch of the source would
give the same program.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from itertools import chain, count
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

from idem import clock as idem_clock
from idem import ledger, policy, protocol, reconcile, send
from idem.email import Email
from idem.keys import slot_key
from idem.outcome import Accepted, Outcome, Unknown
from idem.protocol import CLAIM, SETTLE, Doubt, Move, Record, Resolution, Standing, State, Verdict
from idem.providers.base import Contract, Meaning, Row
from idem.stores import memory
from tests.sim import world
from tests.sim.faults import Faults, Plan
from tests.sim.provider import Offer
from tests.sim.scenarios import (
    interleavings,
    late_writes,
    least,
    long_outages,
    of_seed,
    pairs,
    run,
    second_thoughts,
    singles,
    small,
    two_providers,
    wide,
)
from tests.sim.world import Scenario
from workers import actors, app
from workers.brokers.base import Acknowledge, Disposition
from workers.jobs import read_message
from workers.schedule.board import Entry
from workers.schedule.scheduler import ROUND, Scheduler, enqueue_slots
from workers.schedule.slots import Schedule

SEEDS, JOBS = 150, 20
#: Of the second faults after each first one, so many are tried, where it is about the usual job.
_SECONDS = 2

Patch = Any


def _row(table: Mapping[Any, Any], row: Any, value: Any) -> Patch:
    return patch.dict(table, {row: value})


def _swap(owner: Any, name: str, value: Any) -> Patch:
    return patch.object(owner, name, value)


def _token_only(record: Record | None) -> str | None:
    return None if record is None else record.claim_id


def _settle_by_deleting(self: ledger.Ledger, claim: ledger.Claim, outcome: Outcome) -> Record | ledger.Lost:
    if isinstance(outcome, Accepted):
        return _SETTLE(self, claim, outcome)
    store: Any = self._store
    store._table._records.pop(claim.record.key, None)
    return replace(claim.record, state=State.RETRY, ready_at=self._clock.now())


def _send_after_recording(self: send.Sender, attempt: Any) -> Outcome:
    self._ledger.settle(attempt.claim, Accepted("early"))
    return _CALL(self, attempt)


def _acknowledge_what_waits(self: actors.Performer, message: Any, key: str, result: send.Result) -> Disposition:
    return Acknowledge() if isinstance(result, send.Later) else _DISPOSE(self, message, key, result)


def _acknowledge_first(self: Any, letter: world.Letter, receipt: int) -> None:
    if letter.number in self.world.queue.letters:
        self.world.queue._drop(letter)
    _PERFORM(self, letter, receipt)


def _forget_parts(self: actors.Performer, message: Any, key: str, result: send.Result) -> Disposition:
    return _DISPOSE(
        self, message, key, dataclasses.replace(result, emails=()) if isinstance(result, send.Ended) else result
    )


def _acknowledge_errors(self: actors.Performer, message: Any, payload: Mapping[str, Any]) -> Disposition:
    try:
        return _PERFORMER(self, message, payload)
    except _Swallowed:
        return Acknowledge()


class _Swallowed(Exception):
    """An error that somebody logs, and goes on."""


def _raise_error(_self: actors.Performer, _message: Any) -> float:
    raise _Swallowed


def _lose_a_retry(self: Any, letter: world.Letter, receipt: int) -> None:
    """The original goes, whether or not the retry was scheduled: what plain dramatiq does."""
    queue = self.world.queue
    before = letter.receipt, letter.in_flight
    _PERFORM(self, letter, receipt)
    if (letter.receipt, letter.in_flight) == before and letter.number in queue.letters:
        del queue.letters[letter.number]


def _by_broker_id(payload: Mapping[str, Any], _message_id: str) -> Any:
    return _READ_MESSAGE(payload, f"receipt-{next(_RECEIPTS)}")


def _latest_start(record: Record) -> float | None:
    return record.started_at if record.started_at is not None else record.unsure_since


def _unfrozen(record: Record, body: bytes, fingerprint: str, *, now: float, policy: policy.Policy) -> Record:
    return replace(_FREEZE(record, body, fingerprint, now=now, policy=policy), body=None)


def _read_stale(self: Any, key: str) -> Record | None:
    record = _READ(self, key)
    return None if record is not None and record.updated_at > self._worker.clock.now() - _STALE_SECONDS else record


def _send_twice(self: Any, email: Email, provider_key: str, deadline: idem_clock.Deadline) -> Outcome:
    outcome = _SEND(self, email, provider_key, deadline)
    return _SEND(self, email, provider_key, deadline) if isinstance(outcome, Unknown) else outcome


def _conflict_is_sent(self: Contract, status: int, code: str, message: str) -> Row:
    return Row({409}, Meaning.KNOWN) if status == _CONFLICT else _ROW(self, status, code, message)


def _call_with_a_late_deadline(self: send.Sender, attempt: Any) -> Outcome:
    """The lease is looked at, then something takes long, then the request gets all of its time."""
    obstacle = self._obstacle(attempt)
    if obstacle is not None:
        return obstacle
    self._reach(send.Point.BEFORE_CALL)
    deadline = idem_clock.Deadline.after(self._clock, self._http_timeout_seconds)
    return self._provider.send(attempt.emails[0], self._derived(attempt), deadline)


def _left_by_a_clock_that_stops(self: idem_clock.Deadline) -> float:
    stopped: float = self.clock.__dict__.get("stopped", 0.0)
    return self.boot - self.clock.boot() + stopped


def _hold_and_stop(self: Any, seconds: float) -> None:
    _HOLD(self, seconds)
    self.clock.stopped = self.clock.__dict__.get("stopped", 0.0) + seconds


def _forget_evidence(_self: ledger.Ledger, record: Record, *_: Any, **__: Any) -> Record:
    return record


def _every_negative(record: Record, *_: Any) -> Sequence[float]:
    return [item.at for item in record.evidence if item.kind == protocol.MISSING]


def _drop_unknown(_self: actors.Performer, _message: Any, _name: str) -> Disposition:
    return Acknowledge()


_SETTLE = ledger.Ledger.settle
_SETTLE_RECORD = protocol.settle
_CALL = send.Sender._call
_BACKOFF = policy.Policy.backoff
_CALL_BATCH = send.Sender._call_batch
_LOOK = reconcile.Reconciler._look
_DISPOSE = actors.Performer._dispose
_PERFORMER = actors.Performer.perform
_PERFORM = world.Worker._perform
_HOLD = world.Worker.hold
_READ_MESSAGE = read_message
_FREEZE = protocol.freeze
_READ = world._Store.read
_SEND = world._Line.send
_ROW = Contract.row
_KEY = Schedule.key
_RECEIPTS = count()
_STALE_SECONDS = 200.0
_CONFLICT = 409


def _fix_in_memory(_self: ledger.Ledger, claim: ledger.Claim, body: bytes, cut: int) -> ledger.Claim:
    return replace(claim, record=replace(claim.record, body=body, cut=cut))


def _write_slots_first(self: Any, cell: int, marks: list[str], now: int) -> None:
    """What is due is noted as enqueued, and then enqueued."""
    known = self._join(cell, marks, now)
    self._board.change(cell, lambda found: {mark: Entry(max(now, found[mark].last)) for mark in marks})
    due = {mark: self._due_of(self._schedules[mark], known[mark].last, now, ROUND)[1] for mark in marks}
    for _ in enqueue_slots(self._enqueue_many, [(self._schedules[mark], slot) for mark in marks for slot in due[mark]]):
        pass
    for mark in marks:
        self._expect(cell, mark, Entry(now), now)


def _key_by_wall_time(self: Schedule, slot: int) -> str:
    return slot_key(self.name, self.local(slot).replace(tzinfo=UTC))


def _swap_by_adding(self: memory.MemoryStore, old: Record | None, new: Record) -> Record | None:
    """Whoever adds to the version does not compare it."""
    stored = self._records.get(new.key)
    if _claim_and_state(stored) != _claim_and_state(old):
        return stored
    version = 1 if stored is None else stored.version + 1
    self._records[new.key] = replace(new, version=version)
    return None


def _claim_and_state(record: Record | None) -> tuple[str, State] | None:
    return None if record is None else (record.claim_id, record.state)


def _key_by_run(self: Schedule, slot: int) -> str:
    return f"{_KEY(self, slot)}" if not next(_RECEIPTS) % 2 else f"{_KEY(self, slot)} again"


def _none(*_: Any) -> Iterator[Record]:
    return iter(())


def _always(*_: Any) -> bool:
    return True


def _never(*_: Any, **__: Any) -> bool:
    return False


def _for_two_thousand_seconds(self: policy.Policy, unsure_since: float, now: float) -> bool:
    return self.window_seconds is not None and now < unsure_since + 2_000.0


def _write_once(_self: ledger.Ledger, _patience: Any, write: Callable[[], Any]) -> Any:
    return write()


def _look_from_now(self: reconcile.Reconciler, record: Record, *rest: Any) -> reconcile.Step | None:
    return _LOOK(self, replace(record, unsure_since=self._clock.now()), *rest)


def _call_batch_reversed(self: send.Sender, *given: Any) -> Sequence[Outcome]:
    return _CALL_BATCH(self, *given)[::-1]


def _pause_for_hours(*given: Any, **named: Any) -> float:
    return _BACKOFF(*given, **named) + 36_000.0


def _call_in_turn(self: send.Sender, attempt: Any) -> Outcome:
    """As gateways do: who does not answer is not asked the next time."""
    record = attempt.claim.record
    other = next((name for name in self._providers if name != record.provider), record.provider)
    if record.attempts % 2 == 0:
        attempt = dataclasses.replace(attempt, claim=replace(attempt.claim, record=replace(record, provider=other)))
    return _CALL(self, attempt)


def _policy_of_the_first(self: protocol.Rules, _provider: str) -> policy.Policy:
    return self.policy


def _is_dropped(record: Record) -> bool:
    return record.state in {State.CANCELLED, State.DROPPED}


def _expire(move: Move, *_: Any) -> Move:
    return Move.EXPIRE if move is Move.BEGIN else move


def _begin_all(move: Move, *_: Any) -> Move:
    return move


def _resend_all(self: reconcile.Reconciler, record: Record, _provider: Any) -> Sequence[reconcile.Step]:
    resent = self._reopen(record, Resolution.RESEND, "as its job chose", reconcile.Step.RESENT)
    return [resent] if resent else []


def _settle_waived(record: Record, outcome: Outcome, *, now: float, **rest: Any) -> Record:
    """Whoever takes it twice takes it any number of times."""
    settled = _SETTLE_RECORD(record, outcome, now=now, **rest)
    if isinstance(outcome, Unknown) and protocol._is_waived(record):
        return replace(settled, state=State.RETRY, ready_at=now, unsure_since=None)
    return settled


#: Of each, everything that has to be replaced for it.
MUTANTS: Mapping[str, Callable[[], Sequence[Patch]]] = {
    "no condition on a write": lambda: [_swap(memory, "_fence", _never)],
    "a condition on the claim only": lambda: [_swap(memory, "_fence", _token_only)],
    "a timeout is a failure": lambda: [
        _row(SETTLE, (Verdict.UNKNOWN, doubt), State.RETRY) for doubt in (Doubt.OPEN, Doubt.CLOSED)
    ],
    "a timeout is final": lambda: [
        _row(SETTLE, (Verdict.UNKNOWN, doubt), State.REJECTED) for doubt in (Doubt.OPEN, Doubt.CLOSED)
    ],
    "the record is deleted on an error": lambda: [_swap(ledger.Ledger, "settle", _settle_by_deleting)],
    "the broker's own id is the key": lambda: [_swap(actors, "read_message", _by_broker_id)],
    "acknowledged before the record": lambda: [_swap(world.Worker, "_perform", _acknowledge_first)],
    "acknowledged while it waits": lambda: [_swap(actors.Performer, "_dispose", _acknowledge_what_waits)],
    "acknowledged when the ledger fails": lambda: [
        _swap(actors.Performer, "perform", _acknowledge_errors),
        _swap(actors.Performer, "_pause", _raise_error),
    ],
    "a list acknowledged without its emails": lambda: [_swap(actors.Performer, "_dispose", _forget_parts)],
    "recorded before it is sent": lambda: [_swap(send.Sender, "_call", _send_after_recording)],
    "the fingerprint is ignored": lambda: [_swap(protocol, "conflicts", _never)],
    "a sent record is claimed again": lambda: [_row(CLAIM, Standing.SENT, Move.BEGIN)],
    "a live claim is taken": lambda: [_row(CLAIM, Standing.SENDING_LIVE, Move.BEGIN)],
    "a takeover does not look at the window": lambda: [_row(CLAIM, Standing.UNSURE_CLOSED, Move.REPLAY)],
    "the window counts from the latest attempt": lambda: [_swap(protocol, "_unsure_since", _latest_start)],
    "a pause has ten hours more": lambda: [_swap(policy.Policy, "backoff", _pause_for_hours)],
    "a window closes early": lambda: [_swap(policy.Policy, "window_open", _for_two_thousand_seconds)],
    "every provider is taken to have keys": lambda: [_swap(policy.Policy, "window_open", _always)],
    "a clock that stops in a pause": lambda: [
        _swap(idem_clock.Deadline, "left", _left_by_a_clock_that_stops),
        _swap(world.Worker, "hold", _hold_and_stop),
    ],
    "a timeout goes to the other provider": lambda: [_swap(send.Sender, "_call", _call_in_turn)],
    "all providers are taken to be as the first": lambda: [_swap(protocol.Rules, "policy_of", _policy_of_the_first)],
    "the lease is looked at too early": lambda: [_swap(send.Sender, "_call", _call_with_a_late_deadline)],
    "every 409 means sent": lambda: [_swap(Contract, "row", _conflict_is_sent)],
    "the HTTP client tries again": lambda: [_swap(world._Line, "send", _send_twice)],
    "a stale read": lambda: [_swap(world._Store, "read", _read_stale)],
    "an error of the retry is swallowed": lambda: [_swap(world.Worker, "_perform", _lose_a_retry)],
    "one look that shows nothing is believed": lambda: [_swap(reconcile, "_ENOUGH", 1)],
    "a look-up does not wait": lambda: [
        _swap(reconcile, "is_look_due", _always),
        _swap(reconcile, "negatives", _every_negative),
        # Who looks that often makes it show: every look is too early.
        _swap(world, "_SEARCH_SECONDS", 16.0),
    ],
    "a look-up begins at its own time": lambda: [
        _swap(reconcile.Reconciler, "_look", _look_from_now),
        # Who looks that seldom makes it show: what adapters allow for is over.
        _swap(world, "_SEARCH_SECONDS", 400.0),
    ],
    "the answers of a batch are in another order": lambda: [_swap(send.Sender, "_call_batch", _call_batch_reversed)],
    "a zombie's evidence is dropped": lambda: [_swap(ledger.Ledger, "_testify", _forget_evidence)],
    "the ledger is told once only": lambda: [_swap(ledger.Ledger, "_insist", _write_once)],
    "one's own write is not recognised": lambda: [_swap(ledger, "_is_own", _never)],
    "an unknown job is dropped": lambda: [_swap(actors.Performer, "_unknown_job", _drop_unknown)],
    "a claim that was lost is renewed": lambda: [_swap(protocol, "is_building", _always)],
    "a durable list is not kept": lambda: [_swap(ledger.Ledger, "freeze_list", _fix_in_memory)],
    "a slot is noted before it is enqueued": lambda: [_swap(Scheduler, "_do", _write_slots_first)],
    "a slot is named by its wall time": lambda: [_swap(Schedule, "key", _key_by_wall_time)],
    "a version is added to": lambda: [_swap(memory.MemoryStore, "swap", _swap_by_adding)],
    "a slot has another key each time": lambda: [_swap(Schedule, "key", _key_by_run)],
    "nobody sweeps": lambda: [_swap(memory.MemoryStore, "asked", _none)],
    "nobody hears": lambda: [_swap(reconcile.Reconciler, "_hear", _never)],
    "what was called back is sent": lambda: [_row(CLAIM, Standing.CANCELLED, Move.BEGIN)],
    "what may have been accepted is called back": lambda: [
        _swap(protocol, "CANCEL", protocol.CANCEL | {Standing.SENDING_LIVE, Standing.UNSURE_OPEN})
    ],
    "what was dropped passes for called back": lambda: [_swap(app, "is_called_back", _is_dropped)],
    "what was not sent is dropped": lambda: [_row(SETTLE, (Verdict.NOT_SENT, Doubt.NONE), State.DROPPED)],
    "it is never too late": lambda: [_swap(protocol, "_begin_in_time", _begin_all)],
    "it is always too late": lambda: [_swap(protocol, "_begin_in_time", _expire)],
    "what is held in doubt is sent again": lambda: [_swap(reconcile.Reconciler, "_choose", _resend_all)],
    "one who was sent again is sent for ever": lambda: [_swap(protocol, "settle", _settle_waived)],
    "what a job built is not kept": lambda: [_swap(protocol, "freeze", _unfrozen)],
}


@dataclass(frozen=True, slots=True)
class Caught:
    """By which tier, after how many runs of it, and what did not hold there; without the bug, everything holds."""

    tier: str
    runs: int
    problem: str


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The bug is in the code for as long as this lasts."""
    patches = MUTANTS[name]()
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in reversed(patches):
            each.stop()


def catch(name: str) -> Iterator[Caught]:
    """Each tier that catches this bug, the one that is known to first; a slow one only if nobody else did so far."""
    known, caught = _CAUGHT_BY.get(name), False
    for tier in sorted(_TIERS, key=lambda tier: tier != known):
        found = None if caught and tier in _SLOW else _caught_by(tier, name)
        if found is not None:
            caught = True
            yield found


def _caught_by(tier: str, name: str) -> Caught | None:
    with planted(name):
        runs = enumerate(_TIERS[tier](), 1)
        found = next(((n, case, problem) for n, case in runs if (problem := _problem(case))), None)
    if found is None:
        return None
    number, case, problem = found
    control = _problem(case)
    if control is not None:
        raise AssertionError(f"{tier}, run {number}: {control}, without the bug too")
    return Caught(tier, number, problem)


def _problem(case: tuple[Scenario, Plan | None]) -> str | None:
    scenario, plan = case
    return run(scenario, Faults(plan) if plan is not None else of_seed(scenario.seed, JOBS)[1]).problem


def _singles() -> Iterator[tuple[Scenario, Plan]]:
    for offer in Offer:
        for scenario in small(offer):
            yield from ((scenario, plan) for plan in singles(scenario))


def _wide() -> Iterator[tuple[Scenario, Plan]]:
    for offer in Offer:
        for scenario in wide(offer):
            yield from ((scenario, plan) for plan in singles(scenario))


def _pairs() -> Iterator[tuple[Scenario, Plan]]:
    chance = random.Random(1)
    for scenario in chain.from_iterable(map(least, reversed(Offer))):
        if scenario.jobs[0].choice is not None:
            yield from ((scenario, plan) for plan in pairs(scenario))
    for usual in (next(least(offer)) for offer in Offer):
        for first in singles(usual):
            second = list(singles(usual, first))
            yield from ((usual, plan) for plan in chance.sample(second, min(_SECONDS, len(second))))


def _of_each_offer(tier: Callable[[Offer], Iterator[tuple[Scenario, Plan]]]) -> Iterator[tuple[Scenario, Plan]]:
    return chain.from_iterable(map(tier, Offer))


def _seeds() -> Iterator[tuple[Scenario, None]]:
    yield from ((of_seed(seed, JOBS)[0], None) for seed in range(SEEDS))


_TIERS: Mapping[str, Callable[[], Iterator[tuple[Scenario, Plan | None]]]] = {
    "single faults": _singles,
    "random runs": _seeds,
    "two workers in turns": partial(_of_each_offer, partial(interleavings, most=1)),
    "long outages": partial(_of_each_offer, long_outages),
    "single faults of lists, slots and events": _wide,
    "pairs of faults": _pairs,
    "called back, or opened again": partial(_of_each_offer, second_thoughts),
    "two providers": partial(_of_each_offer, two_providers),
    "late writes of a durable list": partial(_of_each_offer, late_writes),
}
_SLOW = {
    "single faults of lists, slots and events",
    "pairs of faults",
    "called back, or opened again",
    "two providers",
    "late writes of a durable list",
}


#: Who is to be asked first about bugs that the quicker tiers do not see.
_CAUGHT_BY: Mapping[str, str] = {
    "a durable list is not kept": "single faults of lists, slots and events",
    "a slot has another key each time": "single faults of lists, slots and events",
    "a slot is named by its wall time": "single faults of lists, slots and events",
    "a slot is noted before it is enqueued": "single faults of lists, slots and events",
    "a version is added to": "late writes of a durable list",
    "nobody hears": "random runs",
    "the window counts from the latest attempt": "long outages",
    "all providers are taken to be as the first": "two providers",
    "what was dropped passes for called back": "called back, or opened again",
    "a timeout goes to the other provider": "two providers",
    "one look that shows nothing is believed": "random runs",
    "one who was sent again is sent for ever": "pairs of faults",
}


def main() -> int:
    """A line for each bug; 1 when one got through."""
    logging.disable(logging.CRITICAL)
    missed = 0
    for name in MUTANTS:
        caught = list(catch(name))
        missed += not caught
        said = [f"{each.tier}, run {each.runs}: {each.problem}" for each in caught] or ["NOT CAUGHT"]
        print(f"{name}\n    " + "\n    ".join(said), flush=True)  # noqa: T201 - a command of its own
    print(f"{len(MUTANTS) - missed} of {len(MUTANTS)} caught")  # noqa: T201 - the same
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
