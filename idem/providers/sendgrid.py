"""SendGrid: `POST /v3/mail/send`, without keys; an email is found again by a custom argument, with an add-on."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec

from idem.address import parse_address
from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.providers.api import (
    HANDLE,
    Api,
    Content,
    HttpProvider,
    Onward,
    Search,
    as_json,
    as_mailbox,
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
from idem.providers.reading import json_within, listed

_MAX_ARGUMENT_BYTES = 10_000
_RESERVED_HEADERS = frozenset({"x-sg-id", "x-sg-eid"})

CONTRACT: Final = Contract(
    name="sendgrid",
    title="SendGrid",
    sources=(
        "https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send",
        "https://www.twilio.com/docs/sendgrid/api-reference/mail-send/errors",
        "https://www.twilio.com/docs/sendgrid/api-reference/how-to-use-the-sendgrid-v3-api/responses",
        "https://www.twilio.com/docs/sendgrid/api-reference/how-to-use-the-sendgrid-v3-api/errors",
        "https://www.twilio.com/docs/sendgrid/for-developers/sending-email/getting-started-email-activity-api",
        "https://www.twilio.com/docs/sendgrid/api-reference/email-activity/filter-messages-by-message-id",
        "https://github.com/sendgrid/sendgrid-python/issues/291",
    ),
    checked=date(2026, 11, 22),
    base_url="https://api.sendgrid.com/v3",
    memory=Memory.NONE,
    key=None,
    table=(
        Row({403}, Meaning.NOT_NOW, words=r"temporar|too many"),
        Row({451}, Meaning.FORBIDDEN),  # data residency
        *USUAL,
    ),
    reply=Reply(message_id=("header:X-Message-Id",), message=("errors.0.message",)),
    limits=Limits(recipients=1_000, tags=10, reply_to=1_000, empty_subject=False),
    lookup=Lookup(
        handle=f"custom argument {HANDLE}",
        source="https://www.twilio.com/docs/sendgrid/for-developers/sending-email/getting-started-email-activity-api",
        lag_seconds=3_600.0,
        horizon_seconds=30 * 86_400.0,
    ),
    events=Events(
        handle=f"custom argument {HANDLE}",
        source="https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event",
    ),
    contradictions=(
        "the look-up needs a paid add-on and a key that may read it; without, only an event or a person ends a doubt",
        "no activity is recorded for subusers in the EU: there, an empty answer proves nothing",
        "how soon a message can be found is not documented: an hour is assumed",
    ),
)


def encode(email: Email, provider_key: str) -> Content:
    """The request body: one personalization, so that all recipients get the same email."""
    recipients = {"to": email.to, "cc": email.cc, "bcc": email.bcc}
    parts: dict[str, Any] = {
        "personalizations": [{name: [_recipient(one) for one in each] for name, each in recipients.items() if each}],
        "from": as_mailbox(email.from_),
        "reply_to_list": [as_mailbox(address) for address in email.reply_to],
        "subject": email.subject,
        "content": [
            # In this order, or it is refused.
            {"type": kind, "value": body}
            for kind, body in (("text/plain", email.text), ("text/html", email.html))
            if body is not None
        ],
        "headers": dict(email.headers),
        "categories": list(email.tags),
        "custom_args": {**email.metadata, HANDLE: provider_key},
        "attachments": [_attachment(item) for item in email.as_dict().get("attachments", ())],
    }
    return as_json({name: value for name, value in parts.items() if value})


def _recipient(address: str) -> dict[str, str]:
    """A mailbox; its name is quoted where it has to be, which the API forgets for recipients (see the last source)."""
    parts = as_mailbox(address)
    if {",", ";"} & set(parts.get("name", "")):
        escaped = parts["name"].replace("\\", "\\\\").replace('"', '\\"')
        parts["name"] = f'"{escaped}"'
    return parts


def _attachment(item: dict[str, str]) -> dict[str, str]:
    parts = {"filename": item["filename"], "content": item["content"], "type": item["content_type"]}
    inline = {"disposition": "inline", "content_id": item["content_id"]} if "content_id" in item else {}
    return parts | (inline or {"disposition": "attachment"})


def _check(email: Email) -> None:
    refuse_handle(email)
    refuse_empty_parts(email, CONTRACT.title)
    for name in email.headers:
        if name.lower() in _RESERVED_HEADERS:
            raise UnsupportedEmail(f"headers.{name}", "is reserved by SendGrid")
    recipients = [parse_address("to", one).spec.lower() for one in (*email.to, *email.cc, *email.bcc)]
    if len(set(recipients)) < len(recipients):
        raise UnsupportedEmail("to", "names an address twice, cc and bcc counted, which SendGrid refuses")
    if len(set(email.tags)) < len(email.tags):
        raise UnsupportedEmail("tags", "holds one twice, which SendGrid refuses")
    if len(msgspec.json.encode(dict(email.metadata))) > _MAX_ARGUMENT_BYTES - 100:
        raise UnsupportedEmail("metadata", f"is too long: SendGrid takes less than {_MAX_ARGUMENT_BYTES:,} bytes")


def _search_path(provider_key: str, _since: float) -> str:
    return "/messages?limit=10&query=" + quote(f"(unique_args['{HANDLE}']=\"{provider_key}\")", safe="")


def _read_search(answer: Answer | NoAnswer, provider_key: str) -> Sighting | Onward:
    """The list names messages without their arguments; one message shows them."""
    one = answer.json_object() if isinstance(answer, Answer) else {}
    if isinstance(answer, Answer) and answer.status == 200 and "msg_id" in one:  # noqa: PLR2004 - OK
        return _read_message(one, provider_key)
    messages = listed(answer, "messages")
    if isinstance(messages, CannotTell):
        return messages
    if not messages:
        return Missing()
    message_id = messages[0].get("msg_id")
    if not isinstance(message_id, str) or not message_id:
        return CannotTell("the look-up shows a message without an id")
    return Onward("/messages/" + quote(message_id, safe=""))


def _read_message(message: dict[str, Any], provider_key: str) -> Sighting:
    arguments = message.get("unique_args")
    if isinstance(arguments, str):
        arguments = json_within(arguments)
    if isinstance(arguments, dict) and arguments.get(HANDLE) == provider_key and isinstance(message["msg_id"], str):
        return Found(message["msg_id"])
    return CannotTell("the look-up shows a message without the argument that it asked for")


def _read_nothing(answer: Answer | NoAnswer, provider_key: str) -> Sighting | Onward:
    seen = _read_search(answer, provider_key)
    return CannotTell("SendGrid records no activity for subusers in the EU") if isinstance(seen, Missing) else seen


API: Final = Api(
    contract=CONTRACT,
    path="/mail/send",
    authorize=lambda token: {"Authorization": f"Bearer {token}"},
    encode=encode,
    check=_check,
    search=Search(path=_search_path, read=_read_search),
)
_API_IN_THE_EU: Final = replace(API, search=Search(path=_search_path, read=_read_nothing))


def connect(token: str, base_url: str) -> HttpProvider:
    """The adapter, for an API key; the EU's host is `https://api.eu.sendgrid.com/v3`."""
    in_the_eu = (urlsplit(base_url).hostname or "").startswith("api.eu.")
    return HttpProvider(_API_IN_THE_EU if in_the_eu else API, token, base_url)
