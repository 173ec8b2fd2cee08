"""A message as the sandbox shows it, for the providers that take MIME."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from email import message_from_bytes

from idem.address import parse_address
from idem.email import Email
from idem.errors import EmailError
from idem.mime import from_bytes
from workers.sandbox.dialect import Attachment, Mail


@dataclass(frozen=True, slots=True)
class Message:
    """A message, and what two of them are compared by: what was written, not when and under which id."""

    mail: Mail
    content: object


def read_message(data: bytes, sender: str, recipients: Sequence[str]) -> Message:
    """Read a message with its envelope (bare addresses): recipients that its headers do not name are Bcc."""
    try:
        email = from_bytes(data)
    except EmailError:
        return _as_it_came(data, sender, recipients)
    named = {bare(address) for address in (*email.to, *email.cc, *email.bcc)}
    hidden = tuple(address for address in recipients if address not in named)
    mail = replace(mail_of(email), bcc=(*email.bcc, *hidden))
    return Message(mail, [email.as_dict(), sorted(recipients)])


def mail_of(email: Email) -> Mail:
    """An email as the log keeps it."""
    files = (Attachment(item.filename, item.content_type, len(item.content)) for item in email.attachments)
    return Mail(
        sender=email.from_,
        to=tuple(bare(address) for address in email.to),
        cc=email.cc,
        bcc=email.bcc,
        reply_to=email.reply_to,
        subject=email.subject,
        text=email.text,
        html=email.html,
        headers=dict(email.headers),
        tags=email.tags,
        metadata=dict(email.metadata),
        attachments=tuple(files),
    )


def bare(address: str) -> str:
    """The address without its name."""
    return parse_address("to", address).spec


def _as_it_came(data: bytes, sender: str, recipients: Sequence[str]) -> Message:
    """A message that is not quite one: a mail server takes it all the same."""
    message = message_from_bytes(data)
    headers = {name: str(value) for name, value in message.items()}
    text = data.decode("utf-8", "replace")
    mail = Mail(
        sender=sender, to=tuple(recipients), subject=str(message.get("Subject", "")), text=text, headers=headers
    )
    return Message(mail, [text, sorted(recipients)])
