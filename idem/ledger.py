"""The ledger: the protocol's transitions as conditional writes on a store.

Every write carries the fence of the record that it was computed from. When its condition fails, the stored record tells
which of three things happened: the write had been applied and its answer was lost (recognised as one's own, rule 2), a
note was added beside the claim (computed again on top of it), or somebody else has moved on.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from idem import protocol
from idem.clock import Clock, Deadline
from idem.errors import BodyTooLarge, LedgerUnavailable
from idem.outcome import Accepted, Outcome, Rejected
from idem.policy import Policy
from idem.privacy import Private
from idem.protocol import (
    MISSING,
    Close,
    Conflict,
    Done,
    Evidence,
    Intent,
    Record,
    Resolution,
    Rules,
    State,
    Take,
    Wait,
)
from idem.stores.base import Store

_PAUSE_SECONDS = 0.05
_CLAIM_PATIENCE_SECONDS = 2.0
_CONFLICT = "conflict"
#: A producer that repeats its mistake must not make the record grow for ever.
_MAX_CONFLICTS = 20
_T = TypeVar("_T")


class Claim(Private, frozen=True):
    """The right to make the next attempt, until `lease` is over. `record` is what was written with it.

    `body` is the canonical email of a message that carries it; the ledger keeps it only if the attempt ends in doubt.
    """

    record: Record
    lease: Deadline
    body: bytes | None = None


class Lost(Struct, frozen=True):
    """The claim was somebody else's by the time its holder came back; `record` is what they made of the key."""

    record: Record


