"""What the cells of every store must do: compare and set, for small values."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pytest

from idem.protocol import State
from idem.stores.base import PassingCells, Store
from tests.records import make_record

_THREADS = 8


class Both(Store, PassingCells, Protocol):
    """A store with its cells."""


#: Opens a store on the data of this test, in a namespace; again, for another handle on the same data.
Opener = Callable[[str], Both]


class CellContract:
    """Part of `StoreContract`: it needs the fixture `open_store`."""

    @pytest.fixture
    def cells(self, open_store: Opener) -> Both:
        return open_store("default")

    def test_a_cell_is_absent_at_first(self, cells: Both) -> None:
        assert cells.read_cell("c") is None
        assert cells.swap_cell("c", b"read", b"new") == b"", "a value that is expected is not taken for absence"
        assert cells.read_cell("c") is None

    def test_a_cell_changes_by_compare_and_set(self, cells: Both) -> None:
        assert cells.swap_cell("c", None, b"1") is None
        assert cells.swap_cell("c", None, b"2") == b"1"
        assert cells.swap_cell("c", b"0", b"2") == b"1"
        assert cells.read_cell("c") == b"1"
        assert cells.swap_cell("c", b"1", b"2") is None
        assert cells.swap_cell("c", b"1", b"2") == b"2", "a write that arrives twice"
        assert cells.read_cell("c") == b"2"

    def test_a_cell_that_may_be_forgotten_is_there_until_then(self, cells: Both) -> None:
        assert cells.swap_cell("c", None, b"1", keep_seconds=3_600) is None
        assert cells.swap_cell("c", b"1", b"2", keep_seconds=3_600) is None
        assert cells.swap_cell("c", b"2", b"3") is None
        assert cells.read_cell("c") == b"3"

    def test_any_bytes_come_back(self, cells: Both) -> None:
        value = bytes(range(256)) * 3
        assert cells.swap_cell("c", None, value) is None
        assert cells.read_cell("c") == value
        assert cells.swap_cell("c", value, b"\x00") is None
        assert cells.swap_cell("c", b"", b"x") == b"\x00"

    def test_cells_and_namespaces_are_apart(self, open_store: Opener) -> None:
        one, other = open_store("one"), open_store("other")
        for name in ("c", "C", "c ", "c/1", "0", "{c}", "c:cell"):
            assert one.swap_cell(name, None, name.encode()) is None
        assert one.read_cell("C") == b"C"
        assert other.read_cell("c") is None
        assert other.swap_cell("c", None, b"other") is None
        assert one.read_cell("c") == b"c"

    def test_a_cell_is_no_record(self, open_store: Opener) -> None:
        """In no list and no count, and in the way of no key that could be made up for the purpose."""
        store = open_store("default")
        assert store.swap_cell("c", None, b"1") is None
        for key in ("c", "cell", "cell/c", "\u241fcell", "}:cell"):
            assert store.read(key) is None
            assert store.swap(None, make_record(key, state=State.IN_DOUBT)) is None
        assert store.read_cell("c") == b"1"
        assert sum(store.count().values()) == 5
        assert len(list(store.list(State.IN_DOUBT, 10))) == 5

    def test_of_many_one_wins_each_round(self, open_store: Opener) -> None:
        """Each thread counts its wins over twelve rounds: one a round, and the losers are shown the winner's value."""
        store, barrier, rounds = open_store("default"), threading.Barrier(_THREADS), 12

        def race(number: int) -> list[bool]:
            old: bytes | None = None
            won = []
            for round_number in range(rounds):
                new = f"{round_number}/{number}".encode()
                barrier.wait()
                met = store.swap_cell("c", old, new)
                barrier.wait()
                old = store.read_cell("c")
                won.append(met is None)
                assert met in (None, old)
            return won

        with ThreadPoolExecutor(_THREADS) as pool:
            results = list(pool.map(race, range(_THREADS)))
        assert [sum(won) for won in zip(*results, strict=True)] == [1] * rounds

    def test_no_increment_is_lost(self, open_store: Opener) -> None:
        """Over two handles, with what a refusal shows as the next thing to expect."""
        handles = [open_store("default"), open_store("default")]

        def add(number: int) -> None:
            store, old = handles[number % 2], None
            for _ in range(10):
                while (met := store.swap_cell("c", old, b"%d" % (int(old or b"0") + 1))) is not None:
                    old = met or None
                old = b"%d" % (int(old or b"0") + 1)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(4)))
        assert handles[0].read_cell("c") == b"40"
