"""Cells as items of the same table: apart from the records, and in none of their lists.

    pk    S  U+001F "cell" U+001F <namespace> U+001F <name>
    w     B  the value
    ttl   N  when the item may be forgotten, of the few cells that may be

The primary key begins with a character that no namespace has, as that of the table's format does; the item has no `ap`,
so that the index does not know it.
"""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

from idem.stores.dynamodb.connection import Connection, DynamoClient
from idem.stores.dynamodb.failures import CONDITION_FAILED, table_place, translated
from idem.stores.dynamodb.items import Item, key_value

_SEPARATOR = "\x1f"

# True for a cell that nobody has written, and for the value that the new one was computed from.
_IS_ABSENT = "attribute_not_exists(pk)"
_IS_AS_READ = "w = :w"


def cell_key(namespace: str, name: str) -> str:
    """The `pk` of a cell."""
    return f"{_SEPARATOR}cell{_SEPARATOR}{namespace}{_SEPARATOR}{name}"


def read_cell(connection: Connection, table: str, pk: str) -> bytes | None:
    """See `Cells.read_cell`."""
    client: DynamoClient = connection.client
    with translated(table_place(table), "dynamodb:GetItem"):
        answer = client.get_item(TableName=table, Key=key_value(pk), ConsistentRead=True)
    return _value(answer.get("Item"))


def swap_cell(  # noqa: PLR0913 - where, and what
    connection: Connection, table: str, pk: str, old: bytes | None, new: bytes, *, expires_at: float | None = None
) -> bytes | None:
    """See `PassingCells.swap_cell`. One write unit for each KB."""
    client: DynamoClient = connection.client
    ttl = {} if expires_at is None else {"ttl": {"N": str(int(expires_at))}}
    request = {
        "TableName": table,
        "Item": key_value(pk) | {"w": {"B": new}} | ttl,
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    } | _condition(old)
    with translated(table_place(table), "dynamodb:PutItem"):
        try:
            client.put_item(**request)
        except ClientError as error:
            if error.response["Error"]["Code"] not in CONDITION_FAILED:
                raise
            answer: Any = error.response
            return _value(answer.get("Item")) or read_cell(connection, table, pk) or b""
    return None


def _condition(old: bytes | None) -> dict[str, object]:
    if old is None:
        return {"ConditionExpression": _IS_ABSENT}
    return {"ConditionExpression": _IS_AS_READ, "ExpressionAttributeValues": {":w": {"B": old}}}


def _value(item: Item | None) -> bytes | None:
    return bytes(item["w"]["B"]) if item else None