class Ledger:
    """What all workers agree on. `others` are the policies of further providers that this worker can speak to."""

    def __init__(  # noqa: PLR0913 - two of them exist so that a simulation can decide chance and names
        self,
        store: Store,
        *,
        policy: Policy,
        provider: str,
        clock: Clock,
        others: Mapping[str, Policy] = MappingProxyType({}),
        fallback: str | None = None,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._policy = policy
        self._rules = Rules(policy, provider, others, fallback)
        self._clock = clock
        self._new_id = new_id
        self._jitter = jitter

    def claim(self, intent: Intent) -> Claim | Done | Wait | Conflict:
        """Take the right to the next attempt, or learn why not. One write when the key is new.

        A ledger that does not answer is asked again for a moment: a claim that was applied, and whose answer was lost,
        is recognised as one's own. Then `LedgerUnavailable`: nobody acts on the claim, and it ends with its lease.
        """
        claim_id = self._new_id()
        stored: Record | None = None
        patience = Deadline.after(self._clock, min(_CLAIM_PATIENCE_SECONDS, self._policy.lease_seconds / 4))
        while True:
            # Before the write, so that the lease as we count it ends no later than the lease as others read it.
            lease = self.lease()
            decision = protocol.claim(
                stored,
                intent,
                now=self._clock.now(),
                claim_id=claim_id,
                rules=self._rules,
            )
            if not isinstance(decision, Take | Close):
                return decision
            new = decision.record
            blocking = self._insist(patience, partial(self._write_what_fits, stored, new))
            if blocking is None:
                return Claim(new, lease, intent.body) if isinstance(decision, Take) else Done(new)
            stored = blocking

    def ask(self, intent: Intent, *, ready_at: float | None = None) -> Record | Conflict:
        """Write down what a producer wants sent, before it is enqueued; the record that the key has then. One write.

        Raises `LedgerUnavailable` when it is not known whether it was written, and `BodyTooLarge`: then it was not.
        """
        patience = Deadline.after(self._clock, _CLAIM_PATIENCE_SECONDS)
        now, claim_id = self._clock.now(), self._new_id()
        asked = protocol.ask(intent, now=now, claim_id=claim_id, rules=self._rules, ready_at=ready_at)
        stored = self._insist(patience, lambda: self._write(None, asked))
        if stored is None:
            return asked
        if not protocol.conflicts(stored, intent):
            return stored
        self.note_conflict(stored, intent.fingerprint)
        return Conflict(stored)

    def cancel(self, key: str, *, by: str) -> Record | None:
        """Call a key back, also one that nobody knows yet; None where it is too late to."""
        decide = partial(protocol.cancel, key=key, claim_id=self._new_id(), by=by, rules=self._rules)
        return self._decide(self._store.read(key), lambda known, now: decide(known, now=now))

    def renew(self, claim: Claim) -> Claim | Lost:
        """Hold the claim for one more lease while its email is being built. One write.

        `LedgerUnavailable` says nothing about the claim: it may be renewed again, even when its lease is over, as long
        as nobody else has taken it.
        """
        record = claim.record
        while protocol.is_building(record, claim.record.claim_id):
            lease = self.lease()
            renewed = protocol.renew(record, now=self._clock.now(), policy=self._policy)
            stored = self._store.swap(record, renewed)
            if stored is None:
                return replace(claim, record=renewed, lease=lease)
            # Renewed once more where that is one's own write whose answer was lost: its lease ends before this one.
            record = stored
        return Lost(record)

    def freeze(self, claim: Claim, body: bytes, fingerprint: str) -> Claim | Record | Lost:
        """Fix what the job built, durably, and begin its first attempt under a fresh lease; or end it as expired."""
        lease = self.lease()

        def change(record: Record) -> Record:
            return protocol.freeze(record, body, fingerprint, now=self._clock.now(), policy=self._policy)

        written = self._insist(claim.lease, lambda: self._change(claim, change, self._write))
        return written if isinstance(written, Lost) or written.ended else Claim(written, lease)

    def freeze_list(self, claim: Claim, body: bytes, cut: int) -> Claim | Lost:
        """Fix a durable job's list, and how it is cut, before its emails are asked for."""

        def change(record: Record) -> Record:
            return protocol.freeze_list(record, body, cut, now=self._clock.now())

        written = self._insist(claim.lease, lambda: self._change(claim, change, self._write))
        return written if isinstance(written, Lost) else replace(claim, record=written)

    def split(self, claim: Claim, body: bytes, fingerprint: str, cut: int | None = None) -> Record | Lost:
        """Fix a list of emails, and how it is cut; they are sent under keys of their own."""

        def change(record: Record) -> Record:
            return protocol.split(record, body, fingerprint, now=self._clock.now(), cut=cut)

        return self._insist(claim.lease, lambda: self._change(claim, change, self._write))

    def settle(self, claim: Claim, outcome: Outcome, heard: Deadline | None = None) -> Record | Lost:
        """Write what became of the claim's attempt; `heard` is a lease from when that was heard, if not from now on.

        While the lease runs, a ledger that does not answer is asked again; after it, `LedgerUnavailable` is raised, the
        message stays unacknowledged, and its redelivery repairs. An acceptance, of which nobody else may ever know, is
        insisted on for one more lease; that of a lost claim is added as evidence.
        """
        patience = (heard or self.lease()) if isinstance(outcome, Accepted) else claim.lease

        def change(record: Record) -> Record:
            policy = self._rules.policy_of(record.provider) or self._policy
            return protocol.settle(
                record, outcome, now=self._clock.now(), policy=policy, jitter=self._jitter(), body=claim.body
            )

        settled = self._insist(patience, lambda: self._change(claim, change, self._write_what_fits))
        if isinstance(settled, Lost) and isinstance(outcome, Accepted):
            claim_id = claim.record.claim_id
            return Lost(self._insist(patience, lambda: self._testify(settled.record, outcome, claim_id)))
        return settled

    def adopt(self, within: Record, key: str, fingerprint: str, outcome: Accepted | Rejected) -> None:
        """Write down one email that was settled in the request of `within`.

        A record that is there already stays, but learns of the acceptance: the key may have been called back meanwhile.
        """
        record = protocol.member(within, key, fingerprint, outcome, now=self._clock.now())
        patience = self.lease()
        stored = self._insist(patience, lambda: self._write(None, record))
        if stored is not None and isinstance(outcome, Accepted):
            request = f"the request of {within.key}"
            self._insist(patience, lambda: self._testify(stored, outcome, request))

    def testify(self, record: Record, accepted: Accepted, *, witness: str, detail: str) -> Record:
        """Bring an acceptance that a look-up, an event or a person knows of into the record.

        `witness` is a name of its own: what it said once is not noted again.
        """
        return self._testify(record, accepted, witness, detail)

    def note_missing(self, record: Record, provider: str) -> Record:
        """Write beside the record that its provider showed no email with its key; whoever comes second leaves it."""
        evidence = Evidence(at=self._clock.now(), kind=MISSING, claim_id=self._new_id(), detail=provider)
        noted = protocol.note(record, evidence, now=self._clock.now())
        stored = self._write(record, noted)
        return noted if stored is None else stored

    def resolve(self, record: Record, resolution: Resolution, *, by: str, anew: bool = True) -> Record | None:
        """Decide about a key from outside a claim; None where the record does not allow it, or has moved on.

        What was judged is this record, with or without notes that came since: a later doubt, or what somebody else has
        decided meanwhile, is not what the look-ups, the job or the person spoke of.
        """
        claim_id = self._new_id()
        decide = partial(
            protocol.resolve, resolution=resolution, claim_id=claim_id, by=by, rules=self._rules, anew=anew
        )

        def judge(known: Record | None, now: float) -> Record | None:
            if known is None or (known.claim_id, known.state) != (record.claim_id, record.state):
                return None
            return decide(known, now=now)

        return self._decide(record, judge)

    def _decide(self, record: Record | None, decide: Callable[[Record | None, float], Record | None]) -> Record | None:
        """Write what is decided about the record as it is by then; None where nothing may be."""
        while (decided := decide(record, self._clock.now())) is not None:
            record = self._write(record, decided)
            if record is None:
                return decided
        return None

    def touch(self, record: Record) -> bool:
        """Make a live record due from now on; False when somebody else has changed it, or touched it, meanwhile."""
        now = self._clock.now()
        due = replace(record, version=record.version + 1, ready_at=now, updated_at=now)
        stored = self._store.swap(record, due)
        # The claim stays whose it is, so that it does not tell one's own touch from another's; the instant does.
        return stored is None or stored == due

    def note_conflict(self, record: Record, fingerprint: str | None) -> None:
        """Write beside the record that another email, or another job, asked for its key; once for each of the first."""
        while not _noted(record, fingerprint):
            evidence = Evidence(at=self._clock.now(), kind=_CONFLICT, detail=fingerprint)
            stored = self._write(record, protocol.note(record, evidence, now=self._clock.now()))
            if stored is None:
                return
            record = stored

    def create(self) -> Sequence[str]:
        """Make what the store needs, where it is not there; returns what one should know of it."""
        return self._store.create()

    def check(self) -> Sequence[str]:
        """Raise `LedgerUnusable` unless the promise can be kept with the store; every worker asks when it starts."""
        return self._store.check()

    def read(self, key: str) -> Record | None:
        """The record of a key, as everybody else sees it."""
        return self._store.read(key)

    def passes_at(self, key: str) -> float | None:
        """From when on a key's next step does not wait for a first choice in trouble: see `protocol.passes_at`."""
        record = self._store.read(key)
        return None if record is None else protocol.passes_at(record, self._rules)

    def list(self, state: State, limit: int) -> Iterator[Record]:
        """Records in that state, the one longest unchanged first."""
        return self._store.list(state, limit)

    def asked(self, limit: int) -> Iterator[Record]:
        """Durable records that nobody has begun, or that somebody began and has not settled: see `Store.asked`."""
        return self._store.asked(limit)

    def count(self) -> Mapping[State, int]:
        """How many records there are in each state that the store counts."""
        return self._store.count()

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _write(self, old: Record | None, new: Record) -> Record | None:
        """One conditional write; None when it holds, be it by an earlier copy of itself."""
        stored = self._store.swap(old, new)
        return None if stored is not None and _is_own(stored, new) else stored

    def _write_what_fits(self, old: Record | None, new: Record) -> Record | None:
        """The same, less an email that is too large to be kept: then only its message, or a person, has it."""
        try:
            return self._write(old, new)
        except BodyTooLarge:
            if new.state not in {State.IN_DOUBT, State.REJECTED}:
                raise
            return self._write(old, replace(new, body=None))

    def _change(
        self, claim: Claim, change: Callable[[Record], Record], write: Callable[[Record, Record], Record | None]
    ) -> Record | Lost:
        """Apply a transition of the claim's holder, on top of notes that others may have added meanwhile."""
        record = claim.record
        while True:
            changed = change(record)
            stored = write(record, changed)
            if stored is None:
                return changed
            if not protocol.holds(stored, claim.record.claim_id):
                return Lost(stored)
            record = stored

    def _testify(self, record: Record, accepted: Accepted, claim_id: str, detail: str | None = None) -> Record:
        """Bring an acceptance into the record, whatever has become of it."""
        while not _already_known(record, accepted, claim_id):
            now = self._clock.now()
            changed = protocol.testify(record, accepted, claim_id=claim_id, now=now, rules=self._rules, detail=detail)
            stored = self._write(record, changed)
            if stored is None:
                return changed
            record = stored
        return record

    def lease(self) -> Deadline:
        """A lease that begins now."""
        return Deadline.after(self._clock, self._policy.lease_seconds)

    def _insist(self, patience: Deadline, write: Callable[[], _T]) -> _T:
        while True:
            try:
                return write()
            except LedgerUnavailable:
                if patience.left() <= _PAUSE_SECONDS:
                    raise
                self._clock.sleep(_PAUSE_SECONDS)


def _is_own(stored: Record, new: Record) -> bool:
    """Whether `new` had been applied already, perhaps with notes added on top of it.

    The evidence counts too: two notes on one claim differ in nothing else, and one must not pass for the other. So does
    how a list is cut: to fix it differs in nothing else from a renewal whose answer was lost.
    """
    return (
        stored.claim_id == new.claim_id
        and stored.state is new.state
        and stored.version >= new.version
        and stored.cut == new.cut
        and stored.evidence[: len(new.evidence)] == new.evidence
    )


def _noted(record: Record, fingerprint: str | None) -> bool:
    conflicts = [item.detail for item in record.evidence if item.kind == _CONFLICT]
    return fingerprint in conflicts or len(conflicts) >= _MAX_CONFLICTS


def _already_known(record: Record, accepted: Accepted, claim_id: str) -> bool:
    if any(item.kind == protocol.ACCEPTANCE and item.claim_id == claim_id for item in record.evidence):
        return True
    settled = record.state is State.SENT
    return settled and accepted.message_id is not None and record.message_id == accepted.message_id
