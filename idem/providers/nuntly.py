"""Nuntly: `POST /emails`, and `POST /emails/bulk` for many, each under an `Idempotency-Key`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, Final

import msgspec

from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.outcome import Accepted, Rejected
from idem.privacy import redact
from idem.providers.api import HANDLE, Api, Content, HttpProvider, WholeBatch, as_json, check_named_tags, named_tags
from idem.providers.base import (
    USUAL,
    Batch,
    Batched,
    BatchKeys,
    Contract,
    Events,
    Keeps,
    Key,
    Limits,
    Meaning,
    Memory,
    Place,
    Reply,
    Row,
)
from idem.providers.http import Answer, NoAnswer
from idem.providers.reading import batched

CONTRACT: Final = Contract(
    name="nuntly",
    title="Nuntly",
    sources=(
        "https://nuntly.com/docs/guides/idempotency",
        "https://nuntly.com/docs/api-reference/emails/send-email",
        "https://nuntly.com/docs/api-reference/emails/send-bulk-emails",
        "https://github.com/nuntly/nuntly-sdk-typescript/blob/main/src/resources/emails/types.ts",
        "https://github.com/nuntly/nuntly-mcp/blob/main/src/tools/emails.ts",
    ),
    checked=date(2026, 11, 22),
    base_url="https://api.nuntly.com",
    memory=Memory.REPLAYS,
    key=Key(
        place=Place.HEADER,
        name="Idempotency-Key",
        window_seconds=86_400.0,
        shortest=8,
        keeps=frozenset({Keeps.REFUSALS}),
        replay_marker=("Idempotent-Replayed", "true"),
    ),
    table=(
        Row({409}, Meaning.CONFLICT, code="idempotency_key_payload_mismatch"),
        Row({409}, Meaning.IN_PROGRESS, code="idempotency_key_in_progress"),
        Row({400}, Meaning.INVALID, code="idempotency_key_invalid"),
        *USUAL,
    ),
    reply=Reply(message_id=("data.id",), code=("error.code",), message=("error.title", "error.message")),
    limits=Limits(empty_subject=False),
    batch=Batch(path="/emails/bulk", most=20, keys=BatchKeys.REQUEST, attachments=False),
    events=Events(
        handle=f"tag {HANDLE}",
        source="https://nuntly.com/docs/guides/integrate-webhooks",
        added_to="metadata",
    ),
    contradictions=(
        "the shortest key: its guide says 8 characters, its API reference 1; ours have 43",
        "many emails: its MCP server says at most 20 in a request, its pages give no number; 20 it is",
        "field names: an older reference has reply_to, today's and the SDK have replyTo",
    ),
)


def encode(email: Email, _provider_key: str) -> Content:
    """The request body."""
    return as_json(_parts(email))


def _parts(email: Email) -> dict[str, Any]:
    parts: dict[str, Any] = {
        name: value for name, value in email.as_dict().items() if name not in {"reply_to", "tags", "metadata"}
    }
    if email.reply_to:
        parts["replyTo"] = list(email.reply_to)
    if email.tags or email.metadata:
        parts["tags"] = named_tags(email)
    if email.attachments:
        parts["attachments"] = [
            {"filename": item["filename"], "content": item["content"], "contentType": item["content_type"]}
            for item in parts["attachments"]
        ]
    return parts


def check(email: Email) -> None:
    """Refuse inline files, which its attachments cannot be."""
    check_named_tags(email, CONTRACT.title)
    if any(item.content_id is not None for item in email.attachments):
        raise UnsupportedEmail("attachments.content_id", f"has no place in {CONTRACT.title}'s API; link the picture")


def encode_bulk(emails: Sequence[Email]) -> Content:
    """The request body for many."""
    return as_json({"emails": [_parts(email) for email in emails]})


class _Item(msgspec.Struct):
    """One email's status; an older reference names the reason of a refusal `error`, the SDK `detail`."""

    status: str
    id: str | None = None
    error: str | None = None
    detail: str | None = None


class _Data(msgspec.Struct):
    emails: list[_Item]


class _Bulk(msgspec.Struct):
    data: _Data


_BULK: Final = msgspec.json.Decoder(_Bulk)


def read_bulk(answer: Answer | NoAnswer, count: int) -> Batched:
    """What became of the request and of each of its `count` emails."""
    return batched(CONTRACT, answer, lambda body: _each(_BULK.decode(body).data.emails, count))


def _each(items: Sequence[_Item], count: int) -> tuple[Accepted | Rejected, ...] | None:
    if len(items) != count or not all(item.id or item.status == "rejected" for item in items):
        return None
    return tuple(_one(item) for item in items)


def _one(item: _Item) -> Accepted | Rejected:
    if item.status == "rejected":
        return Rejected(redact(f"rejected: {item.error or item.detail or 'no reason given'}"))
    return Accepted(item.id)


API: Final = Api(
    contract=CONTRACT,
    path="/emails",
    authorize=lambda token: {"Authorization": f"Bearer {token}"},
    encode=encode,
    check=check,
    whole=WholeBatch(encode=encode_bulk, read=read_bulk),
)


def connect(token: str, base_url: str) -> HttpProvider:
    """The adapter, for an API key."""
    return HttpProvider(API, token, base_url)
