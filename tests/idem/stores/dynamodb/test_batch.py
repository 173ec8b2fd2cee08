"""Group commit: who writes with whom, and what each learns, on a client that does as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError  # type: ignore[import-untyped]  # ships no types
from msgspec.structs import replace

from idem.errors import LedgerError, LedgerUnavailable, LedgerUnusable
from idem.protocol import State
from idem.stores.dynamodb import Connection
from idem.stores.dynamodb.batch import GroupWriter
from idem.stores.dynamodb.items import record_to_item
from idem.stores.dynamodb.writes import Refused, Write
from tests.records import make_record

_OK: dict[str, Any] = {"TableName": "t"}
Answer = Callable[[list[dict[str, Any]]], dict[str, Any]]


class FakeClient:
    """Holds every call until it is let go; answers statements as told."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.calls: list[list[str]] = []
        self.held = threading.Event()
        self.arrived = threading.Semaphore(0)
        self._answer = answer or (lambda statements: {"Responses": [_OK] * len(statements)})

    def put_item(self, **request: Any) -> dict[str, Any]:
        self._hold([request["Item"]["pk"]["S"]])
        return {}

    def batch_execute_statement(self, **request: Any) -> dict[str, Any]:
        statements = request["Statements"]
        insert = [s["Statement"].startswith("INSERT") for s in statements]
        self._hold([s["Parameters"][0 if i else -4]["S"] for s, i in zip(statements, insert, strict=True)])
        return self._answer(statements)

    def _hold(self, keys: list[str]) -> None:
        self.calls.append(keys)
        self.arrived.release()
        assert self.held.wait(20)


def make_write(key: str, **changes: Any) -> Write:
    return Write(record_to_item("d", make_record(key, **changes), 1.0), None)


def name(key: str) -> str:
    return f"d\x1f{key}"


