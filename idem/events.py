"""What providers' events tell of emails, kept beside the records: a cell for each derived key.

An event brings the derived key back, which cannot be turned around, and stores know records by their own keys alone. So
nobody looks for the record when an event comes: it is noted under the derived key, and who has the record computes that
key and reads the note. An email that is sent costs nothing for it; an event costs a read, and a write if it is news. It
does not matter whether the event comes before the doubt that it ends, twice, out of order, or for a key that is
forgotten, or not ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from hashlib import sha256
from typing import Final

import msgspec

from idem.clock import Clock
from idem.stores.base import PassingCells, change_cell

#: How many of a kind are kept of one email, the first ones. A storm of opens costs a read each from then on.
_MOST_OF_A_KIND: Final = 3


class Happened(StrEnum):
    """What became of an email, for one recipient."""

    ACCEPTED = "accepted"
    DELIVERED = "delivered"
    DEFERRED = "deferred"
    BOUNCED = "bounced"
    """For good: the address does not exist, or refuses."""
    COMPLAINED = "complained"
    OPENED = "opened"
    CLICKED = "clicked"
    UNSUBSCRIBED = "unsubscribed"
    DROPPED = "dropped"
    """Accepted or not, the provider does not deliver it: by its policy, or its own list of addresses."""

    @property
    def is_of_an_accepted_email(self) -> bool:
        """Whether it cannot happen to an email that was refused."""
        return self is not Happened.DROPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One event: `event` is a short digest of its id, `source` who told, `at` when it came, in Unix seconds."""

    kind: Happened
    at: float
    source: str
    event: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """All that is kept of what events told of one email; `message_id` is the provider's."""

    message_id: str | None = None
    notes: tuple[Note, ...] = ()

    @property
    def proof(self) -> Note | None:
        """The first that cannot be of an email that was refused."""
        return next((note for note in self.notes if note.kind.is_of_an_accepted_email), None)


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Heard)


def short_digest(event_id: str) -> str:
    """What is kept of an event's id: enough to know one from the few others of its email."""
    return sha256(event_id.encode()).hexdigest()[:12]


class EventNotes:
    """The notes of one namespace, forgotten `keep_seconds` after the last one. Safe to share between threads."""

    def __init__(self, cells: PassingCells, *, clock: Clock, keep_seconds: float) -> None:
        self._cells = cells
        self._clock = clock
        self._keep_seconds = keep_seconds

    def add(self, provider_key: str, kind: Happened, *, source: str, event_id: str, message_id: str | None) -> bool:
        """Note an event of the email with this derived key; False where it, or enough of its kind, is noted already."""
        note = Note(kind=kind, at=self._clock.now(), source=source, event=short_digest(event_id))
        name = _name(provider_key)

        def add(stored: bytes | None) -> tuple[bool, bytes | None]:
            heard = _decode(stored)
            if not _is_news(heard, note):
                return False, None
            known = heard.message_id or message_id
            return True, _ENCODER.encode(replace(heard, message_id=known, notes=(*heard.notes, note)))

        swap = partial(self._cells.swap_cell, name, keep_seconds=self._keep_seconds)
        return change_cell(self._cells.read_cell(name), add, swap)

    def of(self, provider_key: str) -> Heard:
        """What was told of the email with this derived key."""
        return _decode(self._cells.read_cell(_name(provider_key)))


def _name(provider_key: str) -> str:
    return f"event/{provider_key}"


def _is_news(heard: Heard, note: Note) -> bool:
    alike = [one for one in heard.notes if one.kind is note.kind]
    return len(alike) < _MOST_OF_A_KIND and all(one.event != note.event for one in alike)


def _decode(value: bytes | None) -> Heard:
    """What a cell holds. What cannot be read, as a newer version may have written it, is as if nobody had told."""
    if value is None:
        return Heard()
    try:
        return _DECODER.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Heard()
