"""What a user declares: jobs that build emails. The framework sends each of them once."""

from __future__ import annotations

import inspect
import threading
import uuid
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Generic, Literal, ParamSpec

from idem.bulk import Ready, cut
from idem.clock import SystemClock
from idem.email import Email
from idem.errors import JobError
from idem.gate import Gate
from idem.keys import check_key
from idem.ledger import Ledger
from idem.protocol import InDoubt
from idem.reconcile import Reconciler
from idem.send import Point
from workers import wiring
from workers.actors import JobFunction, Performer, declare_actor
from workers.jobs import QUEUE, email_message, job_message, part_message, resume_message
from workers.settings import Settings

P = ParamSpec("P")


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

    def send(self, *args: Any, key: str | None = None, **kwargs: Any) -> str:
        """Enqueue the job and return its key; returning means that the broker has it.

        Without `key`, the message's own id is the key, and enqueueing twice means two emails. With it, twice is once.
        Arguments must be JSON values. Raises `JobError` for arguments that the function does not take, and
        `BrokerUnavailable` when it is not known whether the job was enqueued: call again with the same key.
        """
        try:
            inspect.signature(self._function).bind(*args, **kwargs)
        except TypeError as error:
            raise JobError(f"job {self.name}: {error}") from error
        message, used = job_message(self.name, args, kwargs, key, self._in_doubt)
        self._app.broker.enqueue(message)
        return used


class App:
    """An application: its settings, its jobs, and the way into the queue. Making one connects to nothing."""

    def __init__(self, settings: Settings, *, reach: Callable[[Point], None] = lambda _: None) -> None:
        self.settings = settings
        self.jobs: dict[str, JobFunction] = {}
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
            if "key" in inspect.signature(function).parameters:
                raise JobError(f"job {chosen}: `key` names the idempotency key in send(); rename the parameter")
            self.jobs[chosen] = function
            return DeclaredJob(self, chosen, function, choice)

        if callable(name):
            raise JobError("write @app.job() with parentheses")
        return declare

    def enqueue(
        self, email: Email, *, key: str | None = None, in_doubt: Literal["hold", "resend", "drop"] | None = None
    ) -> str:
        """Enqueue an email that is ready and return its key; returning means that the broker has it.

        `in_doubt` is as for a job. The key is the argument's, else that of the email's `Idempotency-Key` header, else a
        new one. Raises `UnsupportedEmail` for what the provider cannot express, and `BrokerUnavailable` like `send` of
        a job.
        """
        self._check(email)
        message, used = email_message(email, key, _choice(in_doubt))
        self.broker.enqueue(message)
        return used

    def enqueue_bulk(
        self,
        emails: Sequence[Email],
        *,
        key: str | None = None,
        in_doubt: Literal["hold", "resend", "drop"] | None = None,
    ) -> list[str]:
        """Enqueue many emails as one job and return their keys: `<key>/1`, `<key>/2`, ... in the order of the list.

        However the provider takes them, together or one at a time, each is sent once, and can be looked up under its
        key; an email with an `Idempotency-Key` header has that one. The same list under the same key again is the same
        bulk. Without `key`, it gets a new one. Raises like `enqueue`; call again with the same key and list then.
        """
        for email in emails:
            self._check(email)
        stem, choice = check_key(key if key is not None else str(uuid.uuid4())), _choice(in_doubt)
        keys: list[str] = []
        for part in cut(stem, emails, choice):
            self.broker.enqueue(part_message(part))
            keys += [part.key] if isinstance(part, Ready) else [member for member, _ in part.members()]
        return keys

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
            wiring.build_sender(self.settings, self.ledger, clock, self._reach, self.gate),
            self.broker,
            self.jobs,
            ledger=self.ledger,
            gate=self.gate,
            policy=wiring.build_policy(self.settings),
            clock=clock,
        )
        declare_actor(self.broker, performer)
        return performer

    def resume(self, key: str) -> None:
        """Enqueue a message for a key whose email the ledger holds: one that was opened again."""
        self.broker.enqueue(resume_message(key))

    def reconciler(self) -> Reconciler:
        """What finds out about emails in doubt; a worker runs one, and so does `idem reconcile`."""
        return wiring.build_reconciler(self.settings, self.ledger, SystemClock(), self.resume)

    def close(self) -> None:
        """Let go of what was opened; the embedded server stops when its last user has closed."""
        for name in ("gate", "ledger"):
            self.__dict__.pop(name, None)
        for name in ("broker", "_store"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()
