"""Every interleaving of two who add and one who closes, with a crash at every step: each item in one closed window."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain, count
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from idem.errors import JobError, LedgerUnusable
from idem.protocol import Record, State
from idem.stores.memory import MemoryStore
from idem.stores.sqlite import SqliteStore
from tests.fakes import FakeClock
from tests.records import make_record
from workers.digest.pages import _PAGES, PAGE_BYTES, Item, Items, Page, Place
from workers.schedule.slots import Every, Rule

_CLOCK = FakeClock()
_EVERY = Every(timedelta(seconds=100))
_FIRST = int(_CLOCK.now()) // 100 * 100 + 100
_ENDED, _ASKED = "ended", "asked"


class _Asks(BaseException):
    """The program has come to an operation that has no answer yet."""

    def __init__(self, *operation: Any) -> None:
        super().__init__()
        self.operation = operation


#: What there is in a record of ours: its key, claim id, version and value. Quicker to hash than the whole.
_Short = tuple[str, str, int, str]


def _short(record: Record | None) -> _Short | None:
    return None if record is None else (record.key, record.claim_id, record.version, record.call or "")


def _whole(short: _Short | None) -> Record | None:
    if short is None:
        return None
    key, claim_id, version, call = short
    return make_record(key, state=State.SPLIT, claim_id=claim_id, version=version, call=call)


class _Replay(MemoryStore):
    """Answers as was answered before, and stops at the first operation that is new."""

    def __init__(self, answers: tuple[Any, ...]) -> None:
        super().__init__()
        self._answers = iter(answers)

    def ask(self, *operation: Any) -> Any:
        for answer in self._answers:
            return answer
        raise _Asks(*operation)

    def read(self, key: str) -> Record | None:
        return _whole(self.ask("read", key))

    def swap(self, old: Record | None, new: Record) -> Record | None:
        return _whole(self.ask("swap", _short(old), _short(new)))


def _items(
    store: Any, ask: Callable[[int], bool], who: object, page_bytes: int = PAGE_BYTES, clock: FakeClock = _CLOCK
) -> Items:
    numbers = count()
    return Items(store, "news/ann", "news", _EVERY, clock, ask, page_bytes, lambda: f"{who}-{next(numbers)}")


@dataclass(frozen=True)
class _World:
    """What is stored, and what became of the jobs of windows."""

    records: frozenset[_Short] = frozenset()
    jobs: frozenset[tuple[int, str]] = frozenset()

    def apply(self, name: str, *arguments: Any) -> tuple[_World, Any]:
        """One operation, and its answer."""
        stored = {record[0]: record for record in self.records}
        match name, arguments:
            case "read", (key,):
                return self, stored.get(key)
            case "swap", (old, new) if stored.get(new[0]) == old:
                return replace(self, records=frozenset((stored | {new[0]: new}).values())), None
            case "swap", (_, new):
                return self, stored[new[0]]
            case "ask", (slot,):
                ended = (slot, _ENDED) in self.jobs
                return (self, False) if ended else (replace(self, jobs=self.jobs | {(slot, _ASKED)}), True)
            case _, (slot,):
                return replace(self, jobs=self.jobs | {(slot, _ENDED)}), None
        raise AssertionError(name)


_Program = Callable[[_Replay, int], Any]


def _adds(name: str, page_bytes: int, clock: FakeClock = _CLOCK) -> _Program:
    def run(store: _Replay, who: int) -> int:
        return _items(store, lambda slot: bool(store.ask("ask", slot)), who, page_bytes, clock).add(Item(name, name))

    return run


def _closes(slot: int, page_bytes: int) -> _Program:
    def run(store: _Replay, who: int) -> tuple[Any, ...]:
        values = _items(store, lambda _: True, who, page_bytes).close(slot)
        store.ask("end", slot)
        return tuple(values)

    return run


@dataclass(frozen=True)
class _Done:
    result: Any


_DEAD = _Done(None)
_Spot = tuple[_World, tuple[Any, ...]]


def _step(world: _World, program: _Program, who: int, answers: tuple[Any, ...]) -> tuple[_World, Any]:
    try:
        return world, _Done(program(_Replay(answers), who))
    except _Asks as asks:
        world, answer = world.apply(*asks.operation)
        return world, (*answers, answer)


def _run(world: _World, program: _Program, who: int) -> tuple[_World, Any]:
    state: Any = ()
    while not isinstance(state, _Done):
        world, state = _step(world, program, who, state)
    return world, state.result


def _nexts(place: _Spot, programs: list[_Program]) -> Iterator[_Spot]:
    world, states = place
    for who, state in enumerate(states):
        if not isinstance(state, _Done):
            for after, stepped in (_step(world, programs[who], who, state), (world, _DEAD)):
                yield after, (*states[:who], stepped, *states[who + 1 :])


def _search(programs: list[_Program], world: _World) -> list[_Spot]:
    """All that can be, once nobody goes on."""
    start: _Spot = (world, ((),) * len(programs))
    seen, ends, todo = {start}, [], [start]
    while todo:
        place = todo.pop()
        following = set(_nexts(place, programs))
        if not following:
            ends.append(place)
        todo += following - seen
        seen |= following
    return ends


def _check_end(
    world: _World, first: Any, names: list[str], page_bytes: int, called_back: frozenset[int] = frozenset()
) -> None:
    """Each event is delivered again, in time and later, as nobody acknowledged it; then the jobs of windows run."""
    later = FakeClock()
    later.sleep(150)
    for who, (name, clock) in enumerate([(name, clock) for clock in (_CLOCK, later) for name in names], 10):
        world, _ = _run(world, _adds(name, page_bytes, clock), who)
    closed: dict[int, tuple[Any, ...]] = {}
    for slot in sorted({slot for slot, _ in world.jobs} - called_back):
        world, closed[slot] = _run(world, _closes(slot, page_bytes), 20)

    assert Counter(chain.from_iterable(closed.values())) == Counter(set(names))
    assert first in (None, closed.get(_FIRST, ()))


def _check_all(names: list[str], page_bytes: int) -> int:
    ends = _search([*(_adds(name, page_bytes) for name in names), _closes(_FIRST, page_bytes)], _World())
    for world, closed in {(world, states[-1].result) for world, states in ends}:
        _check_end(world, closed, names, page_bytes)
    return len(ends)


@pytest.mark.parametrize("names", [["one", "one"], ["one", "two"]])
@pytest.mark.parametrize("page_bytes", [1, PAGE_BYTES])
def test_two_add_and_one_closes_in_every_order_with_every_crash(names: list[str], page_bytes: int) -> None:
    assert _check_all(names, page_bytes) > 100


def test_a_window_that_was_called_back_before_it_had_an_item_is_passed_over() -> None:
    called_back = _World(jobs=frozenset({(_FIRST, _ENDED)}))
    ends = _search([_adds("one", PAGE_BYTES), _adds("two", PAGE_BYTES)], called_back)
    for world in {world for world, _ in ends}:
        _check_end(world, None, ["one", "two"], PAGE_BYTES, frozenset({_FIRST}))


def _without_asking(_self: Items, page: Page, item: Item, _place: Place, **_: bool) -> Page:
    return Page((*page.items, item))


def _without_sealing(self: Items, place: Place) -> Page:
    return self._read(self._page_key(place), _PAGES)[1] or Page()


def _without_marks(self: Items, item: Item) -> int:
    place = Place(self._next_slot(0))
    while (wanted := self._place_for(item, place)) != place:
        place = wanted
    return place.slot


def _without_looking(self: Items, item: Item, place: Place) -> Place:
    key = self._page_key(place)
    record, page = self._read(key, _PAGES)
    if page is not None and page.seal is not None:
        return Place(self._next_slot(place.slot))
    changed = self._extended(page or Page(), item, place, is_new=record is None)
    return place if self._write(record, key, changed, _PAGES)[1] == changed else self._place_for(item, place)


@pytest.mark.parametrize(
    ("name", "worse"),
    [
        ("_extended", _without_asking),
        ("_sealed", _without_sealing),
        ("add", _without_marks),
        ("_place_for", _without_looking),
    ],
)
def test_each_rule_taken_away_is_caught(monkeypatch: pytest.MonkeyPatch, name: str, worse: Callable[..., Any]) -> None:
    monkeypatch.setattr(Items, name, worse)

    with pytest.raises(AssertionError):
        _check_all(["one", "one"], PAGE_BYTES)


def test_a_window_of_many_pages_keeps_the_order_and_closes_once() -> None:
    store, asked = MemoryStore(), dict[int, bool]()
    items = _items(store, lambda slot: asked.setdefault(slot, True), "a", 60)
    names = [f"event-{number}" for number in range(40)]
    for name in names + names[::-1]:
        assert items.add(Item(name, {"n": name})) == _FIRST

    assert list(asked) == [_FIRST]
    assert items.close(_FIRST) == items.close(_FIRST) == [{"n": name} for name in names]
    assert items.add(Item("late", 1)) == _FIRST + 100
    assert items.add(Item(names[0], 1)) == _FIRST
    assert len([key for key in store._records if "/page-" in key]) > 10


def test_what_is_larger_than_a_page_has_one_of_its_own() -> None:
    items = _items(MemoryStore(), lambda _: True, "a", 10)
    for name in ("one", "two"):
        items.add(Item(name, name * 20))

    assert items.close(_FIRST) == ["one" * 20, "two" * 20]


def test_a_rule_without_another_window_is_said() -> None:
    class Never:
        text, zone = "never", None

        def next(self, _after: int) -> int | None:
            return None

    items = replace(_items(MemoryStore(), lambda _: True, "a"), rule=cast("Rule", Never()))
    with pytest.raises(JobError, match="its last window is over"):
        items.add(Item("one", 1))


def test_a_record_that_is_no_page_is_one_clear_error() -> None:
    store = MemoryStore()
    items = _items(store, lambda _: True, "a", 10)
    items.add(Item("one", 1))
    (page,) = (key for key in store._records if key.endswith("/page-1"))
    store._records[page] = msgspec.structs.replace(store._records[page], call="{")

    with pytest.raises(LedgerUnusable, match="digest news"):
        items.close(_FIRST)


def test_threads_that_add_and_close_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    """Real races on a real store, in which windows are closed while they are filled."""
    store = SqliteStore(tmp_path / "ledger.db", "default")
    store.create()
    asked: dict[int, bool] = {}
    items = Items(store, "news/ann", "news", _EVERY, _CLOCK, lambda slot: asked.setdefault(slot, True), 200)
    names = [f"event-{number}" for number in range(60)]

    def add(seed: int) -> None:
        for name in random.Random(seed).sample(names, len(names)):
            items.add(Item(name, name))

    threads = [threading.Thread(target=add, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    closed = {slot: items.close(slot) for slot in range(_FIRST, _FIRST + 500, 100)}
    for thread in threads:
        thread.join()
    closed |= {slot: items.close(slot) for slot in sorted(asked)}
    store.close()

    assert Counter(chain.from_iterable(closed.values())) == Counter(names)
