"""Faults on order: what to do to the providers' send requests, how often, and how likely."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

_ACCEPT_THEN = "accept_then_"


class Kind(StrEnum):
    """What a fault does."""

    ACCEPT_THEN_DROP = "accept_then_drop"
    """Accept, then close the connection without an answer."""
    ACCEPT_THEN_500 = "accept_then_500"
    """Accept, and answer that it failed."""
    ACCEPT_THEN_HANG = "accept_then_hang"
    """Accept, and never answer."""
    ACCEPT_THEN_TRUNCATE = "accept_then_truncate"
    """Accept, send the head and half of the body of the answer, and close the connection."""
    DROP = "drop"
    """Close the connection without accepting."""
    BAD_REQUEST = "400"
    """Refuse the email."""
    UNAUTHORIZED = "401"
    """Refuse the credentials."""
    NO_CREDIT = "402"
    """Refuse for want of credit."""
    FORBIDDEN = "403"
    """Refuse what these credentials may do."""
    NOT_FOUND = "404"
    """Know nothing of this path."""
    TIMED_OUT = "408"
    """Say that the request took too long, without accepting."""
    TOO_LARGE = "413"
    """Refuse the size."""
    UNPROCESSABLE = "422"
    """Refuse the email, in another word."""
    RATE_LIMITED = "429"
    """Refuse for now."""
    SERVER_ERROR = "500"
    """Fail without accepting."""
    BAD_GATEWAY = "502"
    """Fail in front of the provider, without accepting."""
    UNAVAILABLE = "503"
    """Be unavailable, without accepting."""
    HANG = "hang"
    """Neither accept nor answer."""
    DELAY = "delay"
    """Process slowly, then go on as usual: the client may have given up by then, and the key is in use meanwhile."""
    LATE = "late"
    """Reach the provider late: a repetition can overtake it."""
    IN_PROGRESS = "in_progress"
    """Say that a request under this key is still running, without accepting."""
    CONFLICT = "conflict"
    """Say that this key stands for another body, without accepting."""
    MISSING = "missing"
    """Find nothing, whatever there is: of look-ups only."""

    @property
    def accepts(self) -> bool:
        """Whether the request is processed before things go wrong."""
        return self.startswith(_ACCEPT_THEN)

    @property
    def ending(self) -> str:
        """How the exchange ends, accepted or not: `drop`, `hang`, `truncate`, `in_progress` or an HTTP status."""
        return self.removeprefix(_ACCEPT_THEN)


class Target(StrEnum):
    """What a fault strikes."""

    SEND = "send"
    LOOKUP = "lookup"


#: What can strike a look-up.
_OF_LOOKUPS = frozenset({kind for kind in Kind if kind.isdecimal()} | {Kind.DROP, Kind.HANG, Kind.DELAY, Kind.MISSING})
_PAUSES = frozenset({Kind.DELAY, Kind.LATE})


class BadFault(ValueError):
    """Raised when a fault is ordered that cannot be; the message says what was wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One order: `kind` is its `fault` in JSON.

    It strikes requests of `provider` (or of all, `*`) that send (or look up, as `on` says), with the probability
    `rate`, `times` times (None: until cleared). `delay_ms` passes before it does; `retry_after` goes with an answer, as
    the header of that name, in seconds.
    """

    provider: str
    kind: Kind
    on: Target = Target.SEND
    times: int | None = None
    rate: float = 1.0
    delay_ms: float = 0.0
    retry_after: float | None = None

    def order(self) -> dict[str, Any]:
        """The fault as JSON, as `parse_fault` reads it."""
        fields = asdict(self)
        return {"provider": fields.pop("provider"), "fault": fields.pop("kind"), **fields}


@dataclass(frozen=True, slots=True)
class Draw:
    """What one request gets: pauses on its way and while it is processed, and the fault that strikes it, if any.

    `name` is how the log calls it.
    """

    late_seconds: float = 0.0
    delay_seconds: float = 0.0
    fault: Fault | None = None
    name: str | None = None

    @property
    def seconds(self) -> float:
        """Both pauses."""
        return self.late_seconds + self.delay_seconds


class Faults:
    """The active faults, in the order in which they were posted."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._active: list[Fault] = []

    def post(self, fault: Fault) -> None:
        """Add one behind the others."""
        self._active.append(fault)

    def clear(self) -> None:
        """Behave well from now on; requests already struck stay so."""
        self._active.clear()

    def active(self) -> list[Fault]:
        """Those that can still strike, with what is left of their `times`."""
        return list(self._active)

    def draw(self, provider: str, on: Target = Target.SEND, cannot: Container[Kind] = frozenset()) -> Draw:
        """Throw the dice for one request: all pauses that fall add up, and the first other fault that falls strikes.

        `cannot` are those that this provider has no words for.
        """
        ours = [
            fault for fault in self._active
            if fault.provider in {"*", provider} and fault.on is on and fault.kind not in cannot
        ]  # fmt: skip
        waits = [fault for fault in ours if fault.kind in _PAUSES and self._falls(fault)]
        struck = next((fault for fault in ours if fault.kind not in _PAUSES and self._falls(fault)), None)
        applied = [*waits, struck] if struck else waits
        self._spend(applied)
        late = sum(fault.delay_ms for fault in waits if fault.kind is Kind.LATE) / 1000
        return Draw(
            late_seconds=late,
            delay_seconds=sum(fault.delay_ms for fault in applied) / 1000 - late,
            fault=struck,
            name=(struck or waits[0]).kind if applied else None,
        )

    def _falls(self, fault: Fault) -> bool:
        return self._dice.random() < fault.rate

    def _spend(self, applied: Iterable[Fault]) -> None:
        struck = {id(fault) for fault in applied}
        self._active = [left for fault in self._active if (left := _spent(fault) if id(fault) in struck else fault)]


