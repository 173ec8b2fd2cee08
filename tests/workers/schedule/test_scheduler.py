"""Schedulers on one board: they die at every point, meet, fall behind and are paused; no slot is lost for it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from dramatiq import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from idem.errors import BrokerError, BrokerUnavailable, LedgerUnavailable, LedgerUnusable
from idem.stores.memory import MemoryStore
from tests.fakes import Crash, FakeClock
from workers.brokers.base import TOGETHER
from workers.jobs import Call, read_message
from workers.schedule.board import Board, Entry, cell_of, tag
from workers.schedule.scheduler import ROUND, Scheduler, keep_up
from workers.schedule.slots import CatchUp, Cron, Every, Once, Rule, Schedule


@dataclass
class Queue:
    """A broker that remembers the keys it was given."""

    keys: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    down: bool = False

    def enqueue_many(self, messages: Sequence[Message[None]]) -> list[BrokerError | None]:
        assert 1 <= len(messages) <= TOGETHER
        return [self._enqueue(message) for message in messages]

    def _enqueue(self, message: Message[None]) -> BrokerError | None:
        if self.down:
            return BrokerUnavailable("the broker does not answer")
        call = read_message(message.kwargs, message.message_id)
        assert isinstance(call, Call)
        assert f"{call.job}/{call.args[0]}" == call.key
        self.keys.append(call.key)
        self.calls.append(call)
        return None


class Stage:
    """What schedulers share: a store, a queue and a clock."""

    def __init__(self, *schedules: Schedule) -> None:
        self.schedules = {schedule.name: schedule for schedule in schedules}
        self.store = MemoryStore()
        self.board = Board(self.store)
        self.queue = Queue()
        self.clock = FakeClock()
        self.begun = int(self.clock.now())

    def scheduler(self, reach: Callable[[str], None] = lambda _: None, memory: float | None = None) -> Scheduler:
        """A process that has just started."""
        scheduler = Scheduler(
            self.schedules, self.board, self.queue.enqueue_many, clock=self.clock, memory_seconds=memory, reach=reach
        )
        scheduler.start()
        return scheduler

    def pass_time(self, seconds: float, *schedulers: Scheduler) -> None:
        self.clock.sleep(seconds)
        for scheduler in schedulers:
            drain(scheduler)

    def expected(self, *, after: int | None = None) -> Counter[str]:
        """Each slot since the beginning, once."""
        first = self.begun if after is None else after
        return Counter(
            schedule.key(slot)
            for schedule in self.schedules.values()
            for slot in schedule.between(first, int(self.clock.now()))
        )


def drain(scheduler: Scheduler) -> None:
    while scheduler.tick():
        pass


def _every(seconds: int, name: str = "report", catch_up: str = "all") -> Schedule:
    return Schedule(name, Every(timedelta(seconds=seconds)), CatchUp.of(catch_up))


def _cron(expression: str, zone: str, name: str = "report", catch_up: str = "all") -> Schedule:
    return Schedule(name, Cron(expression, ZoneInfo(zone)), CatchUp.of(catch_up))


def test_every_slot_once_and_none_of_the_past() -> None:
    stage = Stage(_every(60), _every(3_600, "hourly"))
    scheduler = stage.scheduler()

    assert not scheduler.tick()

    for _ in range(200):
        stage.pass_time(45, scheduler)

    assert Counter(stage.queue.keys) == stage.expected()
    assert len(stage.queue.keys) == 150 + 2


def test_the_one_who_comes_second_enqueues_nothing() -> None:
    stage = Stage(_every(60))
    schedulers = [stage.scheduler() for _ in range(3)]
    for _ in range(50):
        stage.pass_time(60, *schedulers)

    assert Counter(stage.queue.keys) == stage.expected()


@pytest.mark.parametrize("point", ["slot", "enqueued"])
def test_a_scheduler_that_dies_at_any_point_loses_nothing(point: str) -> None:
    """What is enqueued twice for it has the same key."""
    stage = Stage(*(_every(60, f"report-{number}") for number in range(20)))
    stage.scheduler()
    for _ in range(30):
        reached = count(1)

        def reach(name: str, reached: Iterator[int] = reached) -> None:
            if name == point and next(reached) == 3:
                raise Crash

        scheduler = stage.scheduler(reach)
        stage.clock.sleep(61)
        with pytest.raises(Crash):
            drain(scheduler)
    drain(stage.scheduler())

    assert set(stage.queue.keys) == set(stage.expected())
    assert len(stage.queue.keys) <= len(stage.expected()) + 30 * 20


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["tick", "die", "back", "away", "down"]), st.integers(0, 2)), max_size=40))
def test_no_order_of_accidents_loses_a_slot_or_makes_a_key_of_its_own(accidents: list[tuple[str, int]]) -> None:
    stage = Stage(_every(7, "often"), _cron("*/2 * * * *", "Europe/Amsterdam", "cron"))
    schedulers = [stage.scheduler() for _ in range(3)]
    for accident, who in accidents:
        stage.queue.down = accident == "down"
        match accident:
            case "die":
                schedulers[who] = stage.scheduler()
            case "back":
                stage.clock.wall -= 30
            case "away":
                stage.clock.sleep(500)
            case _:
                stage.clock.sleep(11)
        try:
            drain(schedulers[who])
        except BrokerUnavailable:
            assert stage.queue.down
    stage.queue.down = False
    stage.pass_time(1_000, *schedulers)

    assert Counter(stage.queue.keys) == stage.expected()


@pytest.mark.parametrize(
    ("catch_up", "expected"), [("none", [60]), ("latest", [60]), ("all(3)", [57, 58, 59, 60]), ("all", range(1, 61))]
)
def test_what_is_made_up_for_after_an_hour_away(catch_up: str, expected: list[int]) -> None:
    """The scheduler comes back 30 s after the last slot, which is not late yet."""
    stage = Stage(_every(60, catch_up=catch_up))
    stage.clock.wall -= stage.begun % 60
    begun = int(stage.clock.now())
    stage.scheduler()
    stage.pass_time(3_630, stage.scheduler())

    assert stage.queue.keys == [stage.schedules["report"].key(begun + 60 * minute) for minute in expected]


@pytest.mark.parametrize(("catch_up", "expected"), [("none", 0), ("latest", 1), ("all(3)", 3), ("all", 5)])
def test_what_is_made_up_for_when_all_is_late(catch_up: str, expected: int, caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(_cron("0 7 * * *", "Europe/Amsterdam", catch_up=catch_up))
    stage.scheduler()
    stage.pass_time(5 * 86_400, stage.scheduler())

    assert stage.queue.keys == sorted(stage.expected())[5 - expected :]
    assert ("leaves them out" in caplog.text) == (expected < 5)

    stage.pass_time(60, stage.scheduler())

    assert len(stage.queue.keys) == expected


def test_a_long_catch_up_does_not_hold_up_the_others() -> None:
    stage = Stage(_every(1, "often"), _every(1, "other"))
    stage.scheduler()
    stage.clock.sleep(10 * ROUND)
    scheduler = stage.scheduler()
    scheduler.tick()
    scheduler.tick()

    assert {key.partition("/")[0] for key in stage.queue.keys} == {"often", "other"}
    assert len(stage.queue.keys) <= 2 * ROUND

    drain(scheduler)

    assert Counter(stage.queue.keys) == stage.expected()


def test_a_changed_rule_goes_on_from_the_last_slot() -> None:
    stage = Stage(_cron("0 7 * * *", "UTC"))
    scheduler = stage.scheduler()
    stage.clock.wall = datetime(2026, 5, 4, 6, 59, tzinfo=UTC).timestamp()
    drain(scheduler)
    stage.queue.keys.clear()
    stage.pass_time(90, scheduler)
    stage.schedules["report"] = _cron("0 8 * * *", "UTC")
    stage.pass_time(3_600, stage.scheduler())

    assert stage.queue.keys == ["report/2026-05-04T07:00:00Z", "report/2026-05-04T08:00:00Z"]


def test_a_schedule_that_only_one_version_knows_is_not_passed_over_by_the_other() -> None:
    stage = Stage(_every(60, "old"))
    old = stage.scheduler()
    stage.schedules["new"] = _every(60, "new")
    new = stage.scheduler()
    stage.pass_time(600, old)
    stage.pass_time(0, new)

    assert Counter(stage.queue.keys) == stage.expected()


def test_a_paused_schedule_lets_its_slots_pass_and_goes_on_from_when_it_is_resumed() -> None:
    stage = Stage(_every(60), _every(60, "other"))
    scheduler = stage.scheduler()
    stage.pass_time(60, scheduler)
    stage.board.set("report", lambda entry: Entry(entry.last if entry else 0, paused=True))
    stage.queue.keys.clear()
    for _ in range(10):
        stage.pass_time(60, scheduler)

    assert {key.partition("/")[0] for key in stage.queue.keys} == {"other"}
    assert not stage.scheduler().tick()

    resumed = int(stage.clock.now())
    stage.board.set("report", lambda _: Entry(resumed))
    stage.queue.keys.clear()
    stage.pass_time(300, scheduler)

    assert Counter(stage.queue.keys) == stage.expected(after=resumed)


def test_a_lost_cell_starts_its_schedules_anew() -> None:
    stage = Stage(_every(60))
    scheduler = stage.scheduler()
    stage.pass_time(60, scheduler)
    stage.store._cells.clear()
    stage.pass_time(600, scheduler)
    began = int(stage.clock.now())
    stage.pass_time(600, scheduler)

    assert set(stage.queue.keys[1:]) == set(stage.expected(after=began))


def test_what_the_ledger_may_have_forgotten_is_not_enqueued(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(_every(86_400))
    stage.scheduler()
    stage.pass_time(100 * 86_400, stage.scheduler(memory=10 * 86_400))

    assert Counter(stage.queue.keys) == stage.expected(after=int(stage.clock.now()) - 10 * 86_400)
    assert "leaves them out" in caplog.text


def test_a_single_instant_runs_once_and_leaves_nothing_to_wait_for() -> None:
    at = datetime(2023, 11, 20, 9, tzinfo=UTC)
    stage = Stage(Schedule("launch", Once(at), CatchUp.of("latest")))
    scheduler = stage.scheduler()
    stage.pass_time(30 * 86_400, scheduler, stage.scheduler())

    assert stage.queue.keys == ["launch/2023-11-20T09:00:00Z"]
    assert scheduler.next_at() is None
    assert not scheduler.tick()


@pytest.mark.parametrize("stored", [b"{", b"[]", b'{"version": 2, "schedules": {}}', b"\xff"])
def test_a_cell_that_cannot_be_read_is_one_clear_error(stored: bytes) -> None:
    stage = Stage(_every(60))
    stage.store.swap_cell(f"schedules/{cell_of('report'):02x}", None, stored)

    with pytest.raises(LedgerUnusable):
        stage.scheduler()


def test_keep_up_goes_on_when_what_did_not_answer_answers_again(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(_every(1))
    scheduler = stage.scheduler()
    stage.queue.down = True
    waits = count()

    def wait(seconds: float) -> bool:
        stage.clock.sleep(seconds)
        stage.queue.down = next(waits) < 100
        return next(waits) > 400

    keep_up(scheduler, wait, stage.clock.now, 0.05)

    assert "slots wait: the broker does not answer" in caplog.text
    assert Counter(stage.queue.keys) == stage.expected()


def test_a_write_whose_answer_is_lost_is_recognised_by_what_is_read_next() -> None:
    stage = Stage(_every(60))
    scheduler = stage.scheduler()

    class Lossy(MemoryStore):
        def swap_cell(self, name: str, old: bytes | None, new: bytes, **_: object) -> bytes | None:
            stage.store.swap_cell(name, old, new)
            raise LedgerUnavailable("no answer")

        def read_cell(self, name: str) -> bytes | None:
            return stage.store.read_cell(name)

    stage.board = Board(Lossy())
    stage.clock.sleep(60)
    scheduler._board = stage.board
    with pytest.raises(LedgerUnavailable):
        scheduler.tick()
    scheduler._board = Board(stage.store)
    drain(scheduler)

    assert Counter(stage.queue.keys) == stage.expected()


@pytest.mark.parametrize("zone", ["Europe/Amsterdam", "Australia/Lord_Howe"])
def test_two_schedulers_through_a_year_with_both_changes_of_the_clocks(zone: str) -> None:
    """An accelerated clock, 47 minutes a step; each dies now and then, and both are away for some days."""
    rules: dict[str, Rule] = {
        "nightly": Cron("30 2 * * *", ZoneInfo(zone)),
        "late": Cron("45 1 * * *", ZoneInfo(zone)),
        "hourly": Cron("0 * * * *", ZoneInfo(zone)),
    }
    stage = Stage(*(Schedule(name, rule, CatchUp.of("all")) for name, rule in rules.items()))
    stage.clock.wall = datetime(2026, 1, 1, tzinfo=ZoneInfo(zone)).timestamp()
    stage.begun = int(stage.clock.now())
    schedulers = [stage.scheduler(), stage.scheduler()]
    for step in range(365 * 24 * 60 // 47):
        stage.clock.sleep(47 * 60)
        if step % 2_000 < 1_900:
            drain(schedulers[step % 2])
        if step % 401 == 0:
            schedulers[step % 2] = stage.scheduler()
    stage.clock.wall = datetime(2026, 12, 31, 23, 59, tzinfo=ZoneInfo(zone)).timestamp()
    stage.pass_time(0, *schedulers)

    counted = Counter(key.partition("/")[0] for key in stage.queue.keys)

    assert Counter(stage.queue.keys) == stage.expected()
    # One a day whatever the clocks did, and one an hour; on Lord Howe Island they skip a 02:00 and repeat no full hour.
    hours = 365 * 24 - 1 - (zone == "Australia/Lord_Howe")
    assert counted == {"nightly": 365, "late": 365, "hourly": hours}


def test_names_are_spread_over_the_cells_and_told_apart() -> None:
    names = [f"schedule-{number}" for number in range(10_000)]

    assert len({(cell_of(name), tag(name)) for name in names}) == len(names)
    assert {cell_of(name) for name in names} == set(range(256))


def test_what_eventbridge_scheduler_puts_on_the_queue_is_the_run_of_the_slot() -> None:
    """The README's message, with the instant as Amazon writes it; theirs and ours are one key, and so one email."""
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    found = re.search(r"`(\{\"job\": \"daily_report\".*?\})`", readme.replace("\n", " "))
    assert found is not None
    theirs = json.loads(found[1].replace("<aws.scheduler.scheduled-time>", "2026-03-29T05:00:00Z"))
    stage = Stage(_cron("0 7 * * *", "Europe/Amsterdam", "daily_report"))
    stage.clock.wall = datetime(2026, 3, 29, 4, 59, tzinfo=UTC).timestamp()
    scheduler = stage.scheduler()
    stage.pass_time(60, scheduler)
    asked = read_message(theirs, "the-message-id")

    assert isinstance(asked, Call)
    assert [asked.key] == stage.queue.keys
    assert asked == stage.queue.calls[0]
