"""What a user declares: jobs that build emails. The framework sends each of them once."""

from __future__ import annotations

import inspect
import logging
import threading
import time
import uuid
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar

from dramatiq import Message

from idem.bulk import Ready, cut
from idem.clock import SystemClock
from idem.email import Email
from idem.errors import BrokerUnavailable, InvalidKey, JobError, ScheduleError
from idem.events import EventNotes
from idem.gate import Gate
from idem.keys import check_key
from idem.ledger import Ledger
from idem.protocol import Conflict, InDoubt, State
from idem.reconcile import Reconciler
from idem.send import Point
from idem.suppression import Suppression
from workers import wiring
from workers.actors import JobFunction, Performer, declare_actor
from workers.brokers.base import TOGETHER
from workers.jobs import QUEUE, email_message, intent_of_message, job_message, part_message, record_message
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

P = ParamSpec("P")
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


def _choice(in_doubt: str | None) -> InDoubt | None:
    try:
        return None if in_doubt is None else InDoubt(in_doubt)
    except ValueError:
        raise JobError(f"in_doubt is {in_doubt!r}: it must be one of {', '.join(InDoubt)}") from None


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
        *args: Any,
        key: str | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        expires: float | datetime | None = None,
        durable: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Enqueue the job and return its key; returning means that the broker has it.

        Without `key`, the message's own id is the key, and enqueueing twice means two emails. With it, twice is once.
        Arguments must be JSON values. Raises `JobError` for arguments that the function does not take, and
        `BrokerUnavailable` when it is not known whether the job was enqueued: call again with the same key. The others
        are as for `App.enqueue`.
        """
        try:
            inspect.signature(self._function).bind(*args, **kwargs)
        except TypeError as error:
            raise JobError(f"job {self.name}: {error}") from error
        timing = self._app.timing(delay, at, expires)
        message, used = job_message(self.name, args, kwargs, key, self._in_doubt, expires_at=timing.expires_at)
        self._app.ask(message, timing, durable=durable)
        return used


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


class App:
    """An application: its settings, its jobs, and the way into the queue. Making one connects to nothing."""

    def __init__(self, settings: Settings, *, reach: Callable[[Point], None] = lambda _: None) -> None:
        self.settings = settings
        self.jobs: dict[str, JobFunction] = {}
        self.schedules: dict[str, Schedule] = {}
        self._webhooks = Declared()
        self._reach = reach
        self._lock = threading.RLock()

    @classmethod
    def from_env(cls) -> App:
        """An application with the settings of the environment and the working directory."""
        return cls(Settings.load())

    def job(
        self, name: str | None = None, *, in_doubt: Literal["hold", "resend", "drop"] | None = None
    ) -> Callable[[Callable[P, Email | Sequence[Email] | None]], DeclaredJob[P]]:
        """Declare a function that returns an `Email`, a list of them, or None; by default under its own name.

        `in_doubt` says what is to happen to an email of which it cannot be found out whether it was accepted: `hold` it
        for a person (the default), `resend` it, as it may rather arrive twice than never, or `drop` it.
        """
        choice = _choice(in_doubt)

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
    ) -> Callable[[ScheduledFunction], ScheduledFunction]:
        """Declare a function that runs at the times of a cron expression (in `tz`), at an interval, or at one instant.

        It takes the `Slot`, or nothing, and returns what a job returns; it is one, by default under its own name, and
        each of its slots has one key. `catch_up` says what becomes of slots that were missed: `none`, the `latest`,
        `all`, or the last N: `all(N)`. Raises `ScheduleError` for what can be no schedule, or never runs.
        """
        if callable(cron):
            raise ScheduleError("write @app.schedule('0 7 * * *') with a cron expression, every= or at=")
        rule, missed, choice = make_rule(cron, every, at, tz), CatchUp.of(catch_up), _choice(in_doubt)

        def declare(function: ScheduledFunction) -> ScheduledFunction:
            job_name = str(name or getattr(function, "__name__", ""))
            if not job_name:
                raise ScheduleError(f"{type(function).__name__} has no name: write @app.schedule(..., name='a-name')")
            schedule = Schedule(job_name, rule, missed, choice)
            self.job(job_name)(_slot_job(schedule, function))
            self.schedules[job_name] = schedule
            return function

        return declare

    def webhook(
        self,
        source: str,
        *types: str,
        name: str | None = None,
        in_doubt: Literal["hold", "resend", "drop"] | None = None,
    ) -> Callable[[Hook], Hook]:
        """Declare a job that runs once for each event of these types: a function that takes an `Event`.

        It returns what a job returns. `source` is a sender, or `<sender>_<account>`; the key is `<source>/<event
        id>/<name>`, where the name is by default the function's own. One event may have several jobs.
        """
        choice = _choice(in_doubt)

        def declare(function: Hook) -> Hook:
            check_declaration(source, types, function)
            chosen = name or str(getattr(function, "__name__", "webhook"))
            self.job(chosen, in_doubt=in_doubt)(as_job(function))
            self._webhooks.add(source, types, chosen, choice)
            return function

        return declare

    def webhooks(self) -> Starlette:
        """The receiver of webhooks as an ASGI application: what `idem webhooks` serves, or to mount in one's own."""
        return wiring.build_webhooks(
            self.settings, self._webhooks, self.broker.enqueue, SystemClock(), self._hearing.hear
        )

    def enqueue(  # noqa: PLR0913 - what a caller may say about an email
        self,
        email: Email,
        *,
        key: str | None = None,
        in_doubt: Literal["hold", "resend", "drop"] | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        expires: float | datetime | None = None,
        durable: bool | None = None,
    ) -> str:
        """Enqueue an email that is ready and return its key; returning means that the broker has it.

        `in_doubt` is as for a job. The key is the argument's, else that of the email's `Idempotency-Key` header, else a
        new one. It is not sent before `delay` seconds are over, or before `at`; a first attempt that would begin later
        than `expires` (seconds from now, or an instant) is not made, and the key ends as expired. `durable` (by default
        `IDEM_DURABLE`): it is written to the ledger first, and enqueued again should the queue lose it; returning then
        means that the ledger has it, even if the broker does not answer.

        Raises `UnsupportedEmail` for what the provider cannot express, `JobError` for a time that makes no sense, and
        `BrokerUnavailable` like `send` of a job; durable, `LedgerUnavailable` in its place, and `InvalidKey` when the
        key already stands for another email.
        """
        self._check(email)
        timing = self.timing(delay, at, expires)
        message, used = email_message(email, key, _choice(in_doubt), timing.expires_at)
        self.ask(message, timing, durable=durable)
        return used

    def message(
        self, email: Email, *, key: str | None = None, in_doubt: Literal["hold", "resend", "drop"] | None = None
    ) -> tuple[Message[None], str]:
        """What `enqueue` would enqueue, and its key: for those who enqueue many together."""
        self._check(email)
        return email_message(email, key, _choice(in_doubt))

    def enqueue_bulk(  # noqa: PLR0913 - as above
        self,
        emails: Sequence[Email],
        *,
        key: str | None = None,
        in_doubt: Literal["hold", "resend", "drop"] | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        expires: float | datetime | None = None,
        durable: bool | None = None,
    ) -> list[str]:
        """Enqueue many emails as one job and return their keys: `<key>/1`, `<key>/2`, ... in the order of the list.

        However the provider takes them, together or one at a time, each is sent once, and can be looked up under its
        key; an email with an `Idempotency-Key` header has that one. The same list under the same key again is the same
        bulk. Without `key`, it gets a new one. Raises like `enqueue`; call again with the same key and list then.
        """
        for email in emails:
            self._check(email)
        stem, choice = check_key(key if key is not None else str(uuid.uuid4())), _choice(in_doubt)
        timing = self.timing(delay, at, expires)
        keys: list[str] = []
        parts = [replace(part, expires_at=timing.expires_at) for part in cut(stem, emails, choice)]
        for start in range(0, len(parts), TOGETHER):
            together = parts[start : start + TOGETHER]
            self._ask_all([part_message(part) for part in together], timing, durable=durable)
            for part in together:
                keys += [part.key] if isinstance(part, Ready) else [member for member, _ in part.members()]
        return keys

    def cancel(self, key: str, *, by: str = "by the application") -> None:
        """Call a key back: whatever was or will be enqueued under it is not sent. Twice is once.

        Raises `JobError` when it is too late: an attempt is under way, or may have been accepted, or the key has ended.
        What a bulk or a list was enqueued as has a key for each email, and each is cancelled by its own; a range that
        goes out as one request is not to be cancelled in part.
        """
        if self.ledger.cancel(check_key(key), by=by) is not None:
            return
        record = self.ledger.read(key)
        if record is not None and record.state is not State.CANCELLED:
            raise JobError(f"the key cannot be cancelled any more: it is {record.state.replace('_', ' ')}")

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
            self.broker.enqueue(message, delay=timing.delay_ms)
        except BrokerUnavailable as error:
            _log.warning("key %s is in the ledger, and is enqueued from there later: %s", asked.key, error)

    def _ask_all(self, messages: Sequence[Message[None]], timing: Timing, *, durable: bool | None) -> None:
        """Several at once where nothing has to be done for each."""
        if self.is_durable(durable) or timing.delay_ms is not None:
            for message in messages:
                self.ask(message, timing, durable=durable)
            return
        for error in filter(None, self.broker.enqueue_many(messages)):
            raise error

    def is_durable(self, durable: bool | None) -> bool:  # noqa: FBT001 - a choice that was made, or was not
        """Whether a job is written to the ledger first, by what was said of it or else by the settings."""
        return self.settings.durable == "on" if durable is None else durable

    @cached_property
    def _check(self) -> Callable[[Email], None]:
        return wiring.check_with(self.settings)

    @cached_property
    def broker(self) -> wiring.AnyBroker:
        """The broker, with the queue declared."""
        broker = wiring.build_broker(self.settings)
        broker.declare_queue(QUEUE)
        return broker

    @cached_property
    def _store(self) -> wiring.LedgerStore:
        return wiring.open_store(self.settings)

    @cached_property
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
        )
        declare_actor(self.broker, performer)
        return performer

    @cached_property
    def board(self) -> Board:
        """How far each schedule is enqueued."""
        return Board(self._store)

    def scheduler(self) -> Scheduler:
        """What a scheduler process needs."""
        return Scheduler(
            self.schedules,
            self.board,
            self.broker,
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
        for name in ("broker", "_store"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()
