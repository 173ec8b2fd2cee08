"""The store contract, run on every store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from idem.stores.memory import MemoryStore
from idem.stores.sqlite import SqliteStore
from tests.contracts.cells import Both, Opener
from tests.contracts.store import StoreContract


def memory(_directory: Path) -> Opener:
    """One store a namespace: there is no second handle on a dictionary."""
    stores: dict[str, Both] = {}
    return lambda namespace: stores.setdefault(namespace, MemoryStore())


def sqlite(directory: Path) -> Opener:
    """One file, and as many handles as are asked for."""
    return lambda namespace: SqliteStore(directory / "ledger.db", namespace)


#: A new store is one line here.
FACTORIES: dict[str, Callable[[Path], Opener]] = {"memory": memory, "sqlite": sqlite}


class TestStores(StoreContract):
    @pytest.fixture(params=FACTORIES)
    def open_store(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
        open_one = FACTORIES[request.param](tmp_path)
        with contextlib.ExitStack() as opened:

            def open_store(namespace: str) -> Both:
                store = open_one(namespace)
                opened.callback(store.close)
                return store

            yield open_store
