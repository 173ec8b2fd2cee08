"""Files of emails: each format's good and bad lines, and the files that are refused as a whole."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import select
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idem.email import FIELDS, Attachment, Email
from idem.errors import InputError
from workers.cli import sources
from workers.cli.sources import BadLine, GoodLine, Line, read_source

BASE = {"from": "ann@example.com", "to": "bob@example.com", "subject": "Hello", "text": "Hi"}
EMAIL = Email(from_="ann@example.com", to="bob@example.com", subject="Hello", text="Hi")
HEADER = "from,to,subject,text\n"
ROW = "ann@example.com,bob@example.com,Hello,Hi\n"


def _lines(folder: Path, content: bytes | str, name: str = "file.jsonl") -> list[Line]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with read_source(path) as source:
        lines = list(source.lines())
        assert all(1 <= line.number <= source.total for line in lines)
        return lines


def _error(folder: Path, content: bytes | str, name: str = "file.jsonl") -> str:
    (line,) = _lines(folder, content, name)
    assert isinstance(line, BadLine)
    assert "@example" not in line.error.replace("user@example.com", "")
    assert "\n" not in line.error
    return line.error


def _refused(folder: Path, content: bytes | str, name: str = "file.csv") -> str:
    with pytest.raises(InputError) as caught:
        _lines(folder, content, name)
    assert "@example" not in str(caught.value)
    return str(caught.value)


# JSON lines.


def test_good_lines_go_and_bad_ones_are_numbered(tmp_path: Path) -> None:
    """Blank lines are skipped and counted; the last line needs no line end."""
    good = json.dumps(BASE)
    keyed = json.dumps(BASE | {"key": "welcome-1"})
    content = f"\ufeff{good}\n\n  \r\nnope\n{keyed}\r\n{good}"

    assert _lines(tmp_path, content) == [
        GoodLine(1, EMAIL),
        BadLine(4, "the line is not JSON: Expecting value at character 1"),
        GoodLine(5, EMAIL, "welcome-1"),
        GoodLine(6, EMAIL),
    ]


def test_every_field_can_be_given(tmp_path: Path) -> None:
    """Lists or single addresses, attachments in base64."""
    whole = Email(
        from_="Ann <ann@example.com>",
        to=["b@example.com", "c@example.com"],
        cc="d@example.com",
        bcc=["e@example.com"],
        reply_to="f@example.com",
        subject="",
        text="t",
        html="h",
        headers={"X-A": "1"},
        tags=["a", "b"],
        metadata={"order": "1"},
        attachments=[Attachment(filename="a.bin", content=b"\x00", content_id="c")],
    )

    assert _lines(tmp_path, json.dumps(whole.as_dict() | {"key": "k"})) == [GoodLine(1, whole, "k")]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"from": "a"', "the line is not JSON: Expecting ',' delimiter at character 13"),
        ("[]", "the line is not a JSON object"),
        ('"ann@example.com"', "the line is not a JSON object"),
        ('{"to": "a@example.com", "to": "b@example.com"}', "the line gives 'to' twice in one object"),
        ('{"metadata": {"a@example.com": "", "a@example.com": ""}}', "the line gives a name twice in one object"),
        ('{"metadata": {"a": NaN}}', "the line holds NaN, which is not JSON"),
        ('{"metadata": {"a": -Infinity}}', "the line holds -Infinity, which is not JSON"),
        ('{"a": ' + "[" * 100_000, "the line is nested too deeply"),
        ('{"a": ' + "1" * 10_000 + "}", "the line holds a number that is too long"),
        ('{"subjekt": ""}', "subjekt: is not a field of an email; did you mean subject?"),
        ('{"eve@example.com": ""}', "a name in the line: is not a field of an email; known are from, to"),
        (json.dumps(BASE | {"from": None}), "from: is missing"),
        (json.dumps(BASE | {"to": "ann.example.com"}), "to: is not an email address: it has no @; write"),
        (json.dumps(BASE | {"to": 5}), "to: is int; it must be a list"),
        (json.dumps(BASE | {"subject": "a\nb"}), "subject: holds the control character U+000A at position 2"),
        (json.dumps(BASE | {"text": "\ud800"}), "text: holds U+D800 at position 1, which cannot be sent"),
        (json.dumps(BASE | {"metadata": {"a@example.com": 5}}), "metadata.(a name): is int; it must be a string"),
        (json.dumps(BASE | {"attachments": [{"filename": "a"}]}), "attachments: each takes filename"),
        (json.dumps(BASE | {"key": 5}), "a key is int; it must be a string"),
        (json.dumps(BASE | {"key": ""}), "a key has 0 characters"),
        (json.dumps(BASE | {"key": "\ud800"}), "a key holds a character that does not print"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_each_bad_line_says_what_is_wrong_with_it(tmp_path: Path, line: str, error: str) -> None:
    """One clear message, with the field and without anything that was written in it."""
    assert _error(tmp_path, line).startswith(error)


def test_a_line_that_is_not_utf8_is_bad(tmp_path: Path) -> None:
    """The lines around it go."""
    good = json.dumps(BASE).encode()

    assert _lines(tmp_path, good + b'\n{"from": "\xff"}\n' + good) == [
        GoodLine(1, EMAIL),
        BadLine(2, "the line is not UTF-8, at byte 11"),
        GoodLine(3, EMAIL),
    ]


def test_a_line_over_the_limit_is_skipped_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is found without keeping it, and the next line goes."""
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 1000)
    good = json.dumps(BASE)
    fits = good + " " * (999 - len(good)) + "\n"

    assert _lines(tmp_path, f"{fits}{fits[:-1]}  \n{'x' * 3_000_000}\n{good}\n") == [
        GoodLine(1, EMAIL),
        BadLine(2, "the line is longer than 1,000 bytes"),
        BadLine(3, "the line is longer than 1,000 bytes"),
        GoodLine(4, EMAIL),
    ]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Twenty megabytes are read with less than four."""
    path = tmp_path / "file.jsonl"
    path.write_text((json.dumps(BASE | {"text": "x" * 10_000}) + "\n") * 2000)
    tracemalloc.start()
    with read_source(path) as source:
        count = sum(1 for _ in source.lines())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (count, source.total) == (2000, 2000)
    assert peak < 4_000_000


texts = st.text(max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from([*FIELDS, "key"]) | texts, json_values, max_size=4)
json_line = st.builds(lambda changes: json.dumps(BASE | changes).encode(), objects)


@given(st.lists(json_line | st.binary(max_size=30), max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_lines_good_or_bad(tmp_path_factory: pytest.TempPathFactory, raw: list[bytes]) -> None:
    """No other exception leaves the reader, in any format."""
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(b"\n".join(raw) + b"\n")
    for name in sources.FORMATS:
        try:
            with read_source(path, name) as source:
                lines = list(source.lines())
        except InputError:
            assert name == "csv" or path.read_bytes().startswith((b"\xff\xfe", b"\xfe\xff"))
        else:
            assert all(isinstance(line, GoodLine | BadLine) for line in lines)


# CSV.


def test_rows_are_read_by_their_columns(tmp_path: Path) -> None:
    """In any order, with lists, JSON and dotted columns, and quoted cells over several lines."""
    columns = ["key", "subject", "to", "from", "cc", "html", "text", "tags", "headers", "headers.X-B", "metadata.order"]
    columns += ["metadata", "attachments"]
    files = json.dumps([{"filename": "a", "content": base64.b64encode(b"x").decode()}])
    row = ["k", 'a "b", c', '"Doe, Bob" <b@example.com>, c@example.com', "a@example.com", "", "", "one\ntwo\n", "x, y"]
    row += ['{"X-A": "1"}', "2", "7", "", files]
    written = io.StringIO()
    csv.writer(written).writerows([columns, row, [""] * len(columns), row])
    email = Email(
        from_="a@example.com",
        to=['"Doe, Bob" <b@example.com>', "c@example.com"],
        subject='a "b", c',
        text="one\ntwo\n",
        tags=["x", "y"],
        headers={"X-A": "1", "X-B": "2"},
        metadata={"order": "7"},
        attachments=[Attachment(filename="a", content=b"x")],
    )

    assert _lines(tmp_path, "\ufeff" + written.getvalue(), "file.csv") == [
        GoodLine(2, email, "k"),
        GoodLine(6, email, "k"),
    ]


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ("ann@example.com,bob@example.com,Hello", "the row has 3 cells, and the header row has 4"),
        ("ann@example.com,bob@example.com,Hello,Hi,", "the row has 5 cells, and the header row has 4"),
        (",bob@example.com,Hello,Hi", "from: is missing"),
        ("ann@example.com,bob@example.com, ,Hi", "subject: is missing"),
        ("ann@example.com,bob,Hello,Hi", "to: is not an email address"),
        ('ann@example.com,"bob"@example.com,Hello,Hi', "the row is not CSV: ',' expected after '\"'"),
        (b"ann@example.com,bob@example.com,\xff,Hi", "subject: is not UTF-8"),
        ("ann@example.com,bob@example.com,a\x00b,Hi", "subject: holds the control character U+0000"),
    ],
)
def test_a_bad_row_does_not_stop_the_next(tmp_path: Path, row: bytes | str, error: str) -> None:
    """The number is that of the row's first line in the file."""
    raw = row if isinstance(row, bytes) else row.encode()
    first, bad, last = _lines(tmp_path, HEADER.encode() + ROW.encode() + b"\n" + raw + b"\n" + ROW.encode(), "file.csv")

    assert (first, last) == (GoodLine(2, EMAIL), GoodLine(5, EMAIL))
    assert isinstance(bad, BadLine)
    assert bad.number == 4
    assert bad.error.startswith(error)
    assert "@example" not in bad.error.replace("user@example.com", "")


