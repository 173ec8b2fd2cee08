"""One email through the protocol: claim, render and freeze if need be, check the lease, call, settle.

What is returned is durable; whatever is raised means that nothing is known to be, and the message must come again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum

from msgspec.structs import replace

from idem import bulk
from idem.bulk import Bulk, Group, Part, Ready
from idem.clock import Clock, Deadline
from idem.email import Email, fingerprint
from idem.errors import BodyTooLarge, EmailError, InvalidKey, JobError, LedgerError
from idem.keys import provider_key, take_explicit
from idem.ledger import Claim, Ledger, Lost
from idem.outcome import Ground, NotSent, Outcome, Rejected
from idem.privacy import redact
from idem.protocol import Conflict, InDoubt, Intent, Record, State
from idem.providers.api import marked
from idem.providers.base import KeyedBatches, KeyedRequests, Provider

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
class Render:
    """A message that names the job which builds its emails; `build` runs in the worker, once per claim.

    `timeout_seconds` is how long it may take before others may begin, too; None leaves that to who holds the claim.
    """

    key: str
    job: str
    build: Callable[[], Email | Sequence[Email] | None]
    in_doubt: InDoubt | None = None
    expires_at: float | None = None
    timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """A message that names a key, whose email the ledger holds."""

    key: str


@dataclass(slots=True, eq=False)
class Building:
    """A job that is building its email. Whoever holds its claim meanwhile writes here what has become of that."""

    source: Render
    claim: Claim
    lost: Lost | None = None


Source = Ready | Render | Resume | Bulk


@dataclass(frozen=True, slots=True)
class Ended:
    """Durable: the message may be acknowledged. `emails` are those of a list, to be sent yet."""

    record: Record
    emails: tuple[Part, ...] = ()


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
    call, before it is settled: it must neither raise nor wait. `hold` is entered while a job builds its email, to renew
    its claim: without one, somebody else may begin when the lease is over. `withhold` says why an email is not to be
    sent, and is not asked about one that may have been accepted.
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
        hold: Callable[[Building], AbstractContextManager[None]] = lambda _: nullcontext(),
        withhold: Callable[[Email], str | None] = lambda _email: None,
    ) -> None:
        self._ledger = ledger
        self._provider = provider
        self._providers: Mapping[str, Provider] = {each.contract.name: each for each in (*others, provider)}
        self._clock = clock
        self._http_timeout_seconds = http_timeout_seconds
        self._namespace = namespace
        self._reach = reach
        self._heed = heed
        self._hold = hold
        self._withhold = withhold

    def send(self, source: Source | Group) -> Result:
        """Take one message as far as it goes now. Raises `LedgerError` when the ledger cannot say."""
        if isinstance(source, Group):
            return self._send_group(source)
        claim = self._claim(source)
        if not isinstance(claim, Claim):
            return claim
        attempt = self._email(source, claim)
        if not isinstance(attempt, _Attempt):
            return self._result(attempt)
        outcome = self._call(attempt)
        return self._settle(attempt.claim, outcome)

    def _send_group(self, group: Group) -> Result:
        """Emails with keys of their own, in one request: each is claimed and settled by itself."""
        results: list[Result] = []
        attempts: list[_Attempt] = []
        batched = bulk.takes_each(self._provider)
        for ready in group.emails:
            claim = self._claim(ready, batched=batched)
            if isinstance(claim, Claim):
                attempts.append(_Attempt(claim, (ready.email,)))
            else:
                results.append(claim)
        outcomes = self._call_each(attempts)
        return _joined(results + self._settle_each(attempts, outcomes))

    def _settle_each(self, attempts: Sequence[_Attempt], outcomes: Sequence[Outcome]) -> list[Result]:
        """Settle each, whatever becomes of the others; then raises `LedgerError` if one could not be."""
        heard = self._ledger.lease()
        results: list[Result] = []
        failed: LedgerError | None = None
        for one, outcome in zip(attempts, outcomes, strict=True):
            try:
                results.append(self._settle(one.claim, outcome, heard))
            except LedgerError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return results

    def _claim(self, source: Source, *, batched: bool = False) -> Claim | Result:
        self._reach(Point.BEFORE_CLAIM)
        intent = self._intent(source)
        if intent is None:
            return Empty()
        claim = self._ledger.claim(replace(intent, batched=True) if batched else intent)
        if isinstance(claim, Conflict):
            self._ledger.note_conflict(claim.record, intent.fingerprint)
            return Refused(claim.record)
        if not isinstance(claim, Claim):
            return self._result(claim.record)
        self._reach(Point.CLAIMED)
        return claim

    def _settle(self, claim: Claim, outcome: Outcome, heard: Deadline | None = None) -> Result:
        settled = self._ledger.settle(claim, outcome, heard)
        self._reach(Point.SETTLED)
        return self._result(settled, outcome)

    def _intent(self, source: Source) -> Intent | None:
        """What the message asks for; None when it names a key whose email is nowhere."""
        match source:
            case Ready():
                return intent_of(source)
            case Bulk():
                return replace(intent_of(source), split=self._goes_apart(source))
            case Render(key=key, job=job, in_doubt=in_doubt, expires_at=expires_at):
                return Intent(key, job=job, in_doubt=in_doubt, expires_at=expires_at)
            case Resume(key=key):
                record = self._ledger.read(key)
                if record is None or (record.body is None and not record.ended):
                    return None
                return Intent(key, fingerprint=record.fingerprint, job=record.job, split=self._must_split(record))

    def _must_split(self, record: Record) -> bool:
        """Whether a range that was to go out as one request is to be sent when that cannot be any more."""
        part = None if record.ended else bulk.range_of(record)
        return part is not None and self._goes_apart(part)

    def _goes_apart(self, part: Bulk) -> bool:
        """Whether several emails need a request each, as one of them is not to go, or has a record of its own.

        It may have been called back, or sent in a list that was cut otherwise: only under its own key can that be told.
        """
        if not bulk.takes(self._provider, part.emails) or any(map(self._withhold, part.emails)):
            return True
        return any(self._ledger.read(member) is not None for member, _ in part.members())

    def _email(self, source: Source, claim: Claim) -> _Attempt | Record | Lost:
        """The email of this attempt: the message's, the frozen one, or one that is built and frozen now."""
        if isinstance(source, Ready):
            return _Attempt(claim, (source.email,))
        if isinstance(source, Bulk):
            return self._range(claim, source.emails)
        if claim.record.body is not None:
            return self._thaw(claim, claim.record.body)
        if isinstance(source, Resume):
            return self._ledger.settle(claim, NotSent("the ledger does not hold its email any more"))
        return self._render(source, claim)

    def _render(self, source: Render, claim: Claim) -> _Attempt | Record | Lost:
        building = Building(source, claim)
        with self._hold(building):
            built = _build(source)
        self._reach(Point.RENDERED)
        if building.lost is not None:
            return building.lost
        claim = building.claim
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
                body = email.canonical()
                frozen = self._ledger.freeze(claim, body, fingerprint(body))
                self._reach(Point.FROZEN)
                return _Attempt(frozen, (email,)) if isinstance(frozen, Claim) else frozen
        emails = [built] if isinstance(built, Email) else built
        return self._split(claim, emails, self._cut(emails))

    def _split(self, claim: Claim, emails: Sequence[Email], cut: int | None) -> Record | Lost:
        if claim.record.durable and emails:
            return self._split_durable(claim, emails, cut or 1)
        body = bulk.encode(emails)
        return self._ledger.split(claim, body, fingerprint(body), cut)

    def _cut(self, emails: Sequence[Email]) -> int | None:
        """How many of a list go together: each by itself, where one of them is withheld."""
        return None if any(map(self._withhold, emails)) else bulk.cut_for(self._provider, emails)

    def _split_durable(self, claim: Claim, emails: Sequence[Email], cut: int) -> Record | Lost:
        """Its emails are asked for before it is done with: from then on nobody looks after it, but after them."""
        body = bulk.encode(emails)
        if claim.record.cut is None:
            # Or a crash in between, and a job that then builds something else, would leave emails of two lists.
            frozen = self._ledger.freeze_list(claim, body, cut)
            if isinstance(frozen, Lost):
                return frozen
            claim = frozen
        for part in bulk.parts_of(claim.record):
            self._ledger.ask(intent_of(part))
        return self._ledger.split(claim, body, fingerprint(body), cut)

    def _range(self, claim: Claim, emails: tuple[Email, ...]) -> _Attempt | Record | Lost:
        """One email, or a range of a bulk: to be sent as it is, or split, as its claim says."""
        if claim.record.state is not State.RENDERING:
            return _Attempt(claim, emails)
        # Of a list that is fixed, so is how it is cut. A range that has to go apart is never cut into itself.
        cut = claim.record.cut or self._cut(emails)
        if claim.record.job is None and cut is not None and cut >= len(emails):
            cut = None
        try:
            return self._split(claim, emails, cut)
        except BodyTooLarge as error:
            return self._ledger.settle(claim, Rejected(str(error)))

    def _thaw(self, claim: Claim, body: bytes) -> _Attempt | Record | Lost:
        try:
            emails = bulk.decode(body)
        except EmailError as error:
            return self._ledger.settle(claim, Rejected(f"the frozen email is refused by this version: {error}"))
        return self._range(claim, emails)

    def _call(self, attempt: _Attempt) -> Outcome:
        """One attempt, if it can end well before the lease does; the HTTP client looks again at every write.

        The deadline is set before the lease is looked at: however long this process pauses in between or afterwards,
        what is then left of the deadline ends before the lease that was found long enough.
        """
        deadline = Deadline.after(self._clock, self._http_timeout_seconds)
        obstacle = self._obstacle(attempt)
        if obstacle is not None:
            return obstacle
        provider, key = self._providers[attempt.claim.record.provider], self._derived(attempt)
        if attempt.claim.record.batched:
            return self._call_batch(provider, [attempt], deadline)[0]
        self._reach(Point.BEFORE_CALL)
        if len(attempt.emails) > 1:
            outcome = self._call_whole(attempt, provider, key, deadline)
        else:
            outcome = provider.send(self._marked(attempt, provider)[0], key, deadline)
        self._heed(provider.contract.name, key, outcome)
        self._reach(Point.ANSWERED)
        return outcome

    def _obstacle(self, attempt: _Attempt) -> NotSent | Rejected | None:
        """Why there can be no attempt now."""
        provider = self._providers[attempt.claim.record.provider]
        try:
            for email in attempt.emails:
                provider.check(email)
        except EmailError as error:
            # What the second choice cannot express, the first one can.
            return Rejected(str(error)) if provider is self._provider else NotSent(str(error))
        withheld = self._withheld(attempt)
        if withheld is None and attempt.claim.lease.left() <= self._http_timeout_seconds:
            return NotSent("too little of the lease was left for a request")
        return withheld

    def _withheld(self, attempt: _Attempt) -> NotSent | Rejected | None:
        """Why the email is not to be sent; what may have been accepted is only repeated, and goes on."""
        if attempt.claim.record.unsure_since is not None or len(attempt.emails) > 1:
            return None
        try:
            why = self._withhold(attempt.emails[0])
        except LedgerError as error:
            return NotSent(f"the suppression list cannot be asked: {error}")
        return None if why is None else Rejected(why, Ground.WITHHELD)

    def _call_whole(self, attempt: _Attempt, provider: Provider, key: str, deadline: Deadline) -> Outcome:
        """Several emails under one key. Once accepted, each gets its record before the request is settled.

        A crash in between leaves the request unsure: it is replayed, and what is missing is written then.
        """
        if not (isinstance(provider, KeyedRequests) and bulk.takes(provider, attempt.emails)):
            return NotSent(f"{provider.contract.title} takes no several emails in one request")
        batched = provider.send_all(self._marked(attempt, provider), key, deadline)
        self._reach(Point.ANSWERED)
        members = Bulk(attempt.claim.record.key, attempt.emails).members()
        for (member, email), outcome in zip(members, batched.each, strict=bool(batched.each)):
            self._ledger.adopt(attempt.claim.record, member, email.fingerprint(), outcome)
        return batched.whole

    def _call_each(self, attempts: Sequence[_Attempt]) -> Sequence[Outcome]:
        """All that may go in one request do; the others by themselves, or not at all."""
        deadline = Deadline.after(self._clock, self._http_timeout_seconds)
        outcomes: dict[str, Outcome] = {}
        together: list[_Attempt] = []
        for attempt in attempts:
            obstacle = self._obstacle(attempt)
            record = attempt.claim.record
            if obstacle is not None:
                outcomes[record.key] = obstacle
            elif record.batched and record.provider == self._provider.contract.name:
                together.append(attempt)
        if together:
            answers = self._call_batch(self._provider, together, deadline)
            outcomes |= {one.claim.record.key: answer for one, answer in zip(together, answers, strict=True)}
        return [outcomes.get(one.claim.record.key) or self._call(one) for one in attempts]

    def _call_batch(self, provider: Provider, attempts: Sequence[_Attempt], deadline: Deadline) -> Sequence[Outcome]:
        if not (isinstance(provider, KeyedBatches) and bulk.takes_each(provider)):
            return [NotSent(f"{provider.contract.title} takes no several emails in one request")] * len(attempts)
        self._reach(Point.BEFORE_CALL)
        pairs = [(self._marked(attempt, provider)[0], self._derived(attempt)) for attempt in attempts]
        answers = provider.send_each(pairs, deadline)
        self._heed(provider.contract.name, pairs[0][1], answers[0])
        self._reach(Point.ANSWERED)
        return answers

    def _marked(self, attempt: _Attempt, provider: Provider) -> Sequence[Email]:
        """The emails as they go out: each with its own derived key, unless the first attempt went without."""
        record = attempt.claim.record
        if not record.marked:
            return attempt.emails
        keys = [record.key]
        if len(attempt.emails) > 1:
            keys = [member for member, _ in Bulk(record.key, attempt.emails).members()]
        return [
            marked(email, provider.contract, provider_key(self._namespace, key, record.generation))
            for key, email in zip(keys, attempt.emails, strict=True)
        ]

    def _derived(self, attempt: _Attempt) -> str:
        return provider_key(self._namespace, attempt.claim.record.key, attempt.claim.record.generation)

    def _result(self, known: Record | Lost, cause: Outcome | None = None) -> Result:
        record = known.record if isinstance(known, Lost) else known
        if record.state is State.SPLIT:
            return Ended(record, bulk.packed(self._provider, bulk.parts_of(record)))
        if record.ended:
            return Ended(record)
        until = record.ready_at if record.ready_at is not None else record.lease_until
        return Later(until if until is not None else self._clock.now(), record, cause)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One email, or several that go out under one key."""

    claim: Claim
    emails: tuple[Email, ...]


def intent_of(part: Ready | Bulk) -> Intent:
    """What a message that carries its emails asks for, as far as any provider is concerned."""
    body = part.email.canonical() if isinstance(part, Ready) else bulk.encode(part.emails)
    return Intent(
        part.key, fingerprint=fingerprint(body), body=body, in_doubt=part.in_doubt, expires_at=part.expires_at
    )


def _build(source: Render) -> Email | Sequence[Email] | NotSent | Rejected:
    """Run the job's function. What it raises is tried again later; what it returns wrongly will not mend itself."""
    try:
        built = source.build()
    except (EmailError, JobError) as error:
        return Rejected(redact(f"job {source.job}: {error}"))
    except Exception as error:
        _log.exception("job %s raised %s; nothing was sent, it runs again later", source.job, type(error).__name__)
        return NotSent(redact(f"job {source.job} raised {type(error).__name__}: {error}"))
    return check_built(source.job, built)


