"""Slots: the nominal instants of a schedule, by a cron expression, an interval or one instant. Pure.

Instants are whole seconds since the Unix epoch, so that all who compute a slot name it alike. Cron's calendar is
`cronsim`'s, asked about wall times without a zone; what a change of the clocks does to them is decided here:

- a time that an expression names (`30 2 * * *`) and that the clocks skip becomes the first instant after the gap;
- one that comes twice counts once, the first time;
- a minute or hour that begins with `*` follows the clock: what is skipped is not there, what comes twice counts twice.

cronsim's own rules are the same, but lose slots where the clocks change by half an hour (Australia/Lord_Howe).
"""

from __future__ import annotations

import copy
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import chain, islice, repeat
from typing import Final, Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from idem.errors import InvalidKey, ScheduleError
from idem.keys import check_key, slot_key
from idem.protocol import InDoubt

#: A slot that is enqueued or run later than this is late; what is missed is what `catch_up` decides about.
LATE_SECONDS: Final = 60
_DAY = 86_400
#: The year 3000.
_END: Final = 32_503_680_000
_LONGEST_SECONDS = 50 * 366 * _DAY
_YEARS = range(1970, 3000)
_NAMES = {
    "@yearly": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_CATCH_UP = re.compile(r"none|latest|all(?:\((?P<most>[1-9][0-9]{0,8})\))?")


@dataclass(frozen=True, slots=True)
class Slot:
    """What a scheduled function is told: which run this is. It is the same however often the run is repeated."""

    schedule: str
    instant: datetime
    """The nominal time, in UTC."""
    local: datetime
    """The same instant in the schedule's time zone."""
    previous: datetime | None
    """The slot before, in UTC, whether it ran or not; None if there is none."""
    late: timedelta
    """How long after its instant this run began; zero, and so false, in the first minute."""


class Rule(Protocol):
    """Which instants are slots."""

    @property
    def text(self) -> str:
        """The rule, as it was declared."""
        ...

    @property
    def zone(self) -> tzinfo:
        """The time zone of `Slot.local`."""
        ...

    def next(self, after: int) -> int | None:
        """The first slot after that instant; None if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class _Calendar:
    """The wall times that an expression names, whatever the zone.

    `begins` and `ends` are, for each of its hours, the second of the day with which that begins, and the last that is
    named in it.
    """

    pattern: CronSim
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    def next(self, wall: int) -> int | None:
        """The first wall time after `wall` that the expression names; both as seconds, as if they were UTC."""
        pattern = copy.copy(self.pattern)
        pattern.dt = _wall(self._skip(wall))
        found = next(pattern, None)
        return None if found is None else int(found.replace(tzinfo=UTC).timestamp())

    def _skip(self, wall: int) -> int:
        """The second before the next hour in which something may be named: cronsim would go there hour by hour."""
        day, second = divmod(wall, _DAY)
        hour = bisect_right(self.ends, second)
        if hour == len(self.ends):
            day, hour = day + 1, 0
        return max(wall, day * _DAY + self.begins[hour] - 1)


@lru_cache(maxsize=4_096)
def _calendar(expression: str) -> _Calendar:
    """One for all schedules with that expression, as there may be a hundred thousand."""
    pattern = CronSim(expression, datetime(2000, 1, 1))  # noqa: DTZ001 - a wall time
    begins = tuple(hour * 3_600 for hour in sorted(pattern.hours))
    last = max(pattern.minutes) * 60 + max(pattern.seconds)
    return _Calendar(pattern, begins, tuple(begin + last for begin in begins))


class Cron:
    """The wall times that a cron expression names, in a zone."""

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        self.text = expression
        self.zone = zone
        whole = _NAMES.get(expression, expression)
        try:
            self._calendar = _calendar(whole)
        except (CronSimError, ValueError, AttributeError) as error:
            raise ScheduleError(f"cron {expression!r}: {error}; write five fields, such as '0 7 * * *'") from error
        *_, minute, hour, _, _, _ = whole.split()
        self._follows_clock = minute.startswith("*") or hour.startswith("*")
        if self._calendar.next(0) is None:
            raise ScheduleError(f"cron {expression!r}: there is no such day")

    def next(self, after: int) -> int | None:
        """See `Rule.next`."""
        return self._next_by_clock(after) if self._follows_clock else self._next_named(after)

    def _next_named(self, after: int) -> int | None:
        """Of times that come twice, the second is no slot: what is found is then not after `after`, and passed over."""
        wall = self._calendar.next(after + self._offset(after))
        while wall is not None:
            at = self._first(wall)
            if at > after:
                return at
            wall = self._calendar.next(wall)
        return None

    def _first(self, wall: int) -> int:
        """When a wall time comes first; one in a gap comes when the gap ends."""
        local = _wall(wall).replace(tzinfo=self.zone)
        at = int(local.timestamp())
        if at + self._offset(at) == wall:
            return at
        # In a gap, fold 1 is before the change and fold 0 after it (PEP 495).
        return self._change(int(local.replace(fold=1).timestamp()), at)

    def _next_by_clock(self, after: int) -> int | None:
        """As if the clocks never changed; if they do before that, once more from the change on."""
        since, offset = after, self._offset(after)
        while (wall := self._calendar.next(after + offset)) is not None:
            at = wall - offset
            change = self._first_change(since, at)
            if change is None:
                return at
            since, after, offset = change, change - 1, self._offset(change)
        return None

    def _first_change(self, low: int, high: int) -> int | None:
        """The first instant after `low`, up to `high`, at which the clocks change; no zone does so twice a day."""
        offset = self._offset(low)
        while low < high:
            step = min(low + _DAY, high)
            if self._offset(step) != offset:
                return self._change(low, step)
            low = step
        return None

    def _change(self, low: int, high: int) -> int:
        """The instant after `low`, up to `high`, at which the clocks change."""
        before = self._offset(low)
        while high - low > 1:
            middle = (low + high) // 2
            if self._offset(middle) == before:
                low = middle
            else:
                high = middle
        return high

    def _offset(self, at: int) -> int:
        offset = datetime.fromtimestamp(at, self.zone).utcoffset()
        return 0 if offset is None else int(offset.total_seconds())


class Every:
    """Multiples of an interval since the Unix epoch: the same for all who count, whenever they began."""

    zone = UTC

    def __init__(self, interval: timedelta) -> None:
        if not isinstance(interval, timedelta) or interval < timedelta(seconds=1) or interval.microseconds:
            raise ScheduleError(f"every={interval!r}: it must be a timedelta of whole seconds, at least one")
        self.text = f"every {interval}"
        self._seconds = int(interval.total_seconds())

    def next(self, after: int) -> int | None:
        """See `Rule.next`."""
        return (after // self._seconds + 1) * self._seconds


class Once:
    """One instant."""

    def __init__(self, at: datetime) -> None:
        if not isinstance(at, datetime) or at.tzinfo is None or at.microsecond:
            raise ScheduleError(f"at={at!r}: it must be a datetime with a time zone, in whole seconds")
        self.text = f"at {at.isoformat()}"
        self.zone = at.tzinfo
        self._at = int(at.timestamp())

    def next(self, after: int) -> int | None:
        """See `Rule.next`."""
        return self._at if self._at > after else None


@dataclass(frozen=True, slots=True)
class CatchUp:
    """How many missed slots are made up for, the latest ones; None is all of them."""

    most: int | None

    @classmethod
    def of(cls, text: str) -> CatchUp:
        """Read `none`, `latest`, `all` or `all(N)`."""
        found = _CATCH_UP.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ScheduleError(f"catch_up is {text!r}: it must be 'none', 'latest', 'all' or, say, 'all(24)'")
        return cls(int(found["most"]) if found["most"] else {"none": 0, "latest": 1}.get(text))

    def __str__(self) -> str:
        return {0: "none", 1: "latest", None: "all"}.get(self.most, f"all({self.most})")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A rule with a name, which is its job's."""

    name: str
    rule: Rule
    catch_up: CatchUp
    in_doubt: InDoubt | None = None

    def __post_init__(self) -> None:
        try:
            check_key(slot_key(self.name, _wall(0).replace(tzinfo=UTC)))
        except InvalidKey as error:
            raise ScheduleError(f"schedule {self.name!r}: with its slots it makes keys, and {error}") from error

    def key(self, slot: int) -> str:
        """The key of a slot's run."""
        return slot_key(self.name, datetime.fromtimestamp(slot, UTC))

    def has(self, instant: int) -> bool:
        """Whether that instant is one of its slots."""
        return self.rule.next(instant - 1) == instant

    def slot(self, instant: int, now: float) -> Slot:
        """What the function is told about the run of that slot, at `now`."""
        previous = self.previous(instant)
        late = now - instant
        return Slot(
            schedule=self.name,
            instant=datetime.fromtimestamp(instant, UTC),
            local=self.local(instant),
            previous=None if previous is None else datetime.fromtimestamp(previous, UTC),
            late=timedelta(seconds=late if late > LATE_SECONDS else 0),
        )

    def local(self, instant: int) -> datetime:
        """An instant in the schedule's time zone."""
        return datetime.fromtimestamp(instant, self.rule.zone)

    def between(self, after: int, until: int) -> Iterator[int]:
        """The slots after one instant, up to another."""
        slot = self.rule.next(after)
        while slot is not None and slot <= until:
            yield slot
            slot = self.rule.next(slot)

    def previous(self, before: int) -> int | None:
        """The last slot before that instant, of the last 50 years."""
        return next(iter(self._last(before - _LONGEST_SECONDS, before - 1, 1)), None)

    def start(self, last: int, now: int) -> int:
        """After which instant slots are to run at `now`, when those up to `last` were enqueued.

        What is late was missed, and of that, `catch_up` says how much is made up for.
        """
        fresh = max(last, now - LATE_SECONDS - 1)
        most = self.catch_up.most
        if most is None:
            return last
        if most == 0 or (most == 1 and next(self.between(fresh, now), None) is not None):
            return fresh
        missed = self._last(last, fresh, most)
        return missed[0] - 1 if missed else fresh

    def _last(self, after: int, until: int, count: int) -> list[int]:
        """The last `count` slots after one instant, up to another: looked for from the end, farther each time."""
        span = count * self._gap(until)
        while True:
            start = max(after, until - span)
            found = deque(self.between(start, until), maxlen=count)
            if len(found) == count or start == after:
                return list(found)
            span *= 4

    def _gap(self, after: int) -> int:
        """About how far slots are apart there. Rather too little, as what is looked through may hold many slots."""
        one, other = islice(chain(self.between(after, _END), repeat(_END)), 2)
        return max(1, min(one - after, other - one))


def make_rule(cron: str | None, every: timedelta | None, at: datetime | None, tz: str) -> Rule:
    """The rule that was declared; `ScheduleError` if there is not exactly one, or none that can be."""
    if sum(part is not None for part in (cron, every, at)) != 1:
        raise ScheduleError("a schedule has one of: a cron expression, every=, at=")
    if cron is not None:
        return Cron(cron, _zone(tz))
    if tz != "UTC":
        raise ScheduleError("tz= goes with a cron expression: an interval has no time zone, and at= brings its own")
    return Every(every) if every is not None else Once(at)  # type: ignore[arg-type]  # one of them is there


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError, TypeError, AttributeError) as error:
        raise ScheduleError(f"tz {name!r} is no time zone: write one such as 'Europe/Amsterdam'") from error


def read_instant(text: str) -> int:
    """An instant in ISO 8601, with its offset from UTC, in whole seconds."""
    try:
        found = datetime.fromisoformat(text)
    except (ValueError, TypeError):
        found = None
    if found is None or found.tzinfo is None or found.microsecond or found.year not in _YEARS:
        raise ScheduleError(f"{text!r} is no instant: write it with its offset, such as 2026-03-29T07:00:00+02:00")
    return int(found.timestamp())


def write_instant(at: int) -> str:
    """An instant as it stands in keys and messages."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _wall(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
