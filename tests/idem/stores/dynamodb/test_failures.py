"""What AWS answers when it does not do what it was asked: a decided error for each, no repetition, nothing told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse, HeadersDict  # type: ignore[import-untyped]  # ships no types
from botocore.exceptions import (  # type: ignore[import-untyped]  # the same
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)

from idem.errors import LedgerError, LedgerUnavailable, LedgerUnusable
from idem.stores.dynamodb import Connection, DynamoStore
from idem.stores.dynamodb.failures import KINDS, failure, table_place
from tests import services
from tests.records import make_record

_NOWHERE = "http://127.0.0.1:9"
_SECRET = "ann@example.com"


_FROM_AWS = {"x-amzn-requestid": "1"}


class _Raw:
    """The part of a urllib3 answer that botocore reads."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self, **_: Any) -> list[bytes]:
        return [self._content]


def answering(status: int, content: bytes, headers: Mapping[str, str] = _FROM_AWS) -> tuple[Connection, list[str]]:
    """A connection whose every request is answered so, and the requests that it made."""
    connection, seen = services.connect("dynamodb", _NOWHERE), list[str]()

    def answer(request: Any, **_: Any) -> AWSResponse:
        seen.append(request.headers["X-Amz-Target"].decode())
        sent: Any = HeadersDict(headers)
        return AWSResponse(request.url, status, sent, _Raw(content))

    connection.client.meta.events.register("before-send.dynamodb", answer)
    return connection, seen


def error(code: str, message: str = _SECRET) -> bytes:
    return json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": message}).encode()


CASES = [
    (400, "ProvisionedThroughputExceededException", LedgerUnavailable, "does not take"),
    (400, "ThrottlingException", LedgerUnavailable, "does not take"),
    (400, "RequestLimitExceeded", LedgerUnavailable, "does not take"),
    (400, "TransactionConflictException", LedgerUnavailable, "does not take"),
    (400, "ReplicatedWriteConflictException", LedgerUnavailable, "does not take"),
    (500, "InternalServerError", LedgerUnavailable, "does not take"),
    (503, "ServiceUnavailable", LedgerUnavailable, "does not take"),
    (503, "SomethingNew", LedgerUnavailable, "does not take"),
    (400, "ExpiredTokenException", LedgerUnavailable, "expired AWS credentials"),
    (400, "AccessDeniedException", LedgerUnusable, "dynamodb:PutItem"),
    (400, "UnrecognizedClientException", LedgerUnusable, "credentials"),
    (400, "InvalidSignatureException", LedgerUnusable, "clock"),
    (400, "ResourceNotFoundException", LedgerUnusable, "run idem init"),
    (400, "ValidationException", LedgerUnusable, "refuses the request"),
    (400, "SomethingNew", LedgerUnusable, "refuses the request"),
]


@pytest.mark.parametrize(("status", "code", "expected", "said"), CASES)
def test_each_answer_is_one_error(status: int, code: str, expected: type[LedgerError], said: str) -> None:
    """Asked once, never again by itself; the message says what to do, and repeats nothing of Amazon's."""
    connection, seen = answering(status, error(code))
    with pytest.raises(expected, match=said) as raised:
        DynamoStore(connection, "orders", grouped=False).swap(None, make_record(_SECRET))
    assert seen == ["DynamoDB_20120810.PutItem"]
    assert "orders" in str(raised.value)
    assert _SECRET not in str(raised.value)


def test_the_action_is_the_one_that_aws_names() -> None:
    message = "User: arn:aws:iam::1:user/x is not authorized to perform: dynamodb:PartiQLUpdate on resource: arn:aws:x"
    found = failure(table_place("orders"), "dynamodb:PartiQLInsert", {"Code": "AccessDenied", "Message": message})
    assert "dynamodb:PartiQLUpdate" in str(found)
    assert "arn:" not in str(found)


