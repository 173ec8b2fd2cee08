"""Takes rows from the outbox to the queue, at least once each. Any number of relays may run; one at a time is at work.

A row is deleted only after the queue has it, so that a relay that dies in between loses nothing: the row is enqueued
again, with the same message under the same key, and the ledger makes one email of it.

**Ordered** means: a relay enqueues the rows that are committed when it looks in the order of their ids, and begins with
the first one again. A transaction that commits late is relayed when it has, whatever came before: no row is passed
over. Outside that order is what is delayed, what was set aside, what a relay enqueues that hung for longer than its
lease, and whatever workers do: they send side by side.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dramatiq import Message
from dramatiq.errors import DecodeError

from idem.errors import (
    BodyTooLarge,
    BrokerError,
    EmailError,
    IdemError,
    InvalidKey,
    JobError,
    JobTooLarge,
    LedgerError,
    OutboxUnavailable,
)
from idem.privacy import redact
from workers.brokers.base import TOGETHER
from workers.brokers.messages import decode
from workers.jobs import QUEUE
from workers.outbox.database import Database, Row
from workers.outbox.turn import Turn
from workers.timing import Timing

_log = logging.getLogger("idem.worker")

#: What a message is met with that can be read, but not written again.
_UNREADABLE = (ValueError, TypeError, RecursionError)
#: What is wrong with the row itself, and would be no better the next time.
_ITS_OWN = (JobTooLarge, BodyTooLarge, JobError, EmailError, InvalidKey, *_UNREADABLE)
_CANNOT_BE_READ = "it holds no message that can be read"
#: How long a wait may be before a signal is noticed.
_LOOK_SECONDS = 0.1
_FIRST_PAUSE_SECONDS = 0.2


@dataclass(slots=True)
class _Gone:
    """What became of rows so far: those that the queue has, and why it cannot have others."""

    enqueued: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)


class Relay:
    """One relay; not to be shared between threads.

    `ask` enqueues one message, and raises what `App.enqueue` raises; `ask_all` enqueues several at once, and says of
    each why it was not, or is None where something has to be done for each. `reach` is told the points at which a
    process may die.
    """

    def __init__(
        self,
        database: Database,
        turn: Turn,
        ask: Callable[[Message[None], Timing], None],
        ask_all: Callable[[Sequence[Message[None]]], Sequence[BrokerError | None]] | None,
        *,
        reach: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._turn = turn
        self._ask = ask
        self._ask_all = ask_all
        self._reach = reach

    def tick(self) -> bool:
        """Relay the first rows, if it is this relay's turn; False when there is nothing to do for it.

        Raises `BrokerError`, `LedgerError` and `OutboxUnavailable`; what was not deleted is then enqueued again.
        """
        if not self._turn.have():
            return False
        rows = self._database.next()
        self._reach("looked")
        gone, failure = _Gone(), None
        try:
            self._enqueue(rows, gone)
        except IdemError as error:
            failure = error
        self._reach("enqueued")
        if gone.enqueued or gone.refused:
            self._write_down(gone)
        if failure is not None:
            raise failure
        return bool(rows)

    def is_empty(self) -> bool:
        """Whether no committed row waits."""
        return self._database.is_empty()

    def release(self) -> None:
        """Let another relay go on."""
        self._turn.release()

    def _enqueue(self, rows: Sequence[Row], gone: _Gone) -> None:
        for start in range(0, len(rows), TOGETHER):
            if not self._turn.is_fresh():
                return
            self._enqueue_some(rows[start : start + TOGETHER], gone)
            self._reach("some")

    def _enqueue_some(self, rows: Sequence[Row], gone: _Gone) -> None:
        """At once those that can be; one by one, in their order, those that are left."""
        messages = {row.id: message for row in rows if (message := _read(row, gone)) is not None}
        at_once = {row.id: messages[row.id] for row in rows if row.id in messages and row.ready_at is None}
        with suppress(*_UNREADABLE):
            for row_id in self._enqueue_together(at_once):
                _note(messages.pop(row_id), row_id, gone)
        for row in rows:
            if row.id in messages:
                self._enqueue_one(row, messages[row.id], gone)

    def _enqueue_together(self, messages: Mapping[int, Message[None]]) -> Iterator[int]:
        """The ids of those that the queue has now. Raises what was wrong with the way there, and with no row."""
        if self._ask_all is None or not messages:
            return
        failure = None
        for row_id, error in zip(messages, self._ask_all(list(messages.values())), strict=True):
            if error is None:
                yield row_id
            elif not isinstance(error, _ITS_OWN):
                failure = failure or error
        if failure is not None:
            raise failure

    def _enqueue_one(self, row: Row, message: Message[None], gone: _Gone) -> None:
        """Alone, so that what is refused is about this row: an answer about several may be that of another."""
        try:
            self._ask(message, Timing.until(row.ready_at, time.time()))
        except _ITS_OWN as error:
            # What is no error of ours may hold a part of the email.
            gone.refused[row.id] = redact(str(error)) if isinstance(error, IdemError) else _CANNOT_BE_READ
        else:
            _note(message, row.id, gone)

    def _write_down(self, gone: _Gone) -> None:
        with self._turn.keep() as connection:
            if connection is None:
                _log.warning("another relay has taken the turn; what this one enqueued, it enqueues again")
                return
            if gone.enqueued:
                self._database.remove(connection, gone.enqueued)
            if gone.refused:
                self._database.set_aside(connection, gone.refused)
            self._reach("removed")
        for row_id, reason in gone.refused.items():
            _log.error("row %d of the outbox is set aside: %s; see idem outbox list", row_id, reason)


def _read(row: Row, gone: _Gone) -> Message[None] | None:
    try:
        return decode(row.message, QUEUE, {})
    except DecodeError:
        gone.refused[row.id] = _CANNOT_BE_READ
        return None


def _note(message: Message[None], row_id: int, gone: _Gone) -> None:
    gone.enqueued.append(row_id)
    _log.info("key %s is enqueued", message.kwargs.get("key"))


def keep_relaying(
    relay: Relay, wait: Callable[[float], bool], *, until_empty: bool, poll_seconds: float, most_seconds: float
) -> None:
    """Relay until `wait` says that it was told to stop, or, `until_empty`, until no committed row waits.

    While the database, the queue or the ledger does not answer, nothing is lost: it tries again, after pauses that grow
    up to `most_seconds`, and lets other relays try meanwhile.
    """
    pause, failures = 0.0, 0
    while not _slept(wait, pause):
        try:
            busy = relay.tick()
            if until_empty and not busy and relay.is_empty():
                return
        except (BrokerError, LedgerError, OutboxUnavailable) as error:
            if not failures:
                _log.warning("rows wait in the outbox: %s", error)
            _let_others_try(relay)
            pause = min(most_seconds, _FIRST_PAUSE_SECONDS * 2 ** min(failures, 10))
            failures += 1
        else:
            if failures:
                _log.warning("the outbox is relayed again")
            pause, failures = 0.0 if busy else poll_seconds, 0


def _let_others_try(relay: Relay) -> None:
    with suppress(OutboxUnavailable):
        relay.release()


def _slept(wait: Callable[[float], bool], seconds: float) -> bool:
    """Wait that long, in pieces after which a signal is noticed; True when told to stop."""
    end = time.monotonic() + seconds
    while not wait(min(_LOOK_SECONDS, max(0.0, end - time.monotonic()))):
        if time.monotonic() >= end:
            return False
    return True