def _spent(fault: Fault) -> Fault | None:
    if fault.times is None:
        return fault
    return replace(fault, times=fault.times - 1) if fault.times > 1 else None


def parse_fault(order: object, providers: Iterable[str]) -> Fault:
    """Read one order as `POST /api/faults` takes it, or raise `BadFault`."""
    if not isinstance(order, dict):
        raise BadFault("a fault is a JSON object")
    if unknown := sorted(set(order) - _FIELDS.keys()):
        raise BadFault(f"unknown field {unknown[0]!r}; known: {', '.join(_FIELDS)}")
    if "fault" not in order:
        raise BadFault(f"fault is missing; known: {', '.join(Kind)}")
    known = [*providers, "*"]
    if order.get("provider", "*") not in known:
        raise BadFault(f"unknown provider {order['provider']!r}; known: {', '.join(known)}")
    fields = {name: read(name, order[name]) for name, read in _FIELDS.items() if name in order}
    fault = Fault(provider=fields.pop("provider", "*"), kind=fields.pop("fault"), **fields)
    if fault.kind in _PAUSES and not fault.delay_ms:
        raise BadFault(f"{fault.kind} needs a delay_ms of more than 0")
    if (fault.kind not in _OF_LOOKUPS) if fault.on is Target.LOOKUP else fault.kind is Kind.MISSING:
        raise BadFault(f"{fault.kind} cannot strike a {fault.on}")
    return fault


def _kind(name: str, value: Any) -> Kind:
    try:
        return Kind(str(value) if type(value) is int else value)
    except ValueError:
        raise BadFault(f"unknown {name} {value!r}; known: {', '.join(Kind)}") from None


def _target(name: str, value: Any) -> Target:
    try:
        return Target(value)
    except ValueError:
        raise BadFault(f"{name} is {value!r}: it must be {' or '.join(Target)}") from None


def _times(name: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise BadFault(f"{name} is {value!r}: it must be a whole number of at least 1, or null for no end")
    return value


def _rate(name: str, value: Any) -> float:
    if type(value) not in {int, float} or not 0 <= value <= 1:
        raise BadFault(f"{name} is {value!r}: it must be a number from 0 to 1")
    return float(value)


def _delay(name: str, value: Any) -> float:
    if type(value) not in {int, float} or not 0 <= value <= _DAY_MS:
        raise BadFault(f"{name} is {value!r}: it must be a number from 0 to {_DAY_MS}")
    return float(value)


def _retry_after(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in {int, float} or value < 0:
        raise BadFault(f"{name} is {value!r}: it must be a number of seconds of at least 0, or null")
    return float(value)


_DAY_MS = 86_400_000
_FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "provider": lambda _name, value: value,
    "fault": _kind,
    "on": _target,
    "times": _times,
    "rate": _rate,
    "delay_ms": _delay,
    "retry_after": _retry_after,
}
