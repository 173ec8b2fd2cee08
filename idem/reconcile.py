"""From in doubt to known: look the email up at its provider, and where nothing is to be learnt, do what its job chose.

Any number of reconcilers may run, in workers and by hand: every conclusion is a conditional write, and who comes second
finds the record settled. An acceptance that is found settles at once. That there is none is believed only when three
look-ups showed none, each made after the last attempt can have had an effect and that effect would have shown, and each
that long after the one before, whatever one clock says.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from idem.bulk import range_of
from idem.clock import Clock, Deadline
from idem.events import EventNotes
from idem.keys import provider_key
from idem.ledger import Ledger
from idem.outcome import Accepted
from idem.policy import MAX_DELAY_SECONDS
from idem.protocol import MISSING, InDoubt, Record, Resolution, State
from idem.providers.base import CannotTell, Found, Lookup, Missing, Provider, Searchable

_log = logging.getLogger("idem.reconcile")

#: Look-ups that have to show nothing: one may be too early, by a clock that is wrong, and a provider may once not show
#: what it has.
_ENOUGH = 3
#: Records of one state that one run looks at. What waits for a person stays at the head of the list, so that a smaller
#: number would let it hide those that can be looked up.
_LIMIT = 10_000
#: After a tenth of the time that it has been in doubt, it is looked for events again.
_LISTEN_DIVISOR = 10
#: How often the patience with a durable record is doubled: from 15 min to 16 h.
_DOUBLINGS = 6
#: Who decided, where no person did.
_BY_CHOICE = "as its job chose"


class Step(StrEnum):
    """What a run did with one record."""

    FOUND = "found"
    """A look-up showed its acceptance: it is sent."""
    HEARD = "heard"
    """The provider's events told of it: it is sent."""
    NOT_FOUND = "not found"
    """Enough look-ups showed none: it is sent again."""
    RESENT = "resent"
    """Its job would rather have it twice than never."""
    DROPPED = "dropped"
    """Its job would rather have it never than twice."""
    RESUMED = "resumed"
    """It was due long ago and its message has gone: another one was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for what, in seconds.

    `lease` is the longest that an attempt goes on, `evidence` how long a job's own choice waits for a look-up or an
    event, `message` after how long a record that is due has lost its message, and `asked` after how long a durable one
    has that nobody has taken up, or that nobody has settled after its claim was over.
    """

    lease: float
    http_timeout: float
    evidence: float
    message: float
    asked: float = MAX_DELAY_SECONDS

    @classmethod
    def of(
        cls,
        *,
        lease: float,
        http_timeout: float,
        evidence: float,
        visibility: float,
        asked: float = MAX_DELAY_SECONDS,
    ) -> Patience:
        """Patience with messages is what the longest delay and two redeliveries take."""
        return cls(
            lease=lease,
            http_timeout=http_timeout,
            evidence=evidence,
            message=MAX_DELAY_SECONDS + 2 * visibility,
            asked=asked,
        )


