"""The seam of a store: one record a key, changed only by conditional writes of absolute values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from idem.protocol import Record, State


class Store(Protocol):
    """Where records are durable. One per namespace; safe to share between threads.

    Every method raises `LedgerUnavailable` when the store does not answer (for `swap`: whether the write was applied is
    then unknown) and `LedgerUnusable` when what it holds cannot be trusted. Nothing is ever deleted.
    """

    def create(self) -> Sequence[str]:
        """Make what the store needs, where it is not there: the work of `idem init`, never of a worker.

        Returns, in sentences, what the one who called should know of it.
        """
        ...

    def check(self) -> Sequence[str]:
        """Raise `LedgerUnusable`, with what to do, unless the promise can be kept with this store. Writes no record.

        Returns, in sentences, what the promise then rests on.
        """
        ...

    def read(self, key: str) -> Record | None:
        """The record as every other worker would see it now: strongly consistent."""
        ...

    def swap(self, old: Record | None, new: Record) -> Record | None:
        """Write `new` if the stored record still has the claim id, version and state of `old` (None: is absent).

        Returns None when the write was applied, durably; else the stored record that stood in its way. Where `old` was
        stored and nothing is now, records were taken away under running workers: `LedgerUnusable`.
        """
        ...

    def list(self, state: State, limit: int) -> Iterator[Record]:
        """Records in that state, the one longest unchanged first; `LedgerError` for a state that it cannot list."""
        ...

    def count(self) -> Mapping[State, int]:
        """How many records there are in each state that the store counts; the others are left out."""
        ...

    def close(self) -> None:
        """Let go of what is open; the store is not used afterwards."""
        ...


VANISHED = (
    "a record vanished from the ledger between two writes: it was restored or pruned while workers ran; "
    "stop them, and check the ledger before they go on"
)
