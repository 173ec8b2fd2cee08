"""What the processes do that the tests of the SQLite store start."""

from __future__ import annotations

import multiprocessing.synchronize
import os
import sys
from collections.abc import Sequence
from multiprocessing.queues import Queue
from pathlib import Path

from msgspec.structs import replace

from idem.errors import LedgerError
from idem.stores.sqlite import SqliteStore
from tests.records import make_record


def create(
    paths: Sequence[Path], barrier: multiprocessing.synchronize.Barrier, results: Queue[str], claim_id: str
) -> None:
    """Open each file at the moment when the others do, and try to claim the same key in it."""
    for path in paths:
        store = SqliteStore(path)
        barrier.wait(30)
        try:
            won = store.swap(None, make_record(claim_id=claim_id)) is None
            results.put("won" if won else "lost")
        except LedgerError as error:
            results.put(repr(error))
        store.close()


def contend(path: Path, goal: int, results: Queue[int], claim_id: str) -> None:
    """Raise the record's version by one, again and again, until it has reached `goal`; count one's own successes."""
    store = SqliteStore(path)
    wins = 0
    record = store.read("k") or make_record(claim_id=claim_id, version=0)
    while record.version < goal:
        new = replace(record, version=record.version + 1, claim_id=claim_id)
        met = store.swap(record, new)
        wins += met is None
        record = met or new
    store.close()
    results.put(wins)


def write_forever(path: Path) -> None:
    """Say each version on standard output as soon as the store has answered that it is written."""
    store = SqliteStore(path)
    record = store.read("k")
    while True:
        new = make_record(body=os.urandom(3_000)) if record is None else replace(record, version=record.version + 1)
        assert store.swap(record, new) is None
        os.write(1, b"%d\n" % new.version)
        record = new


if __name__ == "__main__":
    write_forever(Path(sys.argv[1]))
