"""Enqueues what is due. Any number of schedulers may run, and none is the leader.

A slot goes to the queue first, and only then is it written down that it did, by a compare-and-set. So a scheduler that
dies in between loses nothing: the slot is enqueued again, under the same key, and the ledger makes one email of it. The
same goes for two schedulers at one slot; each looks at what is written before it begins, so that it is rare.
"""

from __future__ import annotations

import heapq
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from dramatiq import Message

from idem.clock import Clock
from idem.errors import BrokerError, IdemError
from workers.brokers.base import TOGETHER
from workers.jobs import job_message
from workers.schedule.board import Board, Entry, cell_of, tag
from workers.schedule.slots import Schedule, write_instant

_log = logging.getLogger("idem.worker")

#: Enqueues messages, and says of each why it was not: what `JobBroker.enqueue_many` does.
EnqueueMany = Callable[[Sequence[Message[None]]], Sequence[BrokerError | None]]

#: About how many slots are enqueued before it is written down: what is repeated after a crash.
ROUND = 500
#: How long a wait may be: a clock that is set is noticed, and so is a signal.
_LOOK_SECONDS = 0.1
_RETRY_SECONDS = 1.0
#: Each scheduler comes this much later than a slot, at the most: whoever is second finds that there is nothing to do.
SPREAD_SECONDS = 0.2


