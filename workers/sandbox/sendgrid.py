"""SendGrid in the sandbox: `POST /sendgrid/v3/mail/send`, and the Email Activity API below `/sendgrid/v3/messages`.

Answers and wording are those of its pages as of `CONTRACT.checked`. Each personalization is one email. Queries are of
one kind at a time: `to_email`, `subject`, or `unique_args`, as custom arguments are called there.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from idem.providers.sendgrid import CONTRACT
from workers.sandbox.dialect import Attachment, Call, Dialect, Endpoint, Mail, Refused, Reply, Search, Shown, Taken
from workers.sandbox.parts import Invalid, attachment, bare, mailbox, mailboxes, strings

_BEARER = re.compile(r"Bearer [!-~]+")
_QUERY = re.compile(
    r"""\(?(?:unique_args\['(?P<argument>[^']+)'\]|(?P<field>to_email|subject))="(?P<value>[^"]*)"\)?"""
)
_RESERVED = frozenset({
    "bcc", "cc", "content-transfer-encoding", "content-type", "dkim-signature", "from", "received", "reply-to",
    "subject", "to", "x-sg-eid", "x-sg-id",
})  # fmt: skip
_MAX_ARGUMENTS, _MAX_LIMIT = 10_000, 1_000
_UNAUTHORIZED = "The provided authorization grant is invalid, expired, or revoked"


def _read_send(call: Call) -> tuple[Mail, ...] | Reply:
    try:
        return tuple(_mails(call.parsed))
    except Invalid as invalid:
        return _error(400, str(invalid), invalid.code or None)


def _mails(parsed: object) -> Iterator[Mail]:
    if not isinstance(parsed, dict):
        raise Invalid("", "Bad Request")
    people = parsed.get("personalizations")
    if not isinstance(people, list) or not people or not all(isinstance(one, dict) for one in people):
        raise Invalid("personalizations", "You must have at least one personalization.")
    sender = mailbox(parsed.get("from"))
    if sender is None:
        raise Invalid("from.email", "The from email does not contain a valid address.")
    common = _common(parsed)
    arguments = _strings(parsed, "custom_args")
    for index, person in enumerate(people):
        yield Mail(
            sender=sender,
            **_recipients(person, f"personalizations.{index}"),
            subject=_subject(parsed, person),
            metadata=arguments | _strings(person, "custom_args"),
            **common,
        )


