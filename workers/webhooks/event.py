"""An event as a job function gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from idem.errors import JobError


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a source told, once it was verified.

    `id` names the event: it is the same in every delivery of it. `type` is the source's own word, `created` in Unix
    seconds where the body says when it happened, `data` the whole body.
    """

    source: str
    id: str
    type: str
    created: float | None
    data: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The event as JSON values, for the message."""
        return {
            "source": self.source,
            "id": self.id,
            "type": self.type,
            "created": self.created,
            "data": dict(self.data),
        }

    @classmethod
    def from_dict(cls, parts: object) -> Event:
        """Read an event back; `JobError` when it is not one."""
        try:
            return msgspec.convert(parts, Event)
        except msgspec.ValidationError as error:
            raise JobError(f"the message holds no event: {error}") from error


# Made for what making it does: msgspec learns about the type now, and not in two threads at once (see stores.codec).
_EVENT_DECODER = msgspec.json.Decoder(Event)
