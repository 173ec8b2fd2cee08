"""How far each schedule is enqueued, and whether it is paused: what all schedulers share, in cells of the store.

    {"version": 1, "schedules": {"<hash of the name>": {"last": 1774746000, "paused": false}, ...}}

A schedule's name decides, for good, in which of 256 cells it is. So a hundred thousand schedules are 256 reads at the
start, and those due at one moment are one write for each cell, not one for each schedule; and a process changes only
the schedules that it knows, however many versions of an application run side by side.

A store may lose a cell. Its schedules are then as if declared for the first time: what was missed is not made up for,
and nothing is sent twice, as the slots keep their keys.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec

from idem.errors import LedgerUnusable
from idem.stores.base import Cells, change_cell

_CELLS: Final = 256
_VERSION: Final = 1


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of one schedule: its slots up to `last` (Unix seconds) are enqueued, or are not to be."""

    last: int
    paused: bool = False


class _Sheet(msgspec.Struct, frozen=True):
    version: int
    schedules: dict[str, Entry]


_DECODER = msgspec.json.Decoder(_Sheet)

#: From what is known of some schedules, by name, to those that are to be written.
Change = Callable[[Mapping[str, Entry]], Mapping[str, Entry]]


@dataclass(frozen=True, slots=True)
class Board:
    """The cells. Safe to share between threads and processes."""

    cells: Cells

    def read(self, cell: int) -> Mapping[str, Entry]:
        """What is known of the schedules of a cell, by `tag`."""
        return _decode(self.cells.read_cell(_name(cell)))

    def change(self, cell: int, change: Change) -> Mapping[str, Entry]:
        """Write what `change` makes of a cell's entries, again whenever another one was quicker; what then is known.

        `change` may be called several times, and must leave an entry alone that is further than it would write it.
        """

        def changed(stored: bytes | None) -> tuple[Mapping[str, Entry], bytes | None]:
            known = _decode(stored)
            wanted = {**known, **change(known)}
            if wanted == known:
                return known, None
            return wanted, msgspec.json.encode(_Sheet(_VERSION, wanted), order="deterministic")

        name = _name(cell)
        return change_cell(self.cells.read_cell(name), changed, partial(self.cells.swap_cell, name))

    def entry(self, name: str) -> Entry | None:
        """What is known of one schedule."""
        return self.read(cell_of(name)).get(tag(name))

    def set(self, name: str, change: Callable[[Entry | None], Entry]) -> Entry:
        """Write what `change` makes of one schedule's entry."""
        mark = tag(name)
        return self.change(cell_of(name), lambda known: {mark: change(known.get(mark))})[mark]


def tag(name: str) -> str:
    """What stands for a schedule in its cell: 96 bits of a hash, as names may be long."""
    return base64.urlsafe_b64encode(_digest(name)[1:13]).decode("ascii")


def cell_of(name: str) -> int:
    """Which cell a schedule is in."""
    return _digest(name)[0] % _CELLS


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _name(cell: int) -> str:
    return f"schedules/{cell:02x}"


def _decode(stored: bytes | None) -> Mapping[str, Entry]:
    if stored is None:
        return {}
    try:
        sheet = _DECODER.decode(stored)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LedgerUnusable("the ledger's store holds a cell of schedules that cannot be read") from error
    if sheet.version != _VERSION:
        raise LedgerUnusable(f"the cells of schedules have version {sheet.version}: this program knows {_VERSION}")
    return sheet.schedules
