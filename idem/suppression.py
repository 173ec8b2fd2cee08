"""The addresses that nothing is sent to any more: those that bounced for good or complained, and what a person added.

No address is written down: an entry is known by a digest of the namespace and the address. That is no secret from one
who reads the store and has an address to try; it is none to be read off.

    suppressed        a cell of 1024 bits: which of the cells below have had an entry
    suppressed/<n>    the entries whose digest says n

So an email costs no read as long as no address of its cell is on the list: the bits are read every 5 s by each process,
and a cell that was read is good for as long. Who is on the list is always read anew, so that one who was taken off it
can be sent to at once.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from hashlib import sha256
from typing import Final, TypeVar

import msgspec

from idem.address import parse_address
from idem.clock import Clock
from idem.email import Email
from idem.errors import LedgerUnusable
from idem.stores.base import Cells, change_cell

#: How old what a process knows of the list may be, for an address that is not on it.
FRESH_SECONDS: Final = 5.0
_CELLS: Final = 1_024
_DIRECTORY: Final = "suppressed"
#: DynamoDB has items of 400 KB. It is reached at some three million addresses.
_MOST_BYTES: Final = 300_000


class Reason(StrEnum):
    """Why an address is on the list."""

    BOUNCED = "bounced"
    COMPLAINED = "complained"
    PERSON = "said by a person"


@dataclass(frozen=True, slots=True)
class Entry:
    """One address on the list, `since` in Unix seconds; `source` is the event that told, or who added it."""

    reason: Reason
    since: float
    source: str


_Entries = dict[str, Entry]
_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(_Entries)
_Made = TypeVar("_Made")


class Suppression:
    """The list of one namespace. Safe to share between threads. Raises `LedgerError` where the store does."""

    def __init__(self, cells: Cells, namespace: str, *, clock: Clock) -> None:
        self._cells = cells
        self._namespace = namespace
        self._clock = clock
        # Cell to instant and content; a thread that overwrites another's loses nothing.
        self._seen: dict[str, tuple[float, bytes | None]] = {}

    def add(self, address: str, reason: Reason, *, source: str) -> bool:
        """Put an address on the list; False when it is there, as it then was. Raises `EmailError` for what is none."""
        digest = self._digest(address)
        entry = Entry(reason, self._clock.now(), source)
        # Before the entry, which nobody would look for otherwise, should this process end in between.
        self._mark(_cell_of(digest))
        return self._change(digest, lambda entries: None if digest in entries else entries | {digest: entry})

    def remove(self, address: str) -> bool:
        """Take an address off the list; False when it is not there. Raises `EmailError` for what is none."""
        digest = self._digest(address)
        return self._change(digest, lambda entries: _without(entries, digest) if digest in entries else None)

    def find(self, address: str) -> Entry | None:
        """The entry of an address, as it is now. Raises `EmailError` for what is none."""
        digest = self._digest(address)
        return _decode(self._cells.read_cell(_name(_cell_of(digest)))).get(digest)

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Everything on the list, by digest: up to 1025 reads."""
        directory = self._cells.read_cell(_DIRECTORY)
        for number in filter(lambda number: _is_marked(directory, number), range(_CELLS)):
            yield from _decode(self._cells.read_cell(_name(number))).items()

    def withhold(self, email: Email) -> str | None:
        """Why an email is not to be sent: the first of its recipients who is on the list, without the address."""
        for field in ("to", "cc", "bcc"):
            for position, address in enumerate(getattr(email, field)):
                entry = self._find_cheaply(address)
                if entry is not None:
                    since = datetime.fromtimestamp(entry.since, UTC).date()
                    return f"suppressed: {field}[{position}] is on the suppression list ({entry.reason}, since {since})"
        return None

    def _find_cheaply(self, address: str) -> Entry | None:
        digest = self._digest(address)
        number = _cell_of(digest)
        if not _is_marked(self._look(_DIRECTORY), number) or digest not in _decode(self._look(_name(number))):
            return None
        return self.find(address)

    def _look(self, name: str) -> bytes | None:
        """The cell as it was within the last seconds."""
        now = self._clock.boot()
        at, value = self._seen.get(name, (None, None))
        if at is None or not 0 <= now - at < FRESH_SECONDS:
            value = self._cells.read_cell(name)
            self._seen[name] = (now, value)
        return value

    def _mark(self, number: int) -> None:
        def mark(stored: bytes | None) -> tuple[None, bytes | None]:
            return None, None if _is_marked(stored, number) else _marked(stored, number)

        self._swap(_DIRECTORY, mark)

    def _change(self, digest: str, change: Callable[[_Entries], _Entries | None]) -> bool:
        def encoded(stored: bytes | None) -> tuple[bool, bytes | None]:
            changed = change(_decode(stored))
            return changed is not None, None if changed is None else _encode(changed)

        return self._swap(_name(_cell_of(digest)), encoded)

    def _swap(self, name: str, make: Callable[[bytes | None], tuple[_Made, bytes | None]]) -> _Made:
        return change_cell(self._cells.read_cell(name), make, partial(self._cells.swap_cell, name))

    def _digest(self, address: str) -> str:
        parts = b"\0".join([b"idem-workers/suppressed", self._namespace.encode(), _normal(address).encode()])
        return base64.urlsafe_b64encode(sha256(parts).digest()[:16]).rstrip(b"=").decode("ascii")


def _normal(address: str) -> str:
    """An address by which it is known: without its name, in lower case, the domain as in DNS where that is certain.

    Servers may tell the case before the @ apart; hardly any does, and nobody is to be bothered again for it.
    """
    local, _, domain = parse_address("address", address).spec.lower().rpartition("@")
    with contextlib.suppress(UnicodeError):
        domain = domain.encode("idna").decode("ascii")
    return f"{local}@{domain}"


def _cell_of(digest: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(digest[:4]), "big") % _CELLS


def _name(number: int) -> str:
    return f"{_DIRECTORY}/{number}"


def _is_marked(directory: bytes | None, number: int) -> bool:
    return directory is not None and bool(directory[number // 8] >> number % 8 & 1)


def _marked(directory: bytes | None, number: int) -> bytes:
    bits = bytearray(directory or bytes(_CELLS // 8))
    bits[number // 8] |= 1 << number % 8
    return bytes(bits)


def _without(entries: Mapping[str, Entry], digest: str) -> _Entries:
    return {name: entry for name, entry in entries.items() if name != digest}


def _encode(entries: _Entries) -> bytes:
    value = _ENCODER.encode(entries)
    if len(value) > _MOST_BYTES:
        raise LedgerUnusable("the suppression list is full: take addresses off it that are not written to")
    return value


def _decode(value: bytes | None) -> _Entries:
    try:
        return {} if value is None else _DECODER.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LedgerUnusable(
            "a part of the suppression list cannot be read: it is damaged, or of a newer version"
        ) from error
