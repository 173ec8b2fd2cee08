"""Keys: which are keys, which one counts, and what the provider sees of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem.errors import InvalidKey
from idem.keys import MAX_KEY, check_key, member_key, provider_key, take_explicit
from tests.fakes import make_email

_keys = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=MAX_KEY)


@pytest.mark.parametrize("key", ["k", "order 42", "x" * 255, "é/🙂", "K"])
def test_a_key_is_1_to_255_printable_characters(key: str) -> None:
    assert check_key(key) is key


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "0 characters"),
        ("x" * 256, "256 characters"),
        ("a\nb", "does not print"),
        ("a\x00", "does not print"),
        ("a\u202eb", "does not print"),
        ("\ud800", "does not print"),
        (7, "is int"),
        (None, "is NoneType"),
        (b"k", "is bytes"),
    ],
)
def test_everything_else_is_refused(key: object, says: str) -> None:
    with pytest.raises(InvalidKey, match=says):
        check_key(key)


@pytest.mark.parametrize("name", ["Idempotency-Key", "idempotency-key", "IDEMPOTENCY-KEY"])
def test_the_header_is_taken_out_and_the_argument_wins(name: str) -> None:
    email = make_email(headers={name: "header", "X-Kept": "1"})
    plain = make_email(headers={"X-Kept": "1"})
    assert take_explicit(email, None) == (plain, "header")
    assert take_explicit(email, "argument") == (plain, "argument")
    assert take_explicit(plain, None) == (plain, None)
    assert take_explicit(plain, "argument") == (plain, "argument")


def test_an_explicit_key_is_checked() -> None:
    with pytest.raises(InvalidKey):
        take_explicit(make_email(headers={"Idempotency-Key": "x" * 256}), None)
    with pytest.raises(InvalidKey):
        take_explicit(make_email(), "")


@given(_keys, st.integers(1, 1_000), st.integers(1, 1_000))
def test_member_keys_are_keys_and_differ(key: str, one: int, other: int) -> None:
    assert check_key(member_key(key, one)) == member_key(key, one)
    assert (member_key(key, one) == member_key(key, other)) == (one == other)
    assert member_key(key, one) != key


def test_member_keys_are_readable_while_there_is_room() -> None:
    assert member_key("order-42", 3) == "order-42/3"
    long = "x" * 254
    assert re.fullmatch(r"[0-9a-f]{64}/3", member_key(long, 3))
    assert member_key(long, 3) != member_key("y" * 254, 3)


@given(st.text(max_size=50), _keys, st.integers(0, 100))
def test_a_provider_key_suits_every_provider(namespace: str, key: str, generation: int) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", provider_key(namespace, key, generation))


def test_a_provider_key_depends_on_all_three() -> None:
    keys = {
        provider_key(*parts) for parts in [("a", "k", 0), ("b", "k", 0), ("a", "l", 0), ("a", "K", 0), ("a", "k", 1)]
    }
    assert len(keys) == 5
    assert provider_key("ab", "c", 0) != provider_key("a", "bc", 0)
    assert provider_key("a", "k", 11) != provider_key("a", "k1", 1)


def test_a_provider_key_never_changes() -> None:
    """Spelt out: a release that derives differently would send again what its predecessor may have sent."""
    assert provider_key("default", "order-42", 0) == "6GCQZegKFPluwvUXYKtsPWurw5VaZIL6SbCR130CZ-0"
