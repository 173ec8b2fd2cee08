"""What the sandbox makes of a request's body: the form in which two bodies are compared."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from urllib.parse import parse_qsl

import msgspec

_HEADERS = HeaderParser()


class BadBody(ValueError):
    """Raised for a body that cannot be parsed; the message is for the client."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Upload:
    """A file in a form."""

    filename: str
    content_type: str
    content: bytes


#: The values of each field, in their order.
Form = dict[str, list[str | Upload]]


def read_json(_headers: Mapping[str, str], body: bytes) -> object:
    """The body as JSON."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BadBody("The request body is not valid JSON.") from None


def read_form(headers: Mapping[str, str], body: bytes) -> Form:
    """The body as a form, URL-encoded or multipart."""
    form: Form = {}
    for name, value in _fields(headers.get("content-type", ""), body):
        form.setdefault(name, []).append(value)
    return form


def _fields(content_type: str, body: bytes) -> Iterator[tuple[str, str | Upload]]:
    head = Message()
    head["Content-Type"] = content_type
    boundary = head.get_boundary()
    try:
        if head.get_content_type() == "multipart/form-data" and boundary:
            yield from _multipart(body, boundary.encode())
        elif head.get_content_type() == "application/x-www-form-urlencoded":
            yield from parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict")
        else:
            raise BadBody("The request body is not a form.", 415)
    except UnicodeDecodeError:
        raise BadBody("The form is not UTF-8.") from None


def _multipart(body: bytes, boundary: bytes) -> Iterator[tuple[str, str | Upload]]:
    """RFC 7578: the parts between the delimiters, byte for byte."""
    first, *pieces = (b"\r\n" + body).split(b"\r\n--" + boundary)
    if not pieces or first.strip() or not pieces.pop().startswith(b"--"):
        raise BadBody("The multipart form is cut short.")
    for piece in pieces:
        head, blank, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        part = _HEADERS.parsestr(head.decode() + "\r\n\r\n")  # names are UTF-8 as they are (RFC 7578, section 5.1)
        name = part.get_param("name", header="content-disposition")
        if not blank or not isinstance(name, str):
            raise BadBody("A part of the multipart form has no name.")
        yield name, _value(part, content)


def _value(part: Message, content: bytes) -> str | Upload:
    if part.get("Content-Transfer-Encoding", "").lower() == "base64":
        content = base64.b64decode(content)
    filename = part.get_filename()
    return content.decode() if filename is None else Upload(filename, part.get_content_type(), content)


def digest_of(content: object) -> str:
    """SHA-256 of bytes, or of what was parsed, as JSON with sorted names, no white space and plain UTF-8."""
    data = content if isinstance(content, bytes) else msgspec.json.encode(content, order="sorted")
    return hashlib.sha256(data).hexdigest()