@pytest.mark.parametrize(
    ("column", "cell", "error"),
    [
        ("headers", "{", "the cell headers is not JSON"),
        ("headers", "[]", "headers: is not a JSON object"),
        ("attachments", "{}", "attachments: is not a JSON array"),
        ("metadata", '{""a"": 1, ""a"": 2}', "the line gives a name twice"),
        ("key", "x" * 256, "a key has 256 characters"),
        ("headers.Bcc", "eve@example.com", "headers.Bcc: belongs in the field bcc"),
    ],
)
def test_a_bad_cell_names_its_column(tmp_path: Path, column: str, cell: str, error: str) -> None:
    """Never what is in it."""
    content = f'from,to,subject,text,{column}\n{ROW.strip()},"{cell}"\n'

    assert _error(tmp_path, content, "file.csv").startswith(error)


def test_a_name_in_two_columns_is_refused(tmp_path: Path) -> None:
    """Neither of the two wins in silence."""
    content = f'from,to,subject,text,metadata,metadata.a\n{ROW.strip()},"{{""a"": ""1""}}",2\n'

    assert _error(tmp_path, content, "file.csv") == "metadata.a: is given twice, in its own column and in another"


def test_nothing_is_read_after_a_quote_that_never_closes(tmp_path: Path) -> None:
    """What follows is the rest of a cell, and a row in it would be an email that nobody meant to send."""
    good, bad = _lines(tmp_path, f'{HEADER}{ROW}ann@example.com,bob@example.com,Hello,"Hi\n{ROW}{ROW}', "file.csv")
    assert good == GoodLine(2, EMAIL)
    assert isinstance(bad, BadLine)
    assert (bad.number, "Nothing after it is read" in bad.error) == (3, True)

    inside = f'{HEADER}ann@example.com,bob@example.com,"a"x,"Hi\n{ROW}"\n{ROW}'
    assert "Nothing after it is read" in _error(tmp_path, inside, "file.csv")


