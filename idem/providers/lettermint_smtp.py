"""Lettermint's SMTP relay: the key is a header of the message, and is treated as that of its API."""

from __future__ import annotations

from datetime import date
from typing import Final

from idem.providers.base import Contract, Key, Limits, Meaning, Memory, Place, Reply, Row
from idem.providers.relay import REPLIES, SmtpProvider, server_of
from idem.providers.submission import Stage, Submitter

CONTRACT: Final = Contract(
    name="lettermint_smtp",
    title="Lettermint SMTP",
    sources=(
        "https://lettermint.co/docs/platform/emails/idempotency",
        "https://lettermint.co/docs/guides/send-email-with-smtp",
    ),
    checked=date(2026, 11, 22),
    base_url="smtp://smtp.lettermint.co:587",
    memory=Memory.REPLAYS,
    key=Key(place=Place.MESSAGE_HEADER, name="Idempotency-Key", window_seconds=86_400.0),
    table=(
        Row(range(400, 600), Meaning.CONFLICT, code=Stage.END, words=r"idempotency.*different|different.*payload"),
        Row(range(400, 500), Meaning.IN_PROGRESS, code=Stage.END, words=r"idempot.*(process|progress|concurrent)"),
        *REPLIES,
    ),
    reply=Reply(message_id=()),
    limits=Limits(recipients=100, tags=0, metadata=0, empty_subject=False),
    contradictions=(
        "the replies to a key with another message, or in use, are not documented: the words of its API count as that",
    ),
)


def connect(token: str, base_url: str) -> SmtpProvider:
    """The adapter, for a project's token; everybody's user name is the same."""
    return SmtpProvider(CONTRACT, Submitter(server_of(base_url, "lettermint", token)))
