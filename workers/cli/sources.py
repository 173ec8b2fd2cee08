"""Files of emails, read one email at a time: JSON lines, CSV, and single messages (.eml).

Each line of a file becomes a `GoodLine` or a `BadLine`, in order; a bad one never stops those that follow. No message
of this module holds an address or a part of an email's content.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Literal, Self

from idem.address import split_addresses
from idem.email import FIELDS, Email
from idem.errors import EmailError, InputError, InvalidKey
from idem.keys import check_key
from idem.mime import from_bytes
from idem.privacy import redact

Format = Literal["jsonl", "csv", "eml"]
FORMATS: Final[tuple[Format, ...]] = ("jsonl", "csv", "eml")

#: What one line, row or message file may hold: the largest email, with room for the way it is written.
MAX_LINE_BYTES: Final = 40 * 1024 * 1024

_EXTENSIONS: Final[dict[str, Format]] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".eml": "eml"}
_NAMES: Final = (*FIELDS, "key")
_LISTS: Final = frozenset({"to", "cc", "bcc", "reply_to"})
_AS_JSON: Final[dict[str, type]] = {"headers": dict, "metadata": dict, "attachments": list}
_CHUNK: Final = 1024 * 1024
_BOM: Final = b"\xef\xbb\xbf"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
_COLUMN = re.compile(r"[A-Za-z0-9_.-]{1,76}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_READ: Final = "Nothing after it is read, as where the next row begins is not known"
_MESSAGE_START = re.compile(rb"From |[!-9;-~]+:")

#: Opens a pipe that nobody writes to yet without waiting for one who does, as a signal could not end that wait. Other
#: systems than Linux would then say that the pipe is empty.
_NO_WAIT: Final = os.O_NONBLOCK if sys.platform == "linux" else 0

#: Called before a read that may take long.
Ready = Callable[[IO[bytes]], object]


@dataclass(frozen=True, slots=True)
class GoodLine:
    """An email, the number of the line it begins on (from 1), and the key that the line gives it, if any."""

    number: int
    email: Email
    key: str | None = None


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that holds no email that can be sent, and why."""

    number: int
    error: str


Line = GoodLine | BadLine


@dataclass(frozen=True, slots=True)
class Source:
    """An open file of emails; close it, or use it in a `with` statement.

    `digest` is the SHA-256 of its bytes, in hexadecimal: the same file is the same batch. `total` is its number of
    lines, blank ones too, which no `Line.number` exceeds. Replacing the file by another while it is open changes
    nothing here; a file that is written to meanwhile ends in an `InputError`.
    """

    name: str
    format: Format
    digest: str
    total: int
    _file: IO[bytes] = field(repr=False)
    _stamp: tuple[int, int] = field(repr=False)

    def lines(self) -> Iterator[Line]:
        """Read the file from its start, one line in memory at a time."""
        readers: dict[Format, Callable[[IO[bytes]], Iterator[Line]]] = {
            "jsonl": _json_lines,
            "csv": _csv_lines,
            "eml": _eml_lines,
        }
        _rewind(self._file)
        yield from readers[self.format](self._file)
        if _stamp(self._file) != self._stamp:
            raise InputError(f"{self.name} was changed while it was read; run the command again when it is complete")

    def close(self) -> None:
        """Close the file; what standard input was spooled to is deleted."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_source(
    path: Path | Literal["-"],
    format: str | None = None,  # noqa: A002 - the option's own name
    *,
    ready: Ready = lambda _: None,
) -> Source:
    """Open a file of emails, or standard input for `-`, which is copied to a temporary file first.

    The format is given, or the extension's, or for standard input the first line's. Raises `InputError` when the file
    cannot be read, is empty, has an unknown extension, or is a CSV whose columns cannot be placed; after that, every
    problem is a `BadLine`. `ready` is called with a file before each part of it is read, and may raise to end that.
    """
    if format is not None and format not in FORMATS:
        raise InputError(f"the format {redact(format, 40)} is not known; it is one of {', '.join(FORMATS)}")
    chosen = next((known for known in FORMATS if known == format), None)
    name = "standard input" if path == "-" else redact(str(path))
    if chosen is None and path != "-":
        chosen = _format_of(Path(path), name)
    file = _open(path, name, ready)
    try:
        digest, total = _measure(file, name, ready)
        source = Source(name, chosen or _sniff(file), digest, total, file, _stamp(file))
        if source.format == "csv":
            _rewind(file)
            _columns(_rows(file), name)
    except BaseException:
        file.close()
        raise
    return source


# Files.


def _format_of(path: Path, name: str) -> Format:
    try:
        return _EXTENSIONS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(_EXTENSIONS)
        raise InputError(f"{name}: the extension is none of {known}; name the format with --format") from None


def _open(path: Path | Literal["-"], name: str, ready: Ready) -> IO[bytes]:
    try:
        if path == "-":
            return _spool(sys.stdin.buffer, ready)
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{name} is a directory; name the files in it")
        if stat.S_ISREG(mode):
            return Path(path).open("rb")
        with open(path, "rb", opener=_open_pipe) as pipe:
            return _spool(pipe, ready)
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the path is malformed"
        raise InputError(f"{name} cannot be read: {reason}") from error


def _open_pipe(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | _NO_WAIT)
    os.set_blocking(descriptor, True)
    return descriptor


def _spool(stream: IO[bytes], ready: Ready) -> IO[bytes]:
    """Copy a stream that can be read only once; its digest is needed before its first line."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the Source closes it
    try:
        for chunk in _chunks(stream, ready):
            file.write(chunk)
    except BaseException:
        file.close()
        raise
    return file


