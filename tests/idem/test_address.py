"""Addresses: what is accepted, what is refused, and that the canonical form is canonical."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem.address import Address, parse_address, split_addresses
from idem.errors import EmailError


@pytest.mark.parametrize(
    ("written", "spec", "name"),
    [
        ("ann@example.com", "ann@example.com", ""),
        ("  ann@example.com ", "ann@example.com", ""),
        ("Ann <ann@example.com>", "ann@example.com", "Ann"),
        ("<ann@example.com>", "ann@example.com", ""),
        ('"Doe, Ann" <ann@example.com>', "ann@example.com", "Doe, Ann"),
        ('"A \\"B\\" C" <ann@example.com>', "ann@example.com", 'A "B" C'),
        ('"a <b> c" <ann@example.com>', "ann@example.com", "a <b> c"),
        ("Zoë 🙂 <zoë@exämple.com>", "zoë@exämple.com", "Zoë 🙂"),
        ("o'hara+tag@sub.example.co.uk", "o'hara+tag@sub.example.co.uk", ""),
    ],
)
def test_a_mailbox_is_read(written: str, spec: str, name: str) -> None:
    """The forms that people write."""
    assert parse_address("to", written) == Address(spec, name)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "ann",
        "@example.com",
        "ann@",
        "ann@@example.com",
        "ann@example..com",
        "ann@-example.com",
        ".ann@example.com",
        "ann@example.com, bob@example.com",
        "ann@example.com>",
        "<ann@example.com",
        "<<ann@example.com>>",
        "ann @example.com",
        '"ann lee"@example.com',
        "ann@[192.0.2.1]",
        "ann@example.com\r\nBcc: eve@example.com",
        "Ann\nBcc: eve@example.com <ann@example.com>",
        "ann\x00@example.com",
        "ann\u2028@example.com",
        "ann\ud800@example.com",
        f"{'a' * 65}@example.com",
        f"ann@{'a' * 64}.com",
        f"{'n' * 321} <ann@example.com>",
    ],
)
def test_anything_else_is_refused_without_repeating_it(written: str) -> None:
    """The error names the field and holds none of the address."""
    with pytest.raises(EmailError) as caught:
        parse_address("cc", written)

    assert caught.value.field == "cc"
    assert "ann@" not in str(caught.value)
    assert "eve" not in str(caught.value)


def test_a_long_hostile_value_is_read_in_linear_time() -> None:
    """No run of spaces makes the parser try every way to cut it."""
    started = time.perf_counter()
    with pytest.raises(EmailError):
        parse_address("to", "a" + " " * 1_000_000 + "b")

    assert time.perf_counter() - started < 2


names = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=40)


@given(names)
def test_the_canonical_form_is_read_back_as_itself(name: str) -> None:
    """Whatever the name: quotes, backslashes, spaces at its ends, brackets."""
    address = Address("ann@example.com", name)

    assert parse_address("to", str(address)) == address


@given(st.text(max_size=60))
def test_the_parser_is_total_and_its_result_is_stable(value: str) -> None:
    """Any text gives an address, whose form parses to the same one, or an `EmailError`."""
    try:
        address = parse_address("to", value)
    except EmailError:
        return
    assert parse_address("to", str(address)) == address


@given(st.lists(names.map(lambda name: str(Address("ann@example.com", name))), max_size=5))
def test_a_joined_list_is_cut_where_it_was_joined(addresses: list[str]) -> None:
    """Commas in quotes and brackets are part of a name."""
    assert [item.strip() for item in addresses] == split_addresses(", ".join(addresses))


def test_empty_parts_of_a_list_are_dropped() -> None:
    """A trailing comma is not an address."""
    assert split_addresses(" a@example.com,, b@example.com , ") == ["a@example.com", "b@example.com"]
