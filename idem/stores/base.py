"""The seam of a store: one record a key, changed only by conditional writes of absolute values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol, TypeVar

from idem.protocol import ASKED, Record, State

_Made = TypeVar("_Made")


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
        """Records in that state, the one longest unchanged first; `LedgerError` for a state that it cannot list.

        They are read as they are taken: their bodies are never all in memory at once.
        """
        ...

    def asked(self, limit: int) -> Iterator[Record]:
        """Records that are `durable` and in a state of `ASKED`, the one longest due or longest unchanged first."""
        ...

    def count(self) -> Mapping[State, int]:
        """How many records there are in each state that the store counts; the others are left out."""
        ...

    def close(self) -> None:
        """Let go of what is open; the store is not used afterwards."""
        ...


class Cells(Protocol):
    """Small values that all workers share, beside the records and never among them; one set of names per namespace.

    Nothing that the promise rests on is in one: a store may lose them. Safe to share between threads. The methods raise
    what `Store`'s raise.
    """

    def read_cell(self, name: str) -> bytes | None:
        """The value as every other worker would see it now; None when there is none."""
        ...

    def swap_cell(self, name: str, old: bytes | None, new: bytes) -> bytes | None:
        """Write `new` (at least a byte) if the value is `old` (None: if there is none).

        Returns None when it was written, else the value that stood in its way (empty when there was none). A caller
        whose values may repeat puts a version into them.
        """
        ...


class PassingCells(Cells, Protocol):
    """Cells with values that are worth something for a while only, so that those of the past do not fill the store."""

    def swap_cell(self, name: str, old: bytes | None, new: bytes, *, keep_seconds: float | None = None) -> bytes | None:
        """See `Cells.swap_cell`; the store may forget the cell after `keep_seconds` (None: never), and need not."""
        ...


def change_cell(
    stored: bytes | None,
    make: Callable[[bytes | None], tuple[_Made, bytes | None]],
    swap: Callable[[bytes | None, bytes], bytes | None],
) -> _Made:
    """Write what `make` makes of a cell's value, again whenever another one was quicker; what `make` returned with it.

    `make` may be called several times; with None as the new value, it leaves the cell as it is. `stored` is what the
    cell is taken to hold, `swap` a `Cells.swap_cell` with the name of the cell.
    """
    while True:
        made, new = make(stored)
        refused = None if new is None else swap(stored, new)
        if refused is None:
            return made
        stored = refused or None


def asked_among(lists: Callable[[State, int], Iterator[Record]], limit: int) -> Iterator[Record]:
    """`Store.asked` for a store that lists every state of `ASKED` at no great cost."""
    found = (record for state in ASKED for record in lists(state, limit) if record.durable)
    return islice(found, limit)


VANISHED = (
    "a record vanished from the ledger between two writes: it was restored or pruned while workers ran; "
    "stop them, and check the ledger before they go on"
)
