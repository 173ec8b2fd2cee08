"""From Django's email to ours: the same for those who get it, or an `EmailError` that says what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from email import message_from_bytes
from email.message import Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from mimetypes import guess_extension
from pathlib import PurePath
from typing import Any

from django.core.mail import EmailMessage
from django.utils.encoding import force_bytes, force_str

from idem.address import parse_address, split_addresses
from idem.email import Attachment, Email
from idem.errors import EmailError
from idem.mime import from_message

#: What other backends read from a message beside Django's own fields, and we have nothing for
#: (https://anymail.dev/en/stable/sending/anymail_additions/, 2026-07). `tags` and `metadata` we have.
_ADDITIONS = (
    "envelope_sender", "esp_extra", "merge_data", "merge_global_data", "merge_headers", "merge_metadata", "send_at",
    "template_id", "track_clicks", "track_opens",
)  # fmt: skip

_TYPES = (["text/plain"], ["text/html"], ["text/plain", "text/html"])


def email_of(message: EmailMessage) -> Email:
    """The email that Django's message stands for, in UTF-8 whatever its `encoding`.

    `tags` and `metadata` are read where they are set. Raises `EmailError`, which names the part, for what has no place
    in an `Email`: bodies other than a text, an HTML, or both in this order; a message or a multipart that its class
    writes by itself; a header From, To or Cc that shows others than those to whom, and from whom, the email goes.
    """
    _refuse_what_is_not_carried(message)
    headers = {str(name): _text(value) for name, value in message.extra_headers.items()}
    return Email(
        from_=_from(headers, _text(message.from_email)),
        to=_recipients(headers, "To", message.to),
        cc=_recipients(headers, "Cc", message.cc),
        bcc=_texts(message.bcc),
        reply_to=_reply_to(headers, message.reply_to),
        subject=_text(message.subject),
        headers=headers,
        tags=_texts(getattr(message, "tags", None) or ()),
        metadata={str(name): _text(value) for name, value in (getattr(message, "metadata", None) or {}).items()},
        attachments=[_attachment(item, number) for number, item in enumerate(message.attachments, 1)],
        **_bodies(message),
    )


def _refuse_what_is_not_carried(message: EmailMessage) -> None:
    if type(message).message is not EmailMessage.message:
        raise EmailError("message", f"is written by {type(message).__name__} itself; only Django's own can be enqueued")
    # Django 6 has neither attribute any more; what was written for an older one may set them.
    if getattr(message, "mixed_subtype", "mixed") not in {"mixed", "related"}:
        raise EmailError("mixed_subtype", "is neither mixed nor related, which attachments travel in")
    if getattr(message, "alternative_subtype", "alternative") != "alternative":
        raise EmailError("alternative_subtype", "is not alternative")
    for name in _ADDITIONS:
        if getattr(message, name, None) not in (None, {}, [], ""):
            raise EmailError(name, "is set, and there is nothing to do it with; leave it out")


def _text(value: object) -> str:
    """Plain text of what may be lazy, marked safe, or a number."""
    return str.__str__(force_str(value))


def _texts(values: Sequence[object]) -> list[str]:
    return [text for text in map(_text, values) if text]


def _taken(headers: dict[str, str], name: str) -> str | None:
    """The header that Django shows in place of a field, taken out of the others."""
    found = next((written for written in headers if written.lower() == name.lower()), None)
    return None if found is None else headers.pop(found)


def _from(headers: dict[str, str], sender: str) -> str:
    shown = _taken(headers, "From")
    if shown is None:
        return sender
    if _specs("headers.From", [shown]) != _specs("from_email", [sender]):
        raise EmailError("headers.From", "is not the address in from_email, to which bounces would go; give them one")
    return shown


def _recipients(headers: dict[str, str], name: str, given: Sequence[object]) -> list[str]:
    addresses, header = _texts(given), _taken(headers, name)
    if header is None:
        return addresses
    shown, field = split_addresses(header), f"headers.{name}"
    if _specs(field, shown) != _specs(name.lower(), addresses):
        raise EmailError(field, f"shows others than those in {name.lower()}, who get it; leave it out")
    return shown


def _specs(field: str, addresses: Sequence[str]) -> list[str]:
    return [parse_address(field, address).spec for address in addresses]


def _reply_to(headers: dict[str, str], given: Sequence[object]) -> list[str]:
    shown = _taken(headers, "Reply-To")
    return _texts(given) if shown is None else split_addresses(shown)


def _bodies(message: EmailMessage) -> dict[str, str]:
    parts = list(_parts(message))
    if [kind for kind, _ in parts] not in _TYPES:
        kinds = ", ".join(kind for kind, _ in parts)
        raise EmailError("alternatives", f"are {kinds}; a text, an HTML, or both in this order can be sent")
    return {"html" if kind == "text/html" else "text": text for kind, text in parts}


def _parts(message: EmailMessage) -> Iterator[tuple[str, str]]:
    alternatives = getattr(message, "alternatives", None) or ()
    if message.body or not alternatives:
        yield f"text/{message.content_subtype}", _text(message.body)
    for content, kind in alternatives:
        yield str(kind).lower(), _text(content)


def _attachment(item: Any, number: int) -> Attachment:
    if isinstance(item, Message):
        return _attachment_of_part(item, number)
    name, content, kind = item
    media_type = str(kind or "application/octet-stream")
    if media_type.lower() == "message/rfc822":
        data = _message_bytes(content)
    elif isinstance(content, bytes):
        data = content
    else:
        data = _text(content).encode()
        if media_type.lower().startswith("text/") and ";" not in media_type:
            media_type += '; charset="utf-8"'
    kept = _text(name) if name else f"part-{number}{guess_extension(media_type.partition(';')[0]) or '.bin'}"
    return Attachment(filename=kept, content=data, content_type=media_type)


def _message_bytes(content: object) -> bytes:
    if isinstance(content, EmailMessage):
        content = content.message()
    if isinstance(content, Message):
        return content.as_bytes()
    return message_from_bytes(force_bytes(content)).as_bytes()


def _attachment_of_part(part: Message, number: int) -> Attachment:
    """What the reader of MIME makes of the part, in a message that has its bodies, so that it can be none of them."""
    if part.is_multipart() and part.get_content_maintype() == "multipart":
        raise EmailError(f"attachments.{number}", "holds parts of its own; attach each of them")
    whole = MIMEMultipart(_subparts=[MIMEText("."), MIMEText(".", "html"), part])
    whole["From"] = whole["To"] = "nobody@example.com"
    (attachment,) = from_message(whole).attachments
    if part.get_filename():
        return attachment
    return replace(attachment, filename=f"part-{number}{PurePath(attachment.filename).suffix}")
