"""The protocol: what may follow what, decided here and nowhere else. Pure: no I/O, and time is an argument.

    (absent) --claim--> SENDING --settle--> SENT | REJECTED | RETRY | UNSURE | IN_DOUBT
    RETRY    --claim--> SENDING                        nothing was sent: try again
    UNSURE   --claim--> SENDING                        the window is open: same bytes, same key
             --claim--> IN_DOUBT                       otherwise: never a blind resend
    UNSURE | IN_DOUBT | RETRY --evidence--> SENT       a lost claim, a look-up, a provider event or a person brings an
                                                       acceptance; while another attempt runs, it counts after that
    IN_DOUBT --resolve--> RETRY                        known not to have been accepted, or a job that may arrive twice
             --resolve--> DROPPED                      given up
    REJECTED --resolve--> RETRY                        its cause is mended: the same job key, the next generation
    (absent) --claim--> RENDERING --renew--> RENDERING a job that takes long: one more lease
                                  --freeze--> SENDING  a job that builds one email in the worker
                                  --freeze--> SPLIT    a job that built none or several: each has its own sub-key
                                  --freeze--> RENDERING  and a durable one, before each is asked for under that key
    RENDERING --settle--> RETRY | REJECTED             the function failed: nothing was sent
    (absent) --ask--> PENDING --claim--> ...           a producer wrote it down first: claimed as if it were absent
    whatever may begin --claim--> EXPIRED              when it is too late to: instead of SENDING or RENDERING
                       --cancel--> CANCELLED           called back, also before anybody knew the key

A `Standing` is what a record means at an instant; SENDING whose lease is over stands as UNSURE. Five tables, `CLAIM`,
`SETTLE`, `EVIDENCE`, `RESOLVE` and `CANCEL`, hold every pair of a standing and an input. The functions below only look
up and fill in.

Every function returns a new record with `version` one higher. Writing it is the ledger's work: one conditional write on
the claim id, the version and the state that the transition started from.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum, auto
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.policy import Policy
from idem.privacy import Private

#: Attempts that a record remembers one by one; `attempts` counts them all.
MAX_HISTORY = 20

#: Kinds of evidence: an acceptance (from a lost claim, a look-up, an event, a person), and a look-up that showed none.
ACCEPTANCE: Final = "accepted"
MISSING: Final = "not found"
_CANCEL: Final = "cancelled"


class State(StrEnum):
    """What a record durably says. The first five are live, the others ended."""

    PENDING = "pending"
    """Asked for by a producer that wrote it down first. Nobody has begun, and nothing was sent."""
    RENDERING = "rendering"
    """A job is building its email. Nothing was sent; after the lease, another worker builds it again."""
    SENDING = "sending"
    """Durable before the first byte goes out. After a crash and the lease, it stands as UNSURE."""
    RETRY = "retry"
    """Nothing was sent so far; the next attempt may begin at `ready_at`."""
    UNSURE = "unsure"
    """An attempt may have been accepted, and the provider would recognise its key: send the same again."""
    SENT = "sent"
    """The provider accepted the email, once. Never changes."""
    REJECTED = "rejected"
    """Definitely not accepted, and not tried again. Never changes."""
    IN_DOUBT = "in_doubt"
    """An attempt may have been accepted, and repeating it could send twice. Waits for evidence or a person."""
    DROPPED = "dropped"
    """It was in doubt, and its job or a person gave it up. Only an acceptance that comes in late changes it."""
    SPLIT = "split"
    """The job built none or several emails; they are frozen here and live under their sub-keys. Never changes."""
    EXPIRED = "expired"
    """It was too late to begin, and no attempt may have been accepted. Only a late acceptance changes it."""
    CANCELLED = "cancelled"
    """It was called back before an attempt. Only a late acceptance changes it."""


#: States in which a queue message has done its work and may be acknowledged (rule 1).
ENDED: Final = frozenset(
    {State.SENT, State.REJECTED, State.IN_DOUBT, State.DROPPED, State.SPLIT, State.EXPIRED, State.CANCELLED}
)

#: Live states that no index is kept of for the sake of those that are not durable; see `Store.asked`.
ASKED: Final = (State.PENDING, State.RENDERING, State.SENDING)


class InDoubt(StrEnum):
    """What a job wants done with its email when nothing can be found out about it any more."""

    HOLD = "hold"
    """Keep it in doubt, for an event or a person to settle."""
    RESEND = "resend"
    """Send it again: it may rather arrive twice than never."""
    DROP = "drop"
    """Never mind: it may rather arrive never than twice, and nobody needs to look."""


class Attempt(Struct, frozen=True, kw_only=True):
    """One claim's call of the provider; `outcome` is None while nothing is known of it."""

    number: int
    claim_id: str
    started_at: float
    ended_at: float | None = None
    outcome: str | None = None
    detail: str | None = None


