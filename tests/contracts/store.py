"""What every store must do, whatever it keeps its records in."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace

from idem.errors import LedgerUnusable
from idem.protocol import Evidence, Record, State
from tests.contracts.cells import Both, CellContract, Opener
from tests.contracts.contents import ContentContract
from tests.records import make_record, records

_THREADS = 8
_fresh = itertools.count()


def advance(record: Record, **changes: object) -> Record:
    """The record one version on."""
    return replace(record, version=record.version + 1, **changes)


class StoreContract(CellContract, ContentContract):
    """Subclass it with a fixture `open_store` that gives an `Opener`."""

    @pytest.fixture
    def store(self, open_store: Opener) -> Both:
        return open_store("default")

    def test_nothing_is_there_at_first(self, store: Both) -> None:
        assert store.read("k") is None
        assert list(store.list(State.SENT, 10)) == []
        assert sum(store.count().values()) == 0

    def test_an_insert_is_for_an_absent_key(self, store: Both) -> None:
        first = make_record(body=b"\x00\xff")
        assert store.swap(None, first) is None
        assert store.read("k") == first
        assert store.swap(None, make_record(claim_id="c2")) == first
        assert store.swap(None, first) == first, "also not a second time"
        assert store.read("k") == first

    @pytest.mark.parametrize(
        "changes",
        [{"claim_id": "c2"}, {"version": 2}, {"version": 0}, {"state": State.RETRY}, {"claim_id": "C1"}],
        ids=str,
    )
    def test_every_part_of_the_fence_counts(self, store: Both, changes: dict[str, object]) -> None:
        """One of claim id, version and state differing is enough to refuse the write and give the stored record."""
        stored = make_record(body=b"frozen")
        store.swap(None, stored)
        stale = replace(stored, **changes)
        new = advance(stored, state=State.SENT)
        assert store.swap(stale, new) == stored
        assert store.read("k") == stored
        assert store.swap(stored, new) is None
        assert store.read("k") == new

    def test_only_the_fence_counts(self, store: Both) -> None:
        """What else differs does not matter: a worker may hold a copy whose other fields it filled in itself."""
        store.swap(None, make_record(reason="stored"))
        new = advance(make_record(), state=State.SENT)
        assert store.swap(make_record(reason="held", body=b"x"), new) is None
        assert store.read("k") == new

    @pytest.mark.parametrize("further", range(1, 6))
    @pytest.mark.parametrize("same_claim", [True, False])
    def test_a_late_duplicate_of_an_old_write_is_refused(self, store: Both, further: int, same_claim: bool) -> None:  # noqa: FBT001 - a parameter of the test
        """Whatever has happened since, and even when the claim id or the state came back to what they were."""
        start = make_record()
        store.swap(None, start)
        states = [State.UNSURE, State.SENDING, State.RETRY, State.SENDING, State.SENT, State.SENT]
        written = [start]
        for number, state in enumerate(states[: further + 1]):
            claim_id = "c1" if same_claim else f"c{number + 1}"
            written.append(advance(written[-1], state=state, claim_id=claim_id))
            assert store.swap(written[-2], written[-1]) is None
        for old, new in itertools.pairwise(written[:-1]):
            assert store.swap(old, new) == written[-1]
        assert store.swap(None, start) == written[-1]
        assert store.read("k") == written[-1]

    def test_keys_are_apart(self, store: Both) -> None:
        keys = ["k", "K", "k ", "k/1", "k%", "k_", "\u00e9", "e\u0301", "*", "k'--", '"', "🙂", "x" * 255]
        for number, key in enumerate(keys, 1):
            assert store.swap(None, make_record(key, version=number)) is None, key
        for number, key in enumerate(keys, 1):
            assert store.read(key) == make_record(key, version=number)

    def test_namespaces_are_apart(self, open_store: Opener) -> None:
        one, other = open_store("one"), open_store("other")
        assert one.swap(None, make_record(state=State.SENT)) is None
        assert other.read("k") is None
        assert list(other.list(State.SENT, 10)) == []
        assert sum(other.count().values()) == 0
        assert other.swap(None, make_record(claim_id="c2")) is None
        found = one.read("k")
        assert found is not None
        assert found.claim_id == "c1"

    @given(record=records())
    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_every_field_comes_back(self, store: Both, record: Record) -> None:
        record = replace(record, key=f"{next(_fresh)}{record.key}"[:255])
        assert store.swap(None, record) is None
        assert store.read(record.key) == record
        changed = replace(record, version=record.version + 1, body=None, evidence=())
        assert store.swap(record, changed) is None
        assert store.read(record.key) == changed

    def test_a_frozen_body_comes_back_byte_for_byte(self, store: Both) -> None:
        body = bytes(range(256)) * 64
        store.swap(None, make_record(body=body))
        found = store.read("k")
        assert found is not None
        assert found.body == body

    def test_a_list_has_one_state_in_order_and_a_limit(self, store: Both) -> None:
        """The record that was longest unchanged comes first."""
        for number in (3, 1, 4, 0, 2):
            store.swap(None, make_record(f"k{number}", state=State.IN_DOUBT, updated_at=1_000.5 + number))
        store.swap(None, make_record("other", state=State.SENT, updated_at=1.0))
        assert [record.key for record in store.list(State.IN_DOUBT, 10)] == ["k0", "k1", "k2", "k3", "k4"]
        assert [record.key for record in store.list(State.IN_DOUBT, 2)] == ["k0", "k1"]
        assert [record.key for record in store.list(State.SENT, 10)] == ["other"]
        assert list(store.list(State.RETRY, 10)) == []
        found = make_record("k0", state=State.IN_DOUBT, updated_at=1_000.5)
        assert store.swap(found, advance(found, state=State.SENT, updated_at=2_000.0)) is None
        assert [record.key for record in store.list(State.IN_DOUBT, 10)] == ["k1", "k2", "k3", "k4"]
        assert [record.key for record in store.list(State.SENT, 10)] == ["other", "k0"]

    def test_asked(self, store: Both) -> None:
        """What a producer wrote down first is found for as long as it has not ended, and nothing else is."""
        for number, state in enumerate((State.PENDING, State.SENDING, State.RENDERING)):
            store.swap(None, make_record(f"plain{number}", state=state))
            asked = make_record(f"k{number}", state=State.PENDING, updated_at=1_000.0 + number, durable=True)
            assert store.swap(None, asked) is None
            taken = advance(asked, state=state, updated_at=2_000.0 + number)
            assert store.swap(asked, taken) is None

        assert {record.key for record in store.asked(10)} == {"k0", "k1", "k2"}
        assert {record.key for record in store.list(State.PENDING, 10)} == {"plain0", "k0"}

        taken = next(record for record in store.asked(10) if record.key == "k1")
        assert store.swap(taken, advance(taken, state=State.SENT)) is None
        assert {record.key for record in store.asked(10)} == {"k0", "k2"}
        assert len(list(store.asked(1))) == 1

    def test_a_count_is_by_state(self, store: Both) -> None:
        for number in range(5):
            store.swap(None, make_record(f"k{number}", state=State.SENT if number < 3 else State.RETRY))
        counts = store.count()
        assert {state: counts.get(state, 0) for state in State if counts.get(state)} == {
            State.SENT: 3,
            State.RETRY: 2,
        }
        gone = make_record("k4", state=State.RETRY)
        store.swap(gone, advance(gone, state=State.SENT))
        assert store.count().get(State.SENT) == 4

    def test_every_handle_and_every_thread_reads_what_was_written(self, open_store: Opener) -> None:
        one, other = open_store("default"), open_store("default")
        record = make_record()
        one.swap(None, record)
        with ThreadPoolExecutor(1) as pool:
            for _ in range(20):
                assert other.read("k") == record
                assert pool.submit(one.read, "k").result() == record
                following = advance(record)
                assert pool.submit(other.swap, record, following).result() is None
                assert one.read("k") == following
                record = following

    def test_of_writers_that_race_one_wins_each_round(self, open_store: Opener) -> None:
        """Eight threads, the insert first: never two winners, and the losers are given the winner's record."""
        store, barrier = open_store("default"), threading.Barrier(_THREADS)
        rounds = 12

        def race(number: int) -> list[tuple[Record, Record | None]]:
            old: Record | None = None
            tried = []
            for _ in range(rounds):
                new = replace(make_record() if old is None else advance(old), claim_id=f"c{number}")
                barrier.wait()
                tried.append((new, store.swap(old, new)))
                barrier.wait()
                old = store.read("k")
            return tried

        with ThreadPoolExecutor(_THREADS) as pool:
            tried = list(pool.map(race, range(_THREADS)))
        for attempts in zip(*tried, strict=True):
            winners = [new for new, met in attempts if met is None]
            assert len(winners) == 1
            assert all(met in (None, winners[0]) for _, met in attempts)
        found = store.read("k")
        assert found is not None
        assert found.version == rounds

    def test_no_update_is_lost(self, store: Both) -> None:
        """Threads that each add evidence until they succeed: every piece is there in the end."""
        store.swap(None, make_record())

        def add(number: int) -> None:
            for step in range(10):
                piece = Evidence(at=0.0, kind="conflict", detail=f"{number}/{step}")
                while True:
                    record = store.read("k")
                    assert record is not None
                    if store.swap(record, advance(record, evidence=(*record.evidence, piece))) is None:
                        break

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(4)))
        found = store.read("k")
        assert found is not None
        details = {piece.detail for piece in found.evidence}
        assert len(found.evidence) == 40
        assert details == {f"{number}/{step}" for number in range(4) for step in range(10)}
        assert found.version == 41

    def test_a_record_that_vanished_is_reported(self, store: Both) -> None:
        """A ledger that was restored under running workers must not be taken for one where the key is new."""
        held = make_record()
        with pytest.raises(LedgerUnusable, match="vanished"):
            store.swap(held, advance(held))
        assert store.read("k") is None

    def test_a_closed_store_leaves_its_records_to_the_others(self, open_store: Opener) -> None:
        one, other = open_store("default"), open_store("default")
        one.swap(None, make_record())
        one.close()
        assert other.read("k") == make_record()
