"""One email through the protocol: claim, render and freeze if need be, check the lease, call, settle.

What is returned is durable; whatever is raised means that nothing is known to be, and the message must come again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from idem.clock import Clock, Deadline
from idem.email import Email, fingerprint
from idem.errors import BodyTooLarge, EmailError, InvalidKey, JobError
from idem.keys import provider_key, sub_key, take_explicit
from idem.ledger import Claim, Ledger, Lost
from idem.outcome import NotSent, Outcome, Rejected
from idem.privacy import redact
from idem.protocol import Conflict, InDoubt, Intent, Record, State
from idem.providers.base import Provider

_log = logging.getLogger("idem.send")


class Point(StrEnum):
    """Instants at which a crash matters; tests stop the world there, production passes through."""

    BEFORE_CLAIM = "before_claim"
    CLAIMED = "claimed"
    RENDERED = "rendered"
    FROZEN = "frozen"
    BEFORE_CALL = "before_call"
    ANSWERED = "answered"
    SETTLED = "settled"


@dataclass(frozen=True, slots=True)
class Ready:
    """A message that carries its email."""

    key: str
    email: Email
    in_doubt: InDoubt | None = None


@dataclass(frozen=True, slots=True)
class Render:
    """A message that names the job which builds its emails; `build` runs in the worker, once per claim."""

    key: str
    job: str
    build: Callable[[], Email | Sequence[Email] | None]
    in_doubt: InDoubt | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """A message that names a key, whose email the ledger holds."""

    key: str


Source = Ready | Render | Resume


@dataclass(frozen=True, slots=True)
class Ended:
    """Durable: the message may be acknowledged. `emails` are those of a job that built several, to be sent yet."""

    record: Record
    emails: tuple[Ready, ...] = ()


@dataclass(frozen=True, slots=True)
class Later:
    """Not ended: the message must come again, not before `ready_at` (Unix seconds); `cause` is what this call met."""

    ready_at: float
    record: Record
    cause: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The key stands for another email or job: this message can never be sent under it."""

    record: Record


@dataclass(frozen=True, slots=True)
class Empty:
    """The message names a key whose email the ledger does not hold: there is nothing to send."""


Result = Ended | Later | Refused | Empty


