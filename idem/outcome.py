"""The only language a provider adapter may speak: what one attempt is known to have done.

`Accepted`  the provider has the email; our promise ends here.
`Rejected`  the provider will not take these bytes under this key, and did not.
`NotSent`   proved: nothing left this machine, or the provider said that it did nothing. Trying again is safe.
`Unknown`   anything else. The attempt may have been accepted, now or later.

When in doubt, an adapter says `Unknown`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Ground(StrEnum):
    """What a rejection is about, which decides how much it proves about earlier attempts (rule 5)."""

    GATE = "gate"
    """Refused before the provider looked at the key: credentials, permissions, quota."""
    PAYLOAD = "payload"
    """These bytes are not acceptable."""
    CONFLICT = "conflict"
    """The key is already bound to other bytes: the one answer here that is about the key itself."""
    WITHHELD = "withheld"
    """Not asked at all: a recipient is on our own list. Nothing is wrong with the email, and the record keeps it."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider has the email, from this attempt or (`replayed`) from an earlier one under the same key."""

    message_id: str | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """This attempt was definitely not accepted, and repeating it would not change that.

    `replayed`: the provider says that this is its answer to the first request under the key, so that none was accepted.
    """

    detail: str
    ground: Ground = Ground.PAYLOAD
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class NotSent:
    """This attempt was definitely not accepted, and may be repeated after `retry_after` seconds.

    `credentials` marks the one cause that stops every email alike and that only a person can end; `limited`, that the
    provider asks everybody to wait, and not for this email only. `burnt`: the provider may answer the same to whatever
    comes under this key, so the next attempt needs another one. `replayed` is as above.
    """

    detail: str
    retry_after: float | None = None
    credentials: bool = False
    burnt: bool = False
    replayed: bool = False
    limited: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """This attempt may have been accepted; `limited` as with `NotSent`."""

    detail: str
    retry_after: float | None = None
    limited: bool = False


Outcome = Accepted | Rejected | NotSent | Unknown
