"""Any order of claims, settlements, notes and lost answers, on every store at once with a dictionary.

Two ledgers get the same calls, the same faults and the same time: one on the store, one on a dictionary written out
here. Every answer must be the same, and beside it hold what no ledger may ever break: a sent email stays sent, no
acceptance that was told is forgotten, a key has one holder at a time. `--hypothesis-profile=nightly` runs a hundred
times as many examples.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from idem.errors import LedgerError, LedgerUnusable
from idem.ledger import Claim, Ledger, Lost
from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.policy import Policy
from idem.protocol import ACCEPTANCE, ASKED, Intent, Record, Resolution, State
from idem.stores.base import VANISHED
from idem.stores.dynamodb import DynamoStore
from idem.stores.memory import MemoryStore
from idem.stores.sqlite import SqliteStore
from tests import services
from tests.contracts.cells import Both
from tests.fakes import FakeClock, Fault, FaultyStore
from tests.valkey import DURABLE, Server

_KEYS = ("k1", "k2")
_READY = tuple(Intent(key, fingerprint=f"f-{kind}", body=kind.encode()) for key in _KEYS for kind in "ab")
_JOBS = tuple(Intent(key, job="report", call="{}") for key in _KEYS)
#: What every store lists.
_LISTED = (State.RETRY, State.UNSURE, State.IN_DOUBT)
_RESTING = frozenset({State.PENDING, State.RETRY, State.UNSURE})

_keys = st.sampled_from(_KEYS)
_intents = st.sampled_from(_READY + _JOBS)
#: Most writes go well, so that something comes about.
_faults = st.sampled_from([None] * 6 + list(Fault))
_numbers = st.integers(0, 9)
_outcomes: st.SearchStrategy[Outcome] = st.sampled_from(
    [
        Accepted("m1"),
        Accepted("m2", replayed=True),
        Accepted(None),
        NotSent("503"),
        NotSent("429", retry_after=30.0),
        Rejected("422"),
        Rejected("403", Ground.GATE),
        Rejected("409", Ground.CONFLICT),
        Unknown("no answer"),
    ]
)


class _Dictionary:
    """The whole of what a store is: one record a key, changed where its claim id, version and state are expected."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.cells: dict[str, bytes] = {}

    def swap(self, old: Record | None, new: Record) -> Record | None:
        stored = self.records.get(new.key)
        if stored is None and old is not None:
            raise LedgerUnusable(VANISHED)
        expected = None if old is None else (old.claim_id, old.version, old.state)
        if expected != (None if stored is None else (stored.claim_id, stored.version, stored.state)):
            return stored
        self.records[new.key] = new
        return None

    def swap_cell(self, name: str, old: bytes | None, new: bytes) -> bytes | None:
        if self.cells.get(name) != old:
            return self.cells.get(name) or b""
        self.cells[name] = new
        return None

    def read(self, key: str) -> Record | None:
        return self.records.get(key)

    def list(self, state: State, limit: int) -> Iterator[Record]:
        return iter([record for record in self.records.values() if record.state is state][:limit])

    def asked(self, limit: int) -> Iterator[Record]:
        return iter([each for each in self.records.values() if each.durable and each.state in ASKED][:limit])

    def count(self) -> Mapping[State, int]:
        return {}

    def create(self) -> Sequence[str]:
        return ()

    check = create

    def close(self) -> None:
        """Nothing is open."""


class _Side:
    """One ledger, on a store whose next writes go wrong as both are told, with a clock and names of its own."""

    def __init__(self, store: Any) -> None:
        self.clock = FakeClock()
        self.store = FaultyStore(store)
        self.claims: list[Claim] = []
        names = itertools.count()
        self.ledger = Ledger(
            self.store,
            policy=Policy(window_seconds=86_400.0),
            provider="fake",
            clock=self.clock,
            new_id=lambda: f"c{next(names)}",
            jitter=lambda: 0.5,
        )

    def expect(self, fault: Fault | None) -> None:
        """What the next write meets; those after it go well."""
        self.store.faults = {} if fault is None else {self.store.counted["swap"] + 1: fault}