class Sender:
    """Sends by one ledger, for one namespace of keys. Safe to share between threads.

    `provider` is the first choice. An attempt goes through the provider that its record names: where that is neither
    this one nor one of `others`, nothing is sent. `heed` is told the provider, the provider key and the outcome of each
    call, before it is settled: it must neither raise nor wait.
    """

    def __init__(  # noqa: PLR0913 - each is one thing that a test or a deployment decides
        self,
        ledger: Ledger,
        provider: Provider,
        *,
        clock: Clock,
        http_timeout_seconds: float,
        namespace: str,
        others: Sequence[Provider] = (),
        reach: Callable[[Point], None] = lambda _: None,
        heed: Callable[[str, str, Outcome], None] = lambda _provider, _key, _outcome: None,
    ) -> None:
        self._ledger = ledger
        self._provider = provider
        self._providers: Mapping[str, Provider] = {each.contract.name: each for each in (*others, provider)}
        self._clock = clock
        self._http_timeout_seconds = http_timeout_seconds
        self._namespace = namespace
        self._reach = reach
        self._heed = heed

    def send(self, source: Source) -> Result:
        """Take one message as far as it goes now. Raises `LedgerError` when the ledger cannot say."""
        self._reach(Point.BEFORE_CLAIM)
        intent = self._intent(source)
        if intent is None:
            return Empty()
        claim = self._ledger.claim(intent)
        if isinstance(claim, Conflict):
            self._ledger.note_conflict(claim.record, intent.fingerprint)
            return Refused(claim.record)
        if not isinstance(claim, Claim):
            return self._result(claim.record)
        self._reach(Point.CLAIMED)
        rendered = self._email(source, claim)
        if not isinstance(rendered, _Attempt):
            return self._result(rendered)
        outcome = self._call(rendered.claim, rendered.email)
        self._reach(Point.ANSWERED)
        settled = self._ledger.settle(rendered.claim, outcome)
        self._reach(Point.SETTLED)
        return self._result(settled, outcome)

    def _intent(self, source: Source) -> Intent | None:
        """What the message asks for; None when it names a key whose email is nowhere."""
        match source:
            case Ready(key=key, email=email, in_doubt=in_doubt):
                body = email.canonical()
                return Intent(key, fingerprint=fingerprint(body), body=body, in_doubt=in_doubt)
            case Render(key=key, job=job, in_doubt=in_doubt):
                return Intent(key, job=job, in_doubt=in_doubt)
            case Resume(key=key):
                record = self._ledger.read(key)
                if record is None or (record.body is None and not record.ended):
                    return None
                return Intent(key, fingerprint=record.fingerprint, job=record.job)

    def _email(self, source: Source, claim: Claim) -> _Attempt | Record | Lost:
        """The email of this attempt: the message's, the frozen one, or one that is built and frozen now."""
        if isinstance(source, Ready):
            return _Attempt(claim, source.email)
        if claim.record.body is not None:
            return self._thaw(claim, claim.record.body)
        if isinstance(source, Resume):
            return self._ledger.settle(claim, NotSent("the ledger does not hold its email any more"))
        built = _build(source)
        self._reach(Point.RENDERED)
        if isinstance(built, NotSent | Rejected):
            return self._ledger.settle(claim, built)
        try:
            return self._freeze(source.key, claim, built)
        except BodyTooLarge as error:
            return self._ledger.settle(claim, Rejected(f"job {source.job}: {error}"))

    def _freeze(self, key: str, claim: Claim, built: Email | Sequence[Email]) -> _Attempt | Record | Lost:
        if isinstance(built, Email):
            email, explicit = take_explicit(built, None)
            if explicit in {None, key}:
                frozen = self._ledger.freeze(claim, email.canonical(), email.fingerprint())
                self._reach(Point.FROZEN)
                return frozen if isinstance(frozen, Lost) else _Attempt(frozen, email)
        emails = [built] if isinstance(built, Email) else built
        body = msgspec.json.encode([email.as_dict() for email in emails], order="sorted")
        return self._ledger.split(claim, body, hashlib.sha256(body).hexdigest())

    def _thaw(self, claim: Claim, body: bytes) -> _Attempt | Record | Lost:
        try:
            return _Attempt(claim, Email.from_canonical(body))
        except EmailError as error:
            return self._ledger.settle(claim, Rejected(f"the frozen email is refused by this version: {error}"))

    def _call(self, claim: Claim, email: Email) -> Outcome:
        """One attempt, if it can end well before the lease does; the HTTP client looks again at every write.

        The deadline is set before the lease is looked at: however long this process pauses in between or afterwards,
        what is then left of the deadline ends before the lease that was found long enough.
        """
        deadline = Deadline.after(self._clock, self._http_timeout_seconds)
        provider = self._providers[claim.record.provider]
        try:
            provider.check(email)
        except EmailError as error:
            # What the second choice cannot express, the first one can.
            return Rejected(str(error)) if provider is self._provider else NotSent(str(error))
        if claim.lease.left() <= self._http_timeout_seconds:
            return NotSent("too little of the lease was left for a request")
        self._reach(Point.BEFORE_CALL)
        key = provider_key(self._namespace, claim.record.key, claim.record.generation)
        outcome = provider.send(email, key, deadline)
        self._heed(provider.contract.name, key, outcome)
        return outcome

    def _result(self, known: Record | Lost, cause: Outcome | None = None) -> Result:
        record = known.record if isinstance(known, Lost) else known
        if record.state is State.SPLIT:
            return Ended(record, _split_emails(record))
        if record.ended:
            return Ended(record)
        until = record.ready_at if record.ready_at is not None else record.lease_until
        return Later(until if until is not None else self._clock.now(), record, cause)


@dataclass(frozen=True, slots=True)
class _Attempt:
    claim: Claim
    email: Email


def _build(source: Render) -> Email | Sequence[Email] | NotSent | Rejected:
    """Run the job's function. What it raises is tried again later; what it returns wrongly will not mend itself."""
    try:
        built = source.build()
    except (EmailError, JobError) as error:
        return Rejected(redact(f"job {source.job}: {error}"))
    except Exception as error:
        _log.exception("job %s raised %s; nothing was sent, it runs again later", source.job, type(error).__name__)
        return NotSent(redact(f"job {source.job} raised {type(error).__name__}: {error}"))
    if built is None:
        return ()
    emails = [built] if isinstance(built, Email) else built
    if not isinstance(emails, list | tuple) or not all(isinstance(email, Email) for email in emails):
        return Rejected(
            f"job {source.job} returned {type(built).__name__}; it must return an Email, a list of them, or None"
        )
    try:
        for email in emails:
            take_explicit(email, None)
    except InvalidKey as error:
        return Rejected(f"job {source.job} returned an email whose Idempotency-Key header is not a key: {error}")
    return built


def _split_emails(record: Record) -> tuple[Ready, ...]:
    """The emails of a list, each under its own key: the one in its `Idempotency-Key` header, else a sub-key."""
    ready = []
    for number, parts in enumerate(msgspec.json.decode(record.body or b"[]"), 1):
        email, explicit = take_explicit(Email.from_dict(parts), None)
        ready.append(Ready(explicit or sub_key(record.key, number), email, record.in_doubt))
    return tuple(ready)
