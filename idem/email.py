"""One email: validated when it is made, frozen afterwards, with canonical bytes and a fingerprint."""

from __future__ import annotations

import base64
import binascii
import csv
import difflib
import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec

from idem.address import parse_address, refuse_controls
from idem.errors import EmailError

#: Largest canonical form of one email, attachments in base64 included.
MAX_EMAIL_BYTES = 25 * 1024 * 1024
_MAX_RECIPIENTS = 1_000
_MAX_SUBJECT = 998
_MAX_HEADERS, _MAX_HEADER_VALUE = 100, 2_000
_MAX_TAGS, _MAX_TAG = 50, 128
_MAX_METADATA, _MAX_METADATA_NAME, _MAX_METADATA_VALUE = 50, 64, 1_000
_MAX_ATTACHMENTS, _MAX_FILENAME = 100, 255
#: No character takes more bytes than that in canonical form, no address, and all that the limits above are for.
_MOST_CHARACTER, _MOST_ADDRESS, _MOST_LIMITED = 6, 6_000, 3 * 1024 * 1024

_HEADER_NAME = re.compile(r"[!-9;-~]{1,76}")
_CONTENT_TYPE = re.compile(r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}(;[ -~]{1,200})?", re.ASCII)
_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")

_NONE: Mapping[str, str] = MappingProxyType({})

