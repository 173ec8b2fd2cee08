"""What a producer has of an outbox: rows that live and die with the caller's transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dramatiq import Message
from sqlalchemy import Connection, MetaData, insert
from sqlalchemy.orm import Session, registry, scoped_session

from idem.email import Email
from idem.errors import JobError
from workers.jobs import email_message, read_choice
from workers.outbox.tables import make_tables
from workers.timing import Timing

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    #: Whose transaction a row becomes part of.
    AnySession = Session | scoped_session[Any] | AsyncSession | async_scoped_session[Any] | Connection


class AnyJob(Protocol):
    """A declared job, of whatever arguments."""

    def message(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], key: str | None, expires_at: float | None
    ) -> tuple[Message[None], str]:
        """What it is enqueued as, and its key."""
        ...


class Outbox:
    """Rows for the relay, added in the caller's own transaction. Needs no queue and no ledger: only that database.

    A `Session` or an `AsyncSession` (or a scoped one) gets the row with whatever else it flushes, so that adding one
    waits for nothing; a `Connection` inserts it at once. `check` raises for what the provider cannot express, `timing`
    reads what is said about time.
    """

    def __init__(
        self,
        table: str,
        *,
        check: Callable[[Email], None],
        timing: Callable[[float | None, datetime | None, float | datetime | None], Timing],
    ) -> None:
        self._check = check
        self._timing = timing
        self._tables = make_tables(table)
        self._row: type[Any] = type("OutboxRow", (), {"__doc__": "A row that is not flushed yet."})
        registry(metadata=self._tables.metadata).map_imperatively(self._row, self._tables.waiting)

    @property
    def metadata(self) -> MetaData:
        """The tables, for `create_all`, and for Alembic: `target_metadata = [Base.metadata, app.outbox.metadata]`."""
        return self._tables.metadata

    def add(  # noqa: PLR0913 - what a caller may say about an email
        self,
        session: AnySession,
        email: Email,
        *,
        key: str | None = None,
        in_doubt: Literal["hold", "resend", "drop"] | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        expires: float | datetime | None = None,
    ) -> str:
        """Have an email sent if, and only if, the transaction of `session` commits; returns its key.

        The key is the argument's, else that of the email's `Idempotency-Key` header, else one of the row's own: relayed
        twice, it is one email in any case. Two transactions that add under one key are one email too. The others are as
        for `App.enqueue`; `delay` and a number of `expires` count from now, not from the commit.

        Raises `UnsupportedEmail`, `InvalidKey` and `JobError` as `App.enqueue` does, before there is a row.
        """
        self._check(email)
        timing = self._timing(delay, at, expires)
        message, used = email_message(email, key, read_choice(in_doubt), timing.expires_at)
        self._insert(session, message, timing)
        return used

    def add_job(  # noqa: PLR0913 - the same about a job
        self,
        session: AnySession,
        job: AnyJob,
        /,
        *args: Any,
        key: str | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        expires: float | datetime | None = None,
        **kwargs: Any,
    ) -> str:
        """Have a declared job run, with these arguments, if the transaction commits; the rest is as for `add`."""
        timing = self._timing(delay, at, expires)
        message, used = job.message(args, kwargs, key, timing.expires_at)
        self._insert(session, message, timing)
        return used

    def _insert(self, session: Any, message: Message[None], timing: Timing) -> None:
        row = {
            "created_at": message.message_timestamp / 1000,
            "ready_at": timing.ready_at,
            "message": message.encode(),
        }
        found = _plain(session)
        if isinstance(found, Connection):
            found.execute(insert(self._tables.waiting), row)
        else:
            instance = self._row()
            for name, value in row.items():
                setattr(instance, name, value)
            found.add(instance)


def _plain(session: Any) -> Session | Connection:
    """The session behind an asynchronous or a scoped one: to add to it waits for nothing."""
    if hasattr(session, "registry"):
        session = session.registry()
    found = getattr(session, "sync_session", session)
    if isinstance(found, Session | Connection):
        return found
    if hasattr(session, "sync_connection"):
        raise JobError("an asynchronous connection: write await connection.run_sync(outbox.add, email, key=...)")
    raise JobError(f"{type(session).__name__}: a row is added to a Session, an AsyncSession or a Connection")