def _chunks(file: IO[bytes], ready: Ready) -> Iterator[bytes]:
    # What is there, and no wait for more of it: that is what `ready` is for.
    read: Callable[[int], bytes] = getattr(file, "read1", file.read)
    ready(file)
    while chunk := read(_CHUNK):
        yield chunk
        ready(file)


def _measure(file: IO[bytes], name: str, ready: Ready) -> tuple[str, int]:
    digest, total, last, size = hashlib.sha256(), 0, b"\n", 0
    file.seek(0)
    for chunk in _chunks(file, ready):
        if not size and chunk.startswith(_UTF16):
            raise InputError(f"{name} is UTF-16; save it as UTF-8")
        digest.update(chunk)
        total, last, size = total + chunk.count(b"\n"), chunk[-1:], size + len(chunk)
    if not size:
        raise InputError(f"{name} is empty; there is nothing to enqueue")
    return digest.hexdigest(), total + (last != b"\n")


def _stamp(file: IO[bytes]) -> tuple[int, int]:
    file.flush()
    seen = os.fstat(file.fileno())
    return seen.st_size, seen.st_mtime_ns


def _rewind(file: IO[bytes]) -> None:
    file.seek(len(_BOM) if _starts_with_bom(file) else 0)


def _starts_with_bom(file: IO[bytes]) -> bool:
    file.seek(0)
    return file.read(len(_BOM)) == _BOM


def _sniff(file: IO[bytes]) -> Format:
    """JSON begins with a brace, a message with a header; anything else is taken for the header row of a CSV."""
    _rewind(file)
    start = file.read(_CHUNK).lstrip()
    if start.startswith(b"{"):
        return "jsonl"
    return "eml" if _MESSAGE_START.match(start) else "csv"


# JSON lines.


def _json_lines(file: IO[bytes]) -> Iterator[Line]:
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            _skip_line(file)
            yield BadLine(number, f"the line is longer than {MAX_LINE_BYTES:,} bytes")
        elif raw.strip():
            yield _line(number, partial(_from_json, raw))


def _skip_line(file: IO[bytes]) -> None:
    while (rest := file.readline(_CHUNK)) and not rest.endswith(b"\n"):
        pass


def _line(number: int, read: Callable[[], dict[str, Any]]) -> Line:
    """Make the email that `read` finds the parts of; every problem becomes the line's own."""
    try:
        parts = read()
        key = parts.pop("key", None)
        for name in parts:
            _check_name(name)
        return GoodLine(number, Email.from_dict(parts), None if key is None else check_key(key))
    except EmailError as error:
        return BadLine(number, f"{_shown(error.field)}: {error.problem}")
    except (InvalidKey, InputError) as error:
        return BadLine(number, redact(str(error)))


def _check_name(name: str) -> None:
    if name not in FIELDS:
        raise EmailError(name, f"is not a field of an email{_hint(name)}")


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name[:64], _NAMES, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(_NAMES)}"


def _shown(name: str) -> str:
    """A field's name, unless it could be something else: a header or metadata name is whatever a user wrote."""
    if _COLUMN.fullmatch(name):
        return name
    known = name.partition(".")[0]
    return f"{known}.(a name)" if known in FIELDS else "a name in the line"