class Evidence(Struct, frozen=True, kw_only=True):
    """What was learnt about a key outside its claim: an acceptance (rule 6), a look-up, a conflict, a resolution.

    `claim_id` names who brought it: the claim, or the event or resolution, so that nothing is noted twice.
    """

    at: float
    kind: str
    claim_id: str | None = None
    message_id: str | None = None
    detail: str | None = None


class Record(Private, frozen=True, kw_only=True):
    """The ledger's item for one key. Times are Unix seconds.

    `job` names the function that builds the email, None for an email that arrived ready; `body` holds what it built.
    An email that arrived ready has a `body` once it was in doubt or withheld: it can be sent without its message then.
    `unsure_since` is the start of the first attempt that may have been accepted: the provider's window counts from it.
    `opened_at` is set when the key was opened again: how long to try counts from it. `cut` is how many emails of a
    SPLIT list go together; None means that each goes by itself, or that the list is not fixed yet. `batched`: its
    attempts go out in requests for several emails, of which a provider may keep the keys apart from those of other
    requests. `marked`: they carry the derived key where the provider's events bring it back, which those of former
    versions did not. `durable`: its producer wrote it down first, so that it is enqueued again should its message be
    lost; `call` are then the arguments of its job as JSON, until the email is frozen. No attempt that is the first as
    far as acceptance goes begins after `expires_at`.
    """

    key: str
    state: State
    version: int
    claim_id: str
    created_at: float
    updated_at: float
    provider: str
    job: str | None = None
    fingerprint: str | None = None
    body: bytes | None = None
    generation: int = 0
    attempts: int = 0
    started_at: float | None = None
    lease_until: float | None = None
    ready_at: float | None = None
    unsure_since: float | None = None
    opened_at: float | None = None
    cut: int | None = None
    batched: bool | None = None
    marked: bool | None = None
    in_doubt: InDoubt | None = None
    durable: bool | None = None
    call: str | None = None
    expires_at: float | None = None
    message_id: str | None = None
    reason: str | None = None
    history: tuple[Attempt, ...] = ()
    evidence: tuple[Evidence, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether the queue message behind this record has done its work."""
        return self.state in ENDED

    @property
    def resumable(self) -> bool:
        """Whether the ledger holds what a new message under this key needs: the email, or its job's arguments."""
        return self.body is not None or self.call is not None


class Intent(Private, frozen=True):
    """What a message asks for: one email that is ready (its fingerprint and canonical bytes), or a job that builds one.

    `in_doubt` is the job's choice, where it made one. `split`: the message carries several emails, and the provider
    cannot take them in one request, so that each needs a key of its own. `batched`: the email travels in a request with
    others, under its own key. `expires_at` binds a key that has no record yet. `call`: see `Record`.
    """

    key: str
    fingerprint: str | None = None
    job: str | None = None
    body: bytes | None = None
    in_doubt: InDoubt | None = None
    split: bool = False
    batched: bool = False
    expires_at: float | None = None
    call: str | None = None


class Rules(Struct, frozen=True):
    """What a worker goes by: its durations, the provider that it sends through, and others that it can speak to.

    An attempt that may have been accepted is repeated through its own provider only. After one that was definitely not,
    the next may go through the `fallback`.
    """

    policy: Policy
    provider: str
    others: Mapping[str, Policy] = field(default_factory=dict)
    fallback: str | None = None

    def policy_of(self, provider: str) -> Policy | None:
        """The durations that hold for attempts through this provider; None for one that this worker cannot speak to."""
        return self.policy if provider == self.provider else self.others.get(provider)


class Standing(Enum):
    """What a record means at an instant."""

    ABSENT = auto()
    PENDING = auto()
    RENDERING_LIVE = auto()
    RENDERING_OVER = auto()
    SENDING_LIVE = auto()
    RETRY_EARLY = auto()
    RETRY_DUE = auto()
    UNSURE_EARLY = auto()
    UNSURE_OPEN = auto()
    UNSURE_CLOSED = auto()
    UNSURE_PROVED = auto()
    SENT = auto()
    REJECTED = auto()
    IN_DOUBT = auto()
    DROPPED = auto()
    SPLIT = auto()
    EXPIRED = auto()
    CANCELLED = auto()


class Move(Enum):
    """What a claim comes to."""

    BEGIN = auto()
    """Take the claim for an attempt that is the first as far as acceptance goes."""
    REPLAY = auto()
    """Take the claim to send the same bytes under the same key again."""
    DOUBT = auto()
    """Write IN_DOUBT: no attempt may follow by itself."""
    PROVE = auto()
    """Write SENT: a lost claim has brought its acceptance."""
    EXPIRE = auto()
    """Write EXPIRED, where it would be BEGIN: it is too late to."""
    WAIT = auto()
    """Somebody else holds the claim, or it is too early."""
    END = auto()
    """There is nothing left to do."""


CLAIM: Final[Mapping[Standing, Move]] = {
    Standing.ABSENT: Move.BEGIN,
    Standing.PENDING: Move.BEGIN,
    Standing.RENDERING_LIVE: Move.WAIT,
    Standing.RENDERING_OVER: Move.BEGIN,
    Standing.SENDING_LIVE: Move.WAIT,
    Standing.RETRY_EARLY: Move.WAIT,
    Standing.RETRY_DUE: Move.BEGIN,
    Standing.UNSURE_EARLY: Move.WAIT,
    Standing.UNSURE_OPEN: Move.REPLAY,
    Standing.UNSURE_CLOSED: Move.DOUBT,
    Standing.UNSURE_PROVED: Move.PROVE,
    Standing.SENT: Move.END,
    Standing.REJECTED: Move.END,
    Standing.IN_DOUBT: Move.END,
    Standing.DROPPED: Move.END,
    Standing.SPLIT: Move.END,
    Standing.EXPIRED: Move.END,
    Standing.CANCELLED: Move.END,
}


class Verdict(Enum):
    """An outcome, as far as the protocol tells outcomes apart."""

    ACCEPTED = auto()
    CONFLICT = auto()
    REJECTED = auto()
    REJECTED_FOR_KEY = auto()
    NOT_SENT = auto()
    NOT_SENT_FOR_KEY = auto()
    NOT_SENT_GIVING_UP = auto()
    UNKNOWN = auto()


class Doubt(Enum):
    """What is open about a claim's earlier attempts when its own outcome comes in."""

    NONE = auto()
    """No earlier attempt can have been accepted."""
    OPEN = auto()
    """One may have been, and the provider would still recognise the key."""
    CLOSED = auto()
    """One may have been, and a repetition could be a second email."""
    WAIVED = auto()
    """One may have been, and its job, or a person, wanted it sent again all the same."""
    PROVED = auto()
    """One was: a lost claim has brought its acceptance while this one ran (rule 6)."""


#: Rule 5, line by line: an outcome speaks for its own attempt. `UNKNOWN` has no row for `Doubt.NONE` and `WAIVED`,
#: because the attempt itself is in doubt from then on.
SETTLE: Final[Mapping[tuple[Verdict, Doubt], State]] = {
    (Verdict.ACCEPTED, Doubt.NONE): State.SENT,
    (Verdict.ACCEPTED, Doubt.OPEN): State.SENT,
    (Verdict.ACCEPTED, Doubt.CLOSED): State.SENT,
    (Verdict.CONFLICT, Doubt.NONE): State.REJECTED,
    # The key is known under other bytes although only we use it: something of ours was accepted. A person must look.
    (Verdict.CONFLICT, Doubt.OPEN): State.IN_DOUBT,
    (Verdict.CONFLICT, Doubt.CLOSED): State.IN_DOUBT,
    (Verdict.REJECTED, Doubt.NONE): State.REJECTED,
    (Verdict.REJECTED, Doubt.OPEN): State.UNSURE,
    (Verdict.REJECTED, Doubt.CLOSED): State.IN_DOUBT,
    # A replayed refusal is an answer about the key: the first request under it was refused, and so is any other.
    (Verdict.REJECTED_FOR_KEY, Doubt.NONE): State.REJECTED,
    (Verdict.REJECTED_FOR_KEY, Doubt.OPEN): State.REJECTED,
    (Verdict.REJECTED_FOR_KEY, Doubt.CLOSED): State.IN_DOUBT,
    (Verdict.NOT_SENT_FOR_KEY, Doubt.NONE): State.RETRY,
    (Verdict.NOT_SENT_FOR_KEY, Doubt.OPEN): State.RETRY,
    (Verdict.NOT_SENT_FOR_KEY, Doubt.CLOSED): State.IN_DOUBT,
    (Verdict.NOT_SENT, Doubt.NONE): State.RETRY,
    (Verdict.NOT_SENT, Doubt.OPEN): State.UNSURE,
    (Verdict.NOT_SENT, Doubt.CLOSED): State.IN_DOUBT,
    (Verdict.NOT_SENT_GIVING_UP, Doubt.NONE): State.REJECTED,
    (Verdict.NOT_SENT_GIVING_UP, Doubt.OPEN): State.UNSURE,
    (Verdict.NOT_SENT_GIVING_UP, Doubt.CLOSED): State.IN_DOUBT,
    # What is refused now may have been accepted before: it is given up, and not known to be rejected.
    (Verdict.ACCEPTED, Doubt.WAIVED): State.SENT,
    (Verdict.CONFLICT, Doubt.WAIVED): State.DROPPED,
    (Verdict.REJECTED, Doubt.WAIVED): State.DROPPED,
    (Verdict.REJECTED_FOR_KEY, Doubt.WAIVED): State.DROPPED,
    (Verdict.NOT_SENT, Doubt.WAIVED): State.RETRY,
    (Verdict.NOT_SENT_FOR_KEY, Doubt.WAIVED): State.RETRY,
    (Verdict.NOT_SENT_GIVING_UP, Doubt.WAIVED): State.DROPPED,
    (Verdict.UNKNOWN, Doubt.OPEN): State.UNSURE,
    (Verdict.UNKNOWN, Doubt.CLOSED): State.IN_DOUBT,
    **{(verdict, Doubt.PROVED): State.SENT for verdict in Verdict},
}

#: Rule 6: an acceptance that comes from outside the claim. Where the state stays, it is noted, and what it exposes
#: (a second acceptance, a wrong rejection) is there for a person to see.
EVIDENCE: Final[Mapping[Standing, State]] = {
    Standing.PENDING: State.SENT,
    Standing.RENDERING_LIVE: State.RENDERING,
    Standing.RENDERING_OVER: State.RENDERING,
    Standing.SENDING_LIVE: State.SENDING,
    Standing.RETRY_EARLY: State.SENT,
    Standing.RETRY_DUE: State.SENT,
    Standing.UNSURE_EARLY: State.SENT,
    Standing.UNSURE_OPEN: State.SENT,
    Standing.UNSURE_CLOSED: State.SENT,
    Standing.UNSURE_PROVED: State.SENT,
    Standing.SENT: State.SENT,
    Standing.REJECTED: State.REJECTED,
    Standing.IN_DOUBT: State.SENT,
    Standing.DROPPED: State.SENT,
    Standing.SPLIT: State.SPLIT,
    Standing.EXPIRED: State.SENT,
    Standing.CANCELLED: State.SENT,
}


class Resolution(StrEnum):
    """What can be decided about a key from outside a claim, an acceptance apart (that is evidence)."""

    NOT_SENT = "not sent"
    """It is known that no attempt was accepted: send it."""
    RESEND = "resend"
    """It is not known, and the job would rather have it twice than never."""
    DROP = "drop"
    """It is not known, and need not be."""
    REOPEN = "reopen"
    """The cause of a rejection is mended: send it under the next generation of the provider's key (rule 9)."""


#: What is said about a key from outside a claim, an acceptance apart.
_WORDS: Final = frozenset({_CANCEL, *(resolution.value for resolution in Resolution)})

#: Where a resolution is allowed, and what it makes of the record. UNSURE_CLOSED is IN_DOUBT that nobody has written.
RESOLVE: Final[Mapping[tuple[Standing, Resolution], State]] = {
    (Standing.IN_DOUBT, Resolution.NOT_SENT): State.RETRY,
    (Standing.IN_DOUBT, Resolution.RESEND): State.RETRY,
    (Standing.IN_DOUBT, Resolution.DROP): State.DROPPED,
    (Standing.UNSURE_CLOSED, Resolution.NOT_SENT): State.RETRY,
    (Standing.UNSURE_CLOSED, Resolution.RESEND): State.RETRY,
    (Standing.UNSURE_CLOSED, Resolution.DROP): State.DROPPED,
    (Standing.DROPPED, Resolution.NOT_SENT): State.RETRY,
    (Standing.DROPPED, Resolution.RESEND): State.RETRY,
    (Standing.REJECTED, Resolution.REOPEN): State.RETRY,
}

#: Where a key may be called back: no attempt is under way, and none may have been accepted.
CANCEL: Final = frozenset(
    {Standing.ABSENT, Standing.PENDING, Standing.RENDERING_OVER, Standing.RETRY_EARLY, Standing.RETRY_DUE}
)


class Take(Struct, frozen=True):
    """The claim is to be had: write this record, and it is yours."""

    record: Record


class Close(Struct, frozen=True):
    """Write this record: it ends here, IN_DOUBT, proved SENT or EXPIRED, without another attempt."""

    record: Record


class Wait(Struct, frozen=True):
    """Come back at `until`."""

    until: float
    record: Record


class Done(Struct, frozen=True):
    """The key has ended; nothing is to be done."""

    record: Record


class Conflict(Struct, frozen=True):
    """The key already stands for something else, which goes first; this intent is refused."""

    record: Record


Decision = Take | Close | Wait | Done | Conflict


def standing(record: Record | None, now: float, rules: Rules) -> Standing:
    """What `record` means at `now` for a worker that goes by `rules`."""
    if record is None:
        return Standing.ABSENT
    live = record.lease_until is not None and now < record.lease_until
    match record.state:
        case State.RENDERING:
            return Standing.RENDERING_LIVE if live else Standing.RENDERING_OVER
        case State.SENDING if live:
            return Standing.SENDING_LIVE
        case State.RETRY:
            early = record.ready_at is not None and now < record.ready_at
            return Standing.RETRY_EARLY if early else Standing.RETRY_DUE
        case State.SENDING | State.UNSURE:
            return _unsure(record, now, rules)
        case timeless:
            return _TIMELESS[timeless]


_TIMELESS: Final = {
    State.PENDING: Standing.PENDING,
    State.SENT: Standing.SENT,
    State.REJECTED: Standing.REJECTED,
    State.IN_DOUBT: Standing.IN_DOUBT,
    State.DROPPED: Standing.DROPPED,
    State.SPLIT: Standing.SPLIT,
    State.EXPIRED: Standing.EXPIRED,
    State.CANCELLED: Standing.CANCELLED,
}


def _unsure(record: Record, now: float, rules: Rules) -> Standing:
    """Only the provider that may have accepted the email can recognise its key, and only for so long."""
    if _proof(record) is not None:
        return Standing.UNSURE_PROVED
    if record.ready_at is not None and now < record.ready_at:
        return Standing.UNSURE_EARLY
    since = _unsure_since(record)
    policy = rules.policy_of(record.provider)
    known = since is not None and policy is not None and policy.window_open(since, now)
    return Standing.UNSURE_OPEN if known else Standing.UNSURE_CLOSED


def _proof(record: Record) -> Evidence | None:
    """The acceptance that a lost claim has brought, if one has."""
    return next((item for item in record.evidence if item.kind == ACCEPTANCE), None)


def _unsure_since(record: Record) -> float | None:
    """The start of the first attempt that may have been accepted, the one under way included."""
    return record.unsure_since if record.unsure_since is not None else record.started_at


def ask(intent: Intent, *, now: float, claim_id: str, rules: Rules, ready_at: float | None = None) -> Record:
    """(absent) -> PENDING: all that it takes to send it, before anybody is told. It is due at `ready_at`, or now."""
    return replace(
        _blank(intent, now, rules),
        state=State.PENDING,
        version=1,
        claim_id=claim_id,
        # Listed by when it is due: what waits for its time must not hide what has lost its message.
        updated_at=now if ready_at is None else ready_at,
        body=intent.body,
        call=intent.call,
        durable=True,
        ready_at=ready_at,
    )


def claim(record: Record | None, intent: Intent, *, now: float, claim_id: str, rules: Rules) -> Decision:
    """Decide what becomes of `intent`, given the record that its key has."""
    if record is not None and conflicts(record, intent):
        return Conflict(record)
    stands = standing(record, now, rules)
    move = _begin_in_time(CLAIM[stands], record, intent, now)
    if record is not None and move is Move.END:
        return Done(record)
    if record is not None and move is Move.WAIT:
        until = record.lease_until if stands in _LEASED else record.ready_at
        return Wait(until if until is not None else now, record)
    if record is not None and (move is Move.DOUBT or move is Move.PROVE):
        return Close(_close(record, move, now, claim_id, intent.body))
    if record is None:
        record = _blank(intent, now, rules)
    if move is Move.EXPIRE:
        return Close(_end_unsent(record, State.EXPIRED, now, claim_id, "it was too late to send it"))
    if record.state is State.PENDING:
        # It may have waited for long, and how long to try counts from the first one who took it up.
        record = replace(record, opened_at=now)
    elif record.fingerprint is None and intent.fingerprint is not None:
        record = replace(record, fingerprint=intent.fingerprint)
    return Take(_take(record, intent, move, now=now, claim_id=claim_id, rules=rules))


def _begin_in_time(move: Move, record: Record | None, intent: Intent, now: float) -> Move:
    """The move, or EXPIRE instead of an attempt which is the first as far as acceptance goes, and too late."""
    expires_at = intent.expires_at if record is None else record.expires_at
    late = expires_at is not None and now >= expires_at
    return Move.EXPIRE if move is Move.BEGIN and late else move


def _end_unsent(record: Record, state: State, now: float, claim_id: str, reason: str) -> Record:
    """It ends without having been sent; its email is not kept."""
    return replace(
        record,
        state=state,
        version=record.version + 1,
        claim_id=claim_id,
        lease_until=None,
        ready_at=None,
        updated_at=now,
        body=None,
        call=None,
        reason=reason,
    )


_LEASED: Final = frozenset({Standing.RENDERING_LIVE, Standing.SENDING_LIVE})


def passes_at(record: Record, rules: Rules) -> float | None:
    """From when on a record's next step does not wait for the first choice, should that be paused or in trouble.

    At once when the step does not go there; at the last replay when an attempt there may have been accepted, as its
    window does not wait either; None when it may wait for as long as it takes.
    """
    since = _unsure_since(record)
    if since is not None and record.state in {State.SENDING, State.UNSURE}:
        return rules.policy.last_replay(since) if record.provider == rules.provider else record.updated_at
    elsewhere = record.state is State.RETRY and _route(record, rules) != rules.provider
    return record.updated_at if elsewhere else None


def conflicts(record: Record, intent: Intent) -> bool:
    """Whether the key stands for something else. One that was cancelled stands for whatever comes under it."""
    if record.state is State.CANCELLED:
        return False
    if record.job != intent.job:
        return True
    # A key that was opened again without its email has no fingerprint: it is bound to the next email that comes.
    unbound = record.state is State.RETRY and record.fingerprint is None
    return intent.fingerprint is not None and record.fingerprint != intent.fingerprint and not unbound


#: A copy of it costs a fraction of what it takes to make one.
_EMPTY: Final = Record(key="", state=State.RETRY, version=0, claim_id="", created_at=0.0, updated_at=0.0, provider="")


def _blank(intent: Intent, now: float, rules: Rules) -> Record:
    return replace(
        _EMPTY,
        key=intent.key,
        created_at=now,
        updated_at=now,
        provider=rules.provider,
        job=intent.job,
        fingerprint=intent.fingerprint,
        in_doubt=intent.in_doubt,
        expires_at=intent.expires_at,
    )


def _take(  # noqa: PLR0913 - as below
    record: Record, intent: Intent, move: Move, *, now: float, claim_id: str, rules: Rules
) -> Record:
    repeats = move is Move.REPLAY
    # What may have been accepted by one door, or as it was made then, would not be recognised otherwise.
    provider = record.provider if repeats else _route(record, rules)
    # It is the first choice that takes several emails in one request; the other one takes each by itself.
    together = intent.batched and provider == rules.provider
    taken = replace(
        record,
        state=State.RENDERING,
        version=record.version + 1,
        claim_id=claim_id,
        lease_until=now + rules.policy.lease_seconds,
        ready_at=None,
        updated_at=now,
        provider=provider,
        unsure_since=_unsure_since(record) if repeats else None,
        batched=record.batched if repeats else together or None,
        marked=record.marked if repeats else True,
    )
    # A list that may have been accepted as one request is repeated as one, whatever the provider takes today.
    # One whose emails may have been asked for already, each by itself, is never sent as one.
    if record.fingerprint is None or record.cut is not None or (intent.split and not repeats):
        return taken
    return _begin_attempt(taken, now)


def _route(record: Record, rules: Rules) -> str:
    """The provider of an attempt that repeats none: the first choice, and after its definite failure the other one."""
    failed = bool(record.history) and record.history[-1].outcome == NotSent.__name__
    if rules.fallback is not None and failed and record.provider == rules.provider:
        return rules.fallback
    return rules.provider


def _begin_attempt(record: Record, now: float) -> Record:
    number = record.attempts + 1
    attempt = Attempt(number=number, claim_id=record.claim_id, started_at=now)
    return replace(
        record,
        state=State.SENDING,
        attempts=number,
        started_at=now,
        history=(*record.history, attempt)[-MAX_HISTORY:],
    )


def _close(record: Record, move: Move, now: float, claim_id: str, body: bytes | None) -> Record:
    closed = replace(
        record,
        version=record.version + 1,
        claim_id=claim_id,
        unsure_since=_unsure_since(record),
        lease_until=None,
        ready_at=None,
        updated_at=now,
    )
    if move is Move.PROVE:
        return _proved(closed)
    return replace(
        closed,
        state=State.IN_DOUBT,
        body=record.body if record.body is not None else body,
        reason=record.reason or "the worker that held the claim did not say what became of its attempt",
    )


def _proved(record: Record) -> Record:
    """The record as its evidence has it: accepted."""
    proof = _proof(record)
    message_id = proof.message_id if proof is not None else None
    return replace(record, state=State.SENT, message_id=message_id, reason=None, body=None, call=None)


def holds(record: Record, claim_id: str) -> bool:
    """Whether that claim is still the one that may settle the record."""
    return record.claim_id == claim_id and record.state in {State.RENDERING, State.SENDING}


def is_building(record: Record, claim_id: str) -> bool:
    """Whether the job of that claim may still be building the email."""
    return record.claim_id == claim_id and record.state is State.RENDERING


def renew(record: Record, *, now: float, policy: Policy) -> Record:
    """RENDERING -> RENDERING: the job is still building, and nobody else begins to for one more lease."""
    return replace(record, version=record.version + 1, lease_until=now + policy.lease_seconds, updated_at=now)


def freeze(record: Record, body: bytes, fingerprint: str, *, now: float, policy: Policy) -> Record:
    """RENDERING -> SENDING: what the job built is fixed, and its first attempt begins, under a fresh lease.

    EXPIRED instead, when building it took so long that it is too late to begin.
    """
    if record.expires_at is not None and now >= record.expires_at:
        return _end_unsent(record, State.EXPIRED, now, record.claim_id, "it was too late to send it once it was built")
    frozen = replace(
        record,
        version=record.version + 1,
        body=body,
        call=None,
        fingerprint=fingerprint,
        lease_until=now + policy.lease_seconds,
        updated_at=now,
    )
    return _begin_attempt(frozen, now)


def freeze_list(record: Record, body: bytes, cut: int, *, now: float) -> Record:
    """RENDERING -> RENDERING: a durable list is fixed, and how it is cut, before any of its emails is asked for.

    Whoever takes over after a crash goes by it: what its job would build now may be another list.
    """
    return replace(record, version=record.version + 1, body=body, call=None, cut=cut, updated_at=now)


def split(record: Record, body: bytes, fingerprint: str, *, now: float, cut: int | None = None) -> Record:
    """RENDERING -> SPLIT: a list is fixed, and how it is cut; its emails are sent under keys of their own."""
    return replace(
        record,
        state=State.SPLIT,
        version=record.version + 1,
        body=body,
        call=None,
        fingerprint=fingerprint,
        cut=cut,
        lease_until=None,
        updated_at=now,
    )


def member(within: Record, key: str, fingerprint: str, outcome: Accepted | Rejected, *, now: float) -> Record:
    """The record of one email that was settled in the request which `within` stands for."""
    accepted = outcome if isinstance(outcome, Accepted) else None
    kind = ACCEPTANCE if accepted is not None else "rejected"
    return Record(
        key=key,
        state=State.REJECTED if accepted is None else State.SENT,
        version=1,
        claim_id=within.claim_id,
        created_at=now,
        updated_at=now,
        provider=within.provider,
        fingerprint=fingerprint,
        generation=within.generation,
        attempts=1,
        message_id=accepted.message_id if accepted is not None else None,
        reason=outcome.detail if isinstance(outcome, Rejected) else None,
        evidence=(Evidence(at=now, kind=kind, claim_id=within.claim_id, detail=f"in the request of {within.key}"),),
    )


def settle(  # noqa: PLR0913 - a transition's arguments are all that it depends on
    record: Record, outcome: Outcome, *, now: float, policy: Policy, jitter: float, body: bytes | None = None
) -> Record:
    """RENDERING or SENDING -> what the holder's outcome makes of it. `jitter` is drawn from 0..1.

    While rendering, nothing can have been accepted: only `NotSent` and `Rejected` are outcomes then. `body` is the
    canonical email of a message that carries it: a doubt keeps it, since the message goes, and a key that is withheld.
    """
    if record.state is State.RENDERING and isinstance(outcome, Accepted | Unknown):
        raise ValueError(f"{type(outcome).__name__} is not an outcome of rendering")
    verdict = _verdict(record, outcome, now, policy)
    unsure_since = _unsure_since(record) if verdict is Verdict.UNKNOWN else record.unsure_since
    doubt = _doubt_of(record, unsure_since, now, policy)
    state = SETTLE[verdict, doubt]
    settled = replace(
        record,
        state=state,
        version=record.version + 1,
        lease_until=None,
        started_at=None,
        unsure_since=unsure_since,
        updated_at=now,
        history=_close_attempt(record, outcome, now),
    )
    if isinstance(outcome, Accepted):
        return replace(settled, message_id=outcome.message_id, reason=None, body=None)
    if state is State.SENT:
        return _proved(settled)
    withheld = isinstance(outcome, Rejected) and outcome.ground is Ground.WITHHELD
    if (state is State.IN_DOUBT or withheld) and record.body is None:
        settled = replace(settled, body=body)
    if state is State.RETRY:
        settled = replace(settled, unsure_since=None, generation=_next_generation(record, outcome))
        unsure_since = None
    ready_at = None
    if state in {State.RETRY, State.UNSURE}:
        retry_after = outcome.retry_after if isinstance(outcome, NotSent | Unknown) else None
        ready_at = now + policy.backoff((record.version + 1) // 2, jitter, retry_after)
    if ready_at is not None and unsure_since is not None and now < policy.last_replay(unsure_since):
        # A pause that outlasts the window would end in doubt for certain; the last replay is worth trying early.
        ready_at = min(ready_at, policy.last_replay(unsure_since))
    return replace(settled, ready_at=ready_at, reason=outcome.detail)


def _next_generation(record: Record, outcome: Outcome) -> int:
    """A provider that stays with its refusals gives the same answer to the same key: the next attempt takes another."""
    return record.generation + (isinstance(outcome, NotSent) and outcome.burnt)


def _verdict(record: Record, outcome: Outcome, now: float, policy: Policy) -> Verdict:
    match outcome:
        case Accepted():
            return Verdict.ACCEPTED
        case Rejected(ground=Ground.CONFLICT):
            return Verdict.CONFLICT
        case Rejected(replayed=replayed):
            return Verdict.REJECTED_FOR_KEY if replayed else Verdict.REJECTED
        case NotSent(replayed=replayed):
            return _not_sent(record, now, policy, replayed=replayed)
        case Unknown():
            return Verdict.UNKNOWN


def _not_sent(record: Record, now: float, policy: Policy, *, replayed: bool) -> Verdict:
    if _is_tried_for_long(record, now, policy):
        return Verdict.REJECTED_FOR_KEY if replayed else Verdict.NOT_SENT_GIVING_UP
    return Verdict.NOT_SENT_FOR_KEY if replayed else Verdict.NOT_SENT


def _is_tried_for_long(record: Record, now: float, policy: Policy) -> bool:
    opened_at = record.opened_at if record.opened_at is not None else record.created_at
    return now - opened_at >= policy.give_up_seconds


def _doubt_of(record: Record, unsure_since: float | None, now: float, policy: Policy) -> Doubt:
    if _proof(record) is not None:
        return Doubt.PROVED
    if unsure_since is None:
        return Doubt.WAIVED if _is_waived(record) else Doubt.NONE
    return Doubt.OPEN if policy.window_open(unsure_since, now) else Doubt.CLOSED


def _is_waived(record: Record) -> bool:
    """Whether the last word on earlier attempts was that it may rather arrive twice than never."""
    return _last_word(record) == Resolution.RESEND


def _last_word(record: Record) -> str | None:
    return next((item.kind for item in reversed(record.evidence) if item.kind in _WORDS), None)


def _close_attempt(record: Record, outcome: Outcome, now: float) -> tuple[Attempt, ...]:
    """Write the outcome into the history's open entry; a record that is only rendering has none."""
    if record.state is not State.SENDING or not record.history:
        return record.history
    detail = outcome.message_id if isinstance(outcome, Accepted) else outcome.detail
    name = "Replayed" if isinstance(outcome, Accepted) and outcome.replayed else type(outcome).__name__
    closed = replace(record.history[-1], ended_at=now, outcome=name, detail=detail)
    return (*record.history[:-1], closed)


def testify(  # noqa: PLR0913 - as above
    record: Record, accepted: Accepted, *, claim_id: str, now: float, rules: Rules, detail: str | None
) -> Record:
    """Add an acceptance that came from outside the claim; it ends a doubt, or exposes a duplicate (rule 6).

    `claim_id` names who brought it: a lost claim, or an event, a look-up, a person, as `detail` says.
    """
    state = EVIDENCE[standing(record, now, rules)]
    evidence = Evidence(at=now, kind=ACCEPTANCE, claim_id=claim_id, message_id=accepted.message_id, detail=detail)
    noted = note(record, evidence, now=now)
    if state is record.state:
        return noted
    return _proved(replace(noted, lease_until=None, ready_at=None, started_at=None))


def resolve(  # noqa: PLR0913 - as above
    record: Record, resolution: Resolution, *, claim_id: str, by: str, now: float, rules: Rules, anew: bool = True
) -> Record | None:
    """Decide about a key that no worker may decide about; None where that is not allowed. `by` goes into the record.

    A key that is to be sent keeps its frozen email; without one, the next message under the key brings it. How long to
    try counts `anew`; else what was tried for long enough, and is known not to be sent, is REJECTED.
    """
    state = RESOLVE.get((standing(record, now, rules), resolution))
    if state is None:
        return None
    evidence = Evidence(at=now, kind=resolution.value, claim_id=claim_id, detail=by)
    resolved = replace(
        note(record, evidence, now=now),
        state=state,
        claim_id=claim_id,
        lease_until=None,
        started_at=None,
        ready_at=None,
    )
    if state is State.DROPPED:
        return replace(resolved, unsure_since=_unsure_since(record), reason=f"given up {by}")
    if not anew and _is_tried_for_long(record, now, rules.policy):
        return replace(resolved, state=State.REJECTED, unsure_since=None, reason=f"given up: {by}")
    return replace(
        resolved,
        unsure_since=None,
        ready_at=now,
        opened_at=now if anew else record.opened_at,
        reason=None,
        # Whoever wants it sent although it may arrive twice, or although it failed, wants it late as well.
        expires_at=record.expires_at if resolution is Resolution.NOT_SENT else None,
        fingerprint=record.fingerprint if record.body is not None else None,
        generation=record.generation + (resolution is Resolution.REOPEN),
    )


def cancel(  # noqa: PLR0913 - as above
    record: Record | None, key: str, *, claim_id: str, by: str, now: float, rules: Rules
) -> Record | None:
    """Call a key back, be it known or not; None where it is too late to. `by` goes into the record.

    What is to be sent again although it may have been accepted is DROPPED: nobody can call that back.
    """
    if standing(record, now, rules) not in CANCEL:
        return None
    if record is None:
        record = _blank(Intent(key), now, rules)
    state = State.DROPPED if _is_waived(record) else State.CANCELLED
    evidence = Evidence(at=now, kind=_CANCEL, claim_id=claim_id, detail=by)
    cancelled = replace(record, evidence=(*record.evidence, evidence))
    return _end_unsent(cancelled, state, now, claim_id, f"cancelled {by}")


def is_called_back(record: Record) -> bool:
    """Whether it ended as somebody called it back. What was dropped in doubt was not: it may have been accepted."""
    return record.state in {State.CANCELLED, State.DROPPED} and _last_word(record) == _CANCEL


def note(record: Record, evidence: Evidence, *, now: float) -> Record:
    """Append to what is known about the key, and leave everything else, the claim included, as it is."""
    return replace(record, version=record.version + 1, evidence=(*record.evidence, evidence), updated_at=now)