def check_built(job: str, built: object) -> Email | Sequence[Email] | Rejected:
    """What a job's function returned, if it is what one may return."""
    if built is None:
        return ()
    emails = [built] if isinstance(built, Email) else built
    if not isinstance(emails, list | tuple) or not all(isinstance(email, Email) for email in emails):
        return Rejected(f"job {job} returned {type(built).__name__}; it must return an Email, a list of them, or None")
    try:
        for email in emails:
            take_explicit(email, None)
    except InvalidKey as error:
        return Rejected(f"job {job} returned an email whose Idempotency-Key header is not a key: {error}")
    return built if isinstance(built, Email) else emails


def _joined(results: Sequence[Result]) -> Result:
    """What became of a message with several keys: it comes again while one of them has not ended.

    An email in doubt is not kept waiting by the others, as its window may close meanwhile. At last, what was refused
    speaks for all: a person has to look, and what has ended stays as it is.
    """
    waiting = [result for result in results if isinstance(result, Later)]
    unsure = [result for result in waiting if result.record.state is State.UNSURE]
    if unsure:
        return min(unsure, key=_ready_at)
    if waiting:
        return max(waiting, key=_ready_at)
    return next((result for result in results if isinstance(result, Refused)), results[0])


def _ready_at(result: Later) -> float:
    return result.ready_at
