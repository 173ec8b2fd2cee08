"""The table itself: created once, and looked at by every process before it starts to work on it.

An item of its own (`FORMAT_KEY`) says which form the other items have, so that a table is not used by a program that
is too old for it. Claiming that item again, which is refused, is also how a process finds out what it may do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

from idem.errors import LedgerUnavailable, LedgerUnusable
from idem.stores.dynamodb.connection import Connection, DynamoClient
from idem.stores.dynamodb.failures import CONDITION_FAILED, code_of, failure, table_place, translated
from idem.stores.dynamodb.items import Item, key_value

#: Moves when a program that knows the former form would misread an item.
FORMAT_VERSION: Final = 1

#: Its first character is in no namespace.
FORMAT_KEY: Final = "\x1fformat"

INDEX: Final = "attention"

_KEYS: Final = {"pk": "HASH"}
_INDEX_KEYS: Final = {"ap": "HASH", "at": "RANGE"}
_TYPES: Final = {"pk": "S", "ap": "S", "at": "N"}
_TTL: Final = "ttl"

_WAIT_SECONDS: Final = 300.0
_LOOK_SECONDS: Final = 0.5
_UNKNOWN: Final = frozenset({"UnknownOperation", "NotImplemented"})
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Table:
    """One table, which holds nothing but records. `grouped` says which permissions its writers need."""

    connection: Connection
    name: str
    grouped: bool = True

    def create(self) -> tuple[str, ...]:
        """Create the table with all that belongs to it, and wait until it can be used.

        May be called again at any time, by several at once, and after any failure: what is there stays, and what is
        missing is added. A table of another shape is refused, never changed. Returns what this endpoint or this table
        cannot do, a sentence each.
        """
        if not self._exists():
            self._create()
        self._wait()
        missing = (self._forget_old_records(), self._keep_backups())
        self._mark()
        return tuple(filter(None, missing))

    def check(self) -> None:
        """Raise `LedgerUnusable`, with what to do, for a table with which the promise cannot be kept."""
        self._check_shape(self._describe())
        self._mark()
        if self.grouped:
            self._try_statements()

    @property
    def _client(self) -> DynamoClient:
        client: DynamoClient = self.connection.client
        return client

    def _call(self, action: str, call: Callable[..., _T], **request: Any) -> _T:
        with translated(table_place(self.name), f"dynamodb:{action}"):
            return call(**request)

    def _exists(self) -> bool:
        with translated(table_place(self.name), "dynamodb:DescribeTable"):
            try:
                self._client.describe_table(TableName=self.name)
            except ClientError as error:
                if code_of(error.response["Error"]) != "ResourceNotFound":
                    raise
                return False
        return True

    def _create(self) -> None:
        with translated(table_place(self.name), "dynamodb:CreateTable"):
            try:
                self._client.create_table(**_definition(self.name))
            except ClientError as error:
                # Somebody else was faster.
                if code_of(error.response["Error"]) != "ResourceInUse":
                    raise

    def _describe(self) -> Mapping[str, Any]:
        answer = self._call("DescribeTable", self._client.describe_table, TableName=self.name)
        description: Mapping[str, Any] = answer["Table"]
        return description

    def _check_shape(self, found: Mapping[str, Any]) -> None:
        if found["TableStatus"] not in {"ACTIVE", "UPDATING"}:
            raise LedgerUnavailable(
                f"the DynamoDB table {self.name} is {found['TableStatus']}: wait until it is ACTIVE"
            )
        types = {item["AttributeName"]: item["AttributeType"] for item in found["AttributeDefinitions"]}
        if _schema(found) != _KEYS or types.get("pk") != "S":
            raise self._refusal("has another key schema: it is not a ledger; name another table")
        self._check_index(found, types)
        self._check_regions(found)

    def _check_index(self, found: Mapping[str, Any], types: Mapping[str, str]) -> None:
        indexes = {index["IndexName"]: index for index in found.get("GlobalSecondaryIndexes", ())}
        index = indexes.get(INDEX)
        if index is None:
            raise self._refusal(f"has no index '{INDEX}': it is not a ledger, or idem init has not finished")
        if _schema(index) != _INDEX_KEYS or any(types.get(name) != _TYPES[name] for name in _INDEX_KEYS):
            raise self._refusal(f"has an index '{INDEX}' with another key schema: name another table")

    def _check_regions(self, found: Mapping[str, Any]) -> None:
        # In the default mode of a global table, each region judges a condition by its own copy, and the last write
        # wins: two regions would both be told that they may send.
        # https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/V2globaltables_HowItWorks.html
        if found.get("Replicas") and found.get("MultiRegionConsistency") != "STRONG":
            raise self._refusal(
                "is a global table with eventual consistency: two regions could both send one email; use a table "
                "without replicas, or one with multi-region strong consistency"
            )

    def _refusal(self, problem: str) -> LedgerUnusable:
        return LedgerUnusable(f"the DynamoDB table {self.name} {problem}")

    def _wait(self) -> None:
        def is_active() -> bool:
            found = self._describe()
            parts = [found["TableStatus"], *(i.get("IndexStatus") for i in found.get("GlobalSecondaryIndexes", ()))]
            if "CREATING" in parts:
                return False
            self._check_shape(found)
            return True

        self._patiently(is_active, "is still being created")

    def _patiently(self, is_done: Callable[[], bool], problem: str) -> None:
        patience = time.monotonic() + _WAIT_SECONDS
        while not is_done():
            if time.monotonic() > patience:
                raise LedgerUnavailable(f"the DynamoDB table {self.name} {problem}: run idem init again")
            time.sleep(_LOOK_SECONDS)

    def _forget_old_records(self) -> str | None:
        if self._forgets():
            return None
        wanted = {"Enabled": True, "AttributeName": _TTL}
        with translated(table_place(self.name), "dynamodb:UpdateTimeToLive"):
            try:
                self._client.update_time_to_live(TableName=self.name, TimeToLiveSpecification=wanted)
            except ClientError as error:
                # Somebody else was faster; or a table with multi-region strong consistency, which has none.
                if code_of(error.response["Error"]) != "Validation":
                    raise
                if self._forgets():
                    return None
                if not self._describe().get("Replicas"):
                    raise
                return "this global table has no time to live: no record is ever forgotten"
        return None

    def _forgets(self) -> bool:
        answer = self._call("DescribeTimeToLive", self._client.describe_time_to_live, TableName=self.name)
        found = answer["TimeToLiveDescription"]
        if found["TimeToLiveStatus"] not in {"ENABLED", "ENABLING"}:
            return False
        if found.get("AttributeName") != _TTL:
            raise self._refusal("forgets records by an attribute that is not ours: turn its time to live off")
        return True

    def _keep_backups(self) -> str | None:
        """Turn point-in-time recovery on; a table that was just created may not take that yet."""
        unsupported = "this endpoint has no point-in-time recovery: what it holds is not backed up"

        def is_on() -> bool:
            with translated(table_place(self.name), "dynamodb:UpdateContinuousBackups"):
                try:
                    self._client.update_continuous_backups(
                        TableName=self.name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
                    )
                except ClientError as error:
                    if code_of(error.response["Error"]) != "ContinuousBackupsUnavailable":
                        raise
                    return False
            return True

        try:
            with translated(table_place(self.name), "dynamodb:DescribeContinuousBackups"):
                answer = self._client.describe_continuous_backups(TableName=self.name)
        except LedgerUnusable as error:
            if isinstance(error.__cause__, ClientError) and code_of(error.__cause__.response["Error"]) in _UNKNOWN:
                return unsupported
            raise
        recovery = answer["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
        if recovery.get("PointInTimeRecoveryStatus") != "ENABLED":
            self._patiently(is_on, "does not take point-in-time recovery yet")
        return None

    def _mark(self) -> None:
        """Write the format, if nobody has, and read it: needs what a worker needs, and nothing more."""
        item = key_value(FORMAT_KEY) | {"v": {"N": str(FORMAT_VERSION)}}
        with translated(table_place(self.name), "dynamodb:PutItem"):
            try:
                self._client.put_item(TableName=self.name, Item=item, ConditionExpression="attribute_not_exists(pk)")
            except ClientError as error:
                if error.response["Error"]["Code"] not in CONDITION_FAILED:
                    raise
        answer = self._call(
            "GetItem", self._client.get_item, TableName=self.name, Key=key_value(FORMAT_KEY), ConsistentRead=True
        )
        self._check_format(answer.get("Item", {}))

    def _check_format(self, item: Item) -> None:
        version = int(item.get("v", {}).get("N", "0"))
        if version != FORMAT_VERSION:
            raise self._refusal(f"has format {version}, this program knows {FORMAT_VERSION}: upgrade the program")

    def _try_statements(self) -> None:
        """Two statements that can only be refused by their conditions, or for want of a permission."""
        pk = {"S": FORMAT_KEY}
        insert = f"INSERT INTO \"{self.name}\" VALUE {{'pk': ?}}"
        update = f'UPDATE "{self.name}" SET "v"=? WHERE "pk"=? AND "v"=?'  # noqa: S608 - a table's name has no quotes
        tries = {
            "PartiQLInsert": (insert, [pk]),
            "PartiQLUpdate": (update, [{"N": "0"}, pk, {"N": "-1"}]),
        }
        for action, (statement, parameters) in tries.items():
            (answer,) = self._call(
                action,
                self._client.batch_execute_statement,
                Statements=[{"Statement": statement, "Parameters": parameters}],
            )["Responses"]
            error = answer.get("Error", {"Code": "Unrefused"})
            if error["Code"] not in CONDITION_FAILED:
                raise failure(table_place(self.name), f"dynamodb:{action}", error)


def _schema(found: Mapping[str, Any]) -> dict[str, str]:
    return {item["AttributeName"]: item["KeyType"] for item in found["KeySchema"]}


def _definition(name: str) -> dict[str, Any]:
    """What `deploy/` says as well: paid by request, one key, the sparse index, and not deleted by accident."""

    def keys(schema: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"AttributeName": attribute, "KeyType": kind} for attribute, kind in schema.items()]

    return {
        "TableName": name,
        "BillingMode": "PAY_PER_REQUEST",
        "DeletionProtectionEnabled": True,
        "AttributeDefinitions": [{"AttributeName": n, "AttributeType": kind} for n, kind in _TYPES.items()],
        "KeySchema": keys(_KEYS),
        "GlobalSecondaryIndexes": [
            {
                "IndexName": INDEX,
                "KeySchema": keys(_INDEX_KEYS),
                # The records are read from the table: the index stays small, and cannot tell an old story.
                "Projection": {"ProjectionType": "KEYS_ONLY"},
            }
        ],
    }
