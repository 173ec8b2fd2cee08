"""Mailgun: `POST /v3/DOMAIN/messages` as a form, without keys; an email is found again by its variable."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from datetime import date
from typing import Final

from idem.email import Attachment, Email
from idem.errors import UnsupportedEmail
from idem.providers.api import CLOCK_SKEW_SECONDS, HANDLE, Api, Content, HttpProvider, Onward, Search, refuse_handle
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
from idem.providers.reading import first_text, listed

_MAX_OPTION_BYTES = 16_000
_RESERVED_HEADERS = frozenset({"x-mailgun-recipient-variables", "x-mailgun-variables"})

CONTRACT: Final = Contract(
    name="mailgun",
    title="Mailgun",
    sources=(
        "https://documentation.mailgun.com/docs/mailgun/user-manual/sending-messages/send-http",
        "https://documentation.mailgun.com/docs/mailgun/api-reference/send/mailgun/messages",
        "https://documentation.mailgun.com/docs/mailgun/quickstart-guide/responses",
        "https://documentation.mailgun.com/docs/mailgun/user-manual/sending-messages/send-attachments",
        "https://documentation.mailgun.com/docs/mailgun/user-manual/tracking-messages/track-tagging",
        "https://documentation.mailgun.com/docs/mailgun/api-reference/send/mailgun/events/get-v3-domain_name-events",
        "https://documentation.mailgun.com/docs/mailgun/user-manual/events/event-polling",
        "https://feedback.mailgun.com/users/921341509-marketsmart",
    ),
    checked=date(2026, 11, 22),
    base_url="https://api.mailgun.net/v3/{domain}",
    memory=Memory.NONE,
    key=None,
    table=(
        Row({402}, Meaning.UNCLEAR),  # "valid, but the request failed"
        Row({403}, Meaning.CREDENTIALS, words=r"^(forbidden)?$|api key|authenticat|credentials"),
        *USUAL,
    ),
    reply=Reply(message_id=("id",)),
    limits=Limits(recipients=1_000, tags=3, bytes=25_000_000),
    lookup=Lookup(
        handle=f"variable {HANDLE}",
        source="https://documentation.mailgun.com/docs/mailgun/user-manual/events/event-polling",
        lag_seconds=1_800.0,
        horizon_seconds=86_400.0,
    ),
    events=Events(
        handle=f"variable {HANDLE}",
        source="https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/webhook-payloads",
    ),
    contradictions=(
        "the page on responses has a 5xx sent again; the logs of a customer show such emails sent: it proves nothing",
        "an email takes 3 tags, says the manual, and 10, says the help centre: the fewer count",
        "events are kept for 1 day, 3 days or 30: the shortest counts",
        "the Events API is deprecated in favour of the Logs API, which has no variables to look up by either",
        "the EU's host is https://api.eu.mailgun.net/v3/{domain}; a domain of one region is unknown in the other (404)",
        "recipients can see variables, as the header X-Mailgun-Variables",
    ),
)


def encode(email: Email, provider_key: str) -> Content:
    """The form. Its boundary comes from its parts, so that equal emails have equal bytes."""
    parts = [*_fields(email, provider_key), *_files(email)]
    digest = hashlib.sha256()
    for head, body in parts:
        digest.update(b"%d,%d:%b%b" % (len(head), len(body), head, body))
    boundary = digest.hexdigest()[:48].encode()
    body = b"".join(b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (boundary, *part) for part in parts)
    return Content(body + b"--%b--\r\n" % boundary, f"multipart/form-data; boundary={boundary.decode()}")


def _options(email: Email, provider_key: str) -> Iterator[tuple[str, str]]:
    """The fields that count against the limit for options."""
    if email.reply_to:
        yield "h:Reply-To", ", ".join(email.reply_to)
    for name in sorted(email.headers):
        yield f"h:{name}", email.headers[name]
    for tag in email.tags:
        yield "o:tag", tag
    variables = {**email.metadata, HANDLE: provider_key}
    for name in sorted(variables):
        yield f"v:{name}", variables[name]


def _fields(email: Email, provider_key: str) -> Iterator[tuple[bytes, bytes]]:
    recipients = (("to", email.to), ("cc", email.cc), ("bcc", email.bcc))
    bodies = (("text", email.text), ("html", email.html))
    fields = [
        ("from", email.from_),
        *((name, address) for name, addresses in recipients for address in addresses),
        ("subject", email.subject),
        *((name, body) for name, body in bodies if body is not None),
        *_options(email, provider_key),
    ]
    for name, value in fields:
        yield b"name=%b" % _quoted(name), value.encode()


def _files(email: Email) -> Iterator[tuple[bytes, bytes]]:
    for item in email.attachments:
        field = b"attachment" if item.content_id is None else b"inline"
        head = b'name="%b"; filename=%b\r\nContent-Type: %b'
        yield head % (field, _quoted(item.filename), item.content_type.encode()), item.content


def _quoted(name: str) -> bytes:
    """A name in the head of a part, as browsers write it (HTML, multipart form data)."""
    return b'"%b"' % name.replace('"', "%22").encode()


def _check(email: Email) -> None:
    refuse_handle(email)
    for name in email.headers:
        if name.lower() in _RESERVED_HEADERS:
            raise UnsupportedEmail(f"headers.{name}", "means metadata to Mailgun; put it there")
    if any(not tag.isascii() for tag in email.tags):
        raise UnsupportedEmail("tags", "holds a character that is not ASCII, which Mailgun does not take")
    for item in email.attachments:
        _check_inline(item)
    if sum(len(name) + len(value.encode()) for name, value in _options(email, "x" * 64)) > _MAX_OPTION_BYTES:
        raise UnsupportedEmail("headers", f"with tags and metadata are more than Mailgun's {_MAX_OPTION_BYTES:,} bytes")


def _check_inline(item: Attachment) -> None:
    if item.content_id is not None and item.content_id != item.filename:
        raise UnsupportedEmail("attachments.content_id", "must be the filename: Mailgun knows inline files by that")


def _authorize(token: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"api:{token}".encode()).decode("ascii")}


def _search_path(_provider_key: str, since: float) -> str:
    """Everything accepted since then, oldest first: events cannot be filtered by a variable.

    A page has 100 of at most 300, as each event names all recipients of its email, and a response has a limit here.
    """
    begin = max(0, int(since - CLOCK_SKEW_SECONDS))
    return f"/events?event=accepted&begin={begin}&ascending=yes&limit=100"


def _read_search(answer: Answer | NoAnswer, provider_key: str) -> Sighting | Onward:
    """A page of events; the last page is an empty one."""
    events = listed(answer, "items")
    if isinstance(events, CannotTell) or not isinstance(answer, Answer):
        return events if isinstance(events, CannotTell) else CannotTell("no answer")
    for event in events:
        if first_text((f"user-variables.{HANDLE}",), answer, event) == provider_key:
            message_id = first_text(("message.headers.message-id",), answer, event)
            return Found(message_id and f"<{message_id}>")  # as the answer to the send has it
    following = first_text(("paging.next",), answer, answer.json_object())
    if following is None:
        return CannotTell("the look-up's answer names no next page")
    return Onward(following) if events else Missing()


API: Final = Api(
    contract=CONTRACT,
    path="/messages",
    authorize=_authorize,
    encode=encode,
    check=_check,
    search=Search(path=_search_path, read=_read_search),
)


def connect(token: str, base_url: str) -> HttpProvider:
    """The adapter, for an API key; the base URL holds the domain."""
    return HttpProvider(API, token, base_url)
