"""A store in one SQLite file: for any number of processes on one machine.

Write-ahead log and full sync: a write that was answered survives a kill, and a power cut as far as the disk keeps its
word. SQLite lets one writer in at a time; the others wait for `_BUSY_SECONDS`. Not for network file systems, whose
locks SQLite cannot trust (sqlite.org/wal.html).
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from idem.errors import LedgerUnavailable, LedgerUnusable
from idem.protocol import Record, State
from idem.stores.base import VANISHED, asked_among
from idem.stores.codec import decode_record, encode_record

_BUSY_SECONDS = 10.0
_PAUSE_SECONDS = 0.01
#: Marks the file as ours ("idem" in ASCII), and says which schema it has.
_APPLICATION_ID = 0x6964656D
_SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    namespace  TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    state      TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    claim_id   TEXT    NOT NULL,
    updated_at REAL    NOT NULL,
    record     BLOB    NOT NULL,
    body       BLOB,
    PRIMARY KEY (namespace, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_by_state ON records (namespace, state, updated_at);
"""

# Apart, and in every file of this schema: a program that does not know of cells misreads nothing.
_CELLS = """
CREATE TABLE IF NOT EXISTS cells (
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    value     BLOB NOT NULL,
    PRIMARY KEY (namespace, name)
) WITHOUT ROWID
"""

# Whose file it is. One statement, so that all three are of one instant, also while another process creates the tables.
_IDENTITY = """
SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)
FROM pragma_application_id, pragma_user_version
"""

_READ = "SELECT record, body FROM records WHERE namespace = ? AND key = ?"

# True for a key that nobody has claimed. One statement is one transaction: of two writers, one finds the row there.
_INSERT = """
INSERT INTO records (state, version, claim_id, updated_at, record, body, namespace, key)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""

# True only for the record that the transition was computed from. The three together are the fence: the claim id alone
# would let a late duplicate of a claim's first write undo its last one, the version alone would let a stranger in.
_UPDATE = """
UPDATE records SET state = ?, version = ?, claim_id = ?, updated_at = ?, record = ?, body = ?
WHERE namespace = ? AND key = ? AND claim_id = ? AND version = ? AND state = ?
"""


class _Hold:
    """A thread's hold on its connection: kept by nothing but the thread, so that it is gone when the thread is."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection


