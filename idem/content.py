"""Content keys: the same content, enqueued again within a while, is the same effect.

The first enqueueing of a content names its effect, and writes the key into a cell of the store, under a digest of the
content, by compare-and-set. Whoever enqueues the content again before the time is over that the first one said finds
it there, and so has its key; later, the next one names a new effect. So the time counts from the first enqueueing, and
not in buckets of a clock, at the edge of which two moments would be two effects. The key then travels in the message: a
job that is delivered again never comes here.

    absent       --enqueue at t-->          (key, t + within), where the key holds t: another time, another key
    (key, until) --enqueue before until-->  the key that is there
                 --enqueue at t', later-->  (key', t' + within), by one of those who try; the others find it there

A crash between the cell and the broker costs nothing: whoever enqueues the content again finds the key. The clocks are
those of the producers: one that is wrong by a minute is early or late by a minute. A store that loses the cell, which
it may, makes a new effect of what would have been the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

import msgspec

from idem.clock import Clock
from idem.email import Email
from idem.errors import InvalidKey, LedgerUnusable
from idem.keys import content_key
from idem.stores.base import PassingCells, change_cell

_VERSION: Final = 1

#: What nobody who gets an email can see.
_UNSEEN: Final = frozenset({"tags", "metadata"})


@dataclass(frozen=True, slots=True)
class ByContent:
    """In place of a key: the content names the effect, for so many seconds from the first enqueueing on."""

    within_seconds: float


def by_content(*, within: timedelta) -> ByContent:
    """A key that is made from the content: enqueued again less than `within` after the first time, it is the same.

    The content of an email is all that those who get it can see, and who they are: not its tags, and not its metadata.
    Of a job, it is its name and its arguments. Raises `InvalidKey` for a time that is not above 0.
    """
    if not isinstance(within, timedelta) or within <= timedelta(0):
        raise InvalidKey("by_content: within must be a timedelta above 0, such as timedelta(hours=1)")
    return ByContent(within.total_seconds())


class Named(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a cell holds: the effect that the content has until then (Unix seconds).

    An effect is one email: those who find it enqueue it with the tags and metadata of the first.
    """

    until: float
    key: str
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = {}
    version: int = _VERSION

    def as_named(self, email: Email) -> Email:
        """The email of the same content that the key stands for."""
        if (email.tags, email.metadata) == (self.tags, self.metadata):
            return email
        return Email.from_dict(email.as_dict() | {"tags": self.tags, "metadata": self.metadata})


_DECODER = msgspec.json.Decoder(Named)


def digest_of_email(email: Email) -> str:
    """A digest of all that those who get the email can see, and of who they are, the hidden ones too."""
    seen = {name: value for name, value in email.as_dict().items() if name not in _UNSEEN}
    return _digest("email", seen)


def digest_of_emails(emails: Sequence[Email]) -> str:
    """A digest of a list, in its order, and of all that is in it: its emails share no effect with another list's."""
    return _digest("emails", [email.fingerprint() for email in emails])


def digest_of_call(job: str, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """A digest of what a job is called with: JSON values."""
    return _digest("job", [job, list(args), dict(kwargs)])


def _digest(kind: str, content: object) -> str:
    return hashlib.sha256(msgspec.json.encode([kind, content], order="deterministic")).hexdigest()


@dataclass(frozen=True, slots=True)
class Contents:
    """The effects that contents have had lately. Safe to share between threads and processes."""

    cells: PassingCells
    clock: Clock

    def name(self, digest: str, by: ByContent, email: Email | None = None) -> Named:
        """The effect that the content has now. One write if it is new, one that is refused if it is not.

        Raises `LedgerUnavailable` when it is not known whether it was written: trying again finds it then.
        """
        cell = f"content/{digest}"
        tags, metadata = ((), {}) if email is None else (email.tags, dict(email.metadata))

        def name(stored: bytes | None) -> tuple[Named, bytes | None]:
            now = self.clock.now()
            named = _decode(stored)
            if named is not None and now < named.until:
                return named, None
            new = Named(now + by.within_seconds, content_key(digest, now), tags, metadata)
            return new, msgspec.json.encode(new)

        return change_cell(None, name, partial(self.cells.swap_cell, cell, keep_seconds=by.within_seconds))


def _decode(stored: bytes | None) -> Named | None:
    if stored is None:
        return None
    try:
        named = _DECODER.decode(stored)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LedgerUnusable("the ledger's store holds a content key that cannot be read") from error
    if named.version != _VERSION:
        raise LedgerUnusable(f"the ledger's content keys have version {named.version}: this program knows {_VERSION}")
    return named
