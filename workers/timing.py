"""When a producer wants something sent: what it says, checked, as instants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from idem.errors import JobError


@dataclass(frozen=True, slots=True)
class Timing:
    """Not before `ready_at` (None: now), and no first attempt from `expires_at` on (None: never too late).

    Unix seconds; `delay_ms` is for the broker.
    """

    ready_at: float | None = None
    delay_ms: int | None = None
    expires_at: float | None = None

    @classmethod
    def of(
        cls,
        now: float,
        *,
        delay: float | None,
        at: datetime | None,
        expires: float | datetime | None,
        memory_seconds: float | None,
    ) -> Timing:
        """Raise `JobError` for what contradicts itself, has passed, or outlasts what the ledger remembers."""
        ready_at = _ready_at(now, delay, at)
        expires_at = None if expires is None else _expires_at(now, expires)
        if expires_at is not None and expires_at <= (now if ready_at is None else ready_at):
            raise JobError("expires is not after the time from which it may be sent: it could never be sent")
        if ready_at is None:
            return cls(expires_at=expires_at)
        if memory_seconds is not None and ready_at - now >= memory_seconds:
            days = memory_seconds / 86_400
            raise JobError(
                f"it is to wait for longer than the ledger remembers keys ({days:.3g} days): enqueue it later"
            )
        return cls(ready_at, math.ceil((ready_at - now) * 1000), expires_at)

    @classmethod
    def until(cls, ready_at: float | None, now: float) -> Timing:
        """What was checked before: not before `ready_at`, if that is still to come."""
        if ready_at is None or ready_at <= now:
            return cls()
        return cls(ready_at, math.ceil((ready_at - now) * 1000))


def _ready_at(now: float, delay: float | None, at: datetime | None) -> float | None:
    if delay is not None and at is not None:
        raise JobError("delay and at are both given: give one of them")
    if at is not None:
        return _instant("at", at, now)
    return None if delay is None else now + _seconds("delay", delay)


def _expires_at(now: float, expires: float | datetime) -> float:
    return _instant("expires", expires, now) if isinstance(expires, datetime) else now + _seconds("expires", expires)


def _seconds(name: str, seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise JobError(f"{name} is {type(seconds).__name__}: it must be a number of seconds")
    if not 0 <= seconds < math.inf:
        raise JobError(f"{name} is {seconds:g}: it must be a number of seconds from 0 on")
    return float(seconds)


def _instant(name: str, instant: datetime, now: float) -> float:
    if not isinstance(instant, datetime):
        raise JobError(f"{name} is {type(instant).__name__}: it must be a datetime with a time zone")
    if instant.utcoffset() is None:
        raise JobError(f"{name} has no time zone: write datetime(..., tzinfo=UTC), or with a ZoneInfo")
    if instant.timestamp() < now:
        raise JobError(f"{name} is in the past")
    return instant.timestamp()
