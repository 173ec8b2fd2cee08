"""What an email provider tells of an email that it accepted, in one vocabulary.

A provider's event is an event like any other: it can have jobs of its own. One that brings back the key that we derived
proves an acceptance, and so ends a doubt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from idem.providers.api import HANDLE
from workers.webhooks.event import Event
from workers.webhooks.sources import sender_of


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


#: https://resend.com/docs/dashboard/webhooks/event-types, https://getmailer.co/docs/webhooks,
#: https://nuntly.com/docs/guides/integrate-webhooks
_EMAIL: Final[Mapping[str, Happened]] = {
    "email.sent": Happened.ACCEPTED,
    "email.delivered": Happened.DELIVERED,
    "email.delivery_delayed": Happened.DEFERRED,
    "email.bounced": Happened.BOUNCED,
    "email.complained": Happened.COMPLAINED,
    "email.opened": Happened.OPENED,
    "email.clicked": Happened.CLICKED,
    "email.failed": Happened.DROPPED,
    "email.suppressed": Happened.DROPPED,
}
#: https://lettermint.co/docs/platform/webhooks/events
_MESSAGE: Final[Mapping[str, Happened]] = {
    "message.created": Happened.ACCEPTED,
    "message.sent": Happened.ACCEPTED,
    "message.delivered": Happened.DELIVERED,
    "message.soft_bounced": Happened.DEFERRED,
    "message.hard_bounced": Happened.BOUNCED,
    "message.spam_complaint": Happened.COMPLAINED,
    "message.opened": Happened.OPENED,
    "message.clicked": Happened.CLICKED,
    "message.unsubscribed": Happened.UNSUBSCRIBED,
    "message.failed": Happened.DROPPED,
    "message.suppressed": Happened.DROPPED,
    "message.policy_rejected": Happened.DROPPED,
}
_WORDS: Final[Mapping[str, Mapping[str, Happened]]] = {
    "lettermint": _MESSAGE,
    "getmailer": _EMAIL,
    "nuntly": _EMAIL,
    "resend": _EMAIL,
}


@dataclass(frozen=True, slots=True)
class Told:
    """What was told; `provider_key` is the derived key where the event brings one back."""

    happened: Happened
    provider: str
    message_id: str | None
    recipient: str | None
    provider_key: str | None


def told(event: Event) -> Told | None:
    """What an event tells of an email; None for one of another sender, or of another kind."""
    sender = sender_of(event.source) or ""
    happened, data = _WORDS.get(sender, {}).get(event.type), event.data.get("data")
    if happened is None or not isinstance(data, dict):
        return None
    to = data.get("to")
    return Told(
        happened,
        sender,
        _first(data.get("message_id"), data.get("email_id"), data.get("id")),
        _first(data.get("recipient"), *(to if isinstance(to, list) else [to])),
        _first(*(_under_handle(data.get(place)) for place in ("metadata", "tags", "headers"))),
    )


def _under_handle(named: object) -> object:
    """Our value among names and values, which come as an object or as a list of `{"name", "value"}`."""
    if isinstance(named, dict):
        return named.get(HANDLE)
    pairs: list[Any] = named if isinstance(named, list) else []
    return next((pair.get("value") for pair in pairs if isinstance(pair, dict) and pair.get("name") == HANDLE), None)


def _first(*values: object) -> str | None:
    return next((value for value in values if isinstance(value, str) and value), None)