class SqliteStore:
    """Records in the table of one file, one connection a thread."""

    def __init__(self, path: str | Path, namespace: str = "default") -> None:
        self._path = Path(path)
        self._namespace = namespace
        self._local = threading.local()
        self._open: dict[weakref.ref[_Hold], sqlite3.Connection] = {}
        self._lock = threading.Lock()

    def create(self) -> Sequence[str]:
        """See `Store.create`: the file and its folder."""
        self.check()
        return ()

    def check(self) -> Sequence[str]:
        """See `Store.check`: the file can be opened, and is a ledger of ours."""
        with self._connection():
            return ("one file, synced at every write: for the processes of this machine",)

    def read(self, key: str) -> Record | None:
        """See `Store.read`."""
        with self._connection() as connection:
            row = connection.execute(_READ, (self._namespace, key)).fetchone()
        return None if row is None else decode_record(*row)

    def swap(self, old: Record | None, new: Record) -> Record | None:
        """See `Store.swap`."""
        values = (new.state.value, new.version, new.claim_id, new.updated_at, encode_record(new), new.body)
        where = (self._namespace, new.key)
        with self._connection() as connection:
            if old is None:
                written = connection.execute(_INSERT, values + where)
            else:
                written = connection.execute(_UPDATE, values + where + (old.claim_id, old.version, old.state.value))
            if written.rowcount == 1:
                return None
        stored = self.read(new.key)
        if stored is None:
            raise LedgerUnusable(VANISHED)
        return stored

    def list(self, state: State, limit: int) -> Iterator[Record]:
        """Records in that state, the one longest unchanged first; each is read when its turn comes.

        What is in the state when this is called, and stays, is found; what has left it by its turn is left out. Between
        two records no transaction is open, which would keep the log from being written back.
        """
        query = "SELECT key FROM records WHERE namespace = ? AND state = ? ORDER BY updated_at LIMIT ?"
        with self._connection() as connection:
            keys = connection.execute(query, (self._namespace, state.value, limit)).fetchall()
        records = (self.read(key) for (key,) in keys)
        return (record for record in records if record is not None and record.state is state)

    def asked(self, limit: int) -> Iterator[Record]:
        """See `Store.asked`."""
        return asked_among(self.list, limit)

    def count(self) -> Mapping[State, int]:
        """See `Store.count`."""
        query = "SELECT state, count(*) FROM records WHERE namespace = ? GROUP BY state"
        with self._connection() as connection:
            rows = connection.execute(query, (self._namespace,)).fetchall()
        unknown = {state for state, _ in rows} - set(State)
        if unknown:
            raise LedgerUnusable(
                f"the ledger {self._path} has records in a state that this program does not know: upgrade it"
            )
        return dict.fromkeys(State, 0) | {State(state): count for state, count in rows}

    def read_cell(self, name: str) -> bytes | None:
        """See `Cells.read_cell`."""
        with self._connection() as connection:
            row = connection.execute(
                "SELECT value FROM cells WHERE namespace = ? AND name = ?", (self._namespace, name)
            ).fetchone()
        return None if row is None else bytes(row[0])

    def swap_cell(
        self,
        name: str,
        old: bytes | None,
        new: bytes,
        *,
        keep_seconds: float | None = None,  # noqa: ARG002 - all is kept here
    ) -> bytes | None:
        """See `PassingCells.swap_cell`."""
        insert = "INSERT INTO cells (value, namespace, name) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        update = "UPDATE cells SET value = ? WHERE namespace = ? AND name = ? AND value = ?"
        where = (new, self._namespace, name)
        with self._connection() as connection:
            written = connection.execute(insert, where) if old is None else connection.execute(update, (*where, old))
            if written.rowcount == 1:
                return None
        return self.read_cell(name) or b""

    def close(self) -> None:
        """See `Store.close`."""
        with self._lock:
            for connection in self._open.values():
                connection.close()
            self._open.clear()
        self._local = threading.local()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection; translates what SQLite raises."""
        try:
            hold = getattr(self._local, "hold", None) or self._connect()
            yield hold.connection
        except (sqlite3.OperationalError, OSError) as error:
            raise LedgerUnavailable(
                f"the ledger {self._path} does not answer ({error}): see that it can be read and written there"
            ) from error
        except sqlite3.DatabaseError as error:
            raise LedgerUnusable(
                f"the ledger {self._path} is damaged or not a ledger ({error}): "
                "restore it from a backup; without it, nothing can be sent safely"
            ) from error

    def _connect(self) -> _Hold:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._local.hold = hold = _Hold(connection)
        with self._lock:
            self._open[weakref.ref(hold)] = connection
        self._close_abandoned()
        return hold

    def _close_abandoned(self) -> None:
        """Close the connections of threads that have ended.

        By whoever opens one, not by a finaliser: that may run in a thread that has the lock.
        """
        with self._lock:
            gone = [hold for hold in self._open if hold() is None]
            abandoned = [self._open.pop(hold) for hold in gone]
        for connection in abandoned:
            connection.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        owner, version, tables = connection.execute(_IDENTITY).fetchone()
        if owner != _APPLICATION_ID and (owner or version or tables):
            raise LedgerUnusable(f"{self._path} is a database of another program: name another file in IDEM_LEDGER_URL")
        if version > _SCHEMA_VERSION:
            raise LedgerUnusable(
                f"the ledger {self._path} has schema {version}, this program knows {_SCHEMA_VERSION}: upgrade it"
            )
        # Only now: nothing is changed in a file that is not ours.
        _turn_on_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")
        if version == _SCHEMA_VERSION:
            connection.execute(_CELLS)
            return
        # One transaction, so that a second process finds all of it or nothing.
        connection.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA} {_CELLS}; PRAGMA application_id = {_APPLICATION_ID}; "
            f"PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;"
        )


def _turn_on_wal(connection: sqlite3.Connection) -> None:
    """Wait for others by hand: the very first switch fails at once when another process is at the same thing."""
    patience = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > patience:
                raise
            time.sleep(_PAUSE_SECONDS)
