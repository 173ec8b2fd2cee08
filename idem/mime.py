"""Emails to and from MIME: the standard library parses and writes, this module decides what the result means.

Neither direction leans on the library's header code: names, subjects and filenames are decoded and encoded here, so
that nothing depends on which of its releases repaired which fold, and no header can be ended early.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from email import errors, policy
from email.generator import BytesGenerator
from email.header import Header
from email.message import EmailMessage, Message
from email.parser import BytesParser
from io import BytesIO
from typing import Final
from urllib.parse import quote

from idem.address import Address, parse_address, refuse_controls
from idem.email import Attachment, Email
from idem.errors import EmailError

#: Multiparts inside one another; more than this is an attack on the reader, not an email.
MAX_NESTING: Final = 50

_FIELDS: Final = ("From", "To", "Cc", "Bcc", "Reply-To", "Subject")
_NAMES: Final = {name.lower(): name for name in _FIELDS}
_NOT_CARRIED: Final = frozenset({
    "authentication-results", "date", "delivered-to", "delivery-date", "dkim-signature", "domainkey-signature",
    "envelope-to", "message-id", "mime-version", "received", "received-spf", "return-path", "x-original-to",
})  # fmt: skip
_DESCRIBING: Final = {
    name.lower(): name for name in ("Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "Content-ID")
}
_NOT_CARRIED_PREFIXES: Final = ("arc-", "content-", "resent-")

#: Which header a field of `Email` came from, for an error that `Email` itself raises.
_HEADER_OF: Final = {
    "from": "From", "to": "To", "cc": "Cc", "bcc": "Bcc", "reply_to": "Reply-To", "subject": "Subject",
    "text": "Content-Type", "html": "Content-Type", "attachments": "Content-Type",
    "attachments.filename": "Content-Disposition", "attachments.content_type": "Content-Type",
    "attachments.content_id": "Content-ID",
}  # fmt: skip

#: What the parser repairs by leaving something out, or by guessing where a part ends.
_DEFECTS: Final[dict[type[errors.MessageDefect], tuple[str, str]]] = {
    errors.NoBoundaryInMultipartDefect: ("Content-Type", "is multipart and names no boundary"),
    errors.StartBoundaryNotFoundDefect: ("Content-Type", "names a boundary that never occurs"),
    errors.CloseBoundaryNotFoundDefect: ("Content-Type", "names a boundary that never closes: the message is cut off"),
    errors.FirstHeaderLineIsContinuationDefect: ("headers", "begin with the continuation of another line"),
    errors.InvalidHeaderDefect: ("headers", "hold a line without a name"),
}

#: Python codecs that decode text and are no charset of any email.
_NOT_CHARSETS: Final = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})
_EXTENSIONS: Final = {
    "application/json": "json", "application/pdf": "pdf", "application/zip": "zip", "image/gif": "gif",
    "image/jpeg": "jpg", "image/png": "png", "image/svg+xml": "svg", "image/webp": "webp",
    "message/delivery-status": "txt", "message/rfc822": "eml", "text/calendar": "ics", "text/csv": "csv",
    "text/html": "html", "text/plain": "txt",
}  # fmt: skip

_FOLD = re.compile(r"\r\n(?=[ \t])|[\r\n](?=[ \t])")
_ENCODED_WORD = re.compile(r"=\?([^?\s*]+)(?:\*[^?\s]*)?\?([bBqQ])\?([^?]*)\?=")
_ADDRESS_TOKEN = re.compile(
    r"(?P<word>=\?[^?\s]+\?[bBqQ]\?[^?]*\?=)"
    r'|(?P<quoted>"(?:[^"\\]|\\.)*")'
    r"|(?P<angle><[^<>]*>)"
    r"|(?P<comment>\()"
    r"|(?P<mark>[,;:])"
    r'|(?P<text>(?:(?!=\?)[^",;:<(])+)'
    r"|(?P<odd>.)",
    re.DOTALL,
)
_COMMENT_END = re.compile(r"\\.|[()]", re.DOTALL)
_PLAIN_BODY = re.compile(r"[\t\n -~]*")
_PLAIN_HEADER = re.compile(r"[ -~]*")
_PLAIN_FILENAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 _()+.-]{0,98}[A-Za-z0-9])?")
_FILENAME_PIECE = re.compile(r"(?:%..|[^%]){1,18}")
_MEDIA_TYPE = re.compile(r"[!-.0-:<-~]+/[!-.0-:<-~]+(;[ -~]{1,200})?")
_PLAIN_PARAMETER = re.compile(r"[ !#-\[\]-~]*")
_LINE, _LONGEST_LINE, _LONGEST_WORD = 76, 998, 900
_WORD_BYTES = 45

#: How an attached message is tried out: what it holds depends on what comes around it when it is malformed.
_ENVELOPE: Final = (
    b'Content-Type: multipart/mixed; boundary="=_"\r\n\r\n--=_\r\nContent-Type: %b\r\n\r\n%b\r\n--=_--\r\n'
)

#: Headers are folded where they are made and never again: the library's own refolding is where injections happened.
_VERBATIM: Final = policy.SMTP.clone(refold_source="none")


def from_bytes(data: bytes) -> Email:
    """Read the bytes of a message, such as an .eml file; raises `EmailError` as `from_message` does."""
    with _reading("Content-Type"):
        message = BytesParser(policy=policy.compat32).parsebytes(data)
    return from_message(message)


def from_message(message: Message) -> Email:
    """Read a message of the standard library, of either of its kinds; raise `EmailError` naming the header at fault.

    No other exception leaves this function, whatever the message holds. What becomes of its parts:

    - From, To, Cc, Bcc, Reply-To and Subject are decoded and unfolded (a tab becomes a space). Groups are flattened, a
      comment stands in for a missing display name, and several To, Cc, Bcc or Reply-To headers are read as one. There
      must be one sender and at least one address in To; a missing Subject is an empty one.
    - `text` is the first text/plain part that is not an attachment, `html` the first such text/html part; with neither,
      `text` is empty. Their line ends become a single newline.
    - Every other part becomes an attachment with its media type, filename (`part-2.png` when it has none) and
      Content-ID. A message inside the message is an attachment with CRLF line ends. How parts were nested is not kept,
      so a signature over them (multipart/signed) arrives as a file and no longer verifies.
    - Other headers become `headers`. Not carried over, since they describe an earlier delivery or the old structure:
      Received, Return-Path, Delivered-To, Delivery-Date, Envelope-To, X-Original-To, Authentication-Results,
      Received-SPF, DKIM-Signature, DomainKey-Signature, ARC-*, Resent-*, Date, MIME-Version, Content-*; and Message-ID,
      as two acceptances under one Message-ID would be one email to whoever receives them.

    Refused rather than repaired, as a repair would be a guess: any other header given twice, an unknown charset or
    bytes that are not valid in it, base64 that is malformed, a boundary that is missing or never closes, control
    characters in a header even when encoded, more than 50 nested multiparts.
    """
    headers = _gather(message)
    parts = _Parts()
    with _reading("Content-Type"):
        _collect(message, parts)
    sender = _addresses("From", headers)
    if len(sender) > 1:
        raise EmailError("From", f"holds {len(sender)} addresses; an email has one sender")
    if not sender:
        raise EmailError("From", "holds no address" if "from" in headers else "is missing")
    recipients = _addresses("To", headers)
    if not recipients:
        raise EmailError("To", "holds no address" if "to" in headers else "is missing")
    try:
        return Email(
            from_=sender[0],
            to=recipients,
            cc=_addresses("Cc", headers),
            bcc=_addresses("Bcc", headers),
            reply_to=_addresses("Reply-To", headers),
            subject=_text("Subject", _single("Subject", headers.get("subject", [("Subject", "")]))),
            text="" if parts.text is None and parts.html is None else parts.text,
            html=parts.html,
            headers=_additional(headers),
            attachments=parts.attachments,
        )
    except EmailError as error:
        raise _as_header(error) from None


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
    message = _multipart("mixed", [body, *(_attachment_part(item, "attachment") for item in others)], stem)
    _put_headers(message, email)
    return message


# Reading: the headers.


@contextlib.contextmanager
def _reading(header: str) -> Iterator[None]:
    """Turn whatever the standard library raises into an `EmailError` that names `header`."""
    try:
        yield
    except EmailError:
        raise
    except Exception as error:
        raise EmailError(header, f"cannot be read ({type(error).__name__})") from error


def _gather(message: Message) -> dict[str, list[tuple[str, str]]]:
    """Every header that is carried over, by its name in lower case: the name as written, and the unfolded value."""
    _refuse_defects(message)
    gathered: dict[str, list[tuple[str, str]]] = {}
    with _reading("headers"):
        items = list(message.raw_items())
    for name, value in items:
        lower = name.lower()
        if lower not in _NOT_CARRIED and not lower.startswith(_NOT_CARRIED_PREFIXES):
            shown = _NAMES.get(lower, name)
            gathered.setdefault(lower, []).append((shown, _unfold(_shown(shown), value)))
    return gathered


def _shown(name: str) -> str:
    return name if name.isascii() and name.isprintable() and len(name) <= _LINE else "headers"


def _unfold(name: str, value: object) -> str:
    with _reading(name):
        raw = value.encode(maxlinelen=0) if isinstance(value, Header) else str(value)
        raw = _FOLD.sub("", raw).replace("\t", " ").strip(" ")
        # The parser keeps bytes beyond ASCII as surrogates; UTF-8 is the one thing that they may be (RFC 6532).
        raw = raw.encode("utf-8", "surrogateescape").decode("utf-8")
    refuse_controls(name, raw)
    return raw


def _single(name: str, values: list[tuple[str, str]]) -> str:
    if len(values) > 1:
        raise EmailError(name, f"is given {len(values)} times; an email can carry it once")
    return values[0][1]


def _additional(headers: dict[str, list[tuple[str, str]]]) -> dict[str, str]:
    others = [values for lower, values in headers.items() if lower not in _NAMES]
    return {values[0][0]: _text(_shown(values[0][0]), _single(_shown(values[0][0]), values)) for values in others}


def _as_header(error: EmailError) -> EmailError:
    if error.field in {"text", "html"}:
        return EmailError("Content-Type", f"the {error.field} part {error.problem}")
    return EmailError(_HEADER_OF.get(error.field, error.field.removeprefix("headers.")), error.problem)


def _text(name: str, raw: str) -> str:
    """`raw` with its encoded words (RFC 2047) decoded, and without a control character."""
    with _reading(name):
        text = _decode_words(name, raw)
    refuse_controls(name, text)
    return text


def _decode_words(name: str, raw: str) -> str:
    pieces: list[tuple[str, bytes | str]] = []
    end = 0
    for match in _ENCODED_WORD.finditer(raw):
        charset, gap = match[1].lower(), raw[end : match.start()]
        data, end = _decode_word(name, match[2], match[3]), match.end()
        last = pieces[-1] if pieces else ("", "")
        if gap.strip(" ") or not isinstance(last[1], bytes):
            pieces += [("", gap), (charset, data)]
        elif last[0] == charset:
            pieces[-1] = (charset, last[1] + data)  # one character may be cut across two words
        else:
            pieces.append((charset, data))
    pieces.append(("", raw[end:]))
    return "".join(data if isinstance(data, str) else _decode(name, data, charset) for charset, data in pieces)


def _decode_word(name: str, encoding: str, encoded: str) -> bytes:
    try:
        if encoding in "qQ":
            return binascii.a2b_qp(encoded.encode("ascii"), header=True)
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError as error:
        raise EmailError(name, "holds an encoded word that is malformed") from error


def _decode(name: str, data: bytes, charset: str | None) -> str:
    # ASCII is often claimed for UTF-8, which contains it; nothing else that is valid as UTF-8 is likely to be meant.
    known = "utf-8" if charset in {None, "ascii", "us-ascii"} else str(charset)
    try:
        if codecs.lookup(known).name.replace("_", "-") not in _NOT_CHARSETS:
            return data.decode(known)
    except UnicodeError as error:
        raise EmailError(name, "names a charset in which its bytes are not valid") from error
    except (LookupError, ValueError):
        pass  # a name that no codec has, that holds a NUL, or whose codec does not give text
    raise EmailError(name, "names a charset that is not known")


# Reading: the addresses.


@dataclass(slots=True)
class _Mailbox:
    """What was read of one mailbox so far: its words, and whether each was in quotes."""

    words: list[tuple[bool, str]] = field(default_factory=list)
    spec: str | None = None
    comment: str = ""

    def add(self, quoted: bool, text: str) -> None:  # noqa: FBT001 - private, and called with a name beside it
        if self.words and not quoted and not self.words[-1][0]:
            text = self.words.pop()[1] + text
        self.words.append((quoted, text))

    def is_empty(self) -> bool:
        return self.spec is None and not any(text.strip(" ") for _, text in self.words)


def _addresses(name: str, headers: dict[str, list[tuple[str, str]]]) -> list[str]:
    """The addresses of all headers of one name, in their canonical form."""
    found: list[str] = []
    for _, raw in headers.get(name.lower(), []):
        with _reading(name):
            found += [str(_as_address(name, mailbox)) for mailbox in _mailboxes(name, raw) if not mailbox.is_empty()]
    return found


def _mailboxes(name: str, raw: str) -> Iterator[_Mailbox]:
    """Cut at the commas of the list; a group's name is left out, and a semicolon separates as Outlook writes it."""
    mailbox, position = _Mailbox(), 0
    while match := _ADDRESS_TOKEN.match(raw, position):
        position, piece = match.end(), match[0]
        if match.lastgroup == "comment":
            position = _comment_end(name, raw, position)
            mailbox.comment = mailbox.comment or raw[match.end() : position - 1]
        elif piece == ":" and mailbox.spec is None:
            mailbox = _Mailbox()
        elif match.lastgroup == "mark":
            yield mailbox
            mailbox = _Mailbox()
        elif piece in {'"', "<"}:
            raise EmailError(name, f"opens a {piece} that it does not close")
        elif mailbox.spec is not None and piece.strip(" "):
            raise EmailError(name, "holds something between an address and the next comma")
        elif match.lastgroup == "angle":
            mailbox.spec = piece[1:-1].strip(" ")
        else:
            mailbox.add(match.lastgroup == "quoted", piece)
    yield mailbox


