"""What a user declares: jobs that build emails. The framework sends each of them once."""

from __future__ import annotations

import inspect
import logging
import threading
import time
import uuid
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from itertools import compress
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Self, TypeVar, overload

from dramatiq import Message

from idem.bulk import Ready, cut
from idem.clock import SystemClock
from idem.content import ByContent, Contents, Named, digest_of_call, digest_of_email, digest_of_emails
from idem.email import Email
from idem.errors import BrokerError, BrokerUnavailable, InvalidKey, JobError, JobTooLarge, ScheduleError
from idem.events import EventNotes
from idem.gate import Gate
from idem.keys import check_key, take_explicit
from idem.ledger import Ledger
from idem.protocol import Conflict, InDoubt, Record, is_called_back
from idem.reconcile import Reconciler
from idem.send import Point
from idem.suppression import Suppression
from workers import wiring
from workers.actors import JobFunction, Performer, declare_actor
from workers.beside import Threads, Twin
from workers.brokers.base import TOGETHER
from workers.digest.digest import Digest, DigestFunction
from workers.jobs import (
    QUEUE,
    check_arguments,
    email_message,
    intent_of_message,
    job_message,
    part_message,
    read_choice,
    record_message,
)
from workers.schedule.board import Board
from workers.schedule.scheduler import Scheduler
from workers.schedule.slots import CatchUp, Schedule, Slot, make_rule, read_instant
from workers.settings import Settings
from workers.timing import Timing
from workers.webhooks.declared import Declared, Hook, as_job, check_declaration
from workers.webhooks.event import Event
from workers.webhooks.hearing import Hearing

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from workers.outbox.database import Database
    from workers.outbox.producer import Outbox
    from workers.outbox.relay import Relay

P = ParamSpec("P")
R = TypeVar("R")
ScheduledFunction = TypeVar(
    "ScheduledFunction",
    bound=Callable[[Slot], Email | Sequence[Email] | None] | Callable[[], Email | Sequence[Email] | None],
)
_POSITIONAL = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}

_log = logging.getLogger("idem.enqueue")

#: A job that receivers of the former version enqueue for what tells of an acceptance. Those of this one do its work.
_HEAR = "idem.hear"

#: What `DeclaredJob.send` takes beside the function's own arguments.
_SAID_IN_SEND = frozenset({"key", "delay", "at", "expires", "durable"})


def _timeout(seconds: float | None) -> float | None:
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0):
        raise JobError(f"timeout is {seconds!r}: it must be a number of seconds above 0")
    return seconds


