"""What provider events and the suppression list cost: operations of the store, and their time.

python -m tests.bench.events
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from idem.clock import SystemClock
from idem.email import Email
from idem.events import EventNotes, Happened
from idem.keys import provider_key
from idem.stores.base import PassingCells
from idem.stores.memory import MemoryStore
from idem.stores.sqlite import SqliteStore
from idem.suppression import Reason, Suppression

_EMAILS = 5_000


class Counted:
    """Cells, counted; `largest` is the largest value that was written."""

    def __init__(self, store: PassingCells) -> None:
        self._store = store
        self.counts: Counter[str] = Counter()
        self.largest = 0

    def read_cell(self, name: str) -> bytes | None:
        self.counts["reads"] += 1
        return self._store.read_cell(name)

    def swap_cell(self, name: str, old: bytes | None, new: bytes, *, keep_seconds: float | None = None) -> bytes | None:
        self.counts["writes"] += 1
        self.largest = max(self.largest, len(new))
        return self._store.swap_cell(name, old, new, keep_seconds=keep_seconds)

    def measure(self, title: str, count: int, act: Callable[[int], object]) -> None:
        self.counts.clear()
        begin = time.perf_counter()
        for number in range(count):
            act(number)
        each = (time.perf_counter() - begin) / count * 1e6
        done = ", ".join(f"{self.counts[name] / count:.4f} {name}" for name in ("reads", "writes"))
        print(f"{title:<58} {done} each, {each:6.0f} us")  # noqa: T201 - a bench speaks


def main() -> None:
    """Print a line for each case; the list is in memory, as what counts is how often it is asked."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "ledger.db", "bench")
        store.create()
        cells = Counted(store)
        notes = EventNotes(cells, clock=clock, keep_seconds=1e6)
        keys = [provider_key("bench", f"order-{number}", 0) for number in range(500)]
        cells.measure("SQLite: the first event of an email", len(keys), lambda n: _note(notes, keys[n], 0))
        cells.measure("SQLite: an open, of a storm about one email", _EMAILS, lambda n: _note(notes, keys[0], n))
        store.close()
    emails = [_email(number) for number in range(_EMAILS)]
    for listed in (0, 10, 1_000, 100_000):
        cells = Counted(MemoryStore())
        suppression = Suppression(cells, "bench", clock=clock)
        for number in range(listed):
            suppression.add(f"gone{number}@example.com", Reason.BOUNCED, source="ses/01000157c44f053b")
        fresh = Suppression(cells, "bench", clock=clock)
        title = f"an email, {listed:,} addresses on the list"
        cells.measure(title, _EMAILS, partial(_ask, fresh, emails))
        print(f"{'':<58} largest cell {cells.largest:,} bytes")  # noqa: T201 - as above


def _ask(suppression: Suppression, emails: Sequence[Email], number: int) -> None:
    assert suppression.withhold(emails[number]) is None


def _note(notes: EventNotes, key: str, number: int) -> bool:
    return notes.add(key, Happened.OPENED, source="ses", event_id=f"event-{number}", message_id="m1")


def _email(number: int) -> Email:
    return Email(from_="a@example.com", to=f"someone{number}@example.com", subject="s", text="t")


if __name__ == "__main__":
    main()
