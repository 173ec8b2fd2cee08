"""The table: created whole, refused when the promise cannot be kept with it."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

from idem.errors import LedgerUnavailable, LedgerUnusable
from idem.stores.dynamodb import Connection, DynamoStore
from idem.stores.dynamodb.table import FORMAT_KEY, _definition
from tests import services
from tests.records import make_record

_ENDPOINTS = {"local": services.dynamodb_local, "ministack": services.ministack, "moto": services.moto}


@pytest.fixture(params=_ENDPOINTS)
def connection(request: pytest.FixtureRequest) -> Connection:
    return services.share("dynamodb", _ENDPOINTS[request.param]())


@pytest.fixture
def name() -> str:
    return f"idem-{uuid.uuid4().hex}"


def grouped(connection: Connection) -> bool:
    """Whether the engine knows statements with parameters; moto does not."""
    endpoint: str = connection.client.meta.endpoint_url
    return endpoint != services.moto()


def test_a_table_is_created_whole_and_again(connection: Connection, name: str) -> None:
    store = DynamoStore(connection, name, grouped=grouped(connection))
    missing = store.create()
    assert store.create() == missing
    store.check()
    assert store.swap(None, make_record()) is None
    store.create()
    assert store.read("k") == make_record(), "what is there stays"
    client = connection.client
    table = client.describe_table(TableName=name)["Table"]
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert table["DeletionProtectionEnabled"]
    ttl = client.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
    assert (ttl["TimeToLiveStatus"], ttl["AttributeName"]) == ("ENABLED", "ttl")
    if not missing:
        backups = client.describe_continuous_backups(TableName=name)["ContinuousBackupsDescription"]
        assert backups["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"] == "ENABLED"
    else:
        assert "point-in-time recovery" in missing[0]


def test_a_table_may_be_created_by_several_at_once(connection: Connection, name: str) -> None:
    store = DynamoStore(connection, name, grouped=False)
    with ThreadPoolExecutor(4) as pool:
        assert len({future.result() for future in [pool.submit(store.create) for _ in range(4)]}) == 1
    store.check()


def test_a_table_that_is_there_needs_no_permission_to_create_it(local: tuple[Connection, str]) -> None:
    connection, name = local
    DynamoStore(Connection("dynamodb", client=Told(connection.client, create_table=pytest.fail)), name).create()


def test_a_missing_table_is_named_with_what_to_do(connection: Connection, name: str) -> None:
    store = DynamoStore(connection, name, grouped=False)
    calls: list[Callable[[], object]] = [
        store.check,
        store.count,
        lambda: store.read("k"),
        lambda: store.swap(None, make_record()),
        lambda: store.swap(make_record(), make_record(version=2)),
    ]
    for call in calls:
        with pytest.raises(LedgerUnusable, match=f"{name} does not exist in this region: run idem init"):
            call()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d["KeySchema"].append({"AttributeName": "at", "KeyType": "RANGE"}), "another key schema"),
        (lambda d: d["AttributeDefinitions"][0].update(AttributeType="N"), "another key schema"),
        (lambda d: d.pop("GlobalSecondaryIndexes"), "no index 'attention'"),
        (lambda d: d["GlobalSecondaryIndexes"][0]["KeySchema"].pop(), "index 'attention' with another key schema"),
        (lambda d: d["AttributeDefinitions"][2].update(AttributeType="S"), "index 'attention' with another"),
    ],
    ids=["range key", "number key", "no index", "index without order", "order by text"],
)
def test_a_table_of_another_shape_is_refused_and_left_alone(
    name: str, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    connection = services.share("dynamodb", services.ministack())
    definition = copy.deepcopy(_definition(name))
    change(definition)
    _drop_unused(definition)
    connection.client.create_table(**definition)
    store = DynamoStore(connection, name)
    for call in (store.check, store.create):
        with pytest.raises(LedgerUnusable, match=problem):
            call()
    assert connection.client.scan(TableName=name)["Count"] == 0


def _drop_unused(definition: dict[str, Any]) -> None:
    """DynamoDB refuses a definition of an attribute that no key uses."""
    schemas = [definition["KeySchema"], *(i["KeySchema"] for i in definition.get("GlobalSecondaryIndexes", ()))]
    used = {part["AttributeName"] for schema in schemas for part in schema}
    definition["AttributeDefinitions"] = [d for d in definition["AttributeDefinitions"] if d["AttributeName"] in used]


def test_a_table_that_forgets_by_another_attribute_is_refused(name: str) -> None:
    connection = services.share("dynamodb", services.ministack())
    connection.client.create_table(**_definition(name))
    wanted = {"Enabled": True, "AttributeName": "at"}
    connection.client.update_time_to_live(TableName=name, TimeToLiveSpecification=wanted)
    with pytest.raises(LedgerUnusable, match="time to live"):
        DynamoStore(connection, name).create()


@pytest.mark.parametrize("version", ["2", "0", "99"])
def test_a_table_of_another_format_is_refused(connection: Connection, name: str, version: str) -> None:
    store = DynamoStore(connection, name, grouped=False)
    store.create()
    connection.client.put_item(TableName=name, Item={"pk": {"S": FORMAT_KEY}, "v": {"N": version}})
    with pytest.raises(LedgerUnusable, match=f"format {version}.*upgrade"):
        store.check()


class Told:
    """A client that answers as told where it is told to, and as the real one otherwise."""

    def __init__(self, client: Any, **answers: Callable[..., Any]) -> None:
        self._client = client
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        return self._answers.get(name) or getattr(self._client, name)


@pytest.fixture
def local(name: str) -> tuple[Connection, str]:
    connection = services.share("dynamodb", services.dynamodb_local())
    DynamoStore(connection, name).create()
    return connection, name


@pytest.mark.parametrize(
    ("found", "refused"),
    [
        ({"Replicas": [{"RegionName": "eu-west-1"}]}, True),
        ({"Replicas": [{"RegionName": "eu-west-1"}], "MultiRegionConsistency": "EVENTUAL"}, True),
        ({"Replicas": [{"RegionName": "eu-west-1"}], "MultiRegionConsistency": "STRONG"}, False),
        ({"Replicas": []}, False),
    ],
)
def test_a_global_table_is_used_only_with_strong_consistency(
    local: tuple[Connection, str],
    found: dict[str, Any],
    refused: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    connection, name = local

    def describe(**request: Any) -> dict[str, Any]:
        return {"Table": connection.client.describe_table(**request)["Table"] | found}

    store = DynamoStore(Connection("dynamodb", client=Told(connection.client, describe_table=describe)), name)
    if not refused:
        store.check()
        return
    with pytest.raises(LedgerUnusable, match="global table with eventual consistency"):
        store.check()


@pytest.mark.parametrize("status", ["CREATING", "DELETING", "ARCHIVED"])
def test_a_table_that_is_not_active_is_waited_for(local: tuple[Connection, str], status: str) -> None:
    connection, name = local

    def describe(**request: Any) -> dict[str, Any]:
        return {"Table": connection.client.describe_table(**request)["Table"] | {"TableStatus": status}}

    store = DynamoStore(Connection("dynamodb", client=Told(connection.client, describe_table=describe)), name)
    with pytest.raises(LedgerUnavailable, match=status):
        store.check()


@pytest.mark.parametrize(
    ("call", "action"),
    [
        ("describe_table", "dynamodb:DescribeTable"),
        ("put_item", "dynamodb:PutItem"),
        ("get_item", "dynamodb:GetItem"),
        ("batch_execute_statement", "dynamodb:PartiQLInsert"),
    ],
)
def test_a_missing_permission_is_named(local: tuple[Connection, str], call: str, action: str) -> None:
    connection, name = local

    def deny(**_: Any) -> dict[str, Any]:
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": ""}}, call)

    store = DynamoStore(Connection("dynamodb", client=Told(connection.client, **{call: deny})), name)
    with pytest.raises(LedgerUnusable, match=f"may not do {action}"):
        store.check()


@pytest.mark.parametrize(("start", "action"), [("INSERT", "PartiQLInsert"), ("UPDATE", "PartiQLUpdate")])
def test_a_statement_that_is_not_permitted_is_named(local: tuple[Connection, str], start: str, action: str) -> None:
    connection, name = local

    def execute(**request: Any) -> dict[str, Any]:
        if request["Statements"][0]["Statement"].startswith(start):
            return {"Responses": [{"Error": {"Code": "AccessDenied", "Message": ""}}]}
        answer: dict[str, Any] = connection.client.batch_execute_statement(**request)
        return answer

    told = Connection("dynamodb", client=Told(connection.client, batch_execute_statement=execute))
    with pytest.raises(LedgerUnusable, match=f"dynamodb:{action}"):
        DynamoStore(told, name).check()
    DynamoStore(told, name, grouped=False).check()


def test_backups_that_are_not_ready_yet_are_waited_for(local: tuple[Connection, str]) -> None:
    connection, name = local
    answers = ["ContinuousBackupsUnavailableException", None]

    def describe(**_: Any) -> dict[str, Any]:
        return {"ContinuousBackupsDescription": {"ContinuousBackupsStatus": "ENABLED"}}

    def update(**_: Any) -> dict[str, Any]:
        code = answers.pop(0)
        if code is not None:
            raise ClientError({"Error": {"Code": code, "Message": ""}}, "UpdateContinuousBackups")
        return {}

    client = Told(connection.client, describe_continuous_backups=describe, update_continuous_backups=update)
    assert DynamoStore(Connection("dynamodb", client=client), name).create() == ()
    assert not answers


def test_a_global_table_without_time_to_live_is_said_to_be_one(local: tuple[Connection, str]) -> None:
    connection, name = local
    found = {"Replicas": [{"RegionName": "eu-west-1"}], "MultiRegionConsistency": "STRONG"}

    def describe(**request: Any) -> dict[str, Any]:
        return {"Table": connection.client.describe_table(**request)["Table"] | found}

    def off(**_: Any) -> dict[str, Any]:
        return {"TimeToLiveDescription": {"TimeToLiveStatus": "DISABLED"}}

    def refuse(**_: Any) -> dict[str, Any]:
        raise ClientError({"Error": {"Code": "ValidationException", "Message": ""}}, "UpdateTimeToLive")

    told = Told(connection.client, describe_time_to_live=off, update_time_to_live=refuse)
    with pytest.raises(LedgerUnusable):
        DynamoStore(Connection("dynamodb", client=told), name).create()
    told = Told(connection.client, describe_time_to_live=off, update_time_to_live=refuse, describe_table=describe)
    assert "no time to live" in DynamoStore(Connection("dynamodb", client=told), name).create()[0]


@pytest.mark.parametrize("namespace", ["", "a\x1fb", "a\n"])
def test_a_namespace_prints(namespace: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        DynamoStore(Connection("dynamodb"), "t", namespace=namespace)