def _common(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """What all personalizations share."""
    content = _content(parsed.get("content"))
    return {
        "reply_to": _reply_to(parsed),
        "text": content.get("text/plain"),
        "html": content.get("text/html"),
        "headers": _headers(parsed),
        "tags": _categories(parsed.get("categories")),
        "attachments": _attachments(parsed.get("attachments")),
    }


def _recipients(person: Mapping[str, Any], path: str) -> dict[str, Any]:
    found = {}
    for name in ("to", "cc", "bcc"):
        boxes = mailboxes(person.get(name, []))
        if boxes is None:
            raise Invalid(f"{path}.{name}", "Does not contain a valid address.")
        found[name] = boxes
    if not found["to"]:
        raise Invalid(
            f"{path}.to", "The to array is required for all personalization objects, and must have at least one email."
        )
    everyone = [str(bare(one)).lower() for boxes in found.values() for one in boxes]
    if len(set(everyone)) < len(everyone):
        words = "Each unique email address in the personalizations array should only be included once."
        raise Invalid(path, f"{words} You have included an address more than once")
    if len(everyone) > (CONTRACT.limits.recipients or 0):
        raise Invalid(path, "There is a limit of 1000 total recipients (to + cc + bcc) per request.")
    return {**found, "to": tuple(str(bare(one)) for one in found["to"])}


def _subject(parsed: Mapping[str, Any], person: Mapping[str, Any]) -> str:
    subject = person.get("subject", parsed.get("subject"))
    if not isinstance(subject, str) or not subject:
        raise Invalid("subject", "The subject is required. You can get around this requirement with a template.")
    return subject


def _content(value: object) -> dict[str, str]:
    found: dict[str, str] = {}
    for index, item in enumerate(value if isinstance(value, list) else []):
        parts = strings(item)
        if not parts or not parts.get("value") or "type" not in parts:
            words = "The content value must be a string at least one character in length."
            raise Invalid(f"content.{index}.value", words)
        if parts["type"] == "text/plain" and found:
            words = "If present, text/plain and text/html may only be provided once, text/plain first."
            raise Invalid("content", words)
        found[parts["type"]] = parts["value"]
    if not found:
        raise Invalid("content", "The content parameter is required.")
    return found


def _reply_to(parsed: Mapping[str, Any]) -> tuple[str, ...]:
    found = mailboxes(parsed.get("reply_to_list", [parsed["reply_to"]] if "reply_to" in parsed else []))
    if found is None:
        raise Invalid("reply_to", "The reply_to email does not contain a valid address.")
    return found


def _strings(parsed: Mapping[str, Any], name: str) -> dict[str, str]:
    found = strings(parsed.get(name))
    if found is None:
        raise Invalid(name, "Must be an object whose values are strings.")
    if len(msgspec.json.encode(found)) >= _MAX_ARGUMENTS:
        raise Invalid(name, "Custom args must be smaller than 10,000 bytes.")
    return found


def _headers(parsed: Mapping[str, Any]) -> dict[str, str]:
    found = _strings(parsed, "headers")
    for name in found:
        if name.lower() in _RESERVED:
            raise Invalid("headers", f"The following header keys are reserved: {name.lower()}")
    return found


def _categories(value: object) -> tuple[str, ...]:
    found = tuple(value if isinstance(value, list) else [])
    if not all(isinstance(one, str) for one in found) or len(set(found)) < len(found):
        raise Invalid("categories", "Categories must be unique strings.")
    if len(found) > (CONTRACT.limits.tags or 0):
        raise Invalid("categories", "You may not have more than 10 categories per request.")
    return found


def _attachments(value: object) -> tuple[Attachment, ...]:
    found = []
    for index, item in enumerate(value if isinstance(value, list) else []):
        file = attachment(item, "filename", "content", "type") if isinstance(item, dict) else None
        if file is None:
            raise Invalid(f"attachments.{index}.content", "The attachment content must be base64 encoded.")
        found.append(file)
    return tuple(found)


def _answer_send(results: Sequence[Taken | Refused]) -> Reply:
    first = results[0]
    assert isinstance(first, Taken)
    return Reply(202, None, {"X-Message-Id": first.id})


def _find(call: Call, shown: Sequence[Shown]) -> Reply:
    """The messages, one for each recipient, without their arguments."""
    limit, query = call.asked("limit") or "10", call.asked("query")
    asked = _QUERY.fullmatch(query) if query is not None else None
    if not limit.isdigit() or not 1 <= int(limit) <= _MAX_LIMIT or (query is not None and asked is None):
        return _error(400, "invalid query or limit", None)
    messages = [
        message
        for one in shown
        for message in _messages(one)
        if asked is None or _value(one, message, asked) == asked["value"]
    ]
    return Reply(200, {"messages": messages[: int(limit)]})


def _value(one: Shown, message: Mapping[str, Any], asked: re.Match[str]) -> object:
    return one.mail.metadata.get(asked["argument"]) if asked["argument"] else message[asked["field"]]


def _messages(one: Shown) -> Iterator[dict[str, Any]]:
    mail = one.mail
    for index, to in enumerate([*mail.to, *(bare(address) for address in (*mail.cc, *mail.bcc))]):
        yield {
            "from_email": bare(mail.sender),
            "msg_id": f"{one.id}.recvd-5d9c-1-{index}.0",
            "subject": mail.subject,
            "to_email": to,
            "status": "delivered",
            "opens_count": 0,
            "clicks_count": 0,
            "last_event_time": _time(one.at),
        }


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _show(call: Call, shown: Sequence[Shown]) -> Reply:
    """One message, with its arguments as a text of JSON."""
    for one in shown:
        for message in _messages(one):
            if message["msg_id"] == call.parts["id"]:
                kept = {name: message[name] for name in ("from_email", "msg_id", "subject", "to_email", "status")}
                arguments = msgspec.json.encode(one.mail.metadata).decode()
                events = [{"event_name": "processed", "processed": message["last_event_time"]}]
                return Reply(200, {**kept, "events": events, "categories": one.mail.tags, "unique_args": arguments})
    return _error(404, "resource not found", None)


def _account(headers: Mapping[str, str]) -> str | None:
    given = headers.get("authorization", "")
    return given.removeprefix("Bearer ") if _BEARER.fullmatch(given) else None


def _refusal(status: int, message: str) -> Reply:
    return _error(status, _UNAUTHORIZED if status == 401 else message, None)  # noqa: PLR2004 - HTTP's own number


def _error(status: int, message: str, field: str | None) -> Reply:
    return Reply(status, {"errors": [{"message": message, "field": field, "help": None}]})


DIALECT = Dialect(
    contract=CONTRACT,
    endpoints={"/v3/mail/send": Endpoint(_read_send, _answer_send)},
    searches={"/v3/messages": Search(_find), "/v3/messages/{id}": Search(_show)},
    account=_account,
    refusal=_refusal,
    new_id=lambda: secrets.token_urlsafe(16),
)