class Crowd:
    """Writers in threads, one after the other into the queue."""

    def __init__(self, client: FakeClient, calls: int = 4) -> None:
        self.client = client
        self.writer = GroupWriter(Connection("dynamodb", client=client), "t", calls)
        self.pool = ThreadPoolExecutor(80)

    def add(self, write: Write) -> Future[Refused | None]:
        before = self._seen()
        future = self.pool.submit(self.writer.write, write)
        patience = time.monotonic() + 10
        while self._seen() == before and time.monotonic() < patience:
            time.sleep(0.001)
        return future

    def _seen(self) -> int:
        """The writes that wait, or are in a call."""
        return len(self.writer._together._queue) + sum(map(len, self.client.calls))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No writer loses its patience on a slow machine, unless the test is about that."""
    monkeypatch.setattr("idem.together._PATIENCE_SECONDS", 20.0)


def test_who_is_alone_writes_at_once_and_who_comes_meanwhile_goes_together() -> None:
    client = FakeClient()
    crowd = Crowd(client)
    first = crowd.add(make_write("k0"))
    assert client.arrived.acquire(timeout=10)
    later = [crowd.add(make_write(f"k{number}")) for number in range(1, 8)]
    assert client.calls == [[name("k0")]]
    client.held.set()
    assert [future.result(20) for future in [first, *later]] == [None] * 8
    assert client.calls[1:] == [[name(f"k{number}") for number in range(1, 8)]]


def test_a_full_batch_does_not_wait() -> None:
    client = FakeClient()
    crowd = Crowd(client)
    futures = [crowd.add(make_write("k0"))]
    assert client.arrived.acquire(timeout=10)
    futures += [crowd.add(make_write(f"k{number}")) for number in range(1, 31)]
    assert client.arrived.acquire(timeout=10), "25 went although the first call is not back"
    assert [len(keys) for keys in client.calls] == [1, 25]
    client.held.set()
    assert {future.result(20) for future in futures} == {None}
    assert [len(keys) for keys in client.calls] == [1, 25, 5]


def test_no_batch_has_a_key_twice() -> None:
    """Two writes of one key would be two statements about one item; the second waits for the next call."""
    client = FakeClient()
    crowd = Crowd(client)
    futures = [crowd.add(make_write("k0"))]
    assert client.arrived.acquire(timeout=10)
    futures += [crowd.add(make_write(key, version=version)) for version in (1, 2, 3) for key in ("a", "b")]
    client.held.set()
    assert {future.result(20) for future in futures} == {None}
    assert client.calls == [[name("k0")], *[[name("a"), name("b")]] * 3]


def test_everyone_learns_of_their_own_statement() -> None:
    stored = {"pk": {"S": "x"}}
    answers = [
        _OK,
        {"Error": {"Code": "ConditionalCheckFailed", "Message": "", "Item": stored}},
        {"Error": {"Code": "DuplicateItem", "Message": ""}},
        {"Error": {"Code": "ProvisionedThroughputExceeded", "Message": ""}},
        {"Error": {"Code": "AccessDenied", "Message": ""}},
        {"Error": {"Code": "ValidationError", "Message": "Item size has exceeded the maximum allowed size"}},
        {"Error": {"Code": "InternalServerError", "Message": ""}},
    ]
    client = FakeClient(lambda _: {"Responses": answers})
    crowd = Crowd(client)
    crowd.add(make_write("first"))
    assert client.arrived.acquire(timeout=10)
    futures = [crowd.add(make_write(f"k{number}")) for number in range(len(answers))]
    client.held.set()
    assert [future.result(20) for future in futures[:3]] == [None, Refused(stored), Refused(None)]
    errors = [future.exception(20) for future in futures[3:]]
    assert [type(error) for error in errors] == [LedgerUnavailable, LedgerUnusable, LedgerError, LedgerUnavailable]
    assert "dynamodb:PartiQLInsert" in str(errors[1])


def test_a_call_that_fails_fails_for_all() -> None:
    def fail(_: object) -> dict[str, Any]:
        raise ReadTimeoutError(endpoint_url="x")

    client = FakeClient(fail)
    crowd = Crowd(client)
    crowd.add(make_write("first"))
    assert client.arrived.acquire(timeout=10)
    futures = [crowd.add(make_write(f"k{number}")) for number in range(5)]
    client.held.set()
    errors = [future.exception(20) for future in futures]
    assert {type(error) for error in errors} == {LedgerUnavailable}
    assert len({id(error) for error in errors}) == 5, "an exception is nothing to share"
    assert len(client.calls) == 2


@pytest.mark.parametrize("answer", [{"Responses": []}, {"Responses": [_OK] * 9}])
def test_an_answer_of_another_length_is_believed_by_nobody(answer: dict[str, Any]) -> None:
    client = FakeClient(lambda _: answer)
    crowd = Crowd(client)
    crowd.add(make_write("first"))
    assert client.arrived.acquire(timeout=10)
    futures = [crowd.add(make_write(f"k{number}")) for number in range(5)]
    client.held.set()
    assert {type(future.exception(20)) for future in futures} == {LedgerUnavailable}


def test_a_call_that_was_invalid_is_made_again_one_by_one() -> None:
    """One statement can spoil the call; it must not spoil what the others wanted to write."""

    def refuse(_: object) -> dict[str, Any]:
        raise ClientError({"Error": {"Code": "ValidationException", "Message": ""}}, "BatchExecuteStatement")

    client = FakeClient(refuse)
    crowd = Crowd(client)
    crowd.add(make_write("first"))
    assert client.arrived.acquire(timeout=10)
    futures = [crowd.add(make_write(f"k{number}")) for number in range(3)]
    client.held.set()
    assert [future.result(20) for future in futures] == [None] * 3
    assert sorted(client.calls[2:]) == [[name("k0")], [name("k1")], [name("k2")]]


def test_who_writes_for_others_and_dies_leaves_nobody_waiting() -> None:
    class Interrupt(BaseException):
        pass

    def die(_: object) -> dict[str, Any]:
        raise Interrupt

    client = FakeClient(die)
    crowd = Crowd(client)
    crowd.add(make_write("first"))
    assert client.arrived.acquire(timeout=10)
    futures = [crowd.add(make_write(f"k{number}")) for number in range(5)]
    client.held.set()
    raised = [type(future.exception(20)) for future in futures]
    assert sorted(kind.__name__ for kind in raised) == ["Interrupt", *["LedgerUnavailable"] * 4]
    assert crowd.writer.write(make_write("next")) is None


def test_a_call_that_hangs_does_not_hold_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idem.together._PATIENCE_SECONDS", 0.05)
    client = FakeClient()
    crowd = Crowd(client)
    first = crowd.add(make_write("k0"))
    assert client.arrived.acquire(timeout=10)
    second = crowd.add(make_write("k1"))
    assert client.arrived.acquire(timeout=10), "the second went by itself"
    client.held.set()
    assert [first.result(20), second.result(20)] == [None, None]


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the thread that writes for others killed on the spot, they would say that the ledger does not answer."""
    monkeypatch.setattr("idem.together._PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr("idem.together._FORSAKEN_SECONDS", 0.1)
    client = FakeClient()
    writer = GroupWriter(Connection("dynamodb", client=client), "t")
    board = writer._together._board
    taken: list[Any] = []

    def board_and_die(*, overdue: bool = False) -> list[Any]:
        taken.extend(board(overdue=overdue))
        return []

    monkeypatch.setattr(writer._together, "_board", board_and_die)
    with pytest.raises(LedgerUnavailable):
        writer.write(make_write("k"))
    assert taken


def test_a_large_body_goes_alone() -> None:
    client = FakeClient()
    client.held.set()
    crowd = Crowd(client)
    large = make_write("k")
    large.item["b"] = {"B": b"x" * 100_000}
    assert crowd.writer.write(large) is None
    assert client.calls == [[name("k")]]


def test_an_update_names_everything_and_takes_away_what_is_gone() -> None:
    """Absolute values of every attribute: what a statement leaves out would stay from the record before."""
    seen: list[dict[str, Any]] = []

    def answer(statements: list[dict[str, Any]]) -> dict[str, Any]:
        seen.extend(statements)
        return {"Responses": [_OK] * len(statements)}

    client = FakeClient(answer)
    crowd = Crowd(client)
    crowd.add(make_write("first"))
    assert client.arrived.acquire(timeout=10)
    old = make_record("k", state=State.RETRY)
    item = record_to_item("d", replace(old, version=2, state=State.SENDING), 1.0)
    futures = [crowd.add(Write(item, old)), crowd.add(make_write("other"))]
    client.held.set()
    assert [future.result(20) for future in futures] == [None, None]
    assert seen[0]["Statement"] == (
        'UPDATE "t" SET "s"=? SET "v"=? SET "c"=? SET "r"=? REMOVE "b" REMOVE "o" REMOVE "ttl" REMOVE "ap" REMOVE "at" '
        'WHERE "pk"=? AND "c"=? AND "v"=? AND "s"=?'
    )
    assert seen[0]["Parameters"][4:] == [{"S": name("k")}, {"S": "c1"}, {"N": "1"}, {"S": "retry"}]
    assert seen[0]["ReturnValuesOnConditionCheckFailure"] == "ALL_OLD"