def _from_json(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the line is not UTF-8, at byte {error.start + 1}") from None
    parts = _decode("the line", text)
    if not isinstance(parts, dict):
        raise InputError("the line is not a JSON object")
    return parts


def _decode(what: str, text: str) -> object:
    """JSON without what makes two readers disagree: a name given twice, NaN, Infinity.

    The json module is used as msgspec keeps the last of two equal names in silence.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        problem = error.msg.partition(":")[0]
        raise InputError(f"{what} is not JSON: {problem} at character {error.pos + 1}") from None
    except RecursionError:
        raise InputError(f"{what} is nested too deeply") from None
    except ValueError:
        raise InputError(f"{what} holds a number that is too long") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parts = dict(pairs)
    if len(parts) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the line gives {_quoted(twice)} twice in one object")
    return parts


def _quoted(name: str) -> str:
    return f"'{name}'" if name in _NAMES else "a name"


def _refuse_constant(name: str) -> object:
    raise InputError(f"the line holds {name}, which is not JSON")


# CSV.


class _RowTooLongError(Exception):
    """Raised to the csv module's caller; a row this long is most likely a quote that is never closed."""


class _PhysicalLines:
    """The lines of a file for the csv module, which takes as many as the cells of a row need."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = 0
        self._quotes = 0
        self.number = 0

    def begin_row(self) -> int:
        """The number of the line on which the next row begins."""
        self._size = self._quotes = 0
        return self.number + 1

    def ends_in_quotes(self) -> bool:
        """Whether the row so far has opened a quote that it did not close, however oddly it is quoted."""
        return self._quotes % 2 == 1

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        raw = self._file.readline(MAX_LINE_BYTES + 1)
        if not raw:
            raise StopIteration
        self.number += 1
        self._size += len(raw)
        self._quotes += raw.count(b'"')
        if self._size > MAX_LINE_BYTES:
            raise _RowTooLongError
        return raw.decode("utf-8", "surrogateescape")


def _rows(file: IO[bytes]) -> Iterator[tuple[int, list[str] | str]]:
    """Each row's first line and its cells, or what is wrong with it.

    After an error inside a quoted cell nothing is read any more: what follows is the rest of somebody's text, and a row
    found in there would be an email that nobody meant to send.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    lines = _PhysicalLines(file)
    reader = csv.reader(lines, strict=True)
    while True:
        number = lines.begin_row()
        try:
            row: list[str] | str = next(reader)
        except StopIteration:
            return
        except _RowTooLongError:
            yield number, f"the row is longer than {MAX_LINE_BYTES:,} bytes; is a quote not closed? {_NOT_READ}"
            return
        except csv.Error as error:
            row = f"the row is not CSV: {error}"
            if lines.ends_in_quotes():
                yield number, f"{row}; a quote is not closed. {_NOT_READ}"
                return
        yield number, row


def _columns(rows: Iterator[tuple[int, list[str] | str]], name: str) -> list[str]:
    """The header row, every column of which must have a place in an email."""
    number, row = next(((number, row) for number, row in rows if isinstance(row, str) or _holds_text(row)), (1, ""))
    if isinstance(row, str):
        raise InputError(f"{name}, line {number}: {row or 'there is no header row'}; the first row names the fields")
    columns = [cell.strip() for cell in row]
    for position, column in enumerate(columns, 1):
        _check_column(f"{name}: column {position}", column)
        if columns.count(column) > 1:
            raise InputError(f"{name}: the column {_shown(column)} is there twice; rename or remove one")
    for required in ("from", "to", "subject"):
        if required not in columns:
            raise InputError(f"{name}: the column {required} is missing; add it to the header row")
    return columns


def _check_column(where: str, column: str) -> None:
    field_name, _, inner = column.partition(".")
    if column in _NAMES or (field_name in {"headers", "metadata"} and inner):
        return
    if ";" in column and "," not in column:
        raise InputError(f"{where} holds semicolons; separate the cells with commas")
    if not _COLUMN.fullmatch(column):
        raise InputError(f"{where} has no field's name; does the file begin with a header row?")
    raise InputError(f"{where}, {column}, is not a field of an email{_hint(column)}")


def _holds_text(row: list[str]) -> bool:
    return any(cell.strip() for cell in row)


def _csv_lines(file: IO[bytes]) -> Iterator[Line]:
    rows = _rows(file)
    columns = _columns(rows, "the file")
    for number, row in rows:
        if isinstance(row, str):
            yield BadLine(number, row)
        elif _holds_text(row):
            yield _line(number, partial(_from_row, columns, row))


def _from_row(columns: list[str], row: list[str]) -> dict[str, Any]:
    if len(row) != len(columns):
        raise InputError(f"the row has {len(row)} cells, and the header row has {len(columns)}")
    parts: dict[str, Any] = {}
    for column, cell in zip(columns, row, strict=True):
        if not cell.isascii() and _SURROGATE.search(cell):
            raise EmailError(column, "is not UTF-8")
        if cell.strip():
            _place(parts, column, cell)
    return parts


def _place(parts: dict[str, Any], column: str, cell: str) -> None:
    name, dot, inner = column.partition(".")
    if dot:
        _merge(parts, name, {inner: cell})
    elif name in _LISTS:
        parts[name] = split_addresses(cell)
    elif name == "tags":
        parts[name] = [tag.strip() for tag in cell.split(",") if tag.strip()]
    elif name in _AS_JSON:
        value = _decode(f"the cell {name}", cell)
        if not isinstance(value, _AS_JSON[name]):
            raise EmailError(name, f"is not a JSON {'array' if name == 'attachments' else 'object'}")
        if isinstance(value, dict):
            _merge(parts, name, value)
        else:
            parts[name] = value
    else:
        parts[name] = cell


def _merge(parts: dict[str, Any], name: str, values: dict[str, Any]) -> None:
    known = parts.setdefault(name, {})
    for inner, value in values.items():
        if inner in known:
            raise EmailError(f"{name}.{inner}", "is given twice, in its own column and in another")
        known[inner] = value


# Messages.


def _eml_lines(file: IO[bytes]) -> Iterator[Line]:
    data = file.read(MAX_LINE_BYTES + 1)
    if len(data) > MAX_LINE_BYTES:
        yield BadLine(1, f"the message is longer than {MAX_LINE_BYTES:,} bytes")
        return
    try:
        yield GoodLine(1, from_bytes(data))
    except EmailError as error:
        yield BadLine(1, f"{_shown(error.field)}: {error.problem}")
