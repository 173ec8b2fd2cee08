"""Group commit: threads that write at the same moment share one call, each with its own condition and its own result.

A writer that is alone writes at once. While a call is under way, those who come wait; when it is back, the first of
them takes all who wait (25 at most, the largest `BatchExecuteStatement`) and writes for them. When 25 wait, they do not
wait for the call to be back. There is no thread but the writers' own.

A statement of a batch stands for itself: it is applied or refused without regard to the others
(https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchExecuteStatement.html).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import lru_cache
from typing import Any, Final

from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

from idem.errors import LedgerError, LedgerUnavailable
from idem.stores.dynamodb.connection import Connection, DynamoClient
from idem.stores.dynamodb.failures import CONDITION_FAILED, code_of, failure, table_place, translated
from idem.stores.dynamodb.items import ATTRIBUTES, Value
from idem.stores.dynamodb.writes import PlainWriter, Refused, Write, fence_values

#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/ql-reference.multiplestatements.batching.html
_FULL: Final = 25

#: A frozen body above this goes alone: what is saved is a call's fixed cost, and nobody should wait for its bytes.
_LARGE_BYTES: Final = 16 * 1024

#: How long one waits for a call that hangs before one writes without regard to it.
_PATIENCE_SECONDS: Final = 0.25

#: Longer than any call can take with the client's timeouts: whoever was to write for us has died.
_FORSAKEN_SECONDS: Final = 30.0


class _Redo(Enum):
    """What a writer has to do itself."""

    ALONE = auto()
    """Write again, without the others."""


_Result = Refused | LedgerError | _Redo | None


@dataclass(slots=True, eq=False)
class _Waiting:
    """A writer's place in the queue."""

    write: Write
    since: float
    called: threading.Event = field(default_factory=threading.Event)
    aboard: bool = False
    result: _Result = None
    _landed: bool = False

    def has_landed(self) -> bool:
        return self._landed

    def land(self, result: _Result) -> None:
        self.result = result
        self._landed = True
        self.called.set()


class GroupWriter:
    """Writes as `PlainWriter` does, in fewer calls."""

    def __init__(self, connection: Connection, table: str, calls: int = 4) -> None:
        self._connection = connection
        self._table = table
        self._place = table_place(table)
        self._plain = PlainWriter(connection, table)
        self._calls = calls
        self._under_way = 0
        self._queue: deque[_Waiting] = deque()
        self._lock = threading.Lock()

    def write(self, write: Write) -> Refused | None:
        """See `Writer.write`."""
        if len(write.item.get("b", {}).get("B", b"")) > _LARGE_BYTES:
            return self._plain.write(write)
        waiting = _Waiting(write, time.monotonic())
        with self._lock:
            self._queue.append(waiting)
            batch = self._board()
        while True:
            if batch:
                self._fly(batch)
            if waiting.has_landed():
                return self._result(waiting)
            batch = self._wait(waiting)

    def _wait(self, waiting: _Waiting) -> list[_Waiting]:
        """Until the write has landed, or it is ours to write for those who wait; then they are returned."""
        called = waiting.called.wait(_PATIENCE_SECONDS)
        if waiting.has_landed():
            return []
        with self._lock:
            waiting.called.clear()
            if waiting.has_landed():
                return []
            if time.monotonic() - waiting.since > _FORSAKEN_SECONDS:
                if not waiting.aboard:
                    self._queue.remove(waiting)
                waiting.land(LedgerUnavailable(f"{self._place.name} does not answer"))
                return []
            return self._board(overdue=not called and not waiting.aboard)

    def _board(self, *, overdue: bool = False) -> list[_Waiting]:
        """Who flies now, if anybody does. The lock is held."""
        full = len(self._queue) >= _FULL and self._under_way < self._calls
        if not self._queue or (self._under_way and not full and not overdue):
            return []
        batch: dict[str, _Waiting] = {}
        left: list[_Waiting] = []
        while self._queue and len(batch) < _FULL:
            waiting = self._queue.popleft()
            # One statement a key in a batch; a second one waits for the next.
            if batch.setdefault(waiting.write.pk, waiting) is not waiting:
                left.append(waiting)
        self._queue.extendleft(reversed(left))
        for waiting in batch.values():
            waiting.aboard = True
        self._under_way += 1
        return list(batch.values())

    def _fly(self, batch: Sequence[_Waiting]) -> None:
        """Write for all of them; whatever happens to this thread, nobody is left without an answer."""
        results: Sequence[_Result] = ()
        try:
            results = self._commit([waiting.write for waiting in batch])
        finally:
            with self._lock:
                self._under_way -= 1
                following = self._queue[0] if self._queue else None
            if following is not None:
                following.called.set()
            unanswered = LedgerUnavailable(f"{self._place.name}: the thread that wrote for others was interrupted")
            for waiting, result in zip(batch, results or [unanswered] * len(batch), strict=True):
                waiting.land(result)

    def _result(self, waiting: _Waiting) -> Refused | None:
        result = waiting.result
        if isinstance(result, LedgerError):
            # One of its own for each caller: an exception is no thing to share between threads.
            raise type(result)(*result.args) from result
        if result is None or isinstance(result, Refused):
            return result
        return self._plain.write(waiting.write)

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
