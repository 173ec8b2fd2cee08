"""From an email to MIME: which parts are written, how they are nested, and how each is encoded."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Mapping
from email import message_from_bytes
from email.message import EmailMessage, Message
from urllib.parse import quote

from idem.email import Attachment, Email
from idem.mime.headers import VERBATIM, fold, write_addresses, write_text
from idem.mime.reading import written_inside

_PLAIN_BODY = re.compile(r"[\t\n -~]*")
_PLAIN_FILENAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 _()+.-]{0,98}[A-Za-z0-9])?")
_FILENAME_PIECE = re.compile(r"(?:%..|[^%]){1,18}")
_LONGEST_LINE = 998

#: How an attached message is tried out: what it holds depends on what comes around it when it is malformed.
_ENVELOPE = b'Content-Type: multipart/mixed; boundary="=_"\r\n\r\n--=_\r\nContent-Type: %b\r\n\r\n%b\r\n--=_--\r\n'


def to_message(email: Email) -> EmailMessage:
    """The email as MIME, ready to be written with `as_bytes()`; the same email always gives the same bytes.

    Bcc is left out, since a header would show those recipients to everyone: whoever sends the message passes them in
    the envelope. So are Date and Message-ID (the sender's to add) and tags and metadata (no header stands for them).
    Attachments with a `content_id` go beside the HTML that shows them, ahead of the others. `from_message` reads back
    all the rest, except that line ends become a single newline (in an attached message CRLF), that headers it does not
    carry over stay behind, and that a name or boundary parameter of an attachment's media type is taken out.
    """
    stem = email.fingerprint()[:32]
    inline = [item for item in email.attachments if item.content_id is not None and email.html is not None]
    others = [item for item in email.attachments if item.content_id is None or email.html is None]
    bodies = [] if email.text is None else [_text_part("plain", email.text)]
    if email.html is not None:
        html = [_text_part("html", email.html), *(_attachment_part(item, "inline") for item in inline)]
        bodies.append(_multipart("related", html, stem))
    body = _multipart("alternative", bodies, stem)
    body = _multipart("mixed", [body, *(_attachment_part(item, "attachment") for item in others)], stem)
    lists = {"From": [email.from_], "To": email.to, "Cc": email.cc, "Reply-To": email.reply_to}
    texts = {"Subject": email.subject, **email.headers, "MIME-Version": "1.0"}
    headers = {name: write_addresses(name, values) for name, values in lists.items() if values}
    headers |= {name: write_text(name, value) for name, value in texts.items()} | dict(body.raw_items())
    return _part(headers, body.get_payload())


def _part(headers: Mapping[str, str], payload: Message | str | list[Message | str]) -> EmailMessage:
    part = EmailMessage(policy=VERBATIM)
    for name, value in headers.items():
        part.set_raw(name, value)
    part.set_payload(payload)
    return part


def _multipart(kind: str, parts: list[EmailMessage], stem: str) -> EmailMessage:
    if len(parts) == 1:
        return parts[0]
    root = '; type="text/html"' if kind == "related" else ""
    # No base64 and no quoted-printable holds "=_", and no text can hold a digest of itself.
    return _part({"Content-Type": f'multipart/{kind}{root};\r\n boundary="=_{stem}_{kind}"'}, [*parts])


def _text_part(kind: str, body: str) -> EmailMessage:
    lines = body.replace("\r\n", "\n").replace("\r", "\n")
    encoding, payload = "7bit", lines
    if not _PLAIN_BODY.fullmatch(lines) or max(map(len, lines.split("\n"))) > _LONGEST_LINE:
        quoted = binascii.b2a_qp(lines.encode()).decode()
        encoded = base64.encodebytes(lines.replace("\n", "\r\n").encode()).decode()
        encoding, payload = ("quoted-printable", quoted) if len(quoted) <= len(encoded) else ("base64", encoded)
    return _part({"Content-Type": f'text/{kind}; charset="utf-8"', "Content-Transfer-Encoding": encoding}, payload)


def _attachment_part(item: Attachment, disposition: str) -> EmailMessage:
    is_message = item.content_type.lower().startswith("message/")
    part = _message_part(item) if is_message else None
    if part is None:
        encoded = base64.encodebytes(item.content).decode()
        # The library writes only messages into a message/* part; one without a header is the text alone.
        headers = {"Content-Type": item.content_type, "Content-Transfer-Encoding": "base64"}
        part = _part(headers, [_part({}, encoded)] if is_message else encoded)
    tokens = [f" {disposition};", *_filename_tokens(item.filename)]
    tokens[-1] = tokens[-1].removesuffix(";")
    part.set_raw("Content-Disposition", fold("Content-Disposition", tokens))
    if item.content_id is not None:
        part.set_raw("Content-ID", write_text("Content-ID", f"<{item.content_id}>"))
    return part


def _message_part(item: Attachment) -> EmailMessage | None:
    """A message attached as MIME wants it, unencoded; None for what would not survive that."""
    content = re.sub(rb"\r\n?|\n", b"\r\n", item.content)
    if not content.isascii() or b"\0" in content or max(map(len, content.split(b"\r\n"))) > _LONGEST_LINE:
        return None
    with contextlib.suppress(Exception):  # it is somebody's file: base64 carries whatever the parser cannot
        whole = message_from_bytes(_ENVELOPE % (item.content_type.encode(), content), EmailMessage, policy=VERBATIM)
        part = whole.get_payload(0)
        if isinstance(part, EmailMessage) and written_inside(part) == content:
            return part
    return None


def _filename_tokens(filename: str) -> list[str]:
    if _PLAIN_FILENAME.fullmatch(filename):
        return [f' filename="{filename}";']
    pieces = _FILENAME_PIECE.findall("utf-8''" + quote(filename, safe=""))
    if len(pieces) == 1:
        return [f" filename*={pieces[0]};"]
    return [f" filename*{index}*={piece};" for index, piece in enumerate(pieces)]