def _comment_end(name: str, raw: str, start: int) -> int:
    depth = 1
    for match in _COMMENT_END.finditer(raw, start):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if not depth:
            return match.end()
    raise EmailError(name, "opens a ( that it does not close")


def _as_address(name: str, mailbox: _Mailbox) -> Address:
    comment = _text(name, _unquote(mailbox.comment)).strip(" ")
    if mailbox.spec is None:
        return Address("".join(text for _, text in mailbox.words).strip(" "), comment)
    # Encoded words inside quotes are against RFC 2047, and common; nobody is called =?utf-8?...?=.
    words = [_unquote(text[1:-1]) if quoted else text for quoted, text in mailbox.words]
    if words and not mailbox.words[0][0]:
        words[0] = words[0].lstrip(" ")
    if words and not mailbox.words[-1][0]:
        words[-1] = words[-1].rstrip(" ")
    display = "".join(_decode_words(name, word) for word in words)
    refuse_controls(name, display)
    return Address(mailbox.spec, display or comment)


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


# Reading: the parts.


@dataclass(slots=True)
class _Parts:
    """What was found in the body so far."""

    text: str | None = None
    html: str | None = None
    attachments: list[Attachment] = field(default_factory=list)
    count: int = 0


def _collect(part: Message, found: _Parts, depth: int = 0) -> None:
    if depth > MAX_NESTING:
        raise EmailError("Content-Type", f"nests more than {MAX_NESTING} multiparts")
    _refuse_defects(part)
    content = _content_headers(part)
    kind, payload = content.get_content_type(), part.get_payload()
    if kind.startswith("multipart/"):
        if not isinstance(payload, list):
            raise EmailError("Content-Type", "is multipart, but nothing tells its parts apart")
        for child in payload:
            if not isinstance(child, Message):
                raise EmailError("Content-Type", f"holds a part that is {type(child).__name__}, not a message")
            _collect(child, found, depth + 1)
        return
    found.count += 1
    data = _part_bytes(part, content)
    attached = content.get_content_disposition() == "attachment"
    if kind == "text/plain" and not attached and found.text is None:
        found.text = _body(data, content)
    elif kind == "text/html" and not attached and found.html is None:
        found.html = _body(data, content)
    else:
        found.attachments.append(_attachment(data, content, found.count))


