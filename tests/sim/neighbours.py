"""Who else is in the world: the schedulers of an application, and the provider that tells of what it has accepted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from itertools import count
from typing import Any

from dramatiq import Message

from idem.email import Email
from idem.errors import IdemError, LedgerUnavailable
from idem.events import EventNotes, Happened
from idem.protocol import State
from tests.fakes import START, Crash
from tests.sim.faults import Faults, Kind
from tests.sim.provider import Acceptance
from tests.sim.world import KEEP_SECONDS, Job, Producing, Scenario, Table, Worker, World
from workers.schedule.board import Board, Entry, cell_of, tag
from workers.schedule.scheduler import Scheduler
from workers.schedule.slots import CatchUp, Schedule, write_instant

_SLOT_SECONDS = 60
#: Less than a slot, or the first of them would not be everybody's.
_SKEWS = (0.0, 5.0)
_LOOK_SECONDS = 20.0
#: When a provider tells of an acceptance: while a lease may run, and when somebody opens it.
_TOLD_AFTER = (45.0, 10 * 86_400.0)
#: How long after a note somebody goes by it, and after how long what failed is tried again.
_LISTEN_SECONDS = 60.0
_AGAIN_SECONDS = 60.0


def world_of(scenario: Scenario, faults: Faults, *, tracing: bool = False) -> World:
    """The world of a scenario, with all who are in it."""
    world = World(scenario, faults, tracing=tracing)
    for job in scenario.jobs:
        if job.slots:
            _declare(world, job)
    if scenario.events:
        tell = _Listener(world).tell
        for side in world.sides.values():
            side.heed = tell
    return world


class _Autumn(tzinfo):
    """A time zone whose clocks go back by a slot after the first one: two slots have one wall time."""

    def __init__(self, first: int) -> None:
        self._first = datetime.fromtimestamp(first, UTC)

    def fromutc(self, when: datetime) -> datetime:
        summer = when.replace(tzinfo=UTC) <= self._first
        return when + timedelta(seconds=_SLOT_SECONDS) if summer else when.replace(fold=1)

    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(seconds=0 if when is None or when.fold else _SLOT_SECONDS)

    def dst(self, when: datetime | None) -> timedelta:
        return self.utcoffset(when)

    def tzname(self, when: datetime | None) -> str:
        return "winter" if when is None or when.fold else "summer"


class _Listed:
    """A rule that ends: whoever was away for a day does not have a day's slots to make up for."""

    text = "listed"

    def __init__(self, slots: Sequence[int]) -> None:
        self._slots = slots
        self.zone = _Autumn(slots[0])

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


class _Listener:
    """A receiver that notes what the provider tells, and a reconciler that goes by what was noted, a moment later."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._noted: set[str] = set()
        self._runs = count(1)

    def tell(self, acceptance: Acceptance) -> None:
        """Have the provider tell of it."""
        for number, seconds in enumerate(_TOLD_AFTER):
            self._world.later(seconds, partial(self._hear, acceptance, f"event {acceptance.message_id} {number}"))

    def _hear(self, acceptance: Acceptance, event_id: str) -> None:
        """It comes again until it has been taken."""
        process = self._process(f"event of {acceptance.subject}")
        cells = _Cells(process, self._world.table)
        notes = EventNotes(cells, clock=process.clock, keep_seconds=KEEP_SECONDS)
        name, message_id = acceptance.provider_key, acceptance.message_id
        try:
            notes.add(name, Happened.DELIVERED, source="simulated", event_id=event_id, message_id=message_id)
        except (IdemError, Crash):
            self._world.later(_AGAIN_SECONDS, partial(self._hear, acceptance, event_id))
        else:
            self._look_in({name}, _LISTEN_SECONDS)

    def _look_in(self, names: set[str], seconds: float) -> None:
        """Have a reconciler go by what was noted, for all at once that comes until then."""
        if not self._noted:
            self._world.later(seconds, self._look)
        self._noted |= names

    def _look(self) -> None:
        names, self._noted = self._noted, set()
        process = self._process(f"listener-{next(self._runs)}")
        doubted = {key for name in names for key in self._doubted(name)}
        try:
            process.reconciler.run()
        except (IdemError, Crash):
            self._look_in(names, _AGAIN_SECONDS)
        else:
            self._world.known |= doubted

    def _process(self, name: str) -> Worker:
        process = Worker(self._world, 20, 0.0)
        process.name = name
        return process

    def _doubted(self, name: str) -> Iterator[str]:
        """The key whose derived key this is, if it is in doubt."""
        key, generation = self._world.derived[name]
        record = self._world.table.read(key)
        if record is not None and record.state is State.IN_DOUBT and record.generation == generation:
            yield key