class DeclaredJob(Generic[P]):
    """A job function, with `send` beside the plain call."""

    def __init__(
        self,
        app: App,
        name: str,
        function: Callable[P, Email | Sequence[Email] | None],
        in_doubt: InDoubt | None = None,
    ) -> None:
        self._app = app
        self._function = function
        self._in_doubt = in_doubt
        self.name = name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Email | Sequence[Email] | None:
        """Build the email here and now, without sending it: for tests and previews."""
        return self._function(*args, **kwargs)

    def send(
        self,
        /,
        *args: Any,
        key: str | ByContent | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        expires: float | datetime | None = None,
        durable: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Enqueue the job and return its key; returning means that the broker has it.

        Without `key`, the message's own id is the key, and enqueueing twice means two emails. With it, twice is once;
        with `key=by_content(within=...)`, the same arguments again within that time are the same job. Arguments must be
        JSON values. Raises `JobError` for arguments that the function does not take, and `BrokerUnavailable` when it is
        not known whether the job was enqueued: call again with the same key. The others are as for `App.enqueue`.
        """
        timing = self._app.timing(delay, at, expires)
        self._bind(args, kwargs)
        chosen = self._app.key_of_call(self.name, args, kwargs, key)
        message, used = job_message(self.name, args, kwargs, chosen, self._in_doubt, expires_at=timing.expires_at)
        self._app.ask(message, timing, durable=durable)
        return used

    def message(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], key: str | None, expires_at: float | None
    ) -> tuple[Message[None], str]:
        """What `send` would enqueue, and its key. Raises `JobError` for arguments that the function does not take."""
        self._bind(args, kwargs)
        return job_message(self.name, args, kwargs, key, self._in_doubt, expires_at=expires_at)

    asend = Twin(send)

    @property
    def threads(self) -> Threads:
        """Where what is awaited is done."""
        return self._app.threads

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        try:
            inspect.signature(self._function).bind(*args, **kwargs)
        except TypeError as error:
            raise JobError(f"job {self.name}: {error}") from error


def _slot_job(schedule: Schedule, function: Callable[..., Any]) -> Callable[[str], Any]:
    """The job of a schedule: on the wire, its argument is the slot's instant as text."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ScheduleError("write @app.schedule() above a plain function; coroutines are not awaited")
    takes_slot = _takes_slot(schedule.name, function)

    def run(instant: str) -> Any:
        try:
            at = read_instant(instant)
        except ScheduleError as error:
            raise JobError(str(error)) from error
        return function(schedule.slot(at, SystemClock().now())) if takes_slot else function()

    return run


def _takes_slot(name: str, function: Callable[..., Any]) -> bool:
    signature = inspect.signature(function)
    for arguments in ((), (None,)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        # One that may be called without and has a parameter all the same is called with what it asks for.
        return bool(arguments) or any(each.kind in _POSITIONAL for each in signature.parameters.values())
    raise ScheduleError(f"schedule {name}: its function must take the Slot, or nothing")


class _Opened(cached_property[R]):
    """What whoever asks first opens, be it several threads at once: from Python 3.12 on, the base has no lock."""

    def __init__(self, opens: Callable[[Any], R]) -> None:
        super().__init__(opens)
        self._opening = threading.RLock()

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> R: ...
    def __get__(self, instance: object, owner: type[Any] | None = None) -> Self | R:
        with self._opening:
            return super().__get__(instance, owner)


class App:
    """An application: its settings, its jobs, and the way into the queue. Making one connects to nothing."""

    def __init__(self, settings: Settings, *, reach: Callable[[Point], None] = lambda _: None) -> None:
        self.settings = settings
        self.jobs: dict[str, JobFunction] = {}
        self.timeouts: dict[str, float] = {}
        self.schedules: dict[str, Schedule] = {}
        self._webhooks = Declared()
        self._reach = reach

    @classmethod
    def from_env(cls) -> App:
        """An application with the settings of the environment and the working directory."""
        return cls(Settings.load())

    def job(
        self,
        name: str | None = None,
        *,
        in_doubt: Literal["hold", "resend", "drop"] | None = None,
        timeout: float | None = None,
    ) -> Callable[[Callable[P, Email | Sequence[Email] | None]], DeclaredJob[P]]:
        """Declare a function that returns an `Email`, a list of them, or None; by default under its own name.

        `in_doubt` says what is to happen to an email of which it cannot be found out whether it was accepted: `hold` it
        for a person (the default), `resend` it, as it may rather arrive twice than never, or `drop` it. `timeout` is
        how many seconds the function may take before another worker may begin to build the same (by default
        `IDEM_BUILD_SECONDS`); it is not stopped then.
        """
        choice, seconds = read_choice(in_doubt), _timeout(timeout)

        def declare(function: Callable[P, Email | Sequence[Email] | None]) -> DeclaredJob[P]:
            if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
                raise JobError("write @app.job() above a plain function; coroutines are not awaited")
            chosen = name or getattr(function, "__name__", None)
            if chosen is None:
                raise JobError(f"{type(function).__name__} has no name: write @app.job('a-name')")
            if chosen in self.jobs:
                raise JobError(f"two jobs are named {chosen!r}: give one of them another name")
            for taken in inspect.signature(function).parameters.keys() & _SAID_IN_SEND:
                raise JobError(f"job {chosen}: `{taken}` is an argument of send() itself; rename the parameter")
            self.jobs[chosen] = function
            if seconds is not None:
                self.timeouts[chosen] = seconds
            return DeclaredJob(self, chosen, function, choice)

        if callable(name):
            raise JobError("write @app.job() with parentheses")
        return declare

    def schedule(  # noqa: PLR0913 - the choices of a schedule
        self,
        cron: str | None = None,
        *,
        every: timedelta | None = None,
        at: datetime | None = None,
        tz: str = "UTC",
        catch_up: str = "latest",
        name: str | None = None,
        in_doubt: Literal["hold", "resend", "drop"] | None = None,
        timeout: float | None = None,
    ) -> Callable[[ScheduledFunction], ScheduledFunction]:
        """Declare a function that runs at the times of a cron expression (in `tz`), at an interval, or at one instant.

        It takes the `Slot`, or nothing, and returns what a job returns; it is one, by default under its own name, and
        each of its slots has one key. `catch_up` says what becomes of slots that were missed: `none`, the `latest`,
        `all`, or the last N: `all(N)`. `timeout` is as for a job. Raises `ScheduleError` for what can be no schedule,
        or never runs.
        """
        if callable(cron):
            raise ScheduleError("write @app.schedule('0 7 * * *') with a cron expression, every= or at=")
        rule, missed, choice = make_rule(cron, every, at, tz), CatchUp.of(catch_up), read_choice(in_doubt)

        def declare(function: ScheduledFunction) -> ScheduledFunction:
            job_name = str(name or getattr(function, "__name__", ""))
            if not job_name:
                raise ScheduleError(f"{type(function).__name__} has no name: write @app.schedule(..., name='a-name')")
            schedule = Schedule(job_name, rule, missed, choice)
            self.job(job_name, timeout=timeout)(_slot_job(schedule, function))
            self.schedules[job_name] = schedule
            return function

        return declare

    def digest(
        self,
        cron: str | None = None,
        *,
        every: timedelta | None = None,
        tz: str = "UTC",
        name: str | None = None,
        in_doubt: Literal["hold", "resend", "drop"] | None = None,
    ) -> Callable[[DigestFunction], Digest]:
        """Declare a function that makes one email of all items for one recipient in one window.

        It takes the recipient, the items in the order in which they were added, and the `Slot` at which the window
        ended, and returns what a job returns. Windows end at the times of a cron expression (in `tz`), or at an
        interval. What it is declared as has `add`: an item is in exactly one window, however often it is added under
        its key. No scheduler is needed: the first item of a window enqueues its job, for when it ends; cancelling that
        job's key calls back what is in the window, and what still comes into it.
        """
        if callable(cron):
            raise ScheduleError("write @app.digest('0 7 * * *') with a cron expression or every=")
        rule, choice = make_rule(cron, every, None, tz), read_choice(in_doubt)

        def declare(function: DigestFunction) -> Digest:
            chosen = name or str(getattr(function, "__name__", "digest"))
            store, ask = lambda: self._store, self._ask_from
            digest = Digest(chosen, rule, function, choice, store=store, ask=ask, clock=SystemClock())
            self.job(chosen)(digest.run)
            return digest

        return declare

    def _ask_from(self, message: Message[None], key: str, at: int) -> bool:
        """Ask durably for what is not to run before an instant; whether it is still to run."""
        early = at > SystemClock().now() + 1
        timing = self.timing(None, datetime.fromtimestamp(at, UTC), None) if early else Timing()
        self.ask(message, timing, durable=True)
        record = self.ledger.read(key)
        return record is not None and not record.ended

    def webhook(
        self,
        source: str,
        *types: str,
        name: str | None = None,
        in_doubt: Literal["hold", "resend", "drop"] | None = None,
        timeout: float | None = None,
    ) -> Callable[[Hook], Hook]:
        """Declare a job that runs once for each event of these types: a function that takes an `Event`.

        It returns what a job returns, and `timeout` is as for one. `source` is a sender, or `<sender>_<account>`; the
        key is `<source>/<event id>/<name>`, where the name is by default the function's own. One event may have several
        jobs.
        """
        choice = read_choice(in_doubt)

        def declare(function: Hook) -> Hook:
            check_declaration(source, types, function)
            chosen = name or str(getattr(function, "__name__", "webhook"))
            self.job(chosen, in_doubt=in_doubt, timeout=timeout)(as_job(function))
            self._webhooks.add(source, types, chosen, choice)
            return function

        return declare

    def hook(self, job: str) -> tuple[str, list[str]] | None:
        """The source and the types of events that a job waits for; None for one that waits for none."""
        return self._webhooks.of(job)

    def webhooks(self) -> Starlette:
        """The receiver of webhooks as an ASGI application: what `idem webhooks` serves, or to mount in one's own."""
        return wiring.build_webhooks(self.settings, self._webhooks, self._ask_one, SystemClock(), self._hearing.hear)

    def enqueue(  # noqa: PLR0913 - what a caller may say about an email
        self,
        email: Email,
        *,
        key: str | ByContent | None = None,
        in_doubt: Literal["hold", "resend", "drop"] | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        expires: float | datetime | None = None,
        durable: bool | None = None,
    ) -> str:
        """Enqueue an email that is ready and return its key; returning means that the broker has it.

        `in_doubt` is as for a job. The key is the argument's, else that of the email's `Idempotency-Key` header, else a
        new one; with `key=by_content(within=...)`, that of the header, else the one that the same content was enqueued
        under within that time, else a new one. It is not sent before `delay` seconds are over, or before `at`; a first
        attempt that would begin later than `expires` (seconds from now, or an instant) is not made, and the key ends as
        expired. `durable` (by default `IDEM_DURABLE`): it is written to the ledger first, and enqueued again should the
        queue lose it; returning then means that the ledger has it, even if the broker does not answer.

        Raises `UnsupportedEmail` for what the provider cannot express, `JobError` for a time that makes no sense, and
        `BrokerUnavailable` like `send` of a job; durable, `LedgerUnavailable` in its place, and `InvalidKey` when the
        key already stands for another email.
        """
        self.check(email)
        timing = self.timing(delay, at, expires)
        email, chosen = self._key_of(email, key)
        message, used = email_message(email, chosen, read_choice(in_doubt), timing.expires_at)
        self.ask(message, timing, durable=durable)
        return used

    aenqueue = Twin(enqueue)

    def message(
        self, email: Email, *, key: str | None = None, in_doubt: Literal["hold", "resend", "drop"] | None = None
    ) -> tuple[Message[None], str]:
        """What `enqueue` would enqueue, and its key: for those who enqueue many together."""
        self.check(email)
        return email_message(email, key, read_choice(in_doubt))

    def enqueue_bulk(  # noqa: PLR0913 - as above
        self,
        emails: Sequence[Email],
        *,
        key: str | ByContent | None = None,
        in_doubt: Literal["hold", "resend", "drop"] | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        expires: float | datetime | None = None,
        durable: bool | None = None,
    ) -> list[str]:
        """Enqueue many emails as one job and return their keys: `<key>/1`, `<key>/2`, ... in the order of the list.

        However the provider takes them, together or one at a time, each is sent once, and can be looked up under its
        key; an email with an `Idempotency-Key` header has that one. The same list under the same key again is the same
        bulk; with `key=by_content(within=...)`, the same list again, with its tags and metadata. Without `key`, it gets
        a new one. Raises like `enqueue`; call again with the same key and list then.
        """
        for email in emails:
            self.check(email)
        timing, choice = self.timing(delay, at, expires), read_choice(in_doubt)
        if isinstance(key, ByContent):
            key = self._named(digest_of_emails(emails), key).key
        stem = check_key(key if key is not None else str(uuid.uuid4()))
        keys: list[str] = []
        parts = list(cut(stem, emails, choice, timing.expires_at))
        for start in range(0, len(parts), TOGETHER):
            together = parts[start : start + TOGETHER]
            self._ask_all([part_message(part) for part in together], timing, durable=durable)
            for part in together:
                keys += [part.key] if isinstance(part, Ready) else [member for member, _ in part.members()]
        return keys

    aenqueue_bulk = Twin(enqueue_bulk)

    def cancel(self, key: str, *, by: str = "by the application") -> None:
        """Call a key back: whatever was or will be enqueued under it is not sent. Twice is once.

        Raises `JobError` when it is too late: an attempt is under way, or may have been accepted, or the key has ended.
        What a bulk or a list was enqueued as has a key for each email, and each is cancelled by its own.
        """
        if self.ledger.cancel(check_key(key), by=by) is not None:
            return
        record = self.ledger.read(key)
        if record is not None and not is_called_back(record):
            raise JobError(f"the key cannot be cancelled any more: it is {record.state.replace('_', ' ')}")

    def _key_of(self, email: Email, key: str | ByContent | None) -> tuple[Email, str | None]:
        """The email to enqueue, and its key if that is known: the argument's, the header's, or its content's."""
        by = key if isinstance(key, ByContent) else None
        email, explicit = take_explicit(email, None if isinstance(key, ByContent) else key)
        if by is None or explicit is not None:
            return email, explicit
        named = self._named(digest_of_email(email), by, email)
        return named.as_named(email), named.key

    def key_of_call(
        self, job: str, args: Sequence[Any], kwargs: Mapping[str, Any], key: str | ByContent | None
    ) -> str | None:
        """The key of a job that is called so, if it is known."""
        if not isinstance(key, ByContent):
            return key
        check_arguments(job, [args, kwargs])
        return self._named(digest_of_call(job, args, kwargs), key).key

    def _named(self, digest: str, by: ByContent, email: Email | None = None) -> Named:
        memory = wiring.build_policy(self.settings).memory_seconds
        if memory is not None and by.within_seconds > memory:
            days = memory / 86_400
            raise JobError(f"by_content: within is longer than the ledger remembers keys ({days:.3g} days)")
        return Contents(self._store, SystemClock()).name(digest, by, email)

    def timing(self, delay: float | None, at: datetime | None, expires: float | datetime | None) -> Timing:
        """What a producer says about time, checked. Raises `JobError`."""
        if delay is None and at is None and expires is None:
            return Timing()
        memory = wiring.build_policy(self.settings).memory_seconds
        return Timing.of(time.time(), delay=delay, at=at, expires=expires, memory_seconds=memory)

    def ask(self, message: Message[None], timing: Timing, *, durable: bool | None) -> None:
        """Enqueue a message; durable, after the ledger has what it takes to make it again.

        Then a broker that does not answer is no error: whoever was told of one, and has no key, would enqueue under
        another key what is sent already.
        """
        if not self.is_durable(durable):
            self.broker.enqueue(message, delay=timing.delay_ms)
            return
        asked = self.ledger.ask(intent_of_message(message), ready_at=timing.ready_at)
        if isinstance(asked, Conflict):
            raise InvalidKey("its key already stands for another email or job: give it another key")
        if asked.ended:
            return
        try:
            self._enqueue_asked(message, asked, timing.delay_ms)
        except BrokerUnavailable as error:
            _log.warning("key %s is in the ledger, and is enqueued from there later: %s", asked.key, error)

    def _enqueue_asked(self, message: Message[None], record: Record, delay: int | None) -> None:
        """Enqueue a message of a durable job; one too large for the broker gives way to what names its key."""
        try:
            self.broker.enqueue(message, delay=delay)
        except JobTooLarge:
            if not record.resumable:
                raise
            self.broker.enqueue(record_message(record), delay=delay)

    def _ask_all(self, messages: Sequence[Message[None]], timing: Timing, *, durable: bool | None) -> None:
        """Several at once where nothing has to be done for each."""
        if self.is_durable(durable) or timing.delay_ms is not None:
            for message in messages:
                self.ask(message, timing, durable=durable)
            return
        for error in filter(None, self.broker.enqueue_many(messages)):
            raise error

    def ask_each(self, messages: Sequence[Message[None]]) -> Sequence[BrokerError | None]:
        """Enqueue, as the settings say, what nobody waits for who could mend it; for each None, or why it was not.

        A broker that does not answer is an error also where the ledger has the job: whoever asks again in a moment is
        sooner than the sweeper. Raises `LedgerError`.
        """
        waits = [not self.is_durable(None) or self._is_to_be_enqueued(message) for message in messages]
        errors = iter(self.broker.enqueue_many(list(compress(messages, waits))))
        return [next(errors) if waiting else None for waiting in waits]

    def _is_to_be_enqueued(self, message: Message[None]) -> bool:
        """Write a job to the ledger; whether it has not ended there."""
        try:
            intent = intent_of_message(message)
        except JobError as error:
            _log.warning(
                "key %s is enqueued without being written to the ledger first: %s", message.kwargs["key"], error
            )
            return True
        asked = self.ledger.ask(intent)
        # A worker buries what has the key of something else, and a person finds it there.
        return isinstance(asked, Conflict) or not asked.ended

    def _ask_one(self, message: Message[None]) -> None:
        for error in filter(None, self.ask_each([message])):
            raise error

    def is_durable(self, durable: bool | None) -> bool:  # noqa: FBT001 - a choice that was made, or was not
        """Whether a job is written to the ledger first, by what was said of it or else by the settings."""
        return self.settings.durable == "on" if durable is None else durable

    @_Opened
    def threads(self) -> Threads:
        """Where what is awaited is done; none is started before."""
        return Threads()

    @cached_property
    def check(self) -> Callable[[Email], None]:
        """What raises `UnsupportedEmail` for an email that the provider cannot express."""
        return wiring.check_with(self.settings)

    @_Opened
    def broker(self) -> wiring.AnyBroker:
        """The broker, with the queue declared."""
        broker = wiring.build_broker(self.settings)
        broker.declare_queue(QUEUE)
        return broker

    @_Opened
    def _store(self) -> wiring.LedgerStore:
        return wiring.open_store(self.settings)

    @_Opened
    def ledger(self) -> Ledger:
        """The ledger of this application."""
        return wiring.build_ledger(self.settings, self._store)

    @cached_property
    def gate(self) -> Gate:
        """The gate in front of the provider."""
        return wiring.build_gate(self.settings, self._store)

    def performer(self) -> Performer:
        """What a worker process needs: the actor declared on the broker, and everything behind it."""
        clock = SystemClock()
        performer = Performer(
            wiring.build_sender(self.settings, self.ledger, clock, self._reach, gate=self.gate, cells=self._store),
            self.broker,
            ChainMap({_HEAR: as_job(self._hear)}, self.jobs),
            ledger=self.ledger,
            gate=self.gate,
            policy=wiring.build_policy(self.settings),
            clock=clock,
            timeouts=self.timeouts,
        )
        declare_actor(self.broker, performer)
        return performer

    @cached_property
    def board(self) -> Board:
        """How far each schedule is enqueued."""
        return Board(self._store)

    @cached_property
    def outbox(self) -> Outbox:
        """Where a database transaction writes down what it wants sent (extra `outbox`). Needs no queue, no ledger."""
        return wiring.build_outbox(self.settings, self.check, self.timing)

    @cached_property
    def rows(self) -> Database:
        """The database of the outbox, as the relay sees it: `IDEM_OUTBOX_URL`."""
        return wiring.open_rows(self.settings)

    def relay(self) -> Relay:
        """What a relay process needs."""
        ask_all = None if self.is_durable(None) else self.broker.enqueue_many
        return wiring.build_relay(self.settings, self.rows, partial(self.ask, durable=None), ask_all)

    def scheduler(self) -> Scheduler:
        """What enqueues the slots. Raises `ScheduleError` when there is no schedule."""
        if not self.schedules:
            raise ScheduleError("the application declares no schedule: write @app.schedule() above a function")
        return Scheduler(
            self.schedules,
            self.board,
            self.ask_each,
            clock=SystemClock(),
            memory_seconds=wiring.build_policy(self.settings).memory_seconds,
        )

    def resume(self, key: str) -> None:
        """Enqueue a message for a key of which the ledger holds what it takes: opened again, or lost by the queue."""
        record = self.ledger.read(key)
        if record is not None and not record.ended and record.resumable:
            self.broker.enqueue(record_message(record))

    def reconciler(self) -> Reconciler:
        """What finds out about emails in doubt; a worker runs one, and so does `idem reconcile`."""
        return wiring.build_reconciler(self.settings, self.ledger, SystemClock(), self.resume, self._store)

    @cached_property
    def notes(self) -> EventNotes:
        """What providers' events told of emails."""
        return wiring.build_notes(self.settings, self._store)

    @cached_property
    def suppression(self) -> Suppression:
        """The suppression list of this application, whether it is in use or not."""
        return wiring.build_suppression(self.settings, self._store)

    @cached_property
    def _hearing(self) -> Hearing:
        return wiring.build_hearing(self.settings, self._store)

    def _hear(self, event: Event) -> None:
        self._hearing.hear(event)

    def close(self) -> None:
        """Let go of what was opened; the embedded server stops when its last user has closed."""
        for name in ("board", "gate", "ledger", "notes", "suppression", "_hearing"):
            self.__dict__.pop(name, None)
        for name in ("threads", "rows", "broker", "_store"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()
