"""What events told of an email: noted once, the first few of a kind, whatever comes when."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from idem.errors import LedgerUnavailable
from idem.events import EventNotes, Happened
from idem.keys import is_provider_key, provider_key
from idem.stores.memory import MemoryStore
from tests.fakes import FakeClock

KEY = provider_key("default", "order-1", 0)


class CountingStore(MemoryStore):
    """Counts what it is asked, and remembers until when cells are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.writes = 0
        self.kept_for: float | None = None
        self.silent = False

    def read_cell(self, name: str) -> bytes | None:
        self.reads += 1
        if self.silent:
            raise LedgerUnavailable("no answer")
        return super().read_cell(name)

    def swap_cell(self, name: str, old: bytes | None, new: bytes, *, keep_seconds: float | None = None) -> bytes | None:
        self.writes += 1
        self.kept_for = keep_seconds
        return super().swap_cell(name, old, new)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def notes(store: CountingStore, clock: FakeClock) -> EventNotes:
    return EventNotes(store, clock=clock, keep_seconds=1_000.0)


def add(notes: EventNotes, event_id: str, kind: Happened = Happened.OPENED, message_id: str | None = "m1") -> bool:
    return notes.add(KEY, kind, source="ses", event_id=event_id, message_id=message_id)


def test_a_storm_of_opens_is_three_writes(notes: EventNotes, store: CountingStore) -> None:
    for number in range(1_000):
        add(notes, f"open-{number}")

    assert (store.writes, store.reads) == (3, 1_000)
    assert len(notes.of(KEY).notes) == 3


def test_everything_that_can_be_told_is_small(notes: EventNotes, store: CountingStore) -> None:
    for kind, number in itertools.product(Happened, range(10)):
        notes.add(KEY, kind, source="lettermint_" + "x" * 40, event_id=f"{number}", message_id="m" * 100)

    assert len(store.read_cell(f"event/{KEY}") or b"") < 4_096


def test_an_event_that_comes_again_is_no_news(notes: EventNotes, store: CountingStore) -> None:
    assert [add(notes, "one"), add(notes, "one"), add(notes, "two"), add(notes, "one")] == [True, False, True, False]
    assert store.writes == 2


def test_the_order_does_not_matter(notes: EventNotes) -> None:
    add(notes, "later", Happened.OPENED, None)
    add(notes, "earlier", Happened.ACCEPTED, "m1")
    heard = notes.of(KEY)

    assert (heard.message_id, heard.proof is not None) == ("m1", True)


def test_what_is_dropped_is_no_proof(notes: EventNotes) -> None:
    add(notes, "one", Happened.DROPPED)

    assert notes.of(KEY).proof is None


def test_two_who_are_told_at_once_lose_nothing(notes: EventNotes) -> None:
    kinds = [kind for kind in Happened for _ in range(3)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: add(notes, f"event-{item[0]}", item[1]), enumerate(kinds)))

    assert sorted(note.kind for note in notes.of(KEY).notes) == sorted(kinds)


def test_they_are_kept_as_long_as_records(notes: EventNotes, store: CountingStore) -> None:
    add(notes, "one")

    assert store.kept_for == 1_000.0


@pytest.mark.parametrize("junk", [b"x", b"\xff", b"[]", b'{"notes": [{"kind": "levitated"}]}', b'{"notes": 7}'])
def test_what_cannot_be_read_is_as_if_nobody_had_told(notes: EventNotes, store: CountingStore, junk: bytes) -> None:
    store.swap_cell(f"event/{KEY}", None, junk)

    assert notes.of(KEY).notes == ()
    assert add(notes, "one")


def test_a_store_that_does_not_answer_is_told(notes: EventNotes, store: CountingStore) -> None:
    store.silent = True
    with pytest.raises(LedgerUnavailable):
        add(notes, "one")


@pytest.mark.parametrize("text", ["", "x" * 42, "x" * 44, "x" * 42 + "=", "x" * 42 + "\n", "x" * 42 + "é"])
def test_what_is_no_derived_key(text: str) -> None:
    assert is_provider_key(KEY)
    assert not is_provider_key(text)
