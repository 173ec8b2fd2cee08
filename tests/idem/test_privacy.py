"""What may be logged: one line, and no address."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem.clock import Deadline
from idem.ledger import Claim
from idem.privacy import Private, redact
from idem.protocol import Intent
from tests.fakes import FakeClock
from tests.records import make_record


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no address here", "no address here"),
        ("ann@example.com", "<address>"),
        ("to ann@example.com, bo@example.com; c@d", "to <address>, <address>; <address>"),
        ("Ann <ann.b+c@mail.example.com> is", "Ann <<address>> is"),
        ('"ann@example.com":["x"]', '"<address>":["x"]'),
        ("(ann@example.com)", "(<address>)"),
        ("mailto:ann@example.com", "mailto:<address>"),
        ("jürgen@exämple.de", "<address>"),
        ("two\r\nlines\x00and\u2028more", "two lines and more"),
        ("  room  ", "room"),
        ("half of a pair \ud83d@example.com \ude00 \U0001f600", "half of a pair <address> ? \U0001f600"),
        ("at @ alone, a@, @b", "at @ alone, a@, @b"),
        ("", ""),
    ],
)
def test_addresses_are_masked_and_lines_joined(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_it_has_a_limit() -> None:
    assert redact("x" * 300) == "x" * 300
    assert redact("x" * 301) == "x" * 299 + "…"
    assert len(redact("ann@example.com " * 1_000)) == 300
    assert redact("abcdef", 3) == "ab…"


@pytest.mark.parametrize("text", ["a" * 1_000_000, "a@" * 500_000, "a.b-" * 250_000 + "@", "@" * 1_000_000])
def test_a_megabyte_does_not_hold_up_a_worker(text: str) -> None:
    """An answer's message may be that long; masking it took hours when it was quadratic, with the lease running."""
    began = time.perf_counter()
    assert len(redact(text)) <= 300
    assert time.perf_counter() - began < 2


_words = st.text(st.characters(exclude_characters="@"), max_size=50)


@given(_words, st.from_regex(r"[a-z0-9.+-]{1,20}@[a-z0-9.-]{1,20}", fullmatch=True), _words)
def test_no_address_is_left_between_words(before: str, address: str, after: str) -> None:
    shown = redact(f"{before} {address} {after}", 10_000)
    assert "@" not in shown
    assert "<address>" in shown
    assert not re.search(r"[\x00-\x1f\x7f]", shown)


_SECRET = "ann@example.com"


@pytest.mark.parametrize(
    "private",
    [
        make_record(body=_SECRET.encode(), call=_SECRET),
        Intent("k", body=_SECRET.encode(), call=_SECRET),
        Claim(make_record(body=_SECRET.encode()), Deadline.after(FakeClock(), 1.0), _SECRET.encode()),
    ],
)
def test_what_holds_an_email_does_not_show_it(private: Private) -> None:
    """Nor what a job was called with: the error that shows a value ends up in a log."""
    assert "key=" in repr(private)
    assert "ann" not in repr(private)