def _refuse_defects(part: Message) -> None:
    for defect in part.defects:
        if type(defect) in _DEFECTS:
            raise EmailError(*_DEFECTS[type(defect)])


def _content_headers(part: Message) -> Message:
    """Only the headers that say how to read `part`, under the policy whose accessors take any text."""
    content = Message()
    content.set_default_type(part.get_default_type())
    for written, value in part.raw_items():
        name = _DESCRIBING.get(written.lower())
        if name is not None:
            if name in content:
                raise EmailError(name, "is given twice for one part")
            content.set_raw(name, _unfold(name, value))
    return content


def _part_bytes(part: Message, content: Message) -> bytes:
    payload = vars(part).get("_payload")  # as parsed: get_payload() puts U+FFFD for what it cannot decode
    if isinstance(payload, list):
        raw = _flatten(payload, content.get_content_type())
    elif payload is None:
        raw = b""
    else:
        raw = _payload_bytes(str(payload), content)
    encoding = str(content.get("Content-Transfer-Encoding", "")).strip().lower()
    if encoding == "base64":
        return _decode_base64(raw)
    if encoding == "quoted-printable":
        return binascii.a2b_qp(raw)
    if encoding in {"", "7bit", "8bit", "binary"}:
        return raw
    raise EmailError("Content-Transfer-Encoding", "is none of 7bit, 8bit, binary, base64 and quoted-printable")


