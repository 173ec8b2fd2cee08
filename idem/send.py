"""One email through the protocol: claim, render and freeze if need be, check the lease, call, settle.

What is returned is durable; whatever is raised means that nothing is known to be, and the message must come again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from idem.clock import Clock, Deadline
from idem.email import Email
from idem.errors import BodyTooLarge, EmailError, InvalidKey, JobError
from idem.keys import provider_key, sub_key, take_explicit
from idem.ledger import Claim, Ledger, Lost
from idem.outcome import NotSent, Outcome, Rejected
from idem.privacy import redact
from idem.protocol import Conflict, Intent, Record, State
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


@dataclass(frozen=True, slots=True)
class Render:
    """A message that names the job which builds its emails; `build` runs in the worker, once per claim."""

    key: str
    job: str
    build: Callable[[], Email | Sequence[Email] | None]


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


Result = Ended | Later | Refused


class Sender:
    """Sends through one provider, by one ledger, for one namespace of keys. Safe to share between threads.

    `heed` is told the provider key and the outcome of each call before it is settled: it must neither raise nor wait.
    """

    def __init__(  # noqa: PLR0913 - each is one thing that a test or a deployment decides
        self,
        ledger: Ledger,
        provider: Provider,
        *,
        clock: Clock,
        http_timeout_seconds: float,
        namespace: str,
        reach: Callable[[Point], None] = lambda _: None,
        heed: Callable[[str, Outcome], None] = lambda _key, _outcome: None,
    ) -> None:
        self._ledger = ledger
        self._provider = provider
        self._clock = clock
        self._http_timeout_seconds = http_timeout_seconds
        self._namespace = namespace
        self._reach = reach
        self._heed = heed

    def send(self, source: Ready | Render) -> Result:
        """Take one message as far as it goes now. Raises `LedgerError` when the ledger cannot say."""
        self._reach(Point.BEFORE_CLAIM)
        claim = self._ledger.claim(_intent(source))
        if isinstance(claim, Conflict):
            self._ledger.note_conflict(claim.record, _intent(source).fingerprint)
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

    def _email(self, source: Ready | Render, claim: Claim) -> _Attempt | Record | Lost:
        """The email of this attempt: the message's, the frozen one, or one that is built and frozen now."""
        if isinstance(source, Ready):
            return _Attempt(claim, source.email)
        if claim.record.body is not None:
            return self._thaw(claim, claim.record.body)
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
        try:
            self._provider.check(email)
        except EmailError as error:
            return Rejected(str(error))
        if claim.lease.left() <= self._http_timeout_seconds:
            return NotSent("too little of the lease was left for a request")
        self._reach(Point.BEFORE_CALL)
        key = provider_key(self._namespace, claim.record.key, claim.record.generation)
        outcome = self._provider.send(email, key, deadline)
        self._heed(key, outcome)
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


def _intent(source: Ready | Render) -> Intent:
    if isinstance(source, Ready):
        return Intent(source.key, fingerprint=source.email.fingerprint())
    return Intent(source.key, job=source.job)


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
        ready.append(Ready(explicit or sub_key(record.key, number), email))
    return tuple(ready)
