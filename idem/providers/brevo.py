"""Brevo: `POST /v3/smtp/email` under a key in the body, which it refuses the second time."""

from __future__ import annotations

import hashlib
import mimetypes
import uuid
from datetime import date
from typing import Any, Final
from urllib.parse import quote

import msgspec

from idem.address import parse_address
from idem.email import Attachment, Email
from idem.errors import UnsupportedEmail
from idem.providers.api import Api, Content, HttpProvider, Onward, Search, as_json, as_mailbox, refuse_empty_parts
from idem.providers.base import (
    USUAL,
    CannotTell,
    Contract,
    Events,
    Found,
    Key,
    Limits,
    Lookup,
    Meaning,
    Memory,
    Missing,
    Place,
    Reply,
    Row,
    Sighting,
)
from idem.providers.http import Answer, NoAnswer
from idem.providers.reading import json_within, listed

_KEY_FIELD = "idempotencyKey"
_METADATA_HEADER = "X-Mailin-custom"

#: What an attachment's name may end in.
EXTENSIONS: Final = frozenset({
    "aif", "aifc", "aiff", "avi", "bmp", "cgm", "css", "csv", "doc", "docm", "docx", "eps", "ez", "flac", "gif",
    "htm", "html", "ics", "jpeg", "jpg", "m4a", "m4v", "mkv", "mobi", "mov", "mp3", "mp4", "mpeg", "mpg", "msg",
    "ods", "odt", "ogg", "pdf", "pkpass", "png", "ppt", "pptx", "pub", "rtf", "shtml", "tar", "tif", "tiff", "txt",
    "wav", "wma", "wmv", "xls", "xlsm", "xlsx", "xml", "zip",
})  # fmt: skip
#: Headers that are given as fields, or that are not custom ones.
_RESERVED_HEADERS = frozenset(
    {"comments", "idempotencykey", "in-reply-to", "keywords", "message-id", "references", "sender", "sender.ip"}
    | {_METADATA_HEADER.lower(), "x-mailin-tag"}
)
_UNSPECIFIED = "application/octet-stream"

CONTRACT: Final = Contract(
    name="brevo",
    title="Brevo",
    sources=(
        "https://developers.brevo.com/docs/heterogenous-versions-batch-emails",
        "https://developers.brevo.com/changelog/email-api-now-supports-idempotency",
        "https://github.com/getbrevo/brevo-node/issues/94",
        "https://developers.brevo.com/reference/sendtransacemail",
        "https://developers.brevo.com/reference/getemaileventreport-1",
        "https://developers.brevo.com/docs/api-limits",
        "https://github.com/anymail/django-anymail/blob/main/anymail/backends/brevo.py",
    ),
    checked=date(2026, 11, 22),
    base_url="https://api.brevo.com/v3",
    memory=Memory.REFUSES,
    key=Key(
        place=Place.BODY,
        name=f"headers.{_KEY_FIELD}",
        window_seconds=900.0,
        shortest=36,
        longest=36,
        characters="[0-9a-f-]",
    ),
    table=(
        Row({400}, Meaning.KNOWN, code="duplicate_parameter", words="idempotency"),
        Row({400}, Meaning.UNCLEAR, code="duplicate_(parameter|request)"),
        Row({400, 401, 403}, Meaning.FORBIDDEN, code="permission_denied|account_under_validation"),
        Row({400, 402, 403}, Meaning.NOT_NOW, code="not_enough_credits", pause_seconds=900.0),
        Row({400, 403}, Meaning.CREDENTIALS, code="unauthorized"),
        *USUAL,
    ),
    reply=Reply(message_id=("messageId",), code=("code",)),
    limits=Limits(recipients=99, reply_to=1, bytes=20_000_000, empty_subject=False),
    lookup=Lookup(
        handle="tag",
        source="https://developers.brevo.com/reference/getemaileventreport-1",
        lag_seconds=1_800.0,
        horizon_seconds=30 * 86_400.0,
    ),
    events=Events(
        handle="tag",
        source="https://developers.brevo.com/docs/transactional-webhooks",
    ),
    emails_per_second=1_000.0,
    contradictions=(
        "a key is remembered for 30 minutes, says the guide, and for 15, says the changelog: the shorter counts",
        "Idempotency-Key in the body's headers, and either name as an HTTP header, do nothing (brevo-node 94)",
        "the guide asks for a UUID and shows keys that are none: a UUID is sent",
        "the reference requires htmlContent; text alone is known to be taken",
        "how soon an event can be found is not documented: half an hour is assumed",
    ),
)


