"""From MIME to an email: which headers and parts of a message are carried over, and into which fields."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Iterator
from email import errors, message_from_bytes, policy
from email.message import Message
from typing import Final

from idem.email import Attachment, Email
from idem.errors import EmailError
from idem.mime.headers import VERBATIM, blaming, decode, read_addresses, read_text, unfold

#: Multiparts inside one another; more than this is an attack on the reader, not an email.
MAX_NESTING: Final = 50

#: The headers that are understood, in the spelling that errors show.
_LISTS: Final = ("From", "To", "Cc", "Bcc", "Reply-To")
_CONTENT: Final = ("Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "Content-ID")
_KNOWN: Final = {name.lower(): name for name in (*_LISTS, "Subject", *_CONTENT)}
_NOT_CARRIED = re.compile(
    "arc-.*|authentication-results|content-.*|date|delivered-to|delivery-date|dkim-signature|domainkey-signature|"
    "envelope-to|message-id|mime-version|received|received-spf|resent-.*|return-path|x-original-to"
)
_HEADER_NAME = re.compile(r"[!-~]{1,76}")

#: What the parser repairs by leaving something out, or by guessing where a part ends.
_DEFECTS: Final[dict[type[errors.MessageDefect], tuple[str, str]]] = {
    errors.NoBoundaryInMultipartDefect: ("Content-Type", "is multipart and names no boundary"),
    errors.StartBoundaryNotFoundDefect: ("Content-Type", "names a boundary that never occurs"),
    errors.CloseBoundaryNotFoundDefect: ("Content-Type", "names a boundary that never closes: the message is cut off"),
    errors.FirstHeaderLineIsContinuationDefect: ("headers", "begin with the continuation of another line"),
    errors.InvalidHeaderDefect: ("headers", "hold a line without a name"),
}

#: For files that come without a name, by the latter half of their media type.
_EXTENSIONS: Final = {name: name for name in ("csv", "gif", "html", "json", "pdf", "png", "webp", "zip")} | {
    "calendar": "ics", "delivery-status": "txt", "jpeg": "jpg", "plain": "txt", "rfc822": "eml", "svg+xml": "svg",
}  # fmt: skip
_MEDIA_TYPE = re.compile(r"[!-.0-:<-~]+/[!-.0-:<-~]+(;[ -~]{1,200})?")
_PLAIN_VALUE = re.compile(r"[ !#-\[\]-~]*")


def from_bytes(data: bytes) -> Email:
    """Read the bytes of a message, such as an .eml file; raises `EmailError` as `from_message` does."""
    with blaming("Content-Type"):
        return from_message(message_from_bytes(data))


def from_message(message: Message) -> Email:
    """Read a message of the standard library, of either of its kinds; raise `EmailError` naming the header at fault.

    No other exception leaves this function, whatever the message holds. What becomes of its parts:

    - From, To, Cc, Bcc, Reply-To and Subject are decoded and unfolded (a tab becomes a space). Groups are flattened, a
      comment stands in for a missing display name, and several To, Cc, Bcc or Reply-To headers are read as one. There
      must be one sender and at least one address in To; a missing Subject is an empty one.
    - `text` is the first text/plain part that is not an attachment, `html` the first such text/html part; with neither,
      `text` is empty. Their line ends become a single newline.
    - Every other part becomes an attachment with its media type, filename (`part-2.png` when it has none) and
      Content-ID, a message inside the message too, with CRLF line ends. A signature over several parts arrives as a
      file and no longer verifies, as their nesting is not kept.
    - Other headers become `headers`, except those that describe an earlier delivery (Date, Received, DKIM-Signature,
      Resent-* and their like) or the old structure (MIME-Version, Content-*); and except Message-ID, as two acceptances
      under one Message-ID would be one email to whoever receives them.

    Refused rather than repaired, as a repair would be a guess: any other header given twice, an unknown charset or
    bytes that are not valid in it, base64 that is malformed, a boundary that is missing or never closes, control
    characters in a header even when encoded, more than 50 nested multiparts.
    """
    headers = _gather(message)
    try:
        bodies, attachments = _contents(message)
        return Email(
            from_=_addresses("From", headers)[0],
            to=_addresses("To", headers),
            cc=_addresses("Cc", headers),
            bcc=_addresses("Bcc", headers),
            reply_to=_addresses("Reply-To", headers),
            subject=read_text("Subject", headers.pop("Subject", [""])[0]),
            text=bodies.get("text/plain", None if bodies else ""),
            html=bodies.get("text/html"),
            attachments=attachments,
            headers={name: read_text(f"headers.{name}", raw) for name, [raw] in headers.items()},  # what is left
        )
    except EmailError as error:
        raise _as_header(error) from error.__cause__


def _gather(message: Message) -> dict[str, list[str]]:
    """The unfolded values of every header that is carried over, by its name as it was written first."""
    gathered: dict[str, list[str]] = {}
    spelling = dict(_KNOWN)
    for written, value in message.raw_items():
        lower = written.lower()
        if _NOT_CARRIED.fullmatch(lower):
            continue
        if not _HEADER_NAME.fullmatch(written):
            raise EmailError("headers", "hold a name that is too long, or not of visible ASCII")
        name = spelling.setdefault(lower, written)
        if name in gathered and name not in _LISTS:
            raise EmailError(name, "is given twice; an email can carry it once")
        gathered.setdefault(name, []).append(unfold(name, value))
    return gathered


def _addresses(name: str, headers: dict[str, list[str]]) -> list[str]:
    values = headers.pop(name, [])
    found = [address for raw in values for address in read_addresses(name, raw)]
    if not found and name in {"From", "To"}:
        raise EmailError(name, "holds no address" if values else "is missing")
    if name == "From" and len(found) > 1:
        raise EmailError(name, f"holds {len(found)} addresses; an email has one sender")
    return found


def _as_header(error: EmailError) -> EmailError:
    """The error with its header in place of a field of `Email`."""
    field = error.field.removeprefix("attachments.")
    if field in {"text", "html"}:
        return EmailError("Content-Type", f"the {field} part {error.problem}")
    lower = {"attachments": "content-type", "filename": "content-disposition"}.get(field, field.replace("_", "-"))
    return EmailError(_KNOWN.get(lower, field.removeprefix("headers.")), error.problem)


def _contents(message: Message) -> tuple[dict[str, str], list[Attachment]]:
    bodies: dict[str, str] = {}
    attachments: list[Attachment] = []
    with blaming("Content-Type"):
        for number, (content, data) in enumerate(_leaves(message), start=1):
            kind, attached = content.get_content_type(), content.get_content_disposition() == "attachment"
            if kind in {"text/plain", "text/html"} and kind not in bodies and not attached:
                text = decode("Content-Type", data, content.get_content_charset())
                bodies[kind] = text.replace("\r\n", "\n").replace("\r", "\n")
            else:
                attachments.append(_attachment(content, data, number))
    return bodies, attachments


def _leaves(part: Message, depth: int = 0) -> Iterator[tuple[Message, bytes]]:
    """Every part that holds no others, in order: the headers that describe it, and its decoded content."""
    if depth > MAX_NESTING:
        raise EmailError("Content-Type", f"nests more than {MAX_NESTING} multiparts")
    for defect in part.defects:
        if type(defect) in _DEFECTS:
            raise EmailError(*_DEFECTS[type(defect)])
    content = _describing(part)
    if content.get_content_maintype() != "multipart":
        yield content, _decoded(part, content)
        return
    for child in part.get_payload():
        if not isinstance(child, Message):
            raise EmailError("Content-Type", "is multipart, but nothing tells its parts apart")
        yield from _leaves(child, depth + 1)


def _describing(part: Message) -> Message:
    """Only the headers that say how to read `part`, under the policy whose accessors take any text."""
    content = Message()
    for written, value in part.raw_items():
        name = _KNOWN.get(written.lower(), "")
        if name in content:
            raise EmailError(name, "is given twice for one part")
        if name in _CONTENT:
            content.set_raw(name, unfold(name, value))
    if "Content-Type" not in content:
        content.set_raw("Content-Type", part.get_default_type())
    return content


def _decoded(part: Message, content: Message) -> bytes:
    raw = _raw(part, content)
    encoding = str(content.get("Content-Transfer-Encoding", "")).lower()
    if encoding in {"", "7bit", "8bit", "binary"}:
        return raw
    if encoding == "quoted-printable":
        return binascii.a2b_qp(raw)
    if encoding != "base64":
        raise EmailError("Content-Transfer-Encoding", "is none of 7bit, 8bit, binary, base64 and quoted-printable")
    with blaming("Content-Transfer-Encoding", "is base64, but the content is malformed or cut off"):
        return base64.b64decode(b"".join(raw.split()), validate=True)


def _raw(part: Message, content: Message) -> bytes:
    payload = vars(part).get("_payload")  # as parsed: get_payload() puts U+FFFD for what it cannot decode
    if isinstance(payload, list):
        content.set_payload(payload)
        return written_inside(content)
    text = str(payload or "")
    # Characters beyond ASCII are in a message that was parsed from a string: its charset would have given these bytes.
    for charset in ("ascii", content.get_content_charset("utf-8")):
        with contextlib.suppress(UnicodeEncodeError, LookupError):
            return text.encode(charset, "surrogateescape")
    return text.encode("utf-8", "surrogateescape")


def written_inside(part: Message) -> bytes:
    """The bytes of the message that `part` holds, as they were read."""
    try:
        written = part.as_bytes(policy=VERBATIM)
    except (AttributeError, TypeError):  # a header object of the older interface
        written = part.as_bytes(policy=policy.compat32.clone(linesep="\r\n", max_line_length=None))
    return written.partition(b"\r\n\r\n")[2]


def _attachment(content: Message, data: bytes, number: int) -> Attachment:
    content_id = read_text("Content-ID", str(content.get("Content-ID", "")))
    return Attachment(
        filename=_filename(content) or f"part-{number}.{_EXTENSIONS.get(content.get_content_subtype(), 'bin')}",
        content=data,
        content_type=_media_type(content),
        content_id=content_id.removeprefix("<").removesuffix(">") or None,
    )


def _filename(content: Message) -> str:
    for header, parameter in (("Content-Disposition", "filename"), ("Content-Type", "name")):
        with blaming(header):
            value = content.get_param(parameter, "", header)
            if isinstance(value, tuple):
                return decode(header, value[2].encode("raw-unicode-escape"), value[0])
            if value:
                return read_text(header, str(value)).strip(" ")
    return ""


def _media_type(content: Message) -> str:
    """The media type with its parameters, as written unless a name or boundary must be taken out of it."""
    written, kind = str(content["Content-Type"]), content.get_content_type()
    parameters = {name.lower(): value for name, value in (content.get_params() or [])[1:]}
    if not _MEDIA_TYPE.fullmatch(written) or parameters.keys() & {"name", "boundary"}:
        written = kind
        for name, value in parameters.items():
            if name not in {"", "name", "boundary"} and isinstance(value, str) and _PLAIN_VALUE.fullmatch(value):
                written += f'; {name}="{value}"'
    return written if _MEDIA_TYPE.fullmatch(written) else kind
