"""Who may post: the senders by name, and each with its keys.

A name is that of a sender, or that and one's own word for one of its accounts: `stripe`, `stripe_eu`, `standard_clerk`.
Each has its own secrets, its own path and its own keys, so that two accounts cannot take each other's ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from idem.errors import SettingsError
from workers.webhooks import (
    brevo,
    getmailer,
    github,
    hmac,
    lettermint,
    mailgun,
    nuntly,
    postmark,
    resend,
    sendgrid,
    ses,
    shopify,
    standard,
    stripe,
)
from workers.webhooks.delivery import Delivery
from workers.webhooks.event import Event
from workers.webhooks.signatures import Scheme, Tolerance

SCHEMES: Final[Mapping[str, Scheme]] = {
    "stripe": stripe.SCHEME,
    "github": github.SCHEME,
    "shopify": shopify.SCHEME,
    "standard": standard.SCHEME,
    "lettermint": lettermint.SCHEME,
    "getmailer": getmailer.SCHEME,
    "nuntly": nuntly.SCHEME,
    "resend": resend.SCHEME,
    "postmark": postmark.SCHEME,
    "ses": ses.SCHEME,
    "sendgrid": sendgrid.SCHEME,
    "mailgun": mailgun.SCHEME,
    "brevo": brevo.SCHEME,
    "hmac": hmac.SCHEME,
}
_NAME: Final = re.compile(r"(?P<sender>[a-z0-9]+)(_[a-z0-9_]{1,40})?", re.ASCII)


def sender_of(source: str) -> str | None:
    """The sender that a source's name begins with; None when there is no such sender."""
    found = _NAME.fullmatch(source)
    return found["sender"] if found is not None and found["sender"] in SCHEMES else None


@dataclass(frozen=True, slots=True)
class Source:
    """One who may post."""

    name: str
    scheme: Scheme
    keys: Sequence[bytes] = field(repr=False)

    def open(self, delivery: Delivery, tolerance: Tolerance) -> tuple[Event, ...]:
        """The events in a delivery, nearly always one; `Refused` unless all of it is genuine and complete."""
        self.scheme.check(delivery, self.keys, tolerance)
        return tuple(
            Event(source=self.name, id=said.id, type=said.type, created=said.created, data=data)
            for said, data in self.scheme.events(delivery)
        )


def open_sources(secrets: Mapping[str, Sequence[str]]) -> dict[str, Source]:
    """The sources that have secrets; `SettingsError` for a secret that cannot be one of its sender's."""
    found = {}
    for name, listed in secrets.items():
        sender = sender_of(name)
        if sender is None:
            raise SettingsError(f"IDEM_{name.upper()}_WEBHOOK_SECRET names no sender; known: {', '.join(SCHEMES)}")
        try:
            found[name] = Source(name, SCHEMES[sender], SCHEMES[sender].keys(listed))
        except ValueError as error:
            raise SettingsError(f"IDEM_{name.upper()}_WEBHOOK_SECRET: {error}") from error
    return found
