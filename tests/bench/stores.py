"""The stores that the benchmarks run on, by name; a new one is one line in `STORES`."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from idem.stores.base import Store
from idem.stores.dynamodb import Connection, DynamoStore
from idem.stores.memory import MemoryStore
from idem.stores.sqlite import SqliteStore
from tests import services
from tests.bench.units import Units
from tests.valkey import DURABLE, Server

#: Opens a store that is empty; what it needs is let go of with the stack.
Opener = Callable[[ExitStack], "Opened"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A store, a way to a second handle on it in another process, and a third handle whose charges are counted."""

    store: Store
    reopen: Callable[[], Store] | None = None
    units: Units | None = None
    charged: Store | None = None


def memory(_: ExitStack) -> Opened:
    """A dictionary."""
    return Opened(MemoryStore())


def sqlite(stack: ExitStack) -> Opened:
    """One file."""
    path = Path(stack.enter_context(TemporaryDirectory())) / "ledger.db"
    return Opened(SqliteStore(path), lambda: SqliteStore(path))


def redis(stack: ExitStack) -> Opened:
    """A Valkey server whose append-only file is synced at every write."""
    server = Server(Path(stack.enter_context(TemporaryDirectory())), *DURABLE)
    server.start()
    stack.callback(server.kill)
    return Opened(server.store(), server.store)


def _table() -> tuple[str, str]:
    return services.dynamodb_local(), f"bench-{uuid.uuid4().hex}"


def dynamodb(*, grouped: bool, signed: bool) -> Opened:
    """A table of DynamoDB Local."""
    endpoint, table = _table()

    def reopen() -> DynamoStore:
        return DynamoStore(services.connect("dynamodb", endpoint, signed=signed), table, grouped=grouped)

    reopen().create()
    units = Units(services.connect("dynamodb", endpoint, signed=signed).client)
    counted = DynamoStore(Connection("dynamodb", client=units), table, grouped=grouped)
    return Opened(reopen(), reopen, units, counted)


STORES: dict[str, Opener] = {
    "memory": memory,
    "sqlite": sqlite,
    "redis": redis,
    "boto3 plain": lambda _: dynamodb(grouped=False, signed=False),
    "boto3 grouped": lambda _: dynamodb(grouped=True, signed=False),
    "signed plain": lambda _: dynamodb(grouped=False, signed=True),
    "signed grouped": lambda _: dynamodb(grouped=True, signed=True),
}