class LedgerMachine(RuleBasedStateMachine):
    """`open_store` gives a handle on one namespace, which is new to each example; another one is opened meanwhile."""

    def __init__(self, open_store: Callable[[str], Both]) -> None:
        super().__init__()
        namespace = uuid.uuid4().hex
        self._open: Callable[[], Both] = lambda: open_store(namespace)
        self._store = self._open()
        self._model = _Dictionary()
        self._sides = (_Side(self._model), _Side(self._store))
        self._views: list[Record] = []
        #: Of the claims by number: those whose holders have not settled.
        self._open_claims: set[int] = set()
        self._told: set[tuple[str, str | None]] = set()
        self._known: dict[str, Record] = {}

    def teardown(self) -> None:
        self._store.close()

    @rule(intent=_intents, fault=_faults)
    def claim(self, intent: Intent, fault: Fault | None) -> None:
        new = self._model.read(intent.key) is None
        claimed = self._both(lambda side: side.ledger.claim(intent), fault)
        assert isinstance(claimed, Claim) or not new or fault is Fault.LATE, "its own write was taken for another's"
        if not isinstance(claimed, Claim):
            return
        for number in self._open_claims:
            other = self._sides[1].claims[number]
            assert other.record.key != intent.key or other.lease.left() <= 0, f"two hold {intent.key}"
        self._open_claims.add(len(self._sides[1].claims) - 1)

    @precondition(lambda self: self._open_claims)
    @rule(number=_numbers, outcome=_outcomes, fault=_faults)
    def settle(self, number: int, outcome: Outcome, fault: Fault | None) -> None:
        """However late: the holder does not know that its lease is over."""
        number = self._take(number)
        if self._is_rendering(number) and not isinstance(outcome, NotSent | Rejected):
            return
        settled = self._both(lambda side: side.ledger.settle(side.claims[number], outcome), fault)
        if isinstance(outcome, Accepted) and isinstance(settled, Record | Lost):
            self._told.add((self._sides[1].claims[number].record.key, outcome.message_id))

    @precondition(lambda self: any(map(self._is_rendering, self._open_claims)))
    @rule(number=_numbers, form=st.sampled_from(["email", "list", "split"]), fault=_faults)
    def freeze(self, number: int, form: str, fault: Fault | None) -> None:
        number = self._take(number)
        if not self._is_rendering(number):
            return

        def act(side: _Side) -> Any:
            claim = side.claims[number]
            if form == "email":
                return side.ledger.freeze(claim, b"built", "f-built")
            if form == "list":
                return side.ledger.freeze_list(claim, b"[]", 7)
            return side.ledger.split(claim, b"[]", "f-list", 7)

        if isinstance(self._both(act, fault), Claim):
            self._open_claims.add(len(self._sides[1].claims) - 1)

    @rule(intent=_intents, later=st.booleans(), fault=_faults)
    def ask(self, intent: Intent, later: bool, fault: Fault | None) -> None:  # noqa: FBT001 - drawn by name
        self._both(lambda side: side.ledger.ask(intent, ready_at=side.clock.now() + 50 if later else None), fault)

    @rule(key=_keys, fault=_faults)
    def cancel(self, key: str, fault: Fault | None) -> None:
        self._both(lambda side: side.ledger.cancel(key, by="a person"), fault)

    @precondition(lambda self: self._views)
    @rule(number=_numbers, message_id=st.sampled_from(["m1", "m3"]), fault=_faults)
    def testify(self, number: int, message_id: str, fault: Fault | None) -> None:
        view, accepted = self._view(number), Accepted(message_id)
        done = self._both(lambda side: side.ledger.testify(view, accepted, witness=message_id, detail="x"), fault)
        if isinstance(done, Record):
            self._told.add((view.key, message_id))

    @precondition(lambda self: self._views)
    @rule(number=_numbers, resolution=st.sampled_from(Resolution), fault=_faults)
    def resolve(self, number: int, resolution: Resolution, fault: Fault | None) -> None:
        view = self._view(number)
        self._both(lambda side: side.ledger.resolve(view, resolution, by="a person"), fault)

    @precondition(lambda self: self._views)
    @rule(number=_numbers, kind=st.sampled_from(["missing", "conflict", "touch"]), fault=_faults)
    def note(self, number: int, kind: str, fault: Fault | None) -> None:
        view = self._view(number)
        if kind == "missing":
            self._both(lambda side: side.ledger.note_missing(view, "fake"), fault)
        elif kind == "conflict":
            self._both(lambda side: side.ledger.note_conflict(view, "f-other"), fault)
        elif view.state in _RESTING:
            self._both(lambda side: side.ledger.touch(view), fault)

    @rule(seconds=st.sampled_from([0.4, 7.0, 61.0, 3_600.0, 90_000.0]))
    def wait(self, seconds: float) -> None:
        for side in self._sides:
            side.clock.sleep(seconds)

    @rule()
    def late_writes_arrive(self) -> None:
        self._same([side.store.apply_late() for side in self._sides])

    @rule(name=st.sampled_from(["x", "y"]), old=st.sampled_from([None, b"1", b"2"]), new=st.sampled_from([b"1", b"2"]))
    def cell(self, name: str, old: bytes | None, new: bytes) -> None:
        self._same([self._model.swap_cell(name, old, new), self._store.swap_cell(name, old, new)])
        self._same([self._model.cells.get(name), self._store.read_cell(name)])

    @rule(key=_keys)
    def look(self, key: str) -> None:
        """A view, which gets old while others write."""
        record = self._store.read(key)
        if record is not None:
            self._views.insert(0, record)

    @rule(state=st.sampled_from(_LISTED))
    def list(self, state: State) -> None:
        listed = list(self._store.list(state, 100))
        assert [each.updated_at for each in listed] == sorted(each.updated_at for each in listed)
        self._same([_by_key(self._model.list(state, 100)), _by_key(listed)])
        self._same([_by_key(self._model.asked(100)), _by_key(self._store.asked(100))])

    @rule()
    def reopen(self) -> None:
        """What another process would see is what is durable."""
        other = self._open()
        self._same([[self._model.read(key) for key in _KEYS], [other.read(key) for key in _KEYS]])
        if other is not self._store:
            other.close()

    @invariant()
    def nothing_goes_back(self) -> None:
        for key in _KEYS:
            record = self._store.read(key)
            self._same([self._model.read(key), record])
            before = self._known.get(key)
            if before is not None:
                assert record is not None
                assert record.version >= before.version
                assert record.state is State.SENT or before.state is not State.SENT
                assert _acceptances(before) <= _acceptances(record)
            if record is not None:
                self._known[key] = record
        for key, message_id in self._told:
            assert _remembers(self._known[key], message_id), f"{key}: that {message_id} was accepted is forgotten"

    def _both(self, act: Callable[[_Side], Any], fault: Fault | None) -> Any:
        """The same call on both sides; the claims that it gives are kept by each."""
        answers = []
        for side in self._sides:
            side.expect(fault)
            answers.append(_answer(act, side))
            side.expect(None)
            if isinstance(answers[-1], Claim):
                side.claims.append(answers[-1])
        self._same([answer.record if isinstance(answer, Claim) else answer for answer in answers])
        self._same([side.clock.now() for side in self._sides])
        return answers[1]

    def _same(self, values: Sequence[Any]) -> None:
        model, store = values
        assert store == model

    def _take(self, number: int) -> int:
        """One of the open claims, which is settled or lost from now on."""
        found = sorted(self._open_claims)[number % len(self._open_claims)]
        self._open_claims.remove(found)
        return found

    def _is_rendering(self, number: int) -> bool:
        return self._sides[1].claims[number].record.state is State.RENDERING

    def _view(self, number: int) -> Record:
        return self._views[number % len(self._views)]