class Reconciler:
    """Settles what is in doubt, and finds what was forgotten. `resume` enqueues a message that names a key."""

    def __init__(  # noqa: PLR0913 - each is one thing that a deployment or a test decides
        self,
        ledger: Ledger,
        providers: Mapping[str, Provider],
        *,
        clock: Clock,
        namespace: str,
        patience: Patience,
        resume: Callable[[str], None],
        in_doubt: InDoubt = InDoubt.HOLD,
        events: EventNotes | None = None,
    ) -> None:
        self._ledger = ledger
        self._providers = providers
        self._clock = clock
        self._namespace = namespace
        self._patience = patience
        self._resume = resume
        self._in_doubt = in_doubt
        self._events = events
        #: What could not be looked up when that was last tried.
        self._unanswered: set[str] = set()
        #: When it is worth while to look again for what events told of a key.
        self._listen_at: dict[str, float] = {}

    def run(self) -> Mapping[Step, int]:
        """Look once at everything that waits; how often each step was taken. Raises `LedgerError`, `BrokerError`."""
        steps = self._settle_all()
        for state in (State.RETRY, State.UNSURE):
            for record in islice(self._ledger.list(state, _LIMIT), _LIMIT):
                steps.update(self._wake(record, self._patience.message))
        for record in islice(self._ledger.asked(_LIMIT), _LIMIT):
            steps.update(self._wake(record, self._patience.asked * _growth(record)))
        return steps

    def _settle_all(self) -> Counter[Step]:
        """Everything in doubt. What could not be looked up the last time comes last, so that it holds up nothing."""
        steps: Counter[Step] = Counter()
        silent: set[str] = set()
        waiting: set[str] = set()
        late = frozenset(self._unanswered)
        for record in islice(self._ledger.list(State.IN_DOUBT, _LIMIT), _LIMIT):
            waiting.add(record.key)
            if record.key not in late:
                steps.update(self._settle(record, silent))
        for key in sorted(late & waiting):
            again = self._ledger.read(key)
            if again is not None and again.state is State.IN_DOUBT:
                steps.update(self._settle(again, silent))
        self._unanswered &= waiting
        self._listen_at = {key: at for key, at in self._listen_at.items() if key in waiting}
        return steps

    def _settle(self, record: Record, silent: set[str]) -> list[Step]:
        """One record in doubt; `silent` are providers that this run need not ask again."""
        if self._hear(record):
            return [Step.HEARD]
        provider = self._providers.get(record.provider)
        lookup = provider.contract.lookup if provider is not None else None
        if provider is not None and lookup is not None and record.provider not in silent:
            found = self._look(record, provider, lookup, silent)
            if found is not None:
                return [found]
        return self._choose(record, provider)

    def _hear(self, record: Record, *, at_once: bool = False) -> bool:
        """Whether the provider's events told of an acceptance, and so settled it.

        What waits for a person is asked about less often the longer it waits: ten thousand of them are as many reads.
        """
        now, held = self._clock.now(), (record.in_doubt or self._in_doubt) is InDoubt.HOLD
        if self._events is None or (held and not at_once and now < self._listen_at.get(record.key, 0.0)):
            return False
        heard = {key: self._events.of(self._derived(key, record.generation)) for key in _keys_of(record)}
        self._listen_at[record.key] = now + (now - last_attempt_at(record)) / _LISTEN_DIVISOR
        proof = next((one.proof for one in heard.values() if one.proof is not None), None)
        if proof is None:
            return False
        detail = f"an event of {proof.source}: {proof.kind}"
        ids = {key: one.message_id for key, one in heard.items()}
        prove(self._ledger, record, ids, witness=f"event {proof.event}", detail=detail)
        return True

    def _look(self, record: Record, provider: Provider, lookup: Lookup, silent: set[str]) -> Step | None:
        due = is_look_due(record, lookup, self._patience.lease, self._clock.now())
        if not due or not isinstance(provider, Searchable):
            return None
        deadline = Deadline.after(self._clock, self._patience.http_timeout)
        since = record.unsure_since if record.unsure_since is not None else record.created_at
        derived = self._derived(record.key, record.generation)
        sighting = provider.find(derived, since, deadline)
        self._unanswered.discard(record.key)
        match sighting:
            case Found(message_id=message_id):
                witness = f"look-up {derived}"
                detail = f"a look-up at {record.provider}"
                self._ledger.testify(record, Accepted(message_id), witness=witness, detail=detail)
                return Step.FOUND
            case Missing():
                return self._conclude(self._ledger.note_missing(record, record.provider), lookup)
            case CannotTell(detail=why):
                _log.warning("%s cannot be asked about emails in doubt: %s", record.provider, why)
                silent.add(record.provider)
                self._unanswered.add(record.key)
        return None

    def _conclude(self, record: Record, lookup: Lookup) -> Step | None:
        if record.state is not State.IN_DOUBT or len(negatives(record, lookup, self._patience.lease)) < _ENOUGH:
            return None
        if self._hear(record, at_once=True):
            return Step.HEARD
        by = f"{_ENOUGH} look-ups at {record.provider} showed none"
        return self._reopen(record, Resolution.NOT_SENT, by, Step.NOT_FOUND)

    def _choose(self, record: Record, provider: Provider | None) -> list[Step]:
        """What the job wants, once nothing more is to be learnt."""
        choice = record.in_doubt or self._in_doubt
        if choice is InDoubt.HOLD or self._clock.now() < self._hopeful_until(record, provider):
            return []
        if choice is InDoubt.DROP:
            return [Step.DROPPED] if self._ledger.resolve(record, Resolution.DROP, by=_BY_CHOICE) else []
        # Twice rather than never, and not for as long as answers are lost; nor when it would come too late.
        late = record.expires_at is not None and self._clock.now() >= record.expires_at
        if late or any(item.kind == Resolution.RESEND and item.detail == _BY_CHOICE for item in record.evidence):
            return []
        resent = self._reopen(record, Resolution.RESEND, _BY_CHOICE, Step.RESENT)
        return [resent] if resent else []

    def _hopeful_until(self, record: Record, provider: Provider | None) -> float:
        """How long a look-up or an event may still tell."""
        last = last_attempt_at(record)
        # With keys, it is in doubt only hours later, when all that events had to tell has been told.
        has_events = provider is not None and provider.contract.events is not None and provider.contract.key is None
        if provider is None or not (provider.contract.lookup is not None or has_events):
            return last
        lag = provider.contract.lookup.lag_seconds if provider.contract.lookup is not None else 0.0
        return last + self._patience.lease + _ENOUGH * lag + self._patience.evidence

    def _reopen(self, record: Record, resolution: Resolution, by: str, step: Step) -> Step | None:
        """Send it again, by a message that names its key; after a crash in between, `_wake` makes that message."""
        # Nobody has mended anything: what never shows, however often it is tried, is given up like what is refused.
        reopened = self._ledger.resolve(record, resolution, by=by, anew=resolution is Resolution.RESEND)
        if reopened is None:
            return None
        if reopened.resumable and not reopened.ended:
            self._resume(reopened.key)
        return step

    def _wake(self, record: Record, patience: float) -> list[Step]:
        """A record that is due, and that nobody came for: its message was lost, and the ledger holds what it takes.

        Touched before, so that any number of reconcilers make one message of it, and the next not before `patience`.
        """
        due = max(record.ready_at or record.updated_at, record.lease_until or 0.0)
        if not record.resumable or self._clock.now() < due + patience:
            return []
        if not self._ledger.touch(record):
            return []
        self._resume(record.key)
        return [Step.RESUMED]

    def _derived(self, key: str, generation: int) -> str:
        return provider_key(self._namespace, key, generation)