def test_a_row_over_the_limit_ends_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quote that is never closed does not take the whole file into memory."""
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 1000)

    assert "longer than 1,000 bytes" in _error(tmp_path, f'{HEADER}a,b,"c,d\n' + ROW * 100, "file.csv")


def test_a_cell_may_be_as_large_as_an_attachment(tmp_path: Path) -> None:
    """The csv module's own limit of 128 KiB is not ours."""
    (line,) = _lines(tmp_path, f"{HEADER}{ROW.strip()}{'x' * 1_000_000}\n", "file.csv")

    assert isinstance(line, GoodLine)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("from,to,subject,texxt\n", "column 4, texxt, is not a field of an email; did you mean text?"),
        ("from,to,subject,headers.\n", "column 4, headers., is not a field"),
        ("from,to,text\n", "the column subject is missing"),
        ("from,to,subject,to\n", "the column to is there twice"),
        ("from;to;subject\n", "separate the cells with commas"),
        (ROW, "does the file begin with a header row?"),
        (" \n\n", "there is no header row"),
        ('"from,to\n', "the row is not CSV"),
    ],
)
def test_columns_that_cannot_be_placed_refuse_the_file(tmp_path: Path, content: str, problem: str) -> None:
    """Before any line goes."""
    assert problem in _refused(tmp_path, content)


# Messages.


