"""Who else is in the world: the schedulers of an application, and the provider that tells of what it has accepted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from functools import partial
from typing import Any

from dramatiq import Message

from idem.email import Email
from idem.errors import IdemError, LedgerUnavailable
from idem.events import EventNotes, Happened
from idem.keys import provider_key
from idem.protocol import State
from tests.fakes import START, Crash
from tests.sim.faults import Faults, Kind
from tests.sim.provider import Acceptance
from tests.sim.world import KEEP_SECONDS, NAMESPACE, Job, Producing, Scenario, Table, Worker, World
from workers.schedule.board import Board, Entry, cell_of, tag
from workers.schedule.scheduler import Scheduler
from workers.schedule.slots import CatchUp, Schedule, write_instant

_SLOT_SECONDS = 60
#: Less than a slot, or the first of them would not be everybody's.
_SKEWS = (0.0, 5.0)
_LOOK_SECONDS = 20.0
#: When a provider tells of an acceptance: while a lease may run, and when somebody opens it.
_TOLD_AFTER = (45.0, 10 * 86_400.0)


def world_of(scenario: Scenario, faults: Faults, *, tracing: bool = False) -> World:
    """The world of a scenario, with all who are in it."""
    world = World(scenario, faults, tracing=tracing)
    for job in scenario.jobs:
        if job.slots:
            _declare(world, job)
    if scenario.events:
        world.side.heed = partial(_tell, world)
    return world


class _Listed:
    """A rule that ends: whoever was away for a day does not have a day's slots to make up for."""

    text = "listed"
    zone = UTC

    def __init__(self, slots: Sequence[int]) -> None:
        self._slots = slots

    def next(self, after: int) -> int | None:
        return next((slot for slot in self._slots if slot > after), None)


def _declare(world: World, job: Job) -> None:
    """Two schedulers of one schedule, and the keys of the slots that there have to be."""

    def build(instant: str) -> Email:
        return world.email(job, f"{job.name}/{instant}", "slot")

    world.functions[job.name] = build
    first = (int(START) // _SLOT_SECONDS + 2) * _SLOT_SECONDS
    slots = [first + _SLOT_SECONDS * number for number in range(job.slots)]
    schedule = Schedule(job.name, _Listed(slots), CatchUp.of("all"))
    names = [f"{job.name}/{write_instant(slot)}" for slot in slots]
    world.keys |= {name: name for name in names}
    world.asked |= {name: float(slot) for name, slot in zip(names, slots, strict=True)}
    for number, skew in enumerate(_SKEWS, 1):
        _Timekeeper(world, number, skew, schedule, slots)


class _Cells:
    """A process's connection to the cells of the store."""

    def __init__(self, worker: Worker, table: Table) -> None:
        self._worker = worker
        self._table = table

    def read_cell(self, name: str) -> bytes | None:
        return self._worker.io("cell", partial(self._table.read_cell, name), LedgerUnavailable)

    def swap_cell(self, name: str, old: bytes | None, new: bytes, *, keep_seconds: float | None = None) -> bytes | None:
        swap = partial(self._table.swap_cell, name, old, new, keep_seconds=keep_seconds)
        return self._worker.io("cell", swap, LedgerUnavailable)


class _Timekeeper(Worker):
    """A scheduler's process, which is started again when it dies, until the last slot is enqueued."""

    def __init__(self, world: World, number: int, skew: float, schedule: Schedule, slots: Sequence[int]) -> None:
        self._schedule = schedule
        self._first, self._last = slots[0], slots[-1]
        super().__init__(world, 10 + number, skew)
        world.producing += 1
        world.later(float(number), self._round)

    def start(self) -> None:
        super().start()
        self.name = f"scheduler-{self.number}"
        broker: Any = Producing(self)
        cells = _Cells(self, self.world.table)
        self._scheduler = Scheduler(
            {self._schedule.name: self._schedule}, Board(cells), broker.enqueue_many, clock=self.clock, reach=self._pass
        )
        self._joined = False

    def enqueues_as(self, message: Message[None]) -> str:
        return str(message.kwargs["key"])

    def _pass(self, point: str) -> None:
        fault = self.meet("point")
        assert fault is None or fault.kind is not Kind.CRASH_BEFORE, point

    def _round(self) -> None:
        try:
            if not self._joined:
                self._join()
                self._joined = True
            while self._scheduler.tick():
                pass
        except IdemError:
            pass
        except Crash:
            self.start()
        if self._is_through():
            self.world.producing -= 1
        else:
            self.world.later(_LOOK_SECONDS, self._round)

    def _join(self) -> None:
        """A schedule begins when the first scheduler of all has joined: what was before that is owed by nobody."""
        try:
            self._scheduler.start()
        finally:
            entry = self._entry()
            if entry is not None and self._schedule.name not in self.world.begun:
                self.world.begun.add(self._schedule.name)
                # By nobody's clock it is later: an entry that is further on would leave out what is owed.
                began = min(entry.last, int(self.world.scheduler.now + max(_SKEWS)))
                for slot in range(self._first, began + 1, _SLOT_SECONDS):
                    self.world.keys.pop(f"{self._schedule.name}/{write_instant(slot)}", None)

    def _entry(self) -> Entry | None:
        return Board(self.world.table).read(cell_of(self._schedule.name)).get(tag(self._schedule.name))

    def _is_through(self) -> bool:
        entry = self._entry()
        return entry is not None and entry.last >= self._last


def _tell(world: World, acceptance: Acceptance) -> None:
    for number, seconds in enumerate(_TOLD_AFTER):
        world.later(seconds, partial(_hear, world, acceptance, f"event {acceptance.message_id} {number}"))


def _hear(world: World, acceptance: Acceptance, event_id: str) -> None:
    """A receiver notes an event, and a reconciler goes by it; it comes again until it has been taken."""
    process = Worker(world, 20, 0.0)
    process.name = f"event of {acceptance.subject}"
    notes = EventNotes(_Cells(process, world.table), clock=process.clock, keep_seconds=KEEP_SECONDS)
    doubted = _doubted(world, acceptance.provider_key)
    try:
        notes.add(
            acceptance.provider_key,
            Happened.DELIVERED,
            source="simulated",
            event_id=event_id,
            message_id=acceptance.message_id,
        )
        process.reconciler.run()
    except (IdemError, Crash):
        world.later(60.0, partial(_hear, world, acceptance, event_id))
        return
    world.known |= doubted


def _doubted(world: World, name: str) -> set[str]:
    """The keys in doubt whose derived key this is."""
    return {
        record.key
        for record in world.table.list(State.IN_DOUBT, len(world.keys))
        if provider_key(NAMESPACE, record.key, record.generation) == name
    }
