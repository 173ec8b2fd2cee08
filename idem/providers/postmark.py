"""Postmark: `POST /email`, without keys; an email is found again by its metadata."""

from __future__ import annotations

from datetime import date
from typing import Any, Final
from urllib.parse import quote

from idem.email import Email
from idem.providers.api import (
    HANDLE,
    Api,
    Content,
    HttpProvider,
    Onward,
    Search,
    as_json,
    refuse_empty_parts,
    refuse_handle,
)
from idem.providers.base import (
    USUAL,
    CannotTell,
    Contract,
    Events,
    Found,
    Limits,
    Lookup,
    Meaning,
    Memory,
    Missing,
    Reply,
    Row,
    Sighting,
)
from idem.providers.http import Answer, NoAnswer
from idem.providers.reading import listed

CONTRACT: Final = Contract(
    name="postmark",
    title="Postmark",
    sources=(
        "https://postmarkapp.com/support/article/what-is-an-idempotency-key",
        "https://postmarkapp.com/developer/api/email-api",
        "https://postmarkapp.com/developer/api/overview",
        "https://postmarkapp.com/developer/api/messages-api",
        "https://postmarkapp.com/support/article/1180-what-does-errorcode-300-mean",
        "https://postmarkapp.com/support/article/1125-custom-metadata-faq",
    ),
    checked=date(2026, 11, 22),
    base_url="https://api.postmarkapp.com",
    memory=Memory.NONE,
    key=None,
    table=(
        # Only a batch reports an error with a 200; the code is missing when "delivery may be delayed".
        Row(range(200, 300), Meaning.ACCEPTED, code="0?"),
        Row(range(200, 300), Meaning.UNCLEAR),
        Row({422}, Meaning.FORBIDDEN, code="400|401|412|413"),  # the sender's signature, the account
        Row({422}, Meaning.NOT_NOW, code="405", pause_seconds=900.0),  # out of credit
        *USUAL,
    ),
    reply=Reply(message_id=("MessageID",), code=("ErrorCode",), message=("Message",)),
    limits=Limits(recipients=50, tags=1, bytes=10_000_000),
    lookup=Lookup(
        handle=f"metadata {HANDLE}",
        source="https://postmarkapp.com/support/article/1125-custom-metadata-faq",
        lag_seconds=900.0,
        horizon_seconds=7 * 86_400.0,
    ),
    events=Events(
        handle=f"metadata {HANDLE}",
        source="https://postmarkapp.com/support/article/1125-custom-metadata-faq",
    ),
    contradictions=(
        "a 500 is 'in most cases' a lost message, so in some it is not: it proves nothing",
        "messages are kept for 45 days, or for 7 to 365 as the account chooses: the shortest counts",
        "how soon a message can be found is not documented: a quarter of an hour is assumed",
    ),
)


def encode(email: Email, provider_key: str) -> Content:
    """The request body; several addresses are one text, and the derived key is metadata."""
    parts: dict[str, Any] = {
        "From": email.from_,
        "To": ", ".join(email.to),
        "Cc": ", ".join(email.cc),
        "Bcc": ", ".join(email.bcc),
        "ReplyTo": ", ".join(email.reply_to),
        "Subject": email.subject,
        "TextBody": email.text,
        "HtmlBody": email.html,
        "Tag": "".join(email.tags[:1]),
        "Headers": [{"Name": name, "Value": email.headers[name]} for name in sorted(email.headers)],
        "Attachments": [_attachment(item) for item in email.as_dict().get("attachments", ())],
        "Metadata": {**email.metadata, HANDLE: provider_key},
    }
    return as_json({name: value for name, value in parts.items() if value or name == "Subject"})


def _check(email: Email) -> None:
    refuse_handle(email)
    refuse_empty_parts(email, CONTRACT.title)


def _attachment(item: dict[str, str]) -> dict[str, str]:
    parts = {"Name": item["filename"], "Content": item["content"], "ContentType": item["content_type"]}
    return parts | ({"ContentID": f"cid:{item['content_id']}"} if "content_id" in item else {})


def _search_path(provider_key: str, _since: float) -> str:
    """The whole archive: its dates are in Eastern Time, and no other email has this metadata."""
    return f"/messages/outbound?count=50&offset=0&metadata_{HANDLE}={quote(provider_key, safe='')}"


def _read_search(answer: Answer | NoAnswer, provider_key: str) -> Sighting | Onward:
    messages = listed(answer, "Messages")
    if isinstance(messages, CannotTell):
        return messages
    for message in messages:
        metadata, message_id = message.get("Metadata"), message.get("MessageID")
        if isinstance(metadata, dict) and metadata.get(HANDLE) == provider_key and isinstance(message_id, str):
            return Found(message_id)
    if messages or not isinstance(answer, Answer) or answer.json_object().get("TotalCount") != 0:
        return CannotTell("the look-up shows other messages than those with the metadata that it asked for")
    return Missing()


API: Final = Api(
    contract=CONTRACT,
    path="/email",
    authorize=lambda token: {"X-Postmark-Server-Token": token},
    encode=encode,
    check=_check,
    search=Search(path=_search_path, read=_read_search),
)


def connect(token: str, base_url: str) -> HttpProvider:
    """The adapter, for a server's token."""
    return HttpProvider(API, token, base_url)