class Scheduler:
    """The schedules of an application, in one process; not to be shared between threads.

    `memory_seconds` is how long the ledger remembers a key: an older slot is never taken for one that was not sent.
    `reach` is told the name of each point at which a process may die.
    """

    def __init__(  # noqa: PLR0913 - the parts of a scheduler process
        self,
        schedules: Mapping[str, Schedule],
        board: Board,
        enqueue_many: EnqueueMany,
        *,
        clock: Clock,
        memory_seconds: float | None = None,
        reach: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._schedules = {tag(name): schedule for name, schedule in schedules.items()}
        self._board = board
        self._enqueue_many = enqueue_many
        self._clock = clock
        self._memory_seconds = memory_seconds
        self._reach = reach
        #: When each schedule of each cell is due, and a heap of the cells by what is due first in them.
        self._due: dict[int, dict[str, int]] = defaultdict(dict)
        self._heap: list[tuple[int, int]] = []

    def start(self) -> None:
        """Join the board, where a schedule that is new begins now, and see what is due when."""
        now = int(self._clock.now())
        cells: dict[int, list[str]] = defaultdict(list)
        for mark, schedule in self._schedules.items():
            cells[cell_of(schedule.name)].append(mark)
        for cell, marks in cells.items():
            known = self._join(cell, marks, now)
            for mark in marks:
                self._expect(cell, mark, known[mark], now)
            self._push(cell)

    def next_at(self) -> int | None:
        """When a slot is due next, in Unix seconds; None if none ever is."""
        return self._heap[0][0] if self._heap else None

    def tick(self) -> bool:
        """Do about a round of what is due in one cell; False when nothing is due.

        Raises `BrokerUnavailable` or `LedgerUnavailable`, and what was not written down is then done again.
        """
        now = int(self._clock.now())
        if not self._heap or self._heap[0][0] > now:
            return False
        _, cell = heapq.heappop(self._heap)
        try:
            self._do(cell, [mark for mark, due in self._due[cell].items() if due <= now], now)
        finally:
            self._push(cell)
        return True

    def _join(self, cell: int, marks: list[str], now: int) -> Mapping[str, Entry]:
        return self._board.change(cell, lambda known: {mark: Entry(now) for mark in marks if mark not in known})

    def _do(self, cell: int, marks: list[str], now: int) -> None:
        known = self._join(cell, marks, now)
        # To each its share: one that has much to catch up on must not hold up the others.
        share = max(1, ROUND // len(marks))
        runs: list[tuple[Schedule, int]] = []
        reached: dict[str, int] = {}
        for mark in marks:
            if not known[mark].paused:
                start, slots = self._due_of(self._schedules[mark], known[mark].last, now, share)
                runs += [(self._schedules[mark], slot) for slot in slots]
                last = slots[-1] if slots else start
                reached |= {mark: last} if last > known[mark].last else {}
        for _ in enqueue_slots(self._enqueue_many, runs):
            self._reach("slot")
        self._reach("enqueued")
        if reached:
            known = self._board.change(cell, lambda found: _advanced(found, reached))
        for mark in marks:
            self._expect(cell, mark, known[mark], now)

    def _due_of(self, schedule: Schedule, last: int, now: int, limit: int) -> tuple[int, list[int]]:
        """After which instant a schedule's slots are to run, and the first `limit` of those that are due."""
        remembered = last if self._memory_seconds is None else max(last, int(now - self._memory_seconds))
        start = schedule.start(remembered, now)
        if start > last:
            _report_left_out(schedule, last, start)
        return start, list(islice(schedule.between(start, now), limit))

    def _expect(self, cell: int, mark: str, entry: Entry, now: int) -> None:
        """Note when a schedule is due. A paused one is looked at again at its next slot."""
        due = self._schedules[mark].rule.next(max(entry.last, now) if entry.paused else entry.last)
        if due is None:
            self._due[cell].pop(mark, None)
        else:
            self._due[cell][mark] = due

    def _push(self, cell: int) -> None:
        if self._due[cell]:
            heapq.heappush(self._heap, (min(self._due[cell].values()), cell))


def enqueue_slots(enqueue_many: EnqueueMany, runs: Iterable[tuple[Schedule, int]]) -> Iterator[list[str]]:
    """Enqueue runs of slots, several in a request; their keys, as soon as the broker has them.

    How often it is done makes no difference to what is sent. Raises `BrokerError` when one was not enqueued, or may not
    have been.
    """
    waiting = iter(runs)
    while together := [_run(schedule, slot) for schedule, slot in islice(waiting, TOGETHER)]:
        for error in filter(None, enqueue_many([message for message, _ in together])):
            raise error
        keys = [key for _, key in together]
        for key in keys:
            _log.info("key %s is enqueued", key)
        yield keys


def _run(schedule: Schedule, slot: int) -> tuple[Message[None], str]:
    return job_message(schedule.name, [write_instant(slot)], {}, schedule.key(slot), schedule.in_doubt)


def keep_up(scheduler: Scheduler, wait: Callable[[float], bool], now: Callable[[], float], spread: float) -> None:
    """Enqueue what is due, `spread` seconds after it is due, until `wait` says that it was told to stop.

    While the broker or the ledger does not answer, nothing is lost: it is done once they do.
    """
    while not wait(_pause(scheduler.next_at(), now(), spread)):
        try:
            while scheduler.tick() and not wait(0):
                pass
        except IdemError as error:
            _log.warning("slots wait: %s", error)
            if wait(_RETRY_SECONDS):
                return


def _pause(next_at: int | None, now: float, spread: float) -> float:
    return _LOOK_SECONDS if next_at is None else min(_LOOK_SECONDS, max(0.0, next_at + spread - now))


def _advanced(found: Mapping[str, Entry], reached: Mapping[str, int]) -> Mapping[str, Entry]:
    """The entries moved on, never back: another scheduler may have been quicker, or a person may have paused one."""
    return {
        mark: Entry(max(last, found[mark].last), found[mark].paused) if mark in found else Entry(last)
        for mark, last in reached.items()
    }


def _report_left_out(schedule: Schedule, last: int, start: int) -> None:
    first = schedule.rule.next(last)
    if first is not None and first <= start:
        _log.warning(
            "schedule %s: slots from %s to %s were missed, and catch_up=%s leaves them out",
            schedule.name,
            write_instant(first),
            write_instant(start),
            schedule.catch_up,
        )