#: Headers that a field of `Email` owns, and headers that only those who carry the message may write.
_FIELD_HEADERS = frozenset({"from", "to", "cc", "bcc", "reply-to", "subject"})
_CARRIER_HEADERS = frozenset({"date", "dkim-signature", "mime-version", "received", "return-path"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A file that travels with an email; with a `content_id`, HTML can show it as `cid:<content_id>`."""

    filename: str
    content: bytes = field(repr=False)
    content_type: str = "application/octet-stream"
    content_id: str | None = None

    def __post_init__(self) -> None:
        _check_text("attachments.filename", self.filename, _MAX_FILENAME)
        if not isinstance(self.content, bytes):
            raise EmailError("attachments.content", f"is {type(self.content).__name__}; it must be bytes")
        if not isinstance(self.content_type, str) or not _CONTENT_TYPE.fullmatch(self.content_type):
            raise EmailError("attachments.content_type", "is not a media type such as application/pdf")
        if self.content_type.lower().startswith("multipart/"):
            raise EmailError("attachments.content_type", "is multipart, which no file can be; attach its parts")
        if self.content_id is not None:
            _check_text("attachments.content_id", self.content_id, _MAX_FILENAME)

    @classmethod
    def csv(cls, filename: str, rows: Iterable[Iterable[object] | Mapping[str, object]]) -> Attachment:
        """A table that spreadsheets open as it is: UTF-8 with its mark, commas, CRLF.

        Each row is a list of cells, or a mapping: then the names of the first are the header, and a name that it does
        not have is an error. A text that a spreadsheet would take for a formula gets an apostrophe in front (it may
        come from anybody: https://owasp.org/www-community/attacks/CSV_Injection); numbers stay numbers.
        """
        written = io.StringIO(newline="")
        csv.writer(written).writerows(map(_cell, row) for row in _table(rows))
        content = written.getvalue().encode("utf-8-sig", errors="replace")
        return cls(filename=filename, content=content, content_type="text/csv; charset=utf-8")


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Email:
    """An email that a provider can accept: everything is checked here, so nothing fails for its form later.

    `to`, `cc`, `bcc` and `reply_to` take one address or several; an address may carry a name: `Ann <ann@example.com>`.
    At least one of `text` and `html` is needed. `headers` are additional ones; an `Idempotency-Key` among them is taken
    as the key and not sent on. Raises `EmailError`, which names the field. Its `repr` shows no address and no content.
    """

    from_: str
    to: tuple[str, ...]
    cc: tuple[str, ...]
    bcc: tuple[str, ...]
    reply_to: tuple[str, ...]
    subject: str
    text: str | None
    html: str | None
    headers: Mapping[str, str]
    tags: tuple[str, ...]
    metadata: Mapping[str, str]
    attachments: tuple[Attachment, ...]

    def __init__(  # noqa: PLR0913 - an email has this many parts, and each is named at the call
        self,
        *,
        from_: str,
        to: str | Iterable[str],
        subject: str,
        text: str | None = None,
        html: str | None = None,
        cc: str | Iterable[str] = (),
        bcc: str | Iterable[str] = (),
        reply_to: str | Iterable[str] = (),
        headers: Mapping[str, str] = _NONE,
        tags: Iterable[str] = (),
        metadata: Mapping[str, str] = _NONE,
        attachments: Iterable[Attachment] = (),
    ) -> None:
        put = object.__setattr__
        put(self, "from_", str(parse_address("from", _check_type("from", from_))))
        for name, value in (("to", to), ("cc", cc), ("bcc", bcc), ("reply_to", reply_to)):
            put(self, name, _addresses(name, value))
        put(self, "subject", _check_text("subject", subject, _MAX_SUBJECT, empty=True))
        put(self, "text", _check_body("text", text))
        put(self, "html", _check_body("html", html))
        put(self, "headers", headers if headers is _NONE else MappingProxyType(_check_headers(headers)))
        put(self, "tags", tags if tags == () else _check_tags(tags))
        put(self, "metadata", metadata if metadata is _NONE else MappingProxyType(_check_metadata(metadata)))
        put(self, "attachments", attachments if attachments == () else _check_attachments(attachments))
        self._check_whole()

    def _check_whole(self) -> None:
        if not self.to:
            raise EmailError("to", "is missing: an email needs at least one recipient")
        recipients = len(self.to) + len(self.cc) + len(self.bcc)
        if recipients > _MAX_RECIPIENTS:
            raise EmailError("to", f"{recipients} recipients with cc and bcc; the limit is {_MAX_RECIPIENTS}")
        if self.text is None and self.html is None:
            raise EmailError("text", "is missing: an email needs a text, an html part, or both")
        if self._at_most() > MAX_EMAIL_BYTES and (size := len(self.canonical())) > MAX_EMAIL_BYTES:
            raise EmailError(
                "attachments" if self.attachments else "text" if self.html is None else "html",
                f"makes the email {size:,} bytes in all, attachments in base64; the limit is {MAX_EMAIL_BYTES:,}",
            )

    def _at_most(self) -> int:
        """It is no larger in canonical form, which costs more to make: most emails are far below the limit."""
        addresses = len(self.to) + len(self.cc) + len(self.bcc) + len(self.reply_to)
        characters = len(self.text or "") + len(self.html or "")
        # Base64 takes four bytes for three.
        files = 2 * sum(len(item.content) for item in self.attachments)
        return _MOST_LIMITED + _MOST_ADDRESS * addresses + _MOST_CHARACTER * characters + files

    def __repr__(self) -> str:
        recipients = len(self.to) + len(self.cc) + len(self.bcc)
        return f"<Email to {recipients} recipient{'s' * (recipients != 1)}, fingerprint {self.fingerprint()[:12]}>"

    def __hash__(self) -> int:
        return hash(self.canonical())

    def as_dict(self) -> dict[str, Any]:
        """The email as JSON would have it, without the fields that are empty; `from_dict` reads it back."""
        parts: dict[str, Any] = {"from": self.from_, "to": list(self.to)}
        for name, several in (("cc", self.cc), ("bcc", self.bcc), ("reply_to", self.reply_to), ("tags", self.tags)):
            if several:
                parts[name] = list(several)
        parts["subject"] = self.subject
        for name, named in (("headers", self.headers), ("metadata", self.metadata)):
            if named:
                parts[name] = dict(named)
        if self.attachments:
            parts["attachments"] = [_attachment_as_dict(item) for item in self.attachments]
        if self.text is not None:
            parts["text"] = self.text
        if self.html is not None:
            parts["html"] = self.html
        return parts

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> Email:
        """Read what `as_dict` or a person wrote; an unknown field is an error, never dropped."""
        for name in parts:
            if name not in FIELDS:
                near = difflib.get_close_matches(str(name), FIELDS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(FIELDS)}"
                raise EmailError(str(name)[:64], f"is not a field of an email; {hint}")
        for name in ("from", "to", "subject"):
            if parts.get(name) is None:
                raise EmailError(name, "is missing")
        given = {name: value for name, value in parts.items() if value is not None}
        given["from_"] = given.pop("from")
        if "attachments" in given:
            given["attachments"] = [_attachment_from_dict(item) for item in _check_list(given["attachments"])]
        return cls(**given)

    def canonical(self) -> bytes:
        """The bytes that stand for this email: equal for equal emails, whatever order their parts came in."""
        return msgspec.json.encode(self.as_dict(), order="sorted")

    @classmethod
    def from_canonical(cls, data: bytes) -> Email:
        """Read back what `canonical` gave."""
        return cls.from_dict(msgspec.json.decode(data))

    def fingerprint(self) -> str:
        """SHA-256 of the canonical bytes, in hexadecimal: two emails under one key must agree in it."""
        return fingerprint(self.canonical())

    def without_header(self, name: str) -> Email:
        """The same email less one additional header, in whatever case it was written."""
        kept = {key: value for key, value in self.headers.items() if key.lower() != name.lower()}
        parts = self.as_dict()
        parts["headers"] = kept
        return Email.from_dict(parts)

    def with_mark(self, *, metadata: Mapping[str, str] = _NONE, tags: tuple[str, ...] = ()) -> Email:
        """The same email with more metadata or tags of our own, which count for none of the limits above."""
        marked = copy(self)
        object.__setattr__(marked, "metadata", MappingProxyType({**self.metadata, **metadata}))
        object.__setattr__(marked, "tags", (*self.tags, *tags))
        return marked


def fingerprint(canonical: bytes) -> str:
    """The fingerprint of canonical bytes, for one who has them already."""
    return hashlib.sha256(canonical).hexdigest()


#: The fields of an email as JSON, CSV and the command line name them.
FIELDS = (
    "from", "to", "cc", "bcc", "reply_to", "subject", "text", "html", "headers", "tags", "metadata", "attachments",
)  # fmt: skip


def _check_type(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise EmailError(name, f"is {type(value).__name__}; it must be a string")
    # Plain text also of a template engine's markup, which is a string of a class of its own.
    return str.__str__(value)


def _check_text(name: str, value: object, limit: int, *, empty: bool = False) -> str:
    text = _check_type(name, value)
    refuse_controls(name, text)
    if not text and not empty:
        raise EmailError(name, "is empty")
    if len(text) > limit:
        raise EmailError(name, f"has {len(text)} characters; the limit is {limit}")
    return text


def _check_body(name: str, value: object) -> str | None:
    if value is None:
        return None
    body = _check_type(name, value)
    found = _UNSENDABLE.search(body)
    if found:
        raise EmailError(name, f"holds U+{ord(found[0]):04X} at position {found.start() + 1}, which cannot be sent")
    return body


def _check_list(value: object, name: str = "attachments") -> Iterable[Any]:
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise EmailError(name, f"is {type(value).__name__}; it must be a list")
    return value


def _check_mapping(name: str, value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise EmailError(name, f"is {type(value).__name__}; it must map names to values")
    return value


def _addresses(name: str, value: object) -> tuple[str, ...]:
    if value == ():
        return ()
    items = [value] if isinstance(value, str) else _check_list(value, name)
    return tuple(str(parse_address(name, _check_type(name, item))) for item in items)


def _check_headers(headers: object) -> dict[str, str]:
    given, checked = _check_mapping("headers", headers), dict[str, str]()
    if len(given) > _MAX_HEADERS:
        raise EmailError("headers", f"{len(given)} of them; the limit is {_MAX_HEADERS}")
    for name, value in given.items():
        _check_header_name(_check_type("headers", name), {known.lower() for known in checked})
        checked[name] = _check_text(f"headers.{name}", value, _MAX_HEADER_VALUE, empty=True)
    return checked


def _check_header_name(name: str, seen: set[str]) -> None:
    lower = name.lower()
    if not _HEADER_NAME.fullmatch(name):
        raise EmailError("headers", "has a name that is not a header name (visible ASCII without a colon)")
    if lower in _FIELD_HEADERS:
        raise EmailError(f"headers.{name}", f"belongs in the field {lower.replace('-', '_')}")
    if lower in _CARRIER_HEADERS or lower.startswith("content-"):
        raise EmailError(f"headers.{name}", "is written by those who carry the email; leave it out")
    if lower in seen:
        raise EmailError(f"headers.{name}", "is given twice")


def _check_tags(tags: object) -> tuple[str, ...]:
    checked = tuple(_check_text("tags", tag, _MAX_TAG) for tag in _check_list(tags, "tags"))
    if len(checked) > _MAX_TAGS:
        raise EmailError("tags", f"{len(checked)} of them; the limit is {_MAX_TAGS}")
    return checked


def _check_metadata(metadata: object) -> dict[str, str]:
    checked: dict[str, str] = {}
    for name, value in _check_mapping("metadata", metadata).items():
        _check_text("metadata", name, _MAX_METADATA_NAME)
        checked[name] = _check_text(f"metadata.{name}", value, _MAX_METADATA_VALUE, empty=True)
    if len(checked) > _MAX_METADATA:
        raise EmailError("metadata", f"{len(checked)} of them; the limit is {_MAX_METADATA}")
    return checked


def _check_attachments(attachments: object) -> tuple[Attachment, ...]:
    checked = tuple(_check_list(attachments))
    if len(checked) > _MAX_ATTACHMENTS:
        raise EmailError("attachments", f"{len(checked)} of them; the limit is {_MAX_ATTACHMENTS}")
    for item in checked:
        if not isinstance(item, Attachment):
            raise EmailError("attachments", f"holds {type(item).__name__}; each must be an Attachment")
    return checked


#: How a formula begins, and a number that may as well.
_FORMULA = re.compile(r"\s*[=+@\t\r\n\uff1d\uff0b\uff0d\uff20-]")
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*")


def _table(rows: Iterable[Iterable[object] | Mapping[str, object]]) -> Iterator[Iterable[object]]:
    header: tuple[str, ...] = ()
    for row in rows:
        if isinstance(row, Mapping):
            if not header:
                yield (header := tuple(map(str, row)))
            for name in row.keys() - set(header):
                raise EmailError("attachments.content", f"has a row with {name}, which the first does not have")
            yield [row.get(name) for name in header]
        else:
            yield _check_list(row, "attachments.content")


def _cell(value: object) -> object:
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def _attachment_as_dict(item: Attachment) -> dict[str, str]:
    parts = {
        "filename": item.filename,
        "content": base64.b64encode(item.content).decode("ascii"),
        "content_type": item.content_type,
    }
    return parts if item.content_id is None else parts | {"content_id": item.content_id}


def _attachment_from_dict(parts: object) -> Attachment:
    if isinstance(parts, Attachment):
        return parts
    given = {name: value for name, value in _check_mapping("attachments", parts).items() if value is not None}
    unknown = set(given) - {"filename", "content", "content_type", "content_id"}
    if unknown or not {"filename", "content"} <= set(given):
        raise EmailError("attachments", "each takes filename, content (base64), and content_type, content_id if needed")
    try:
        given["content"] = base64.b64decode(_check_type("attachments.content", given["content"]), validate=True)
    except (binascii.Error, ValueError) as error:
        raise EmailError("attachments.content", "is not base64") from error
    return Attachment(**given)
