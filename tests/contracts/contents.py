"""What content keys are on every store: one effect for all who enqueue a content within its time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Protocol

from idem.content import Contents, Named, by_content
from idem.stores.base import PassingCells, Store
from tests.fakes import FakeClock, make_email

_HOUR = by_content(within=timedelta(hours=1))
_THREADS = 8


class Holds(Store, PassingCells, Protocol):
    """A store with its cells."""


class ContentContract:
    """Part of `StoreContract`: it needs the fixture `open_store`."""

    def test_a_content_has_one_key_until_its_time_is_over(self, open_store: Callable[[str], Holds]) -> None:
        """It counts from the first enqueueing, wherever on the clock that was, and not from the last."""
        clock = FakeClock()
        clock.sleep(3_600 - clock.now() % 3_600 - 1)
        first, other = (Contents(open_store("default"), clock) for _ in range(2))
        email = make_email(tags=["a"], metadata={"a": "b"})
        keys = [first.name("d", _HOUR, email)]
        for seconds in (2, 1_798, 1_799):
            clock.sleep(seconds)
            keys.append(other.name("d", _HOUR))
        assert keys == [keys[0]] * 4
        assert keys[0].as_named(make_email()) == email

        clock.sleep(1)
        again = other.name("d", _HOUR)
        assert again.key != keys[0].key
        assert first.name("d", _HOUR) == again
        assert first.name("e", _HOUR).key not in {keys[0].key, again.key}

    def test_of_those_who_race_one_names_the_effect(self, open_store: Callable[[str], Holds]) -> None:
        """On two handles, with clocks that differ a little; once the time is over, the same."""
        handles = [open_store("default"), open_store("default")]
        clocks = [FakeClock() for _ in range(_THREADS)]
        barrier, rounds = threading.Barrier(_THREADS), 6

        def race(number: int) -> list[Named]:
            contents, named = Contents(handles[number % 2], clocks[number]), []
            clocks[number].sleep(number / 1000)
            for _ in range(rounds):
                barrier.wait()
                named.append(contents.name("d", _HOUR))
                clocks[number].sleep(3_601)
            return named

        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(race, range(_THREADS)))
        assert [len({named.key for named in each}) for each in zip(*found, strict=True)] == [1] * rounds
        assert len({named.key for named in found[0]}) == rounds
