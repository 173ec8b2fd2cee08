"""Any SMTP server: no keys, no look-up, so a lost reply to the end of the message is never followed by a second try."""

from __future__ import annotations

from datetime import date
from typing import Final

from idem.errors import SettingsError
from idem.providers.base import Contract, Limits, Memory, Reply
from idem.providers.relay import REPLIES, SmtpProvider, server_of
from idem.providers.submission import Submitter

CONTRACT: Final = Contract(
    name="smtp",
    title="SMTP",
    sources=("https://www.rfc-editor.org/rfc/rfc5321", "https://www.rfc-editor.org/rfc/rfc6409"),
    checked=date(2026, 11, 22),
    base_url="smtp://{host}:587",
    memory=Memory.NONE,
    key=None,
    table=REPLIES,
    reply=Reply(message_id=()),
    # Every server must take that many (RFC 5321, 4.5.3.1.8); a server that refuses the rest refuses them each time.
    limits=Limits(recipients=100, tags=0, metadata=0),
    needs_token=False,
    contradictions=(
        "RFC 5321 has a 421 for any command, also where it says nothing about it: after the message it proves nothing",
    ),
)


def connect(token: str, base_url: str) -> SmtpProvider:
    """The adapter, for `user:password`, or for a server that asks for no login."""
    user, colon, password = token.partition(":")
    if token and not (user and colon):
        raise SettingsError("IDEM_SMTP_TOKEN is not of the form user:password")
    return SmtpProvider(CONTRACT, Submitter(server_of(base_url, user, password)))
