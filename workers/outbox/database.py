"""The relay's side of an outbox: its tables, in transactions of a millisecond each.

None of them is open while the queue is talked to: on SQLite that would keep the application from writing, elsewhere it
would keep a lock for as long as a network cares to hang.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, delete, func, insert, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from idem.errors import OutboxError, OutboxUnavailable, SettingsError
from workers.brokers.base import DeadLetter, read_letter
from workers.outbox.tables import make_tables

#: What is read at once, at the most: rows, and bytes of their messages (but always one of them).
MOST_ROWS = 100
_MOST_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """A row that waits for the relay. `message` is as it goes to the queue, where it is not before `ready_at`."""

    id: int
    ready_at: float | None
    message: bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """What there is in an outbox. Instants in Unix seconds; None where there is none."""

    waiting: int
    aside: int
    oldest_at: float | None
    heard_at: float | None
    """When a relay last gave a sign of life."""


class Database:
    """The tables of an outbox; nothing is opened before it is used. Every method raises `OutboxUnavailable`."""

    def __init__(self, url: str, table: str) -> None:
        self._engine = _engine(url)
        self._tables = make_tables(table)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction that commits at the end of the context."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise OutboxUnavailable(
                f"the database of the outbox does not do its work ({_describe(error)}): check it, and IDEM_OUTBOX_URL"
            ) from error

    def create(self) -> None:
        """Make the tables that are not there yet."""
        with self.begin() as connection:
            self._tables.metadata.create_all(connection)

    def check(self) -> Sequence[str]:
        """What there is in it, in sentences; `OutboxError` when a table is missing."""
        with self.begin() as connection:
            there = inspect(connection)
            missing = [name for name in self._tables.metadata.tables if not there.has_table(name)]
        if missing:
            raise OutboxError(f"the database has no table {missing[0]}: run idem init, or make it in a migration")
        return [_sentence(self.look(), time.time())]

    def look(self) -> Standing:
        """Count what there is, and see who was heard of when."""
        waiting, aside, turn = self._tables.waiting, self._tables.aside, self._tables.turn
        with self.begin() as connection:
            return Standing(
                waiting=connection.execute(select(func.count()).select_from(waiting)).scalar_one(),
                aside=connection.execute(select(func.count()).select_from(aside)).scalar_one(),
                oldest_at=connection.execute(select(waiting.c.created_at).order_by(waiting.c.id).limit(1)).scalar(),
                heard_at=connection.execute(select(turn.c.heard_at)).scalar(),
            )

    def is_empty(self) -> bool:
        """Whether no committed row waits."""
        with self.begin() as connection:
            return connection.execute(select(self._tables.waiting.c.id).limit(1)).first() is None

    def next(self) -> list[Row]:
        """The first rows by id among those that are committed; as many as may be held in memory."""
        waiting = self._tables.waiting
        sizes = select(waiting.c.id, func.length(waiting.c.message)).order_by(waiting.c.id).limit(MOST_ROWS)
        with self.begin() as connection:
            ids = list(_within((row[0], row[1]) for row in connection.execute(sizes)))
            if not ids:
                return []
            columns = select(waiting.c.id, waiting.c.ready_at, waiting.c.message)
            found = connection.execute(columns.where(waiting.c.id.in_(ids)).order_by(waiting.c.id))
            return [Row(row.id, row.ready_at, row.message) for row in found]

    def remove(self, connection: Connection, ids: Sequence[int]) -> None:
        """Delete rows that the queue has."""
        connection.execute(delete(self._tables.waiting).where(self._tables.waiting.c.id.in_(ids)))

    def set_aside(self, connection: Connection, reasons: Mapping[int, str]) -> None:
        """Move rows that the queue cannot get as they are out of the way of the others."""
        waiting, aside = self._tables.waiting, self._tables.aside
        for row_id, reason in reasons.items():
            row = connection.execute(select(waiting).where(waiting.c.id == row_id)).one()._asdict()
            connection.execute(insert(aside), row | {"reason": reason, "aside_at": time.time()})
        self.remove(connection, list(reasons))

    def list_aside(self) -> list[DeadLetter]:
        """The rows that were set aside, the one longest there first. Their messages are all in memory."""
        aside = self._tables.aside
        with self.begin() as connection:
            return [
                read_letter(str(row["id"]), row["message"], reason=row["reason"], buried_at=row["aside_at"], place="")
                for row in connection.execute(select(aside).order_by(aside.c.aside_at, aside.c.id)).mappings()
            ]

    def put_back(self, letter: DeadLetter) -> bool:
        """Let a row wait again, as the last one, in one transaction; False if it is not set aside any more."""
        return self._take_aside(letter, again=True)

    def drop_aside(self, letter: DeadLetter) -> bool:
        """Let go of a row for good; False if it is not set aside any more. Only a person asks for that."""
        return self._take_aside(letter, again=False)

    def _take_aside(self, letter: DeadLetter, *, again: bool) -> bool:
        aside, of_it = self._tables.aside, self._tables.aside.c.id == int(letter.id)
        with self.begin() as connection:
            row = connection.execute(select(aside.c.created_at, aside.c.ready_at, aside.c.message).where(of_it)).first()
            # Whoever deletes it has it: two at once do not put it back twice.
            if row is None or connection.execute(delete(aside).where(of_it)).rowcount != 1:
                return False
            if again:
                connection.execute(insert(self._tables.waiting), row._asdict())
            return True

    @property
    def turn(self) -> Table:
        """The table of the turn, for `Turn`."""
        return self._tables.turn

    def close(self) -> None:
        """Let go of connections."""
        self._engine.dispose()


def _within(sizes: Iterator[tuple[int, int]]) -> Iterator[int]:
    total = 0
    for row_id, size in sizes:
        total += size
        if total > _MOST_BYTES and total > size:
            return
        yield row_id


def _engine(url: str) -> Engine:
    """One connection, looked after before it is used: a database that was restarted costs one round trip, no error."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        options: dict[str, Any] = {} if backend == "sqlite" else {"pool_size": 1, "max_overflow": 1}
        if backend in {"mysql", "mariadb"}:
            # Where repeatable reads are the default, deleting would lock gaps that others insert into.
            options["isolation_level"] = "READ COMMITTED"
        engine = create_engine(parsed, pool_pre_ping=True, hide_parameters=True, **options)
    except ModuleNotFoundError as error:
        raise SettingsError(f"IDEM_OUTBOX_URL needs the Python package {error.name}: install it") from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise SettingsError(
            "IDEM_OUTBOX_URL names no database: write a URL of SQLAlchemy, such as postgresql+psycopg://user@host/name"
        ) from error
    if engine.dialect.is_async:
        raise SettingsError("IDEM_OUTBOX_URL names an asynchronous driver: write one such as postgresql+psycopg://")
    return engine


def _describe(error: SQLAlchemyError) -> str:
    """The kind of an error, and its number where there is one; its text may hold addresses and values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    number = next((arg for arg in cause.args[:1] if isinstance(arg, int)), None)
    return type(cause).__name__ if number is None else f"{type(cause).__name__} {number}"


def _sentence(found: Standing, now: float) -> str:
    waits = "" if found.oldest_at is None else f", the oldest for {max(0.0, now - found.oldest_at):.0f} s"
    heard = "no relay has run yet" if not found.heard_at else f"a relay was at work {now - found.heard_at:.0f} s ago"
    return f"{found.waiting:,} rows wait{waits}; {found.aside:,} are set aside; {heard}"
