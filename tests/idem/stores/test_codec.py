"""Records as bytes: everything comes back, and nothing that is not a record is taken for one."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem.errors import LedgerUnusable
from idem.protocol import Attempt, Record, State
from idem.stores.codec import RECORD_VERSION, decode_record, encode_record
from tests.records import make_record, records


@given(records())
def test_every_record_comes_back(record: Record) -> None:
    assert decode_record(encode_record(record), record.body) == record


def test_zero_and_empty_are_not_nothing() -> None:
    """The instant 0 and an empty string are values; dropping them would read as "not set"."""
    record = make_record(created_at=0.0, started_at=0.0, unsure_since=0.0, message_id="", reason="")
    assert decode_record(encode_record(record), None) == record


def test_the_body_is_kept_beside_it() -> None:
    encoded = encode_record(make_record(body=b"secret words"))
    assert b"secret" not in encoded
    assert b"body" not in encoded


def test_a_usual_record_stays_under_a_kilobyte() -> None:
    """Two writes of at most 1 KB are the cost of the happy path; DynamoDB counts in such units."""
    attempt = Attempt(number=1, claim_id="c" * 32, started_at=1_700_000_000.123456)
    record = make_record(
        "order-confirmation/" + "x" * 60,
        claim_id="c" * 32,
        fingerprint="f" * 64,
        job="order_confirmation",
        lease_until=1_700_000_060.123456,
        started_at=1_700_000_000.123456,
        attempts=1,
        history=(attempt,),
        message_id="m" * 36,
    )
    assert len(encode_record(record)) < 1_024


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b"not json",
        b'{"v":1}',
        b'{"v":1,"key":"\xff"}',
        b'{"v":1,"key":7}',
        b'{"v":0,"key":"k"}',
        b'{"v":"1","key":"k"}',
        b'{"v":' * 100_000,
        b"[" * 100_000,
        encode_record(make_record())[:-1],
        encode_record(make_record()) + b"x",
        encode_record(make_record()).replace(b'"sending"', b'"teleported"'),
        encode_record(make_record()).replace(b'"claim_id"', b'"claim"'),
    ],
    ids=lambda data: repr(data[:30]),
)
def test_damage_is_one_clear_error(data: bytes) -> None:
    with pytest.raises(LedgerUnusable, match=r"restore|upgrade"):
        decode_record(data, None)


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_no_bytes_at_all_get_anything_but_a_record_or_that_error(data: bytes) -> None:
    with pytest.raises(LedgerUnusable):
        decode_record(data, None)


@given(records(), st.data())
def test_a_flipped_byte_is_a_record_or_that_error(record: Record, data: st.DataObject) -> None:
    encoded = bytearray(encode_record(record))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_record(bytes(encoded), None)
    except LedgerUnusable as error:
        assert error.args  # noqa: PT017 - the other branch is as good
    else:
        assert isinstance(found.state, State)


def test_a_record_of_a_newer_version_asks_for_an_upgrade() -> None:
    data = msgspec.json.encode({"v": RECORD_VERSION + 1, "key": "k"})
    with pytest.raises(LedgerUnusable, match=rf"version {RECORD_VERSION + 1}.*upgrade"):
        decode_record(data, None)


def test_a_field_that_this_version_does_not_know_is_passed_over() -> None:
    """A newer version may add a field without a new record version, as long as an old reader may ignore it."""
    fields = msgspec.json.decode(encode_record(make_record()))
    assert decode_record(msgspec.json.encode(fields | {"colour": "red"}), None) == make_record()
