"""Group commit: threads that write at the same moment share one call, each with its own condition and its own result.

A statement of a batch stands for itself: it is applied or refused without regard to the others
(https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchExecuteStatement.html).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from functools import lru_cache
from typing import Any, Final

from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

from idem.errors import LedgerError, LedgerUnavailable
from idem.stores.dynamodb.connection import Connection, DynamoClient
from idem.stores.dynamodb.failures import CONDITION_FAILED, code_of, failure, table_place, translated
from idem.stores.dynamodb.items import ATTRIBUTES, Value
from idem.stores.dynamodb.writes import PlainWriter, Refused, Write, fence_values
from idem.together import Together

#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/ql-reference.multiplestatements.batching.html
_FULL: Final = 25

#: A frozen body above this goes alone: what is saved is a call's fixed cost, and nobody should wait for its bytes.
_LARGE_BYTES: Final = 16 * 1024


class _Redo(Enum):
    """What a writer has to do itself."""

    ALONE = auto()
    """Write again, without the others."""


_Result = Refused | LedgerError | _Redo | None


class GroupWriter:
    """Writes as `PlainWriter` does, in fewer calls."""

    def __init__(self, connection: Connection, table: str, calls: int = 4) -> None:
        self._connection = connection
        self._table = table
        self._place = table_place(table)
        self._plain = PlainWriter(connection, table)
        self._together = Together[Write, Refused | _Redo | None](
            self._commit,
            _of_different_keys,
            full=_FULL,
            requests=calls,
            unanswered=lambda why: LedgerUnavailable(f"{self._place.name}: {why}"),
        )

    def write(self, write: Write) -> Refused | None:
        """See `Writer.write`."""
        if len(write.item.get("b", {}).get("B", b"")) > _LARGE_BYTES:
            return self._plain.write(write)
        result = self._together.ask(write)
        return self._plain.write(write) if isinstance(result, _Redo) else result

    def _commit(self, writes: Sequence[Write]) -> Sequence[_Result]:
        """The result of each write, whatever happens."""
        try:
            return self._write_one(writes[0]) if len(writes) == 1 else self._write_all(writes)
        except LedgerError as error:
            return [error] * len(writes)

    def _write_one(self, write: Write) -> Sequence[_Result]:
        """Same price as a batch of one; and a refused `PutItem` brings the stored item, a refused INSERT does not."""
        return [self._plain.write(write)]

    def _write_all(self, writes: Sequence[Write]) -> Sequence[_Result]:
        client: DynamoClient = self._connection.client
        statements = [_statement(self._table, write) for write in writes]
        with translated(self._place, "dynamodb:PartiQLInsert and dynamodb:PartiQLUpdate"):
            try:
                answers = client.batch_execute_statement(Statements=statements)["Responses"]
            except ClientError as error:
                if code_of(error.response["Error"]) != "Validation":
                    raise
                # Nothing was applied, and one of them is at fault: alone, only that one fails.
                return [_Redo.ALONE] * len(writes)
        if len(answers) != len(writes):
            raise LedgerUnavailable(f"{self._place.name} left statements unanswered")
        return [self._verdict(write, answer) for write, answer in zip(writes, answers, strict=True)]

    def _verdict(self, write: Write, answer: dict[str, Any]) -> Refused | LedgerError | None:
        error = answer.get("Error")
        if error is None:
            return None
        if error.get("Code") in CONDITION_FAILED:
            return Refused(error.get("Item") or answer.get("Item"))
        return failure(self._place, f"dynamodb:PartiQL{'Insert' if write.old is None else 'Update'}", error)


def _of_different_keys(writes: Sequence[Write]) -> Sequence[int]:
    """A batch has one statement for a key; a second one waits for the next."""
    firsts: dict[str, int] = {}
    for position, write in enumerate(writes):
        firsts.setdefault(write.pk, position)
    return list(firsts.values())[:_FULL]


def _statement(table: str, write: Write) -> dict[str, Any]:
    names = tuple(name for name in ATTRIBUTES if name in write.item)
    values: list[Value] = [write.item[name] for name in names]
    key = write.item["pk"]
    if write.old is None:
        return {"Statement": _insert(table, names), "Parameters": [key, *values]}
    return {
        "Statement": _update(table, names),
        "Parameters": [*values, key, *fence_values(write.old)],
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


# An INSERT of a key that exists is refused, an UPDATE of one that does not exist is too: the conditions of
# `writes.py`, in PartiQL. Only equality and AND, which every engine understands.


@lru_cache(maxsize=256)
def _insert(table: str, names: tuple[str, ...]) -> str:
    values = ", ".join(f"'{name}': ?" for name in ("pk", *names))
    return f'INSERT INTO "{table}" VALUE {{{values}}}'


@lru_cache(maxsize=256)
def _update(table: str, names: tuple[str, ...]) -> str:
    given = [f'SET "{name}"=?' for name in names]
    taken = [f'REMOVE "{name}"' for name in ATTRIBUTES if name not in names]
    return f'UPDATE "{table}" {" ".join(given + taken)} WHERE "pk"=? AND "c"=? AND "v"=? AND "s"=?'
