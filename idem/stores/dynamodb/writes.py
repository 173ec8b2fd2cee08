"""One conditional write a call: the reference that every other way of writing must equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

from idem.protocol import Record
from idem.stores.dynamodb.connection import Connection, DynamoClient
from idem.stores.dynamodb.failures import CONDITION_FAILED, table_place, translated
from idem.stores.dynamodb.items import Item, Value

# True for a key that nobody has claimed. An item that is past its `ttl` and still there counts as any other:
# DynamoDB removes it days later, and until then it says that the email was sent.
_IS_ABSENT = "attribute_not_exists(pk)"

# True only for the item that the transition was computed from. The three together are the fence:
#
#   claim   c1 v1 sending ----- settle  c1 v2 sent            what the holder wrote
#      '-- the same claim, arriving late: the item exists     refused: absent it is not
#   settle  c1 v2 retry --- claim c2 v3 sending --- ...       what others made of it
#      '-- the same settle, arriving late: expects c1 v1      refused: the version has moved
#
# The claim id alone would let a late duplicate of a claim's first write undo its last one; the version alone would let
# a stranger in after a restore. Values are absolute, so that a write means the same however often it arrives.
_IS_AS_KNOWN = "c = :c AND v = :v AND s = :s"


@dataclass(frozen=True, slots=True)
class Write:
    """The whole new item, and the record that it takes the place of (None: of nothing)."""

    item: Item
    old: Record | None

    @property
    def pk(self) -> str:
        """The item's primary key."""
        pk: str = self.item["pk"]["S"]
        return pk


@dataclass(frozen=True, slots=True)
class Refused:
    """The condition did not hold; `stored` is the item that stood in its way, None where the engine gave none."""

    stored: Item | None


class Writer(Protocol):
    """A way to write."""

    def write(self, write: Write) -> Refused | None:
        """Apply a conditional write; None when it was applied. Raises `LedgerError`; it may then have been, too."""
        ...


def fence_values(old: Record) -> tuple[Value, Value, Value]:
    """Claim id, version and state, as a request wants them."""
    return {"S": old.claim_id}, {"N": str(old.version)}, {"S": old.state.value}


class PlainWriter:
    """A `PutItem` for each write."""

    def __init__(self, connection: Connection, table: str) -> None:
        self._connection = connection
        self._table = table
        self._place = table_place(table)

    def write(self, write: Write) -> Refused | None:
        """See `Writer.write`."""
        client: DynamoClient = self._connection.client
        request = {
            "TableName": self._table,
            "Item": write.item,
            # The item that stood in the way comes with the refusal: no read, and no time for it to change.
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        } | _condition(write.old)
        with translated(self._place, "dynamodb:PutItem"):
            try:
                client.put_item(**request)
            except ClientError as error:
                if error.response["Error"]["Code"] not in CONDITION_FAILED:
                    raise
                answer: Any = error.response
                return Refused(answer.get("Item"))
        return None


def _condition(old: Record | None) -> dict[str, object]:
    if old is None:
        return {"ConditionExpression": _IS_ABSENT}
    names = zip((":c", ":v", ":s"), fence_values(old), strict=True)
    return {"ConditionExpression": _IS_AS_KNOWN, "ExpressionAttributeValues": dict(names)}