def key_of(provider_key: str) -> str:
    """The derived key as the UUID that Brevo asks for; its form is that of version 4."""
    return str(uuid.UUID(bytes=hashlib.sha256(provider_key.encode()).digest()[:16], version=4))


def encode(email: Email, provider_key: str) -> Content:
    """The request body; metadata is one header, and the derived key a header and a tag."""
    metadata = {_METADATA_HEADER: _metadata(email)} if email.metadata else {}
    parts: dict[str, Any] = {
        "sender": as_mailbox(email.from_),
        "to": [as_mailbox(address) for address in email.to],
        "cc": [as_mailbox(address) for address in email.cc],
        "bcc": [as_mailbox(address) for address in email.bcc],
        "replyTo": next(map(as_mailbox, email.reply_to), None),
        "subject": email.subject,
        "textContent": email.text,
        "htmlContent": email.html,
        "headers": {**email.headers, **metadata, _KEY_FIELD: key_of(provider_key)},
        "tags": [*email.tags, provider_key],
        "attachment": [
            {"name": item["filename"], "content": item["content"]} for item in email.as_dict().get("attachments", ())
        ],
    }
    return as_json({name: value for name, value in parts.items() if value})


def _metadata(email: Email) -> str:
    return msgspec.json.encode(dict(email.metadata), order="sorted").decode()


def _check(email: Email) -> None:
    refuse_empty_parts(email, CONTRACT.title)
    for name, value in email.headers.items():
        if name.lower() in _RESERVED_HEADERS:
            raise UnsupportedEmail(f"headers.{name}", "is not a custom header, and Brevo takes no other")
        if not value.isascii():
            raise UnsupportedEmail(f"headers.{name}", "is not ASCII, and Brevo would not encode it")
    if not _metadata(email).isascii():
        raise UnsupportedEmail("metadata", "is not ASCII, and Brevo sends it as a header without encoding it")
    for item in email.attachments:
        _check_attachment(item)
    fields = (("from", [email.from_]), ("to", email.to), ("cc", email.cc), ("bcc", email.bcc))
    for field, addresses in (*fields, ("reply_to", email.reply_to)):
        for address in addresses:
            _check_name(field, parse_address(field, address).name)


def _check_attachment(item: Attachment) -> None:
    if item.content_id is not None:
        raise UnsupportedEmail("attachments.content_id", "is nothing that Brevo's API has a place for")
    _, dot, extension = item.filename.lower().rpartition(".")
    if not dot or extension not in EXTENSIONS:
        raise UnsupportedEmail(
            "attachments.filename", "ends in nothing that Brevo takes; its reference lists the names"
        )
    # Not the module's own functions, which read the files of the machine that they run on.
    known, _ = mimetypes.MimeTypes(filenames=()).guess_type(f"name.{extension}")
    if item.content_type not in {_UNSPECIFIED, known or item.content_type}:
        raise UnsupportedEmail("attachments.content_type", f"is not {known}, which Brevo makes of the name")


def _check_name(field: str, name: str) -> None:
    if not name.isascii() and set(name) & set('()<>[]:;@\\,."'):
        raise UnsupportedEmail(
            field, "has a name with punctuation and with characters that are not ASCII: Brevo drops it"
        )


def _search_path(provider_key: str, _since: float) -> str:
    """The events of the last 30 days with this tag."""
    return "/smtp/statistics/events?tags=" + quote(msgspec.json.encode([provider_key]), safe="")


def _read_search(answer: Answer | NoAnswer, provider_key: str) -> Sighting | Onward:
    events = listed(answer, "events")
    if isinstance(events, CannotTell):
        return events
    for event in events:
        message_id = event.get("messageId")
        if provider_key in _tags(event.get("tag")) and isinstance(message_id, str):
            return Found(message_id)
    return CannotTell("the look-up shows events without the tag that it asked for") if events else Missing()


def _tags(value: object) -> list[object]:
    """The tag of an event, or several as JSON."""
    if not isinstance(value, str):
        return value if isinstance(value, list) else []
    several = json_within(value)
    return several if isinstance(several, list) else [value]


API: Final = Api(
    contract=CONTRACT,
    path="/smtp/email",
    authorize=lambda token: {"api-key": token},
    encode=encode,
    check=_check,
    search=Search(path=_search_path, read=_read_search),
)


def connect(token: str, base_url: str) -> HttpProvider:
    """The adapter, for an API key."""
    return HttpProvider(API, token, base_url)
