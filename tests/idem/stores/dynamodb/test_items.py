"""What an item holds, how large it is, and what becomes of one that this program does not know."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from msgspec.structs import replace

from idem import protocol
from idem.errors import LedgerUnusable
from idem.outcome import Accepted
from idem.policy import Policy
from idem.protocol import Intent, Record, Rules, State, Take
from idem.stores.dynamodb.items import INDEXED, Item, item_to_record, record_to_item
from tests.records import make_record, records

_POLICY = Policy(window_seconds=86_400.0)
_DAY = 86_400.0


def size(item: Item) -> int:
    """As DynamoDB counts: names, texts and binaries by their bytes, numbers by two digits a byte and one more.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
    """
    return sum(len(name.encode()) + _size_of(*next(iter(value.items()))) for name, value in item.items())


def _size_of(kind: str, content: str | bytes) -> int:
    if kind == "N":
        return len(content) // 2 + 2
    return len(content if isinstance(content, bytes) else content.encode())


def happy_path(key: str) -> tuple[Record, Record]:
    """A claim and its settle, with ids as long as they get."""
    rules = Rules(_POLICY, "lettermint")
    intent = Intent(key, fingerprint="f" * 64)
    taken = protocol.claim(None, intent, now=1_700_000_000.123456, claim_id="c" * 32, rules=rules)
    assert isinstance(taken, Take)
    outcome = Accepted("m" * 60)
    settled = protocol.settle(taken.record, outcome, now=1_700_000_001.654321, policy=_POLICY, jitter=1.0)
    return taken.record, settled


def test_an_item_of_the_happy_path_is_below_a_kilobyte() -> None:
    """One write unit each; a key of 100 characters, a namespace of 30, ids as long as providers make them."""
    for record in happy_path("k" * 100):
        assert size(record_to_item("n" * 30, record, 90 * _DAY)) < 1_024


def test_what_costs_nothing_in_the_index_is_not_in_it() -> None:
    for record in happy_path("k"):
        assert not {"ap", "at"} & record_to_item("default", record, _DAY).keys()


def test_a_durable_record_is_indexed_under_one_place_until_it_has_ended() -> None:
    """One write unit when it comes and one when it leaves: its claim changes nothing that the index holds."""
    asked = make_record(state=State.PENDING, durable=True)
    taken = replace(asked, state=State.SENDING, version=2, claim_id="c2", updated_at=asked.updated_at + 9)
    places = [
        [record_to_item("default", record, _DAY).get(name) for name in ("ap", "at")]
        for record in (asked, taken, replace(taken, state=State.RENDERING), replace(taken, state=State.SENT))
    ]
    assert places[0] == places[1] == places[2] != [None, None]
    assert places[3] == [None, None]


@pytest.mark.parametrize("state", State)
def test_only_what_needs_attention_is_indexed(state: State) -> None:
    item = record_to_item("default", make_record(state=state), _DAY)
    assert ("ap" in item, "at" in item) == (state in INDEXED,) * 2


@pytest.mark.parametrize("state", State)
def test_only_what_has_ended_for_good_is_forgotten(state: State) -> None:
    """What is in doubt waits for a person, however long that takes."""
    item = record_to_item("default", make_record(state=state, updated_at=1_000.9), 2 * _DAY)
    unsent = {State.REJECTED, State.DROPPED, State.EXPIRED, State.CANCELLED}
    forgotten = state in {State.SENT, State.SPLIT} | unsent
    assert item.get("ttl") == ({"N": "173800"} if forgotten else None)


@given(record=records())
def test_a_record_comes_back(record: Record) -> None:
    item = record_to_item("default", record, _DAY)
    assert item_to_record(item, record.body) == record


def test_namespace_and_key_are_read_in_one_way() -> None:
    """No two pairs share an item."""
    names = ["a", "ab", "a/b", "a#b", "b"]
    made = [record_to_item(n, make_record(k), _DAY)["pk"]["S"] for n, k in itertools.product(names, names)]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"v":1', '"v":3'), ('"state":"sending"', '"state":"teleported"'), ("{", "{{"), ('"version":1', '"version":"x"')],
)
def test_what_is_not_known_is_not_read(old: str, new: str) -> None:
    item = record_to_item("default", make_record(), _DAY)
    changed = item | {"r": {"S": item["r"]["S"].replace(old, new, 1)}}
    with pytest.raises(LedgerUnusable):
        item_to_record(changed, None)


def test_an_item_of_somebody_else_is_not_a_record() -> None:
    with pytest.raises(LedgerUnusable, match="not a record"):
        item_to_record({"pk": {"S": "x"}}, None)


def test_fields_that_came_later_do_not_enlarge_old_records() -> None:
    """What is not set takes no room; the codec leaves it out."""
    short = size(record_to_item("d", make_record(), _DAY))
    assert size(record_to_item("d", replace(make_record(), reason="x" * 100), _DAY)) - short < 120
