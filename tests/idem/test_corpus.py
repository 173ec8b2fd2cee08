"""CPython's own messages, most of them broken as somebody met them: each is read, or refused for a stated reason."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections import Counter
from email import message_from_bytes, policy
from email.message import Message
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idem.email import Email
from idem.errors import EmailError
from idem.mime import from_bytes, from_message, to_message

#: Every header that an error about a message may name.
HEADERS = {
    "From", "To", "Cc", "Bcc", "Reply-To", "Subject", "headers",
    "Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "Content-ID",
}  # fmt: skip

#: The messages that are refused, and the header at fault; all the others are read.
REFUSED = {
    "msg_05": "From",  # From: foo
    "msg_11": "From",
    "msg_15": "Content-Type",  # an inner boundary that is also the outer one's; besides, To: XX
    "msg_17": "Content-Type",  # a boundary that never occurs
    "msg_18": "From",
    "msg_19": "From",
    "msg_23": "To",
    "msg_25": "Content-Type",  # a report without a boundary
    "msg_28": "To",
    "msg_30": "To",
    "msg_31": "Content-Type",  # a boundary that never occurs; besides, no To
    "msg_36": "To",  # an empty group
    "msg_37": "From",
    "msg_38": "Content-Type",  # a boundary that never closes; besides, no From
    "msg_39": "Content-Type",  # likewise
    "msg_40": "From",
    "msg_41": "Content-Type",  # an alternative without a boundary
    "msg_43": "From",  # From: MAILER DAEMON <>
    "msg_47": "To",
}


def _corpus() -> dict[str, bytes]:
    try:
        package = importlib.import_module("test.test_email")
    except ImportError:
        return {}
    folder = Path(str(package.__file__)).parent / "data"
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("msg_*.txt"))}


CORPUS = _corpus()


@pytest.fixture(autouse=True)
def _corpus_is_there() -> None:
    """Skip where the interpreter came without its tests; that may not happen in CI."""
    if CORPUS:
        return
    if os.environ.get("CI"):
        pytest.fail("this interpreter has no test.test_email; install one that has its test package")
    pytest.skip("this interpreter has no test.test_email")


def _read(data: bytes) -> Email | EmailError:
    try:
        return from_bytes(data)
    except EmailError as error:
        return error


@pytest.mark.parametrize("name", CORPUS)
def test_each_message_is_read_or_refused_with_the_header_at_fault(name: str) -> None:
    """Under both policies alike; what is read survives the way there and back."""
    result = _read(CORPUS[name])
    if isinstance(result, EmailError):
        assert result.field == REFUSED.get(name, "none: it should be read")
        with pytest.raises(EmailError):
            from_message(message_from_bytes(CORPUS[name], policy=policy.default))
        return

    assert name not in REFUSED
    assert from_message(message_from_bytes(CORPUS[name], policy=policy.default)) == result
    assert from_message(to_message(result)) == result
    assert from_bytes(to_message(result).as_bytes()) == result


def test_the_table_counts_every_message() -> None:
    """A change in what is accepted, or in the corpus, does not go unnoticed."""
    results = {name: _read(data) for name, data in CORPUS.items()}
    refused = {name: error.field for name, error in results.items() if isinstance(error, EmailError)}
    print(f"\naccepted: {sorted(set(results) - set(refused))}\nrefused: {refused}")  # noqa: T201 - the table itself

    assert refused == REFUSED
    assert (len(results) - len(refused), len(refused)) == (29, 19)
    assert Counter(refused.values()) == {"From": 7, "To": 5, "Content-Type": 7}


def test_what_is_read_is_what_a_person_reads() -> None:
    """Looked up by eye in the files: senders, recipients, text, attachments."""
    plain, dingus, copies, report = (from_bytes(CORPUS[f"msg_{number}"]) for number in ("01", "07", "20", "16"))

    assert plain.from_ == '"John X. Doe" <bbb@ddd.com>'
    assert plain.text == "\nHi,\n\nDo you like this message?\n\n-Me\n"
    assert dingus.to == ("Dingus Lovers <cravindogs@cravindogs.com>",)
    assert [(item.filename, item.content_type, item.content[:6], len(item.content)) for item in dingus.attachments] == [
        ("dingusfish.gif", "image/gif", b"GIF87a", 3512)
    ]
    assert copies.cc == ("ccc@zzz.org", "ddd@zzz.org", "eee@zzz.org")
    assert report.headers["List-Id"] == "SoCal-Raves <scr.socal-raves.org>"
    assert [item.filename for item in report.attachments] == ["part-2.txt", "part-3.eml"]


POISONS = [
    b"\r\n", b"\n\n", b"\x00", b"\xff", b'"', b"--", b"=?utf-8?b?AA==?=", b"To: a@example.com\n", b"charset=utf-16;",
    b"*0*=x''", b"Content-Type: multipart/mixed; boundary=\n",
]  # fmt: skip


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A message of the corpus with some bytes cut out, doubled, or replaced by what is known to hurt."""
    data = draw(st.sampled_from(sorted(CORPUS.values()))) if CORPUS else b""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        poison = draw(st.sampled_from([b"", data[start:end] * 2, *POISONS]) | st.binary(max_size=8))
        data = data[:start] + poison + data[end:]
    return data


def _parsed_under_the_newer_policy(data: bytes) -> Message:
    """The library's own parser may give up under this policy; the older one then stands in for it."""
    try:
        return message_from_bytes(data, policy=policy.default)
    except (AttributeError, IndexError, LookupError, TypeError, ValueError):
        return message_from_bytes(data)


@given(mutants())
@settings(max_examples=400, deadline=None)
def test_a_damaged_message_is_read_or_refused(data: bytes) -> None:
    """Nothing but an `EmailError` leaves the reader, and what it accepts can be written and read again."""
    result = _read(data)
    if isinstance(result, EmailError):
        assert result.field
        assert "\n" not in str(result)
        return

    assert from_bytes(to_message(result).as_bytes()) == from_message(to_message(result)) == result
    with contextlib.suppress(EmailError):
        from_message(_parsed_under_the_newer_policy(data))
