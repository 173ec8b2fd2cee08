"""A store in this process's memory: for tests and for trying things out. Nothing survives the process."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from idem.errors import LedgerUnusable
from idem.protocol import Record, State
from idem.stores.base import VANISHED, asked_among


class MemoryStore:
    """Records in a dictionary behind one lock."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._cells: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def create(self) -> Sequence[str]:
        """See `Store.create`; there is nothing to make."""
        return ()

    def check(self) -> Sequence[str]:
        """See `Store.check`."""
        return ("in memory: it keeps the promise for as long as the process lives",)

    def read(self, key: str) -> Record | None:
        """See `Store.read`."""
        with self._lock:
            return self._records.get(key)

    def swap(self, old: Record | None, new: Record) -> Record | None:
        """See `Store.swap`."""
        with self._lock:
            stored = self._records.get(new.key)
            if stored is None and old is not None:
                raise LedgerUnusable(VANISHED)
            if stored is not old and _fence(stored) != _fence(old):
                return stored
            self._records[new.key] = new
            return None

    def list(self, state: State, limit: int) -> Iterator[Record]:
        """See `Store.list`."""
        with self._lock:
            found = [record for record in self._records.values() if record.state is state]
        return iter(sorted(found, key=lambda record: record.updated_at)[:limit])

    def asked(self, limit: int) -> Iterator[Record]:
        """See `Store.asked`."""
        return asked_among(self.list, limit)

    def count(self) -> Mapping[State, int]:
        """See `Store.count`."""
        with self._lock:
            counted = Counter(record.state for record in self._records.values())
        return {state: counted[state] for state in State}

    def read_cell(self, name: str) -> bytes | None:
        """See `Cells.read_cell`."""
        with self._lock:
            return self._cells.get(name)

    def swap_cell(
        self,
        name: str,
        old: bytes | None,
        new: bytes,
        *,
        keep_seconds: float | None = None,  # noqa: ARG002 - all is kept here
    ) -> bytes | None:
        """See `PassingCells.swap_cell`."""
        with self._lock:
            stored = self._cells.get(name)
            if stored != old:
                return stored or b""
            self._cells[name] = new
            return None

    def close(self) -> None:
        """See `Store.close`; there is nothing to let go of."""


def _fence(record: Record | None) -> tuple[str, int, State] | None:
    return None if record is None else (record.claim_id, record.version, record.state)
