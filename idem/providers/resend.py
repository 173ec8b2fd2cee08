"""Resend: `POST /emails`, and `POST /emails/batch` for many, each under an `Idempotency-Key`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, Final

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

_QUOTA_SECONDS: Final = 3_600.0
_TAG: Final = re.compile(r"[A-Za-z0-9_-]{1,256}")

CONTRACT: Final = Contract(
    name="resend",
    title="Resend",
    sources=(
        "https://resend.com/docs/dashboard/emails/idempotency-keys",
        "https://resend.com/docs/api-reference/errors",
        "https://resend.com/docs/api-reference/emails/send-email",
        "https://resend.com/docs/api-reference/emails/send-batch-emails",
        "https://resend.com/docs/dashboard/emails/batch-validation-modes",
        "https://resend.com/docs/api-reference/rate-limit",
    ),
    checked=date(2026, 11, 22),
    base_url="https://api.resend.com",
    memory=Memory.REPLAYS,
    key=Key(place=Place.HEADER, name="Idempotency-Key", window_seconds=86_400.0, longest=256),
    table=(
        Row({409}, Meaning.CONFLICT, code="invalid_idempotent_request"),
        Row({409}, Meaning.IN_PROGRESS, code="concurrent_idempotent_requests"),
        Row({403}, Meaning.CREDENTIALS, code="invalid_api_key"),
        # A quota of the day or the month: nothing passes for a while, and the answer does not say how long.
        Row({429}, Meaning.NOT_NOW, code="(daily|monthly)_quota_exceeded", pause_seconds=_QUOTA_SECONDS),
        Row({451}, Meaning.FORBIDDEN, code="security_error"),
        *USUAL,
    ),
    reply=Reply(message_id=("id",), code=("name",)),
    limits=Limits(to=50, tags=1, bytes=40_000_000, empty_subject=False),
    batch=Batch(path="/emails/batch", most=100, keys=BatchKeys.REQUEST, attachments=False),
    events=Events(
        handle=f"tag {HANDLE}",
        source="https://resend.com/docs/dashboard/webhooks/event-types",
        added_to="metadata",
    ),
    emails_per_second=2.0,
    contradictions=(
        "tags in a batch: older pages say that they are not supported, today's lists them; they are sent",
        "a refused API key: its errors page gives 403 for a wrong one, 401 for none; both stop every email alike",
    ),
)


def encode(email: Email, _provider_key: str) -> Content:
    """The request body."""
    return as_json(_parts(email))


def _parts(email: Email) -> dict[str, Any]:
    parts: dict[str, Any] = email.as_dict()
    parts.pop("metadata", None)
    if email.tags or email.metadata:
        parts["tags"] = named_tags(email)
    return parts


def check(email: Email) -> None:
    """Refuse tags and metadata that its tags cannot hold."""
    check_named_tags(email, CONTRACT.title)
    for tag in named_tags(email):
        if not (_TAG.fullmatch(tag["name"]) and _TAG.fullmatch(tag["value"])):
            field = "tags" if email.tags and tag["name"] == "tag" else f"metadata.{tag['name']}"
            raise UnsupportedEmail(field, f"becomes a tag of {CONTRACT.title}'s: 1 to 256 of A-Z, a-z, 0-9, _ and -")


def encode_batch(emails: Sequence[Email]) -> Content:
    """The request body for many."""
    return as_json([_parts(email) for email in emails])


class _Created(msgspec.Struct):
    id: Annotated[str, msgspec.Meta(min_length=1)]


class _Refused(msgspec.Struct):
    index: int
    message: str


class _Batch(msgspec.Struct):
    """`data` has the ids of the emails that were created, in order; `errors` the others, by their index."""

    data: list[_Created]
    errors: list[_Refused] | None = None


_BATCH: Final = msgspec.json.Decoder(_Batch)


def read_batch(answer: Answer | NoAnswer, count: int) -> Batched:
    """What became of the request and of each of its `count` emails."""
    return batched(CONTRACT, answer, lambda body: _each(_BATCH.decode(body), count))


def _each(batch: _Batch, count: int) -> tuple[Accepted | Rejected, ...] | None:
    refused = {error.index: Rejected(redact(error.message)) for error in batch.errors or ()}
    if len(batch.data) + len(refused) != count or not refused.keys() <= set(range(count)):
        return None
    created = iter(batch.data)
    return tuple(refused[index] if index in refused else Accepted(next(created).id) for index in range(count))


API: Final = Api(
    contract=CONTRACT,
    path="/emails",
    authorize=lambda token: {"Authorization": f"Bearer {token}"},
    encode=encode,
    check=check,
    # Strict, the default, would refuse all emails for the sake of one.
    whole=WholeBatch(encode=encode_batch, read=read_batch, headers={"x-batch-validation": "permissive"}),
)


def connect(token: str, base_url: str) -> HttpProvider:
    """The adapter, for an API key."""
    return HttpProvider(API, token, base_url)
