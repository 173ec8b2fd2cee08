"""Slots: what they are on each side of every change of the clocks, and what is missed when nobody looked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from itertools import islice, pairwise, takewhile
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from idem.errors import ScheduleError
from workers.schedule.slots import LATE_SECONDS, CatchUp, Cron, Every, Once, Rule, Schedule, make_rule, read_instant

_ZONES = ("Europe/Amsterdam", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata")
_FIRST, _LAST = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()), int(datetime(2029, 1, 1, tzinfo=UTC).timestamp())
_MINUTES_OF_A_DAY = [time(hour, minute) for hour in range(24) for minute in range(0, 60, 15)]


def _cron(expression: str, zone: str = "UTC") -> Cron:
    return Cron(expression, ZoneInfo(zone))


def _schedule(rule: Rule, catch_up: str = "all") -> Schedule:
    return Schedule("report", rule, CatchUp.of(catch_up))


def _due(schedule: Schedule, last: int, now: int, limit: int) -> list[int]:
    """What a scheduler enqueues at `now`, when the slots up to `last` were enqueued."""
    return list(islice(schedule.between(schedule.start(last, now), now), limit))


def _instants(rule: Rule, after: int, until: int) -> list[int]:
    return list(_schedule(rule).between(after, until))


def _at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def _changes(zone: str) -> list[int]:
    """Every change of the clocks in 2024..2028, found by looking at each half hour."""
    local = ZoneInfo(zone)
    offsets = [(at, datetime.fromtimestamp(at, local).utcoffset()) for at in range(_FIRST, _LAST, 1_800)]
    return [at for (_, before), (at, after) in pairwise(offsets) if before != after]


_CHANGES = [(zone, change) for zone in _ZONES for change in _changes(zone)]


def test_the_zones_change_their_clocks_as_the_tests_below_need_it() -> None:
    counted = {zone: sum(each == zone for each, _ in _CHANGES) for zone in _ZONES}

    assert counted == {"Europe/Amsterdam": 10, "America/New_York": 10, "Australia/Lord_Howe": 10, "Asia/Kolkata": 0}


@cache
def _by_minute(zone: str, change: int) -> dict[datetime, list[int]]:
    """What a clock on the wall shows around a change, and at which instants it does."""
    shown: dict[datetime, list[int]] = {}
    for at in range(change - 86_400 * 2, change + 86_400 * 2, 60):
        shown.setdefault(datetime.fromtimestamp(at, ZoneInfo(zone)).replace(tzinfo=None), []).append(at)
    return shown


@pytest.mark.parametrize(("zone", "change"), _CHANGES)
def test_a_daily_slot_runs_once_a_day_at_every_time_of_day(zone: str, change: int) -> None:
    """In a gap, when it ends; in a fold, the first time."""
    shown = _by_minute(zone, change)
    day = datetime.fromtimestamp(change, ZoneInfo(zone)).date()
    for at in _MINUTES_OF_A_DAY:
        days = [day + timedelta(days=apart) for apart in (-1, 0, 1)]
        expected = [shown.get(datetime.combine(each, at), [change])[0] for each in days]
        start = min(shown[datetime.combine(days[0], time(0))]) - 1
        found = _instants(_cron(f"{at.minute} {at.hour} * * *", zone), start, start + 3 * 86_400 + 7_200)[:3]

        assert found == expected, at


@pytest.mark.parametrize(("zone", "change"), _CHANGES)
def test_a_star_follows_the_clock_through_both_hours(zone: str, change: int) -> None:
    """Cronsim without a zone says what an expression names; when the clock shows that is counted out."""
    shown = {wall: seen for wall, seen in _by_minute(zone, change).items() if abs(seen[0] - change) < 6 * 3_600}
    first, last = min(shown) - timedelta(minutes=1), max(shown)
    after, until = min(shown[min(shown)]) - 1, max(shown[last])
    for expression in ("0 * * * *", "*/10 * * * *", "15 */2 * * *", "*/5 2 * * *", "*/20 1,3 * * *"):
        named = takewhile(lambda wall: wall <= last, CronSim(expression, first))
        expected = sorted(at for wall in named for at in shown.get(wall, []))

        assert _instants(_cron(expression, zone), after, until) == expected, expression


def _field(first: int, last: int) -> st.SearchStrategy[str]:
    """What a cron expression has in one field: any, a step, or some values."""
    values = st.lists(st.integers(first, last), min_size=1, max_size=3, unique=True)
    steps = st.integers(2, last).map("*/{}".format)
    return st.just("*") | steps | values.map(lambda listed: ",".join(map(str, sorted(listed))))


_FIELDS = (_field(0, 59), _field(0, 23), _field(1, 28), _field(1, 12), _field(0, 6))


@given(
    st.tuples(*_FIELDS).map(" ".join) | st.tuples(_field(0, 59), *_FIELDS).map(" ".join),
    st.integers(_FIRST, _LAST) | st.integers(_FIRST // 3_600, _LAST // 3_600).map(lambda hour: hour * 3_600 - 1),
)
def test_without_changes_of_the_clocks_slots_are_what_cronsim_says(expression: str, after: int) -> None:
    """Also right before an hour and right after, where we skip what cronsim would look at hour by hour."""
    said = CronSim(expression, datetime.fromtimestamp(after, UTC).replace(tzinfo=None))
    expected = [int(each.replace(tzinfo=UTC).timestamp()) for each in islice(said, 4)]

    assert list(islice(_schedule(_cron(expression)).between(after, expected[-1]), 4)) == expected


@pytest.mark.parametrize(
    ("zone", "expression", "day", "expected"),
    [
        ("Europe/Amsterdam", "30 2 * * *", "2026-03-29", ["2026-03-29T03:00:00+02:00"]),
        ("Europe/Amsterdam", "30 2 * * *", "2026-10-25", ["2026-10-25T02:30:00+02:00"]),
        ("Europe/Amsterdam", "0,30 2 * * *", "2026-03-29", ["2026-03-29T03:00:00+02:00"]),
        ("Europe/Amsterdam", "0 30 2 * * *", "2026-10-25", ["2026-10-25T02:30:00+02:00"]),
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-04", ["2026-10-04T02:30:00+11:00"]),
        ("Asia/Kolkata", "30 2 * * *", "2026-03-29", ["2026-03-29T02:30:00+05:30"]),
    ],
)  # fmt: skip
def test_what_the_readme_says_of_the_clocks(zone: str, expression: str, day: str, expected: list[str]) -> None:
    start = int(datetime.combine(date.fromisoformat(day), time(), ZoneInfo(zone)).timestamp()) - 1
    found = _instants(_cron(expression, zone), start, start + 86_400 - 7_200)

    assert found == [_at(text) for text in expected]


def test_from_the_second_pass_of_a_fold_there_is_no_way_back() -> None:
    """At the second 02:10, the first 02:30 is over."""
    found = _cron("30 2 * * *", "Europe/Amsterdam").next(_at("2026-10-25T02:10:00+01:00"))

    assert found == _at("2026-10-26T02:30:00+01:00")


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * SUN"),
        ("@daily", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
    ],
)
def test_names(name: str, same: str) -> None:
    zone = "America/New_York"

    assert list(islice(_schedule(_cron(name, zone)).between(_FIRST, _LAST), 50)) == list(
        islice(_schedule(_cron(same, zone)).between(_FIRST, _LAST), 50)
    )


_FIELDS = (
    st.sampled_from(["*", "*/7", "0", "30", "5,35", "10-12"]),
    st.sampled_from(["*", "*/5", "0", "1", "2", "2,3", "22-23"]),
    st.sampled_from(["*", "1", "29", "L", "*/9"]),
    st.sampled_from(["*", "2", "3", "4", "10", "11"]),
    st.sampled_from(["*", "0", "1-5", "0#1", "5L"]),
)
_RULES = st.builds(
    lambda fields, zone: _cron(" ".join(fields), zone),
    st.tuples(*_FIELDS),
    st.sampled_from([*_ZONES, "America/Santiago", "Africa/Casablanca", "Pacific/Apia"]),
) | st.builds(lambda seconds: Every(timedelta(seconds=seconds)), st.integers(1, 10**6))
_TIMES = st.integers(_FIRST, _LAST)


@given(_RULES, _TIMES)
def test_slots_only_ever_go_forward(rule: Rule, after: int) -> None:
    slots = list(islice(_schedule(rule).between(after, _LAST * 2), 20))

    assert slots
    assert all(one < other for one, other in pairwise([after, *slots]))


@given(_RULES, _TIMES, st.integers(0, 10**6))
def test_two_who_begin_at_different_times_compute_the_same_slots(rule: Rule, after: int, later: int) -> None:
    """Whatever was asked for before: from an instant on, everybody sees the same slots, and so the same keys."""
    mine = [at for at in islice(_schedule(rule).between(after, _LAST * 2), 200) if at > after + later]
    others = list(islice(_schedule(rule).between(after + later, _LAST * 2), len(mine)))

    assert mine == others


@given(_RULES, _TIMES)
def test_the_previous_slot_is_the_one_that_this_is_next_of(rule: Rule, after: int) -> None:
    slots = list(islice(_schedule(rule).between(after, _LAST * 2), 3))

    assert [_schedule(rule).previous(at) for at in slots[1:]] == slots[:-1]


@given(_RULES, _TIMES, st.integers(0, 200_000), st.sampled_from(["none", "latest", "all", "all(1)", "all(7)"]))
def test_catch_up_counts(rule: Rule, last: int, away: int, choice: str) -> None:
    """Against the definition: all slots since then, of which the late ones are counted."""
    now = last + away
    slots = _instants(rule, last, now)
    fresh = [at for at in slots if now - at <= LATE_SECONDS]
    missed = slots[: len(slots) - len(fresh)]
    expected = {
        "none": fresh,
        "latest": fresh or missed[-1:],
        "all": slots,
        "all(1)": fresh or missed[-1:],
        "all(7)": missed[-7:] + fresh,
    }[choice]

    assert _due(_schedule(rule, choice), last, now, len(slots) + 1) == expected


@given(_RULES, _TIMES, st.integers(0, 100_000), st.integers(1, 50), st.sampled_from(["latest", "all", "all(20)"]))
def test_catching_up_in_parts_is_catching_up(rule: Rule, last: int, away: int, limit: int, choice: str) -> None:
    schedule = _schedule(rule, choice)
    whole = _due(schedule, last, last + away, 1_000)
    parts: list[int] = []
    while (part := _due(schedule, parts[-1] if parts else last, last + away, limit)) and len(parts) < 1_000:
        parts += part

    assert parts[: len(whole)] == whole


@given(_RULES, _TIMES, st.integers(0, 10**6))
def test_a_clock_that_steps_back_fires_nothing(rule: Rule, last: int, back: int) -> None:
    assert _due(_schedule(rule), last, last - back, 10) == []


def test_a_slot_knows_what_it_is() -> None:
    schedule = Schedule("report", _cron("0 7 * * 1-5", "Europe/Amsterdam"), CatchUp.of("latest"))
    monday = _at("2026-03-30T05:00:00+00:00")
    slot = schedule.slot(monday, now=monday + LATE_SECONDS)

    assert schedule.key(monday) == "report/2026-03-30T05:00:00Z"
    assert (slot.schedule, slot.instant.isoformat(), slot.local.isoformat()) == (
        "report", "2026-03-30T05:00:00+00:00", "2026-03-30T07:00:00+02:00",
    )  # fmt: skip
    # The Friday before, in winter time.
    assert slot.previous == datetime(2026, 3, 27, 6, tzinfo=UTC)
    assert not slot.late
    assert schedule.slot(monday, now=monday + 3_600).late == timedelta(hours=1)


def test_intervals_and_single_instants() -> None:
    at = datetime(2026, 11, 27, 9, tzinfo=ZoneInfo("Europe/Amsterdam"))
    once = Once(at)

    assert _instants(Every(timedelta(hours=6)), _FIRST, _FIRST + 86_400) == [_FIRST + 21_600 * n for n in (1, 2, 3, 4)]
    assert _instants(once, _FIRST, _LAST) == [int(at.timestamp())]
    assert once.next(int(at.timestamp())) is None
    assert _schedule(once).slot(int(at.timestamp()), 0).previous is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_rule("", None, None, "UTC"),
        lambda: make_rule("0 7 * *", None, None, "UTC"),
        lambda: make_rule("0 25 * * *", None, None, "UTC"),
        lambda: make_rule("@sometimes", None, None, "UTC"),
        lambda: make_rule(7, None, None, "UTC"),  # type: ignore[arg-type]
        lambda: make_rule("0 7 30 2 *", None, None, "UTC"),
        lambda: make_rule("0 7 30 2 */8", None, None, "UTC"),
        lambda: make_rule("0 7 * * *", None, None, "Europe/Atlantis"),
        lambda: make_rule("0 7 * * *", None, None, "../../etc/passwd"),
        lambda: make_rule("0 7 * * *", None, None, "Europe"),
        lambda: make_rule("0 7 * * *", None, None, ""),
        lambda: make_rule("0 7 * * *", None, None, None),  # type: ignore[arg-type]
        lambda: make_rule("0 7 * * *", timedelta(1), None, "UTC"),
        lambda: make_rule(None, None, None, "UTC"),
        lambda: make_rule(None, timedelta(1), None, "Europe/Amsterdam"),
        lambda: make_rule(None, timedelta(seconds=0.5), None, "UTC"),
        lambda: make_rule(None, timedelta(seconds=-5), None, "UTC"),
        lambda: make_rule(None, 300, None, "UTC"),  # type: ignore[arg-type]
        lambda: make_rule(None, None, datetime(2026, 1, 1), "UTC"),  # noqa: DTZ001 - that is the point
        lambda: make_rule(None, None, "tomorrow", "UTC"),  # type: ignore[arg-type]
        lambda: CatchUp.of("some"),
        lambda: CatchUp.of("all(0)"),
        lambda: CatchUp.of("all(-3)"),
        lambda: CatchUp.of(3),  # type: ignore[arg-type]
        lambda: Schedule("x" * 250, Every(timedelta(1)), CatchUp.of("all")),
        lambda: Schedule("a\nb", Every(timedelta(1)), CatchUp.of("all")),
        lambda: read_instant("2026-03-29 07:00:00"),
        lambda: read_instant("2026-03-29T07:00:00.5Z"),
        lambda: read_instant("yesterday"),
        lambda: read_instant("9999-12-31T23:59:59Z"),
    ],
)
def test_what_can_be_no_schedule_is_one_clear_error(make: Callable[[], Any]) -> None:
    with pytest.raises(ScheduleError) as caught:
        make()

    assert "\n" not in str(caught.value)
