"""The store contract on DynamoDB: Amazon's own engine, two emulators, and both ways of writing."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from idem.errors import LedgerError
from idem.protocol import State
from idem.stores.dynamodb import Connection, DynamoStore
from idem.stores.dynamodb.batch import GroupWriter, _Result
from idem.stores.dynamodb.writes import Write
from tests import services
from tests.contracts.cells import Both, Opener
from tests.contracts.store import StoreContract, advance
from tests.records import make_record


class StatementWriter(GroupWriter):
    """The grouped path also for a write that is alone, so that a test of one thread sees its statements."""

    def _write_one(self, write: Write) -> Sequence[_Result]:
        return self._write_all([write])


def make_store(connection: Connection, table: str, writer: str, **options: Any) -> DynamoStore:
    """A store that writes in one of three ways: `plain`, `grouped`, or by `statements` only, whoever signs them."""
    store = DynamoStore(connection, table, grouped=not writer.endswith("plain"), **options)
    if writer.endswith("statements"):
        store._writer = StatementWriter(connection, table)
    return store


#: Moto answers 500 to the statements of the grouped path, and was seen to let two writers win: it is no judge.
ENGINES: dict[str, tuple[Callable[[], str], str]] = {
    "local-plain": (services.dynamodb_local, "plain"),
    "local-grouped": (services.dynamodb_local, "grouped"),
    "local-signed-plain": (services.dynamodb_local, "signed plain"),
    "local-signed-grouped": (services.dynamodb_local, "signed grouped"),
    "local-signed-statements": (services.dynamodb_local, "signed statements"),
    "ministack-plain": (services.ministack, "plain"),
    "ministack-signed-plain": (services.ministack, "signed plain"),
    "ministack-signed-statements": (services.ministack, "signed statements"),
    "moto-plain": (services.moto, "plain"),
}


class TestDynamoStore(StoreContract):
    """Where this store lists and counts only what needs attention, the contract's tests are told in its states."""

    @pytest.fixture(params=ENGINES)
    def open_store(self, request: pytest.FixtureRequest) -> Iterator[Opener]:
        start, writer = ENGINES[request.param]
        endpoint, test = start(), uuid.uuid4().hex
        with contextlib.ExitStack() as opened:

            def open_one(namespace: str) -> Both:
                signed = writer.startswith("signed")
                connection, table = services.share("dynamodb", endpoint, signed=signed), services.table(endpoint)
                store = make_store(connection, table, writer, namespace=f"{test}-{namespace}")
                opened.callback(store.close)
                return store

            yield open_one

    def test_nothing_is_there_at_first(self, store: Both) -> None:
        assert store.read("k") is None
        assert list(store.list(State.IN_DOUBT, 10)) == []
        assert sum(store.count().values()) == 0

    def test_namespaces_are_apart(self, open_store: Opener) -> None:
        one, other = open_store("one"), open_store("other")
        assert one.swap(None, make_record(state=State.RETRY)) is None
        assert other.read("k") is None
        assert list(other.list(State.RETRY, 10)) == []
        assert sum(other.count().values()) == 0
        assert other.swap(None, make_record(claim_id="c2")) is None
        found = one.read("k")
        assert found is not None
        assert found.claim_id == "c1"

    def test_a_list_has_one_state_in_order_and_a_limit(self, store: Both) -> None:
        for number in (3, 1, 4, 0, 2):
            store.swap(None, make_record(f"k{number}", state=State.IN_DOUBT, updated_at=1_000.5 + number))
        store.swap(None, make_record("other", state=State.UNSURE, updated_at=1.0))
        assert [record.key for record in store.list(State.IN_DOUBT, 10)] == ["k0", "k1", "k2", "k3", "k4"]
        assert [record.key for record in store.list(State.IN_DOUBT, 2)] == ["k0", "k1"]
        assert [record.key for record in store.list(State.UNSURE, 10)] == ["other"]
        assert list(store.list(State.RETRY, 10)) == []
        found = make_record("k0", state=State.IN_DOUBT, updated_at=1_000.5)
        assert store.swap(found, advance(found, state=State.SENT, updated_at=2_000.0)) is None
        assert [record.key for record in store.list(State.IN_DOUBT, 10)] == ["k1", "k2", "k3", "k4"]

    def test_a_long_list_is_paged(self, store: Both) -> None:
        """More than one answer of the index, and more than one read of the table."""
        keys = [f"k{number:03}" for number in range(230)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.swap(None, make_record(key, state=State.RETRY, updated_at=1.0)), keys))
        assert sorted(record.key for record in store.list(State.RETRY, 1_000)) == keys
        assert len(list(store.list(State.RETRY, 150))) == 150
        assert store.count()[State.RETRY] == 230

    def test_a_count_is_by_state(self, store: Both) -> None:
        """A state that is not counted is not in the answer: not counted is not none."""
        for number in range(5):
            store.swap(None, make_record(f"k{number}", state=State.SENT if number < 3 else State.RETRY))
        none = dict.fromkeys((State.IN_DOUBT, State.REJECTED, State.UNSURE, State.PENDING), 0)
        assert store.count() == none | {State.RETRY: 2}
        gone = make_record("k4", state=State.RETRY)
        store.swap(gone, advance(gone, state=State.SENT))
        assert store.count()[State.RETRY] == 1

    @pytest.fixture(autouse=True)
    def judge_of_races(self, request: pytest.FixtureRequest) -> None:
        """Moto has no lock: it was seen to let two writers win, so that it judges no race."""
        name = request.node.name
        if "[moto" in name and any(words in name for words in ("_race_", "_of_many_", "_is_lost[")):
            pytest.skip("moto loses updates of several threads")

    @pytest.mark.parametrize("state", [State.SENDING, State.RENDERING])
    def test_what_is_in_flight_is_found_in_the_table(self, open_store: Opener, state: State) -> None:
        """The one longest unchanged first, whatever its key; of this namespace only, and none that has ended."""
        store, other = open_store("default"), open_store("other")
        other.swap(None, make_record(state=state))
        for key, at in (("c", 3.0), ("a", 4.0), ("b", 1.0), ("d", 2.0)):
            store.swap(None, make_record(key, state=state, updated_at=at))
        store.swap(None, make_record("e", state=State.SENT, updated_at=0.0))
        assert [record.key for record in store.list(state, 10)] == ["b", "d", "c", "a"]
        assert [record.key for record in store.list(state, 2)] == ["b", "d"]

    @pytest.mark.parametrize("state", [State.SENT, State.SPLIT])
    def test_a_state_that_would_list_everything_is_refused(self, store: Both, state: State) -> None:
        with pytest.raises(LedgerError, match="cannot list"):
            store.list(state, 10)
