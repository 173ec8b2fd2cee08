"""The store: records in a DynamoDB table that all workers on all machines agree on.

What it costs: a write of at most 1 KB is one write unit, a claim and a settle are two, and nothing is read. A refused
write costs one unit and brings the stored item along; only a refused insert of a batch has to be followed by a read.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from idem.errors import LedgerError, LedgerUnavailable, LedgerUnusable
from idem.protocol import ASKED, Record, State
from idem.stores.base import VANISHED
from idem.stores.dynamodb.batch import GroupWriter
from idem.stores.dynamodb.bodies import Bucket, add_body, read_body
from idem.stores.dynamodb.cells import cell_key, read_cell, swap_cell
from idem.stores.dynamodb.connection import Connection, DynamoClient
from idem.stores.dynamodb.failures import table_place, translated
from idem.stores.dynamodb.items import (
    INDEXED,
    Item,
    attention_keys,
    item_to_record,
    key_value,
    partition_key,
    record_to_item,
)
from idem.stores.dynamodb.table import INDEX, Table
from idem.stores.dynamodb.writes import PlainWriter, Write, Writer

#: Ninety days: longer than a message can live in SQS and its dead letters (`idem.policy.Durations` has the sum).
RETENTION_SECONDS: Final = 90 * 86_400.0

#: The most that one BatchGetItem takes.
_PAGE: Final = 100
_TRIES: Final = 10

#: In the index these would cost every email that is sent two write units more, and twice as much in all. One look
#: through the table costs half a read unit for each 4 KB of it, and is for a person, who has lost sight of a job.
_IN_FLIGHT: Final = (State.SENDING, State.RENDERING)

#: Of 1 MB each: about 20 million records, for 1.3 million read units.
_SCANNED_PAGES: Final = 10_000


class DynamoStore:
    """Records in one table, under one namespace. See `Store`; `count` knows only the states of `INDEXED`."""

    def __init__(  # noqa: PLR0913 - each is one thing that a deployment decides
        self,
        connection: Connection,
        table: str,
        *,
        namespace: str = "default",
        bucket: Bucket | None = None,
        retention_seconds: float = RETENTION_SECONDS,
        grouped: bool = True,
    ) -> None:
        if not namespace.isprintable() or not namespace:
            raise ValueError("a namespace is made of characters that print")
        self._connection = connection
        self._name = table
        self._namespace = namespace
        self._bucket = bucket
        self._retention_seconds = retention_seconds
        self._place = table_place(table)
        self._table = Table(connection, table, grouped=grouped)
        writer = GroupWriter(connection, table) if grouped else PlainWriter(connection, table)
        self._writer: Writer = writer

    def create(self) -> tuple[str, ...]:
        """Create the table, if it is not there; returns what this endpoint cannot do. See `Table.create`."""
        return self._table.create()

    def check(self) -> Sequence[str]:
        """Raise `LedgerUnusable`, with what to do, unless the promise can be kept with this table."""
        self._table.check()
        if self._bucket is not None:
            self._bucket.check()
        return ("a DynamoDB table: for any number of machines; what was answered is durable",)

    def read(self, key: str) -> Record | None:
        """See `Store.read`."""
        pk = partition_key(self._namespace, key)
        with translated(self._place, "dynamodb:GetItem"):
            answer = self._client.get_item(TableName=self._name, Key=key_value(pk), ConsistentRead=True)
        item = answer.get("Item")
        return None if item is None else self._record(item)

    def swap(self, old: Record | None, new: Record) -> Record | None:
        """See `Store.swap`."""
        item = record_to_item(self._namespace, new, self._retention_seconds)
        add_body(item, new.body, self._bucket)
        refused = self._writer.write(Write(item, old))
        if refused is None:
            return None
        stored = self.read(new.key) if refused.stored is None else self._record(refused.stored)
        if stored is None and old is None:
            raise LedgerUnavailable(f"{self._place.name} forgot an old record while its key was claimed: try again")
        if stored is None:
            raise LedgerUnusable(VANISHED)
        return stored

    def list(self, state: State, limit: int) -> Iterator[Record]:
        """See `Store.list`. What is in flight is looked for in the whole table, at a cost; what has been sent is not.

        Raises `LedgerError` for `sent` and `split`, and for a table that is too large to be looked through.
        """
        if state in INDEXED:
            return islice((record for record in self._listed(state) if record.state is state), limit)
        if state in _IN_FLIGHT:
            return self._in_flight(state, limit)
        listed = ", ".join(known.value for known in (*INDEXED, *_IN_FLIGHT))
        raise LedgerError(f"{self._place.name} cannot list {state.value} records; it lists {listed}")

    def asked(self, limit: int) -> Iterator[Record]:
        """See `Store.asked`: all of them are in the index, under PENDING."""
        found = (record for record in self._listed(State.PENDING) if record.durable and record.state in ASKED)
        return islice(found, limit)

    def count(self) -> Mapping[State, int]:
        """See `Store.count`; only the states of `INDEXED` are in it, each also when there are none.

        What is durable and in flight is counted as pending.
        """
        return {state: sum(self._count(part) for part in attention_keys(self._namespace, state)) for state in INDEXED}

    def read_cell(self, name: str) -> bytes | None:
        """See `Cells.read_cell`."""
        return read_cell(self._connection, self._name, cell_key(self._namespace, name))

    def swap_cell(self, name: str, old: bytes | None, new: bytes, *, expires_at: float | None = None) -> bytes | None:
        """See `PassingCells.swap_cell`."""
        pk = cell_key(self._namespace, name)
        return swap_cell(self._connection, self._name, pk, old, new, expires_at=expires_at)

    def close(self) -> None:
        """See `Store.close`."""
        self._connection.close()
        if self._bucket is not None:
            self._bucket.close()

    @property
    def _client(self) -> DynamoClient:
        client: DynamoClient = self._connection.client
        return client

    def _record(self, item: Item) -> Record:
        return item_to_record(item, read_body(item, self._bucket))

    def _listed(self, state: State) -> Iterator[Record]:
        """The index only says where to look: it may lag, and each record is read for itself before it is believed."""
        parts = [self._query(part) for part in attention_keys(self._namespace, state)]
        entries = heapq.merge(*parts, key=lambda entry: float(entry["at"]["N"]))
        keys = (entry["pk"]["S"] for entry in entries)
        while page := list(islice(keys, _PAGE)):
            found = {item["pk"]["S"]: item for item in self._read_all(page)}
            records = (self._record(found[pk]) for pk in page if pk in found)
            yield from records

    def _in_flight(self, state: State, limit: int) -> Iterator[Record]:
        """The scan says where to look, as the index does; of what it finds, only the oldest are kept in memory."""
        found = heapq.nsmallest(limit, self._scan(state))
        for start in range(0, len(found), _PAGE):
            page = [pk for _, pk in found[start : start + _PAGE]]
            records = sorted(map(self._record, self._read_all(page)), key=lambda record: record.updated_at)
            yield from (record for record in records if record.state is state)

    def _scan(self, state: State) -> Iterator[tuple[float, str]]:
        """When each record in the state was last changed, and its primary key."""
        request: dict[str, Any] = {
            "TableName": self._name,
            "FilterExpression": "s = :s AND begins_with(pk, :pk)",
            "ExpressionAttributeValues": {":s": {"S": state.value}, ":pk": {"S": partition_key(self._namespace, "")}},
            "ProjectionExpression": "pk, r",
        }
        for _ in range(_SCANNED_PAGES):
            with translated(self._place, "dynamodb:Scan"):
                answer = self._client.scan(**request)
            for item in answer["Items"]:
                yield item_to_record(item, None).updated_at, item["pk"]["S"]
            if "LastEvaluatedKey" not in answer:
                return
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
        raise LedgerError(
            f"{self._place.name} is too large to be looked through for {state.value} records "
            f"({_SCANNED_PAGES:,} MB were): export the table, and look there"
        )

    def _query(self, part: str, **options: Any) -> Iterator[Item]:
        for answer in self._pages(part, **options):
            yield from answer["Items"]

    def _count(self, part: str) -> int:
        return sum(int(answer["Count"]) for answer in self._pages(part, Select="COUNT"))

    def _pages(self, part: str, **options: Any) -> Iterator[dict[str, Any]]:
        request: dict[str, Any] = {
            "TableName": self._name,
            "IndexName": INDEX,
            "KeyConditionExpression": "ap = :ap",
            "ExpressionAttributeValues": {":ap": {"S": part}},
        }
        while True:
            with translated(self._place, "dynamodb:Query"):
                answer = self._client.query(**request | options)
            yield answer
            if "LastEvaluatedKey" not in answer:
                return
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def _read_all(self, pks: Sequence[str]) -> Iterator[Item]:
        left: Sequence[Item] = [key_value(pk) for pk in pks]
        for _ in range(_TRIES):
            with translated(self._place, "dynamodb:BatchGetItem"):
                answer = self._client.batch_get_item(RequestItems={self._name: {"Keys": left, "ConsistentRead": True}})
            yield from answer["Responses"].get(self._name, [])
            left = answer.get("UnprocessedKeys", {}).get(self._name, {}).get("Keys", [])
            if not left:
                return
        raise LedgerUnavailable(f"{self._place.name} does not take the request now")