def _answer(act: Callable[[_Side], Any], side: _Side) -> Any:
    try:
        return act(side)
    except LedgerError as error:
        return type(error)


def _by_key(records: Iterator[Record] | Sequence[Record]) -> dict[str, Record]:
    return {record.key: record for record in records}


def _acceptances(record: Record) -> set[str | None]:
    return {item.message_id for item in record.evidence if item.kind == ACCEPTANCE}


def _remembers(record: Record, message_id: str | None) -> bool:
    own = {record.message_id, None} if record.state is State.SENT else set()
    return message_id in _acceptances(record) | own


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("valkey"), *DURABLE)
    server.start()
    yield server
    server.kill()


def _memory(_request: pytest.FixtureRequest) -> Callable[[str], Both]:
    stores: dict[str, Both] = {}
    return lambda namespace: stores.setdefault(namespace, MemoryStore())


def _sqlite(request: pytest.FixtureRequest) -> Callable[[str], Both]:
    folder: Path = request.getfixturevalue("tmp_path")

    def opener(namespace: str) -> Both:
        store = SqliteStore(folder / "ledger.db", namespace)
        request.addfinalizer(store.close)
        return store

    opener("default").create()
    return opener


def _valkey(request: pytest.FixtureRequest) -> Callable[[str], Both]:
    server: Server = request.getfixturevalue("valkey")
    return server.store


def _dynamodb(_request: pytest.FixtureRequest) -> Callable[[str], Both]:
    endpoint = services.dynamodb_local()
    table = services.table(endpoint)
    return lambda namespace: DynamoStore(services.share("dynamodb", endpoint), table, namespace=namespace)


#: The stores, and how many examples each can afford in a second or two of the everyday run.
_STORES = {"memory": (_memory, 60), "sqlite": (_sqlite, 12), "valkey": (_valkey, 12), "dynamodb": (_dynamodb, 4)}


@pytest.mark.parametrize("name", _STORES)
def test_a_ledger_on_any_store_does_what_one_on_a_dictionary_does(name: str, request: pytest.FixtureRequest) -> None:
    opener, examples = _STORES[name]
    open_store = opener(request)

    class Machine(LedgerMachine):
        def __init__(self) -> None:
            super().__init__(open_store)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=max(1, examples * settings().max_examples // 100),
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )
