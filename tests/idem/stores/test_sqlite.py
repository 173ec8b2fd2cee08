"""What is particular to the SQLite store: its file, its locks, its processes, and kill -9."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from idem.errors import LedgerError, LedgerUnavailable, LedgerUnusable
from idem.protocol import Record, State
from idem.stores import sqlite
from idem.stores.sqlite import SqliteStore
from tests import writers
from tests.records import make_record

_SPAWN = multiprocessing.get_context("spawn")

Listing = Callable[[SqliteStore], Iterator[Record]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    with contextlib.closing(SqliteStore(path)) as store:
        yield store


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def test_the_log_is_written_ahead_and_synced(store: SqliteStore, path: Path) -> None:
    """Asked of the connection that the store really writes with, in every thread's case the same code."""
    store.swap(None, make_record())
    with store._connection() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "2 is FULL"
    with raw(path) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",), "the file itself says so"


def test_opening_it_writes_nothing_and_the_directory_is_made_at_the_first_use(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "ledger.db"
    with contextlib.closing(SqliteStore(path)) as store:
        assert not path.parent.exists()
        assert store.read("k") is None
        assert path.exists()


def test_a_closed_store_opens_again_when_it_is_used(store: SqliteStore) -> None:
    store.swap(None, make_record())
    store.close()
    assert store.read("k") == make_record()


@pytest.mark.parametrize(
    "listing",
    [lambda store: store.list(State.PENDING, 1_000), lambda store: store.asked(1_000)],
    ids=["list", "asked"],
)
def test_a_list_is_not_all_in_memory_at_once(store: SqliteStore, listing: Listing) -> None:
    """Two hundred records with 100 KB each, of which at most two are there at any time."""
    for number in range(200):
        store.swap(None, make_record(f"k{number}", state=State.PENDING, durable=True, body=b"x" * 100_000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in listing(store)) == 200
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_a_list_holds_while_records_change(store: SqliteStore) -> None:
    """Once what stays, also when it is written again meanwhile; never what has left, be it by hand."""
    held = [make_record(f"k{number}", state=State.RETRY, updated_at=number) for number in range(6)]
    for record in held:
        store.swap(None, record)
    listed = store.list(State.RETRY, 10)
    assert next(listed) == held[0]
    for record in (held[0], held[3]):
        assert store.swap(record, replace(record, version=2, updated_at=99.0)) is None
    assert store.swap(held[1], replace(held[1], version=2, state=State.SENT)) is None
    with store._connection() as connection:
        connection.execute("DELETE FROM records WHERE key = 'k4'")
    assert [(record.key, record.version) for record in listed] == [("k2", 1), ("k3", 2), ("k5", 1)]


def test_a_list_that_is_being_read_does_not_stop_the_log_from_being_written_back(
    store: SqliteStore, path: Path
) -> None:
    for number in range(3):
        store.swap(None, make_record(f"k{number}", state=State.RETRY))
    listed = store.list(State.RETRY, 10)
    next(listed)
    store.swap(None, make_record("new"))
    with raw(path) as other:
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0), "not busy, and all is back"
    assert len(list(listed)) == 2


def test_threads_that_end_leave_no_connection_behind(store: SqliteStore, path: Path) -> None:
    """One after the other, as threads for a request are: whoever comes next closes what is left of the former."""
    store.swap(None, make_record())
    for _ in range(50):
        thread = threading.Thread(target=store.read, args=("k",))
        thread.start()
        thread.join()
    assert len(store._open) <= 2, "this thread's, and that of the last one"
    if sys.platform == "linux":
        assert _descriptors(path) <= 6, "each has two, and one is shared"
    assert store.read("k") == make_record(), "this thread's is still open"
    store.close()
    if sys.platform == "linux":
        assert _descriptors(path) == 0


def test_a_thread_that_lives_keeps_its_connection(store: SqliteStore) -> None:
    """However many others come and go meanwhile."""
    store.swap(None, make_record())
    ready, over = threading.Barrier(9, timeout=30), threading.Event()

    def stay() -> bool:
        with store._connection() as first:
            ready.wait()
        over.wait(30)
        with store._connection() as second:
            return first is second and store.read("k") == make_record()

    with ThreadPoolExecutor(8) as pool:
        staying = [pool.submit(stay) for _ in range(8)]
        ready.wait()
        for _ in range(5):
            with ThreadPoolExecutor(1) as passing:
                passing.submit(store.read, "k").result()
        over.set()
        assert all(each.result() for each in staying)


def _descriptors(path: Path) -> int:
    """How many open files of this process are the ledger's."""
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(each.readlink()).startswith(str(path))
    return found


def test_processes_that_create_the_file_at_one_moment(tmp_path: Path) -> None:
    """Twenty files, three processes: each file has one winner, and nobody meets an error."""
    paths = [tmp_path / f"{number}.db" for number in range(20)]
    barrier, results = _SPAWN.Barrier(3), _SPAWN.Queue()
    processes = [_SPAWN.Process(target=writers.create, args=(paths, barrier, results, f"c{n}")) for n in range(3)]
    with _running(processes):
        said = [results.get(timeout=60) for _ in range(60)]
    assert sorted(said) == ["lost"] * 40 + ["won"] * 20


def test_processes_that_write_one_record_lose_no_update(path: Path, store: SqliteStore) -> None:
    """Four processes raise one version to 200: each step was made by exactly one of them."""
    store.swap(None, make_record(version=0))
    results: Any = _SPAWN.Queue()
    processes = [_SPAWN.Process(target=writers.contend, args=(path, 200, results, f"c{n}")) for n in range(4)]
    with _running(processes):
        wins = [results.get(timeout=60) for _ in processes]
    found = store.read("k")
    assert found is not None
    assert found.version == 200
    assert sum(wins) == 200


@contextlib.contextmanager
def _running(processes: list[Any]) -> Iterator[None]:
    for process in processes:
        process.start()
    try:
        yield
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()


def test_what_was_answered_survives_a_kill(path: Path, store: SqliteStore) -> None:
    """A writer is killed at some moment, six times: every write that it heard about is there, and the file is whole."""
    random.seed(7)
    known = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.writers", str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
        ) as writer:
            assert writer.stdout is not None
            said = [writer.stdout.readline()]
            time.sleep(random.uniform(0, 0.05))
            writer.kill()
            said += writer.stdout.read().splitlines()
        heard = int([line for line in said if line.strip()][-1])
        found = store.read("k")
        assert found is not None
        assert heard <= found.version <= heard + 1, "at most the write whose answer the kill came before"
        assert heard > known
        assert found.body is not None
        assert len(found.body) == 3_000
        known = found.version
    store.close()
    with raw(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _damage(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 1_000)


def _damage_pages(path: Path) -> None:
    _fill(path)
    content = bytearray(path.read_bytes())
    content[100:] = b"\xa5" * (len(content) - 100)
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    _fill(path)
    path.write_bytes(path.read_bytes()[:4_500])


def _fill(path: Path) -> None:
    with contextlib.closing(SqliteStore(path)) as store:
        for number in range(50):
            store.swap(None, make_record(f"k{number}", body=b"x" * 500))


def _damage_a_record(path: Path) -> None:
    _fill(path)
    with raw(path) as connection:
        connection.execute("UPDATE records SET record = ?", (b'{"v":1,"key":"\xff"}',))


def _write_another_programs(path: Path) -> None:
    with raw(path) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")


def _write_another_programs_version_1(path: Path) -> None:
    _write_another_programs(path)
    with raw(path) as connection:
        connection.execute("PRAGMA user_version = 1")


def _write_a_newer_schema(path: Path) -> None:
    _fill(path)
    with raw(path) as connection:
        connection.execute("PRAGMA user_version = 2")


def _write_a_newer_record(path: Path) -> None:
    _fill(path)
    with raw(path) as connection:
        connection.execute("UPDATE records SET record = ?", (b'{"v":3}',))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_damage, "damaged or not a ledger"),
        (_damage_pages, "damaged"),
        (_truncate, "damaged"),
        (_damage_a_record, "damaged"),
        (_write_another_programs, "another program"),
        (_write_another_programs_version_1, "another program"),
        (_write_a_newer_schema, "schema 2.*upgrade"),
        (_write_a_newer_record, "version 3.*upgrade"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_one_clear_error(path: Path, spoil: Any, says: str) -> None:
    """And the file is left as it was, for those whose it is or who must restore it."""
    spoil(path)
    before = path.read_bytes()
    with contextlib.closing(SqliteStore(path)) as store:
        for _ in range(2):
            with pytest.raises(LedgerUnusable, match=says):
                store.read("k7")
            with pytest.raises(LedgerUnusable, match=says):
                store.swap(None, make_record("k7"))
    assert path.read_bytes() == before


def test_a_foreign_database_is_not_changed_in_any_way(path: Path) -> None:
    """Not even its journal mode, which is kept in the file."""
    _write_another_programs(path)
    with contextlib.closing(SqliteStore(path)) as store, pytest.raises(LedgerUnusable):
        store.read("k")
    with raw(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("PRAGMA application_id").fetchone() == (0,)


def test_an_unknown_state_is_reported_by_the_count(path: Path, store: SqliteStore) -> None:
    store.swap(None, make_record())
    with raw(path) as connection:
        connection.execute("UPDATE records SET state = 'teleported'")
    with pytest.raises(LedgerUnusable, match="upgrade"):
        store.count()


def test_a_directory_in_the_place_of_the_file(path: Path) -> None:
    path.mkdir()
    _assert_does_not_answer(path)


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _assert_does_not_answer(tmp_path / "file" / "ledger.db")


def test_a_directory_that_cannot_be_made_or_written(tmp_path: Path) -> None:
    """The process may be root, whom no mode stops; a file system that nobody can write to stops all."""
    _assert_does_not_answer(Path("/proc/idem/ledger.db") if sys.platform == "linux" else tmp_path / "\0" / "x")


def test_a_file_that_is_read_only(store: SqliteStore) -> None:
    store.swap(None, make_record())
    with store._connection() as connection:
        connection.execute("PRAGMA query_only = 1")
    with pytest.raises(LedgerUnavailable, match="does not answer"):
        store.swap(make_record(), make_record(version=2))
    assert store.read("k") == make_record()


def _assert_does_not_answer(path: Path) -> None:
    with contextlib.closing(SqliteStore(path)) as store:
        for _ in range(2):
            with pytest.raises(LedgerError, match="does not answer"):
                store.read("k")


def test_a_lock_that_is_held_too_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that does not finish: reads go on, writes are reported as unanswered, and work again afterwards."""
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.05)
    with contextlib.closing(SqliteStore(path)) as store, raw(path) as other:
        assert store.read("k") is None
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerUnavailable, match="locked"):
            store.swap(None, make_record())
        assert store.read("k") is None
        other.execute("ROLLBACK")
        assert store.swap(None, make_record()) is None


def test_a_lock_while_the_file_is_new(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.05)
    with contextlib.closing(SqliteStore(path)) as store, raw(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerUnavailable, match="locked"):
            store.read("k")
        other.execute("ROLLBACK")
        assert store.read("k") is None


def test_a_lock_that_is_short_is_waited_for(path: Path, store: SqliteStore) -> None:
    store.swap(None, make_record())
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE records SET updated_at = 0")
        child = _SPAWN.Queue()
        process = _SPAWN.Process(target=writers.contend, args=(path, 2, child, "c2"))
        with _running([process]):
            time.sleep(0.3)
            other.execute("COMMIT")
            assert child.get(timeout=30) == 1


def test_a_full_disk(store: SqliteStore) -> None:
    """Nothing is half written, and what was there stays readable."""
    store.swap(None, make_record())
    with store._connection() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerUnavailable, match="full"):
        store.swap(None, make_record("big", body=b"x" * 1_000_000))
    assert store.read("big") is None
    assert store.read("k") == make_record()
    assert store.swap(make_record(), make_record(version=2, state=State.SENT)) is None


def test_a_file_that_is_taken_away_while_it_is_used(path: Path, store: SqliteStore, tmp_path: Path) -> None:
    """Another store at the same path sees an empty ledger; a claim that is held there must not pass for a new one."""
    held = make_record()
    store.swap(None, held)
    store.close()
    shutil.move(path, tmp_path / "moved.db")
    with contextlib.closing(SqliteStore(path)) as emptied, pytest.raises(LedgerUnusable, match="vanished"):
        emptied.swap(held, replace(held, version=2))