def test_an_item_that_never_fits_does_not_stop_the_others() -> None:
    connection, _ = answering(400, error("ValidationException", "Item size has exceeded the maximum allowed size"))
    with pytest.raises(LedgerError, match="400 KB") as raised:
        DynamoStore(connection, "orders", grouped=False).swap(None, make_record())
    assert not isinstance(raised.value, LedgerUnavailable | LedgerUnusable)


@pytest.mark.parametrize("content", [b"<html>", b"", b"\xff", b"[]"])
@pytest.mark.parametrize("status", [500, 502])
def test_an_answer_that_is_none_of_dynamodb_is_no_answer(status: int, content: bytes) -> None:
    connection, seen = answering(status, content, {})
    with pytest.raises(LedgerUnavailable):
        DynamoStore(connection, "orders", grouped=False).swap(None, make_record())
    assert len(seen) == 1


@pytest.mark.parametrize("content", [b"<html>", b"{}", b"[]", b"", b'{"Item": {}}', b'{"Responses": []}'])
def test_a_page_of_somebody_else_is_no_answer(content: bytes) -> None:
    """Seen of botocore: any text under the status 200 passes for a write that was applied, and for an absent key."""
    connection, _ = answering(200, content, {})
    store = DynamoStore(connection, "orders", grouped=False)
    for call in (lambda: store.swap(None, make_record()), lambda: store.read("k"), store.count):
        with pytest.raises(LedgerUnavailable):
            call()


def test_an_answer_that_was_damaged_on_its_way_is_no_answer() -> None:
    connection, _ = answering(200, b"{}", _FROM_AWS | {"x-amz-crc32": "2745614146"})
    with pytest.raises(LedgerUnavailable):
        DynamoStore(connection, "orders", grouped=False).swap(None, make_record())


def test_an_answer_that_is_whole_is_believed() -> None:
    connection, _ = answering(200, b"{}", _FROM_AWS | {"x-amz-crc32": "2745614147"})
    assert DynamoStore(connection, "orders", grouped=False).swap(None, make_record()) is None


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ConnectTimeoutError(endpoint_url=_NOWHERE), LedgerUnavailable),
        (ReadTimeoutError(endpoint_url=_NOWHERE), LedgerUnavailable),
        (ConnectionClosedError(endpoint_url=_NOWHERE), LedgerUnavailable),
        (EndpointConnectionError(endpoint_url=_NOWHERE), LedgerUnavailable),
        (CredentialRetrievalError(provider="x", error_msg="y"), LedgerUnavailable),
        (NoCredentialsError(), LedgerUnusable),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_whatever_boto3_raises_is_translated(raised: Exception, expected: type[LedgerError]) -> None:
    connection = services.connect("dynamodb", _NOWHERE)
    seen = []

    def fail(**_: Any) -> None:
        seen.append(1)
        raise raised

    connection.client.meta.events.register("before-send.dynamodb", fail)
    store = DynamoStore(connection, "orders", grouped=False)
    calls: list[Callable[[], object]] = [lambda: store.read("k"), lambda: store.swap(None, make_record()), store.count]
    for call in calls:
        with pytest.raises(expected):
            call()
    assert len(seen) == len(calls), "nothing is repeated"


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(LedgerUnavailable):
        DynamoStore(services.connect("dynamodb", _NOWHERE), "orders").swap(None, make_record())


@pytest.mark.parametrize(("region", "endpoint"), [(None, None), ("eu-west-1", "nonsense"), ("no region", None)])
def test_settings_that_lead_nowhere_are_named(
    monkeypatch: pytest.MonkeyPatch, region: str | None, endpoint: str | None
) -> None:
    services.connect("dynamodb", _NOWHERE)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    store = DynamoStore(Connection("dynamodb", region, endpoint), "orders")
    for call in (
        store.check,
        store.create,
        store.count,
        lambda: store.read("k"),
        lambda: store.swap(None, make_record()),
    ):
        with pytest.raises(LedgerUnusable, match="check the region"):
            call()


def test_every_code_of_the_table_has_a_message() -> None:
    for code in KINDS:
        assert isinstance(failure(table_place("orders"), "dynamodb:PutItem", {"Code": code}), LedgerError)
