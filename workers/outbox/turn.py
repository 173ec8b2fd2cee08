"""Whose turn it is: of many relays, one at a time is at work, and none can keep the others waiting for ever."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import ColumnElement, Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from idem.errors import OutboxUnavailable
from workers.outbox.database import Database

_THE_ONE = 1
_NOBODY = ""


class Turn:
    """One relay's view of the turn; not to be shared between threads.

    The row of the turn names its holder, and has a beat that moves with every sign of the holder's life. Who sees one
    beat for a whole lease, by a clock of its own that only runs forward, takes the turn by compare-and-set; nobody's
    clock is compared with another's, and no lock outlives a connection that hangs. What the holder writes goes in the
    transaction that moves the beat: one that has slept through its lease finds that it is not the holder, and changes
    nothing.
    """

    def __init__(
        self, database: Database, *, lease_seconds: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._table = database.turn
        self._lease_seconds = lease_seconds
        self._monotonic = monotonic
        self._me: str | None = None
        #: When the sign of life was begun that the others have seen.
        self._heard_at = 0.0
        #: The holder and beat that were seen last, and since when.
        self._seen: tuple[str, int] | None = None
        self._seen_at = 0.0

    def have(self) -> bool:
        """Take the turn, or keep it; False while another relay has it."""
        if self._me is None:
            return self._take()
        if self._age() > self._lease_seconds / 3:
            with self.keep():
                pass
        return self._me is not None

    def is_fresh(self) -> bool:
        """Whether something may still be begun: well before another relay could take the turn."""
        return self._me is not None and self._age() < self._lease_seconds / 2

    @contextmanager
    def keep(self) -> Iterator[Connection | None]:
        """A sign of life, and a transaction in which the holder writes; None for one who is not the holder any more."""
        begun = self._monotonic()
        with self._database.begin() as connection:
            mine = self._change(connection, self._table.c.holder == self._me, self._me or _NOBODY)
            yield connection if mine else None
        if mine:
            self._heard_at = begun
        else:
            self._me = None

    def release(self) -> None:
        """Let another relay take the turn at once."""
        if self._me is not None:
            with self._database.begin() as connection:
                self._change(connection, self._table.c.holder == self._me, _NOBODY)
            self._me = None

    def _take(self) -> bool:
        begun = self._monotonic()
        found = self._look()
        if found != self._seen:
            self._seen, self._seen_at = found, begun
        holder, beat = found
        if holder != _NOBODY and begun - self._seen_at < self._lease_seconds:
            return False
        me = str(uuid.uuid4())
        with self._database.begin() as connection:
            unchanged = (self._table.c.holder == holder) & (self._table.c.beat == beat)
            taken = self._change(connection, unchanged, me)
        if taken:
            self._me, self._heard_at = me, begun
        return taken

    def _look(self) -> tuple[str, int]:
        """The holder and its beat; the row is made by whoever comes first."""
        with self._database.begin() as connection:
            found = connection.execute(select(self._table.c.holder, self._table.c.beat)).first()
        if found is None:
            self._make()
            return _NOBODY, 0
        return found.holder, found.beat

    def _make(self) -> None:
        row = {"id": _THE_ONE, "holder": _NOBODY, "beat": 0, "heard_at": 0.0}
        try:
            with self._database.begin() as connection:
                connection.execute(insert(self._table), row)
        except OutboxUnavailable as error:
            # Another relay may have been quicker.
            if not isinstance(error.__cause__, IntegrityError):
                raise

    def _change(self, connection: Connection, condition: ColumnElement[bool], holder: str) -> bool:
        beat = self._table.c.beat + 1
        change = update(self._table).where(condition).values(holder=holder, beat=beat, heard_at=time.time())
        return connection.execute(change).rowcount == 1

    def _age(self) -> float:
        return self._monotonic() - self._heard_at
