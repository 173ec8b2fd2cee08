"""Resend's SMTP server: the key is a header of the message."""

from __future__ import annotations

from datetime import date
from typing import Final

from idem.providers.base import Contract, Key, Limits, Meaning, Memory, Place, Reply, Row
from idem.providers.relay import REPLIES, SmtpProvider, server_of
from idem.providers.submission import Stage, Submitter

CONTRACT: Final = Contract(
    name="resend_smtp",
    title="Resend SMTP",
    sources=(
        "https://resend.com/docs/dashboard/emails/idempotency-keys",
        "https://resend.com/docs/send-with-smtp",
    ),
    checked=date(2026, 11, 22),
    base_url="smtps://smtp.resend.com:465",
    memory=Memory.REPLAYS,
    key=Key(place=Place.MESSAGE_HEADER, name="Resend-Idempotency-Key", window_seconds=86_400.0, longest=256),
    table=(
        Row(range(400, 600), Meaning.CONFLICT, code=Stage.END, words=r"invalid_idempotent_request|different payload"),
        Row(range(400, 500), Meaning.IN_PROGRESS, code=Stage.END, words=r"idempot.*(process|progress)|concurrent"),
        *REPLIES,
    ),
    reply=Reply(message_id=()),
    limits=Limits(recipients=50, tags=0, metadata=0),
    contradictions=(
        "its page says that only two endpoints of its API take keys, and that SMTP takes them in a header",
        "the replies to a key with another message, or in use, are not documented: the words of its API count as that",
    ),
)


def connect(token: str, base_url: str) -> SmtpProvider:
    """The adapter, for an API key; everybody's user name is the same."""
    return SmtpProvider(CONTRACT, Submitter(server_of(base_url, "resend", token)))
