"""One request as it came, and the ways in which it is refused. Nothing in it is believed before its scheme has checked.

Everything here is total: whatever the bytes, the answer is a value or `Refused`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

#: Deeper than any sender nests; what reads the event later goes down by recursion.
_MOST_LEVELS: Final = 64
_LONGEST_ID: Final = 255


class Refused(Exception):
    """Raised when a delivery is not taken; `reason` is one line of ours.

    `status` is the answer's: a 4xx, or 503 for what could not be checked now and is to be posted again.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Delivery:
    """The headers, by lower-case name and with every value, and the body as raw bytes."""

    headers: Mapping[str, tuple[str, ...]]
    body: bytes

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Delivery:
        """A delivery from the headers of an ASGI scope. Latin-1 has a character for every byte."""
        found: dict[str, tuple[str, ...]] = {}
        for raw, value in headers:
            name = raw.decode("latin-1").lower()
            found[name] = (*found.get(name, ()), value.decode("latin-1"))
        return cls(found, body)

    def header(self, name: str) -> str:
        """The one value of a header. Of two, a proxy and we might believe different ones."""
        match self.headers.get(name, ()):
            case (value,) if value:
                return value
            case () | ("",):
                raise Refused(400, f"the header {name} is missing")
            case _:
                raise Refused(400, f"the header {name} comes more than once")


@dataclass(frozen=True, slots=True)
class Said:
    """What a scheme reads from a delivery that it verified: the event's id, its type, and when it happened."""

    id: str
    type: str
    created: float | None = None


def parse(body: bytes | str) -> dict[str, Any]:
    """The body as a JSON object; NaN, lone surrogates and what is not UTF-8 are refused with the rest."""
    found = _decoded(body)
    if not isinstance(found, dict):
        raise Refused(400, "the body is not a JSON object")
    return found


def parse_list(body: bytes) -> list[dict[str, Any]]:
    """The body as a list of JSON objects, the same way."""
    found = _decoded(body)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise Refused(400, "the body is not a list of JSON objects")
    return found


def _decoded(body: bytes | str) -> object:
    try:
        found: object = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError):
        raise Refused(400, "the body is not JSON") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deeply") from None
    if _is_deeper(found, _MOST_LEVELS):
        raise Refused(400, "the body is nested too deeply")
    return found


def _is_deeper(value: object, levels: int) -> bool:
    inner: Iterable[object] = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list):
        inner = value
    return any(levels == 0 or _is_deeper(item, levels - 1) for item in inner if isinstance(item, dict | list))


def named(what: str, value: object) -> str:
    """An id or a type: printable text of at most 255 characters. Without an id, twice could not be told from once."""
    if not isinstance(value, str) or not value or len(value) > _LONGEST_ID or not value.isprintable():
        raise Refused(400, f"the event has no {what} of 1 to {_LONGEST_ID} printable characters")
    return value


def instant(value: object) -> float | None:
    """Unix seconds from such a number, or from an ISO 8601 date with a zone; None for everything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**53 else None
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
        return found.timestamp() if found.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
