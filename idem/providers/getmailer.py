"""GetMailer: `POST /api/emails` under an `Idempotency-Key`."""

from __future__ import annotations

from datetime import date
from typing import Any, Final

from idem.email import Email
from idem.providers.api import AS_TAG, Api, Content, HttpProvider, as_json
from idem.providers.base import USUAL, Contract, Events, Keeps, Key, Limits, Meaning, Memory, Place, Reply, Row

CONTRACT: Final = Contract(
    name="getmailer",
    title="GetMailer",
    sources=(
        "https://getmailer.co/docs/idempotency",
        "https://getmailer.co/docs/send-email",
        "https://getmailer.co/docs/rate-limits",
    ),
    checked=date(2026, 11, 22),
    base_url="https://getmailer.co/api",
    memory=Memory.REPLAYS,
    key=Key(
        place=Place.HEADER,
        name="Idempotency-Key",
        window_seconds=86_400.0,
        characters=r"[A-Za-z0-9_-]",
        # "The cached response" is said of any first request, so of a refusal too.
        keeps=frozenset({Keeps.REFUSALS}),
    ),
    table=(
        # Not documented, and every other provider says it so.
        Row({409}, Meaning.IN_PROGRESS, words=r"in progress|being processed|concurrent"),
        Row({409}, Meaning.CONFLICT),
        *USUAL,
    ),
    reply=Reply(
        message_id=("id", "data.id", "email.id"),
        message=("error", "message"),
        retry_after=("retryAfter",),
    ),
    # Its parameters have no attachments and no metadata, and 10 tags, of which one is ours.
    limits=Limits(tags=9, metadata=0, reply_to=1, attachments=0, empty_subject=False),
    events=Events(
        handle=f"tag {AS_TAG}...",
        source="https://getmailer.co/docs/webhooks",
        added_to="tags",
    ),
    emails_per_second=100 / 60,
    contradictions=(
        "a success: its page shows the email itself, its own MCP server reads `{email, suppressed}`; both are read",
        "tags in events: its page on webhooks does not show them; its other answers list them, and so one is sent",
        "the host: its pages say getmailer.co, its own MCP server getmailer.app; the pages' is the default",
    ),
)


def encode(email: Email, _provider_key: str) -> Content:
    """The request body: the one reply address as a string, everything else under its own name."""
    parts: dict[str, Any] = email.as_dict()
    reply_to = parts.pop("reply_to", None)
    if reply_to:
        parts["replyTo"] = reply_to[0]
    return as_json(parts)


API: Final = Api(
    contract=CONTRACT,
    path="/emails",
    authorize=lambda token: {"Authorization": f"Bearer {token}"},
    encode=encode,
)


def connect(token: str, base_url: str) -> HttpProvider:
    """The adapter, for an API key."""
    return HttpProvider(API, token, base_url)
