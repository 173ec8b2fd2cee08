"""What the store makes of answers that emulators seldom give: a lagging index, a partial read, a forgotten record."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

from idem.errors import LedgerUnavailable, LedgerUnusable
from idem.protocol import State
from idem.stores.dynamodb import Connection, DynamoStore
from idem.stores.dynamodb.cells import cell_key
from tests import services
from tests.contracts.store import advance
from tests.records import make_record


class Told:
    """A client that answers as told where it is told to, and as the real one otherwise."""

    def __init__(self, **answers: Any) -> None:
        self.real = services.share("dynamodb", services.dynamodb_local()).client
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        return self._answers.get(name) or getattr(self.real, name)


def open_store(client: Any) -> DynamoStore:
    table = services.table(services.dynamodb_local())
    return DynamoStore(Connection("dynamodb", client=client), table, namespace=uuid.uuid4().hex, grouped=False)


def test_what_the_index_says_is_read_again_before_it_is_believed() -> None:
    """The index lags: a record that has moved on, and one that is gone, are not listed."""
    client = Told()
    store = open_store(client)
    record = make_record(state=State.RETRY)
    store.swap(None, record)
    stale: dict[str, Any] = {}

    def query(**request: Any) -> dict[str, Any]:
        """Say today what the index said yesterday."""
        part = request["ExpressionAttributeValues"][":ap"]["S"]
        answer: dict[str, Any] = stale.setdefault(part, client.real.query(**request))
        return answer

    client._answers["query"] = query
    assert list(store.list(State.RETRY, 10)) == [record]
    assert store.swap(record, advance(record, state=State.SENT)) is None
    assert list(store.list(State.RETRY, 10)) == []
    for answer in stale.values():
        for item in answer["Items"]:
            item["pk"]["S"] += "gone"
    assert list(store.list(State.RETRY, 10)) == []


def test_a_read_that_was_cut_short_is_continued() -> None:
    client = Told()
    store = open_store(client)
    for number in range(5):
        store.swap(None, make_record(f"k{number}", state=State.RETRY, updated_at=float(number)))

    def one_at_a_time(**request: Any) -> dict[str, Any]:
        ((table, wanted),) = request["RequestItems"].items()
        first = {table: wanted | {"Keys": wanted["Keys"][:1]}}
        answer: dict[str, Any] = client.real.batch_get_item(RequestItems=first)
        left = wanted["Keys"][1:]
        return answer | ({"UnprocessedKeys": {table: wanted | {"Keys": left}}} if left else {})

    client._answers["batch_get_item"] = one_at_a_time
    assert [record.key for record in store.list(State.RETRY, 10)] == ["k0", "k1", "k2", "k3", "k4"]
    client._answers["batch_get_item"] = lambda **request: {"Responses": {}, "UnprocessedKeys": request["RequestItems"]}
    with pytest.raises(LedgerUnavailable):
        list(store.list(State.RETRY, 10))


def refuse(**_: Any) -> dict[str, Any]:
    raise ClientError({"Error": {"Code": "ConditionalCheckFailedException", "Message": ""}}, "PutItem")


def test_a_refusal_without_the_item_is_followed_by_a_strong_read() -> None:
    client = Told()
    store = open_store(client)
    record = make_record()
    store.swap(None, record)
    asked: list[dict[str, Any]] = []

    def get(**request: Any) -> dict[str, Any]:
        asked.append(request)
        answer: dict[str, Any] = client.real.get_item(**request)
        return answer

    client._answers |= {"put_item": refuse, "get_item": get}
    assert store.swap(None, make_record(claim_id="c2")) == record
    assert [request["ConsistentRead"] for request in asked] == [True]


def test_a_record_that_is_gone_when_it_is_looked_for() -> None:
    """Where one was known, the ledger was pruned or restored; where none was, an old one was just forgotten."""
    store = open_store(Told(put_item=refuse))
    with pytest.raises(LedgerUnusable, match="vanished"):
        store.swap(make_record(), advance(make_record()))
    with pytest.raises(LedgerUnavailable, match="try again"):
        store.swap(None, make_record())


def test_a_newer_record_is_neither_read_nor_written() -> None:
    """Two versions of the program at work: the old one does nothing to what the new one wrote."""
    client = Told()
    store = open_store(client)
    store.swap(None, make_record())
    pk = {"pk": {"S": f"{store._namespace}\x1fk"}}
    table = services.table(services.dynamodb_local())
    client.real.update_item(
        TableName=table,
        Key=pk,
        UpdateExpression="SET r = :r, v = :v",
        ExpressionAttributeValues={":r": {"S": '{"v":3,"key":"k"}'}, ":v": {"N": "2"}},
    )
    before = client.real.get_item(TableName=table, Key=pk)["Item"]
    calls: list[Callable[[], object]] = [
        lambda: store.read("k"),
        lambda: store.swap(None, make_record(claim_id="c2")),
        lambda: store.swap(make_record(), advance(make_record())),
    ]
    for call in calls:
        with pytest.raises(LedgerUnusable, match="version 3"):
            call()
    assert client.real.get_item(TableName=table, Key=pk)["Item"] == before


def test_a_cell_that_passes_has_its_end_and_one_that_stays_has_none() -> None:
    """The table may forget the first; written again without an end, it stays as well."""
    store = open_store(Told())
    connection, table = services.share("dynamodb", services.dynamodb_local()), services.table(services.dynamodb_local())

    def item() -> dict[str, Any]:
        key = {"pk": {"S": cell_key(store._namespace, "c")}}
        found: dict[str, Any] = connection.client.get_item(TableName=table, Key=key, ConsistentRead=True)["Item"]
        return found

    before = time.time()
    assert store.swap_cell("c", None, b"1", keep_seconds=3_600.5) is None
    assert before + 3_600 <= int(item()["ttl"]["N"]) <= time.time() + 3_602
    assert store.swap_cell("c", b"1", b"2") is None
    assert "ttl" not in item()
