"""Postmark in the sandbox: `POST /postmark/email` and `GET /postmark/messages/outbound`.

Answers and codes are those of its pages and of its official client as of `CONTRACT.checked`. Not documented, and
decided here: the code of a wrong `count` or `offset` (300), and that a message is shown once it is "Sent".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from idem.address import parse_address
from idem.providers.postmark import CONTRACT
from workers.sandbox.dialect import Attachment, Call, Dialect, Endpoint, Mail, Refused, Reply, Search, Shown, Taken
from workers.sandbox.parts import Invalid, attachment, bare, listed, strings

_TOKEN = re.compile(r"[!-~]+")
_METADATA = "metadata_"
_MAX_COUNT, _MAX_REACH = 500, 10_000
_CODES = {400: "402", 401: "10", 413: "300", 422: "300", 429: "429"}
_NO_TOKEN = (
    "No Account or Server API tokens were supplied in the HTTP headers. Please add a header for either "  # noqa: S105 - words
    "X-Postmark-Server-Token or X-Postmark-Account-Token."
)


def _read_email(call: Call) -> tuple[Mail, ...] | Reply:
    try:
        return (_mail(call.parsed),)
    except Invalid as invalid:
        return _error(422, invalid.code, str(invalid))


def _mail(parsed: object) -> Mail:
    if not isinstance(parsed, dict):
        raise Invalid("403", "The request body must be a JSON object.")
    sender = _text(parsed, "From")
    if sender is None or not bare(sender):
        raise Invalid("300", f"Invalid 'From' address: '{sender or ''}'.")
    to, cc, bcc = (_addresses(parsed, name) for name in ("To", "Cc", "Bcc"))
    if not to + cc + bcc:
        raise Invalid("300", "Zero recipients specified")
    if len(to + cc + bcc) > (CONTRACT.limits.recipients or 0):
        raise Invalid("300", "Maximum of 50 recipients allowed per email message.")
    text, html = _text(parsed, "TextBody"), _text(parsed, "HtmlBody")
    if not text and not html:
        raise Invalid("300", "Provide either email TextBody or HtmlBody or both.")
    metadata, tag = strings(parsed.get("Metadata")), _text(parsed, "Tag")
    if metadata is None or len({name.lower() for name in metadata}) < len(metadata):
        raise Invalid("300", "Invalid metadata content.")
    return Mail(
        sender=sender,
        to=tuple(bare(one) or "" for one in to),
        cc=cc,
        bcc=bcc,
        reply_to=_addresses(parsed, "ReplyTo"),
        subject=_text(parsed, "Subject") or "",
        text=text,
        html=html,
        headers=_headers(parsed.get("Headers")),
        tags=(tag,) if tag else (),
        metadata=metadata,
        attachments=_attachments(parsed.get("Attachments")),
    )


def _text(parsed: Mapping[str, Any], name: str) -> str | None:
    value = parsed.get(name)
    if value is not None and not isinstance(value, str):
        raise Invalid("403", f"The field '{name}' is not a string.")
    return value


def _addresses(parsed: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = listed(_text(parsed, name) or "")
    if found is None:
        raise Invalid("300", f"Error parsing '{name}': Illegal email address.")
    return found


def _headers(value: object) -> dict[str, str]:
    found = {}
    for item in value if isinstance(value, list) else [] if value is None else [None]:
        parts = strings(item)
        if not parts or parts.keys() != {"Name", "Value"}:
            raise Invalid("300", "Invalid header content.")
        found[parts["Name"]] = parts["Value"]
    return found


def _attachments(value: object) -> tuple[Attachment, ...]:
    items = value if isinstance(value, list) else [] if value is None else [None]
    found = [attachment(one, "Name", "Content", "ContentType") if isinstance(one, dict) else None for one in items]
    given = tuple(one for one in found if one is not None)
    if len(given) < len(found):
        raise Invalid("300", "Invalid attachment content.")
    return given


def _answer_email(results: Sequence[Taken | Refused]) -> Reply:
    (taken,) = results
    assert isinstance(taken, Taken)
    body = {"SubmittedAt": _time(taken.at), "MessageID": taken.id, "ErrorCode": 0, "Message": "OK"}
    return Reply(200, {"To": ", ".join(taken.mail.to), **body})


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def _find(call: Call, shown: Sequence[Shown]) -> Reply:
    """A page of what was sent; it can be asked for one field of the metadata only."""
    count, offset = _number(call, "count"), _number(call, "offset")
    asked = {name.removeprefix(_METADATA): call.asked(name) for name in call.query if name.startswith(_METADATA)}
    if count is None or offset is None or not 1 <= count <= _MAX_COUNT or count + offset > _MAX_REACH or len(asked) > 1:
        return _error(422, "300", "The parameters 'count' and 'offset' are required and limited; one metadata at most.")
    fields = [(field, value) for name, field in _FIELDS.items() if (value := call.asked(name)) is not None]
    found = [one for one in shown if _matches(one.mail, asked, fields)]
    page = found[offset : offset + count]
    return Reply(200, {"TotalCount": len(found), "Messages": [_message(one) for one in page]})


def _number(call: Call, name: str) -> int | None:
    value = call.asked(name) or ""
    return int(value) if value.isascii() and value.isdigit() else None


def _recipients(mail: Mail) -> list[str | None]:
    return [*mail.to, *(bare(address) for address in (*mail.cc, *mail.bcc))]


_Field = Callable[[Mail], Collection[str | None]]
#: What can be asked for, and what an email has there.
_FIELDS: Mapping[str, _Field] = {
    "recipient": _recipients,
    "fromemail": lambda mail: [bare(mail.sender)],
    "tag": lambda mail: mail.tags,
    "subject": lambda mail: [mail.subject],
}


def _matches(mail: Mail, metadata: Mapping[str, str | None], fields: Sequence[tuple[_Field, str]]) -> bool:
    """Whether it has what was asked for; the metadata first, which a worker asks for after every lost answer."""
    return all(mail.metadata.get(name) == value for name, value in metadata.items()) and all(
        value in field(mail) for field, value in fields
    )


def _message(one: Shown) -> dict[str, Any]:
    mail = one.mail
    return {
        "MessageID": one.id,
        "MessageStream": "outbound",
        "To": [_named(address) for address in mail.to],
        "Cc": [_named(address) for address in mail.cc],
        "Bcc": [_named(address) for address in mail.bcc],
        "Recipients": _recipients(mail),
        "ReceivedAt": _time(one.at),
        "From": mail.sender,
        "Subject": mail.subject,
        "Tag": "".join(mail.tags),
        "Attachments": [item.filename for item in mail.attachments],
        "Status": "Sent",
        "TrackOpens": False,
        "TrackLinks": "None",
        "Metadata": mail.metadata,
        "Sandboxed": False,
    }


def _named(address: str) -> dict[str, str | None]:
    parsed = parse_address("address", address)
    return {"Email": parsed.spec, "Name": parsed.name or None}


def _account(headers: Mapping[str, str]) -> str | None:
    token = headers.get("x-postmark-server-token", "")
    return token if _TOKEN.fullmatch(token) else None


def _refusal(status: int, message: str) -> Reply:
    """Its own statuses: a body that is not JSON is a 422 with the code 402."""
    code = _CODES.get(status, "0")
    return _error(422 if code == "402" else status, code, _NO_TOKEN if code == "10" else message)


def _error(status: int, code: str, message: str) -> Reply:
    return Reply(status, {"ErrorCode": int(code), "Message": message})


DIALECT = Dialect(
    contract=CONTRACT,
    endpoints={"/email": Endpoint(_read_email, _answer_email)},
    searches={"/messages/outbound": Search(_find)},
    account=_account,
    refusal=_refusal,
)
