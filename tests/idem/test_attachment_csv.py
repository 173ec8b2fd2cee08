"""Tables as attachments: read back as they were, and no formula of anybody's is run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem import Attachment, EmailError


def read(attachment: Attachment) -> list[list[str]]:
    return list(csv.reader(io.StringIO(attachment.content.decode("utf-8-sig"), newline="")))


def test_rows_of_cells() -> None:
    made = Attachment.csv("sales.csv", [["Name", "Total"], ['Zoë, "Z"', 12], ["two\nlines", None]])
    assert (made.filename, made.content_type) == ("sales.csv", "text/csv; charset=utf-8")
    assert made.content.startswith(b"\xef\xbb\xbfName,Total\r\n"), "without the mark, Excel takes it for another code"
    assert read(made) == [["Name", "Total"], ['Zoë, "Z"', "12"], ["two\nlines", ""]]


def test_rows_with_names() -> None:
    """The first has them all; one that lacks a cell has an empty one."""
    rows: list[Mapping[str, object]] = [{"day": date(2026, 1, 2), "total": Decimal("1.50")}, {"total": -3}]
    assert read(Attachment.csv("a.csv", rows)) == [["day", "total"], ["2026-01-02", "1.50"], ["", "-3"]]


def test_any_iterable_will_do() -> None:
    assert read(Attachment.csv("a.csv", ((n, n * n) for n in range(2)))) == [["0", "0"], ["1", "1"]]
    assert read(Attachment.csv("a.csv", [])) == []


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+cmd", "-1+1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1", "-", "=HYPERLINK(1)"]
)
def test_a_text_that_would_be_a_formula_is_made_a_text(text: str) -> None:
    assert read(Attachment.csv("a.csv", [[text], {text: text}])) == [[f"'{text}"]] * 3


@pytest.mark.parametrize("value", [-1, -1.5, "-1", "+31612345678", "-1,5", "1=1", "a@example.com", "'=1", ""])
def test_numbers_and_other_texts_stay(value: object) -> None:
    assert read(Attachment.csv("a.csv", [[value, "x"]])) == [[str(value), "x"]]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["text"], "is str; it must be a list"),
        ([3], "is int; it must be a list"),
        ([{"a": 1}, {"b": 2}], "has a row with b, which the first does not have"),
    ],
)
def test_what_is_no_table(rows: list[object], problem: str) -> None:
    with pytest.raises(EmailError, match=f"^attachments.content: {problem}$"):
        Attachment.csv("a.csv", rows)  # type: ignore[arg-type]  # what a person may pass


@given(st.lists(st.lists(st.text(), min_size=1, max_size=3), max_size=5))
def test_any_texts_are_read_back(rows: list[list[str]]) -> None:
    """And no cell of them begins as a formula does."""
    found = read(Attachment.csv("a.csv", rows))
    assert len(found) == len(rows)
    for cell in (cell for row in found for cell in row):
        assert cell[:1] not in set("=@\t\r")