def prove(
    ledger: Ledger, record: Record, message_ids: Mapping[str, str | None], *, witness: str, detail: str
) -> Record:
    """Bring an acceptance into a record, and into those of the emails that went out in its request.

    `message_ids` are the provider's, by key, as far as they are known.
    """
    part = range_of(record)
    for key, email in () if part is None else part.members():
        ledger.adopt(record, key, email.fingerprint(), Accepted(message_ids.get(key)))
    return ledger.testify(record, Accepted(message_ids.get(record.key)), witness=witness, detail=detail)


def _keys_of(record: Record) -> Sequence[str]:
    """The key of a record, and those of the emails in its request: each went out with its own."""
    part = range_of(record)
    return [record.key, *(key for key, _ in part.members())] if part is not None else [record.key]


def _growth(record: Record) -> int:
    """Twice as long after each message that nobody has taken up either: it may be the queue that is long."""
    return 2 ** min(record.version - 1, _DOUBLINGS) if record.state is State.PENDING else 1


def last_attempt_at(record: Record) -> float:
    """When the last attempt began."""
    return record.history[-1].started_at if record.history else record.updated_at


def is_look_due(record: Record, lookup: Lookup, lease_seconds: float, now: float) -> bool:
    """Whether to look now: once the last attempt's lease is over, and as long as the first one would still show.

    What is found early ends the doubt; that nothing was is no proof yet, and the next look comes after twice the time.
    """
    last = last_attempt_at(record)
    since = record.unsure_since if record.unsure_since is not None else record.created_at
    if not last + lease_seconds <= now < since + lookup.horizon_seconds:
        return False
    counted = negatives(record, lookup, lease_seconds)
    if counted:
        return now >= counted[-1] + _pause(lookup, lease_seconds)
    early = [at for at in _missed(record) if at > last]
    return not early or now >= min(_quiet_at(record, lookup, lease_seconds), last + 2 * (early[-1] - last))


def negatives(record: Record, lookup: Lookup, lease_seconds: float) -> tuple[float, ...]:
    """When look-ups that count showed none: at this provider, after its last attempt, and well apart."""
    earliest, counted = _quiet_at(record, lookup, lease_seconds), list[float]()
    for at in _missed(record):
        if at >= earliest:
            counted.append(at)
            earliest = at + _pause(lookup, lease_seconds)
    return tuple(counted)


def _missed(record: Record) -> list[float]:
    return [item.at for item in record.evidence if item.kind == MISSING and item.detail == record.provider]


def _quiet_at(record: Record, lookup: Lookup, lease_seconds: float) -> float:
    """An attempt may still reach the provider until its lease is over, and shows up a lag after that."""
    return last_attempt_at(record) + lease_seconds + lookup.lag_seconds


def _pause(lookup: Lookup, lease_seconds: float) -> float:
    """Between two looks: as long as the last attempt needs to show.

    One who looks too early, as its clock or the sender's is wrong, then looks late enough the next time.
    """
    return max(1.0, lease_seconds + lookup.lag_seconds)
