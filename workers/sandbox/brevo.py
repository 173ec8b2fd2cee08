"""Brevo in the sandbox: `POST /brevo/v3/smtp/email`, and its events below `/brevo/v3/smtp/statistics/events`.

Answers and codes are those of its pages, of its official client, and of what a customer measured (brevo-node 94), as of
`CONTRACT.checked`. Not documented, and decided here: that a key that is no UUID is refused, the wording of validation
errors, and that an event of an email with several tags has them as JSON. Batches (`messageVersions`) are refused.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec

from idem.providers.brevo import CONTRACT, EXTENSIONS
from workers.sandbox.dialect import Attachment, Call, Dialect, Endpoint, Mail, Refused, Reply, Search, Shown, Taken
from workers.sandbox.parts import Invalid, attachment, bare, mailbox, mailboxes, strings

_TOKEN = re.compile(r"[!-~]+")
_METADATA_HEADER, _KEY_FIELD = "X-Mailin-custom", "idempotencyKey"
_MAX_LIMIT = 5_000
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    402: "not_enough_credits",
    403: "permission_denied",
    404: "document_not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    422: "unprocessable_entity",
    429: "too_many_requests",
}


def _read_email(call: Call) -> tuple[Mail, ...] | Reply:
    try:
        return (_mail(call.parsed),)
    except Invalid as invalid:
        return _error(400, invalid.code, str(invalid))


def _mail(parsed: object) -> Mail:
    if not isinstance(parsed, dict):
        raise Invalid("bad_request", "Input must be a valid JSON object")
    sender, subject = mailbox(parsed.get("sender")), parsed.get("subject")
    if sender is None:
        raise Invalid("missing_parameter", "sender is missing")
    if not isinstance(subject, str) or not subject:
        raise Invalid("missing_parameter", "subject is missing")
    text, html = parsed.get("textContent"), parsed.get("htmlContent")
    if not isinstance(text or html, str):
        raise Invalid("missing_parameter", "either of htmlContent or textContent is required")
    headers = strings(parsed.get("headers"))
    if headers is None:
        raise Invalid("invalid_parameter", "headers is not valid")
    reply_to = parsed.get("replyTo")
    return Mail(
        sender=sender,
        **_recipients(parsed),
        reply_to=_mailboxes("replyTo", [] if reply_to is None else [reply_to]),
        subject=subject,
        text=text,
        html=html,
        headers={name: value for name, value in headers.items() if name not in {_KEY_FIELD, _METADATA_HEADER}},
        metadata=_metadata(headers.get(_METADATA_HEADER)),
        tags=_tags(parsed.get("tags")),
        attachments=tuple(_attachment(item) for item in parsed.get("attachment") or ()),
    )


def _recipients(parsed: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    found = {name: _mailboxes(name, parsed.get(name, [])) for name in ("to", "cc", "bcc")}
    if not found["to"]:
        raise Invalid("missing_parameter", "to is missing")
    if sum(map(len, found.values())) > (CONTRACT.limits.recipients or 0):
        raise Invalid("invalid_parameter", "the number of recipients must not exceed 99")
    return {**found, "to": tuple(str(bare(one)) for one in found["to"])}


def _mailboxes(name: str, value: object) -> tuple[str, ...]:
    found = mailboxes(value)
    if found is None:
        raise Invalid("invalid_parameter", f"email is not valid in {name}")
    return found


def _metadata(header: str | None) -> dict[str, str]:
    """The custom header, where it is JSON."""
    try:
        return strings(msgspec.json.decode(header or "{}")) or {}
    except msgspec.DecodeError:
        return {}


def _tags(value: object) -> tuple[str, ...]:
    tags = value if isinstance(value, list) else [] if value is None else [None]
    if not all(isinstance(tag, str) and tag for tag in tags):
        raise Invalid("invalid_parameter", "tags must be an array of strings")
    return tuple(tags)


def _attachment(item: object) -> Attachment:
    file = attachment(item, "name", "content", "type") if isinstance(item, dict) else None
    if file is None:
        raise Invalid("invalid_parameter", "attachment must have a name and base64 content")
    _, dot, extension = file.filename.lower().rpartition(".")
    if not dot or extension not in EXTENSIONS:
        raise Invalid("invalid_parameter", f"Unsupported file format {extension}")
    return file


def _answer_email(results: Sequence[Taken | Refused]) -> Reply:
    (taken,) = results
    assert isinstance(taken, Taken)
    return Reply(201, {"messageId": taken.id})


def _find(call: Call, shown: Sequence[Shown]) -> Reply:
    """The events that emails were requested, one for each recipient."""
    limit, offset = call.asked("limit") or "2500", call.asked("offset") or "0"
    if not (limit.isdigit() and offset.isdigit() and 1 <= int(limit) <= _MAX_LIMIT):
        return _error(400, "out_of_range", "limit exceeds max value")
    try:
        tags = set(msgspec.json.decode(call.asked("tags") or "[]"))
    except (msgspec.DecodeError, TypeError):
        return _error(400, "invalid_parameter", "tags should be a serialized array")
    events = [event for one in shown if tags <= {*one.mail.tags} for event in _events(one)]
    asked = {name: call.asked(name) for name in ("email", "event", "messageId")}
    found = [event for event in events if all(value in {None, event[name]} for name, value in asked.items())]
    return Reply(200, {"events": found[int(offset) : int(offset) + int(limit)]})


def _events(one: Shown) -> list[dict[str, Any]]:
    mail, tags = one.mail, list(one.mail.tags)
    common = {
        "event": "requests",
        "date": datetime.fromtimestamp(one.at, UTC).isoformat(timespec="milliseconds"),
        "messageId": one.id,
        "subject": mail.subject,
        "from": bare(mail.sender),
        **({"tag": tags[0] if len(tags) == 1 else msgspec.json.encode(tags).decode()} if tags else {}),
    }
    recipients = [*mail.to, *(bare(address) for address in (*mail.cc, *mail.bcc))]
    return [{"email": address, **common} for address in recipients]


def _account(headers: Mapping[str, str]) -> str | None:
    token = headers.get("api-key", "")
    return token if _TOKEN.fullmatch(token) else None


def _refusal(status: int, message: str) -> Reply:
    code = _CODES.get(status, HTTPStatus(status).phrase.lower().replace(" ", "_"))
    return _error(status, code, "Key not found" if code == "unauthorized" else message)


def _error(status: int, code: str, message: str) -> Reply:
    return Reply(status, {"code": code, "message": message})


DIALECT = Dialect(
    contract=CONTRACT,
    endpoints={"/v3/smtp/email": Endpoint(_read_email, _answer_email)},
    searches={"/v3/smtp/statistics/events": Search(_find)},
    account=_account,
    refusal=_refusal,
    invalid_key=_error(400, "invalid_parameter", "idempotencyKey is not a valid UUID"),
    known=_error(400, "duplicate_parameter", "Email for the idempotency key has already been processed"),
    new_id=lambda: f"<{secrets.token_hex(12)}@smtp-relay.sandbox.example>",
)