def _payload_bytes(payload: str, content: Message) -> bytes:
    with contextlib.suppress(UnicodeEncodeError):
        return payload.encode("ascii", "surrogateescape")
    # A message that was parsed from a string: its bytes are those that its charset would have given.
    with contextlib.suppress(UnicodeEncodeError, LookupError):
        return payload.encode(content.get_content_charset() or "utf-8")
    return payload.encode("utf-8", "surrogateescape")


def _decode_base64(raw: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except binascii.Error as error:
        raise EmailError("Content-Transfer-Encoding", "is base64, but the content is malformed or cut off") from error


def _flatten(payload: list[Message | str], kind: str) -> bytes:
    """The bytes of what a part holds when that is messages, written as they were read."""
    if not kind.startswith("message/"):
        raise EmailError("Content-Type", "is a single part, but the part holds others")
    shell = Message()
    shell["Content-Type"] = kind
    shell.set_payload(payload)
    for attempt in (_VERBATIM, _VERBATIM.clone(utf8=True)):
        with contextlib.suppress(UnicodeEncodeError, AttributeError):
            return _write(shell, attempt)
    return _write(shell, policy.compat32.clone(linesep="\r\n", max_line_length=None))


def _write(message: Message, how: policy.Policy) -> bytes:
    buffer = BytesIO()
    BytesGenerator(buffer, mangle_from_=False, policy=how).flatten(message)
    return buffer.getvalue().partition(b"\r\n\r\n")[2]


def _body(data: bytes, content: Message) -> str:
    text = _decode("Content-Type", data, content.get_content_charset())
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _attachment(data: bytes, content: Message, number: int) -> Attachment:
    content_id = _text("Content-ID", str(content.get("Content-ID", "")))
    if content_id.startswith("<") and content_id.endswith(">"):
        content_id = content_id[1:-1]
    try:
        return Attachment(
            filename=_filename(content) or f"part-{number}.{_EXTENSIONS.get(content.get_content_type(), 'bin')}",
            content=data,
            content_type=_media_type(content),
            content_id=content_id or None,
        )
    except EmailError as error:
        raise _as_header(error) from None


def _filename(content: Message) -> str:
    for header, parameter in (("Content-Disposition", "filename"), ("Content-Type", "name")):
        with _reading(header):
            value = content.get_param(parameter, None, header)
            if isinstance(value, tuple):
                return _decode(header, value[2].encode("raw-unicode-escape"), (value[0] or "us-ascii").lower())
            if value:
                return _text(header, str(value)).strip(" ")
    return ""


def _media_type(content: Message) -> str:
    """The media type with its parameters, as written unless a name or boundary must be taken out of it."""
    raw, kind = str(content.get("Content-Type", "")), content.get_content_type()
    parameters = {name.lower(): value for name, value in (content.get_params() or [])[1:]}
    if _MEDIA_TYPE.fullmatch(raw) and not parameters.keys() & {"name", "boundary"}:
        return raw
    plain = {name: value for name, value in parameters.items() if name and name not in {"name", "boundary"}}
    charset = content.get_content_charset()
    for kept in (plain, {"charset": charset} if charset else {}):
        written = kind + "".join(f'; {name}="{value}"' for name, value in kept.items())
        if _MEDIA_TYPE.fullmatch(written) and all(_PLAIN_PARAMETER.fullmatch(str(value)) for value in kept.values()):
            return written
    return kind


# Writing.


def _put_headers(message: EmailMessage, email: Email) -> None:
    structure = list(message.raw_items())
    for name, _ in structure:
        del message[name]
    for name, values in (("From", [email.from_]), ("To", email.to), ("Cc", email.cc), ("Reply-To", email.reply_to)):
        if values:
            message.set_raw(name, _fold(name, _address_tokens(values)))
    for name, value in [("Subject", email.subject), *email.headers.items(), ("MIME-Version", "1.0")]:
        message.set_raw(name, _fold(name, _text_tokens(value)))
    for name, value in structure:
        message.set_raw(name, value)
    if not all(str(value).isascii() for _, value in message.raw_items()):
        message.policy = _VERBATIM.clone(utf8=True)  # an address beyond ASCII has no other form (RFC 6532)


def _fold(name: str, tokens: list[str]) -> str:
    """Join tokens, each of which begins with a space, and break the line before one that would pass the margin."""
    lines, width = [""], len(name) + 1
    for token in tokens:
        if lines[-1] and width + len(token) > _LINE:
            lines.append("")
            width = 0
        lines[-1] += token
        width += len(token)
    return "\r\n".join(lines)[1:]


def _text_tokens(text: str) -> list[str]:
    """The words of `text`; from the first to the last that a header cannot carry as they are, encoded."""
    if text != text.strip(" "):
        return _encoded_words(text)
    words = re.findall(" +[^ ]+", " " + text)
    hard = [index for index, word in enumerate(words) if not _is_plain(word) or len(word) > _LONGEST_WORD]
    if not hard:
        return words
    first, end = hard[0], hard[-1] + 1
    return words[:first] + _encoded_words("".join(words[first:end])[1:]) + words[end:]


def _is_plain(text: str) -> bool:
    return _PLAIN_HEADER.fullmatch(text) is not None and "=?" not in text


def _encoded_words(text: str) -> list[str]:
    chunks = [b""]
    for char in text:
        if len(chunks[-1]) + len(char.encode()) > _WORD_BYTES:
            chunks.append(b"")
        chunks[-1] += char.encode()
    return [f" =?utf-8?b?{base64.b64encode(chunk).decode('ascii')}?=" for chunk in chunks]


def _address_tokens(values: Iterable[str]) -> list[str]:
    tokens: list[str] = []
    for value in values:
        address = parse_address("to", value)
        if _is_plain(address.name):
            tokens.append(f" {address},")
        else:
            tokens += [*_encoded_words(address.name), f" <{address.spec}>,"]
    tokens[-1] = tokens[-1].removesuffix(",")
    return tokens


def _multipart(kind: str, parts: list[EmailMessage], stem: str) -> EmailMessage:
    if len(parts) == 1:
        return parts[0]
    container = EmailMessage(policy=_VERBATIM)
    root = '; type="text/html"' if kind == "related" else ""
    # No base64 and no quoted-printable holds "=_", and no text can hold a digest of itself.
    container.set_raw("Content-Type", f'multipart/{kind}{root};\r\n boundary="=_{stem}_{kind}"')
    container.set_payload([*parts])
    return container


def _text_part(kind: str, body: str) -> EmailMessage:
    lines = body.replace("\r\n", "\n").replace("\r", "\n")
    if _PLAIN_BODY.fullmatch(lines) and max(map(len, lines.split("\n"))) <= _LONGEST_LINE:
        return _part(f'text/{kind}; charset="utf-8"', "7bit", lines)
    quoted = binascii.b2a_qp(lines.encode()).decode("ascii")
    encoded = _base64(lines.replace("\n", "\r\n").encode())
    encoding, payload = ("quoted-printable", quoted) if len(quoted) <= len(encoded) else ("base64", encoded)
    return _part(f'text/{kind}; charset="utf-8"', encoding, payload)


def _part(media_type: str, encoding: str, payload: str) -> EmailMessage:
    part = EmailMessage(policy=_VERBATIM)
    part.set_raw("Content-Type", media_type)
    part.set_raw("Content-Transfer-Encoding", encoding)
    part.set_payload(payload)
    return part


def _attachment_part(item: Attachment, disposition: str) -> EmailMessage:
    part = _message_part(item) or _file_part(item)
    part.set_raw("Content-Disposition", _fold("Content-Disposition", [f" {disposition};", *_filename_tokens(item)]))
    if item.content_id is not None:
        wrapped = f"<{item.content_id}>"
        tokens = [f" {wrapped}"] if _is_plain(wrapped) and " " not in wrapped else _encoded_words(wrapped)
        part.set_raw("Content-ID", _fold("Content-ID", tokens))
    return part


def _file_part(item: Attachment) -> EmailMessage:
    part = _part(item.content_type, "base64", _base64(item.content))
    if item.content_type.lower().startswith("message/"):
        # The library writes only messages into such a part; one without a header is the text alone.
        holder = EmailMessage(policy=_VERBATIM)
        holder.set_payload(part.get_payload())
        part.set_payload([holder])
    return part


def _message_part(item: Attachment) -> EmailMessage | None:
    """A message attached as MIME wants it, unencoded; None for a file, and for what would not survive that."""
    content = b"\r\n".join(item.content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
    if not item.content_type.lower().startswith("message/") or not content.isascii() or b"\0" in content:
        return None
    if max(map(len, content.split(b"\r\n"))) > _LONGEST_LINE:
        return None
    with contextlib.suppress(Exception):  # it is somebody's file: base64 carries whatever the parser cannot
        whole = _ENVELOPE % (item.content_type.encode(), content)
        part = BytesParser(EmailMessage, policy=_VERBATIM).parsebytes(whole).get_payload(0)
        if not isinstance(part, EmailMessage):
            return None
        payload = part.get_payload()
        if isinstance(payload, list) and _flatten(payload, part.get_content_type()) == content:
            return part
    return None


def _filename_tokens(item: Attachment) -> list[str]:
    if _PLAIN_FILENAME.fullmatch(item.filename):
        return [f' filename="{item.filename}"']
    encoded = "utf-8''" + quote(item.filename, safe="")
    pieces = _FILENAME_PIECE.findall(encoded)
    if len(pieces) == 1:
        return [f" filename*={encoded}"]
    return [f" filename*{index}*={piece};" for index, piece in enumerate(pieces[:-1])] + [
        f" filename*{len(pieces) - 1}*={pieces[-1]}"
    ]


def _base64(data: bytes) -> str:
    return base64.encodebytes(data).decode("ascii")