def test_a_message_file_is_one_email(tmp_path: Path) -> None:
    """The key stays in its header, where the side that enqueues looks for it."""
    (line,) = _lines(
        tmp_path, "From: a@example.com\r\nTo: b@example.com\r\nIdempotency-Key: k\r\n\r\nHi\r\n", "file.EML"
    )

    assert isinstance(line, GoodLine)
    assert (line.number, line.key, line.email.text) == (1, None, "Hi\n")
    assert line.email.headers == {"Idempotency-Key": "k"}


def test_a_bad_message_names_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one bad line."""
    assert _error(tmp_path, "From: a@example.com\n\nHi", "file.eml") == "To: is missing"

    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 10)
    assert _error(tmp_path, "From: a@example.com\n\nHi", "file.eml") == "the message is longer than 10 bytes"


# Files.


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    """A byte order mark and blank lines included; lines can be read more than once."""
    content = "\ufeff" + json.dumps(BASE) + "\n\n"
    (tmp_path / "file.ndjson").write_text(content, encoding="utf-8")
    with read_source(tmp_path / "file.ndjson") as source:
        assert source.digest == hashlib.sha256(content.encode()).hexdigest()
        assert (source.format, source.total) == ("jsonl", 2)
        assert list(source.lines()) == list(source.lines()) == [GoodLine(1, EMAIL)]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("file.jsonl", b"", "is empty"),
        ("file.csv", b"", "is empty"),
        ("file.txt", b"x", "the extension is none of .jsonl, .ndjson, .csv, .eml"),
        ("file", b"x", "the extension is none of"),
        ("file.jsonl", "x".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_file_of_no_use_is_refused(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    """With what to do about it."""
    assert problem in _refused(tmp_path, content, name)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """Missing, a directory, unreadable, malformed, an unknown format."""
    (tmp_path / "folder.csv").mkdir()
    cases: list[tuple[Any, str | None, str]] = [
        (tmp_path / "none.jsonl", None, "does not exist"),
        (tmp_path / "folder.csv", None, "is a directory"),
        (Path("a\x00.jsonl"), None, "cannot be read"),
        (tmp_path / ("x" * 300 + ".csv"), None, "cannot be read"),
        (tmp_path / "none.jsonl", "xml", "is not known; it is one of jsonl, csv, eml"),
    ]
    for path, form, problem in cases:
        with pytest.raises(InputError, match=problem):
            read_source(path, form)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to the superuser")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    """With the system's own reason."""
    path = tmp_path / "file.csv"
    path.write_text(HEADER)
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read_source(path)


def test_a_file_that_changes_while_it_is_read_ends_in_an_error(tmp_path: Path) -> None:
    """Its digest no longer stands for what was read; one that is replaced is read to its end."""
    path = tmp_path / "file.jsonl"
    path.write_text((json.dumps(BASE) + "\n") * 3)
    with read_source(path) as source:
        path.rename(tmp_path / "moved")
        path.write_text("nope\n")
        assert [line.number for line in source.lines()] == [1, 2, 3]
        with (tmp_path / "moved").open("a") as more:
            more.write("nope\n")
        with pytest.raises(InputError, match="was changed while it was read"):
            list(source.lines())


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (json.dumps(BASE) + "\n", "jsonl"),
        ("\ufeff \n" + json.dumps(BASE), "jsonl"),
        (HEADER + ROW, "csv"),
        ("From: ann@example.com\nTo: bob@example.com\nSubject: Hello\n\nHi", "eml"),
        ("From someone\nFrom: ann@example.com\nTo: bob@example.com\nSubject: Hello\n\nHi", "eml"),
    ],
)
def test_standard_input_is_read_by_its_look(monkeypatch: pytest.MonkeyPatch, content: str, form: str) -> None:
    """It is copied first, as the digest is needed before the first line."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    with read_source("-") as source:
        (line,) = source.lines()

        assert isinstance(line, GoodLine)
        assert (source.format, line.email) == (form, EMAIL)
        assert source.digest == hashlib.sha256(content.encode()).hexdigest()


def test_a_pipe_is_read_like_standard_input(tmp_path: Path) -> None:
    """Such as the shell's process substitution."""
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(json.dumps(BASE),))
    writer.start()
    with read_source(path, ready=lambda file: select.select([file], [], [])) as source:
        assert list(source.lines()) == [GoodLine(1, EMAIL)]
    writer.join()
