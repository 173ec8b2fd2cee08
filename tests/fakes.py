"""Doubles that tests share: a clock that moves when told, a provider with a log of its own, a store with faults."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import Enum, auto

from idem.clock import Deadline
from idem.email import Email
from idem.errors import LedgerUnavailable, UnsupportedEmail
from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.protocol import Record, State
from idem.providers.base import USUAL, Contract, Key, Memory, Place, Reply
from idem.stores.base import Store

START = 1_700_000_000.0


class FakeClock:
    """Both clocks, moved by hand; to sleep is to move them."""

    def __init__(self) -> None:
        self.wall = START
        self.booted = 1_000.0

    def now(self) -> float:
        return self.wall

    def boot(self) -> float:
        return self.booted

    def sleep(self, seconds: float) -> None:
        self.wall += seconds
        self.booted += seconds


class Crash(BaseException):
    """The process dies here, as far as the code under test can tell."""


class Answer(Enum):
    """What a fake provider does with one request."""

    ACCEPT = auto()
    ACCEPT_THEN_SILENCE = auto()
    ACCEPT_THEN_CRASH = auto()
    SILENCE = auto()
    CRASH = auto()
    REFUSE = auto()
    FORBID = auto()
    INVALID = auto()
    CONFLICT = auto()


@dataclass(slots=True)
class FakeProvider:
    """Answers by a script, then accepts; `accepted` is its own log, which nothing but an acceptance writes to."""

    clock: FakeClock
    window_seconds: float | None = 86_400.0
    script: list[Answer] = field(default_factory=list)
    on_call: Callable[[str], None] = lambda _key: None
    unsupported: bool = False
    name: str = "fake"
    calls: list[tuple[str, bytes]] = field(default_factory=list)
    accepted: list[tuple[str, bytes]] = field(default_factory=list)
    _known: dict[str, tuple[str, bytes, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def contract(self) -> Contract:
        return Contract(
            name=self.name,
            title="Fake",
            sources=("https://example.com",),
            checked=date(2026, 1, 1),
            base_url="https://example.com",
            memory=Memory.NONE if self.window_seconds is None else Memory.REPLAYS,
            key=None
            if self.window_seconds is None
            else Key(place=Place.HEADER, name="Idempotency-Key", window_seconds=self.window_seconds),
            table=USUAL,
            reply=Reply(message_id=("id",)),
        )

    def check(self, email: Email) -> None:
        if self.unsupported:
            raise UnsupportedEmail("tags", f"cannot be expressed ({len(email.tags)} of them)")

    def send(self, email: Email, provider_key: str, deadline: Deadline) -> Outcome:
        if deadline.left() <= 0:
            return NotSent("the deadline passed before the first byte")
        with self._lock:
            self.calls.append((provider_key, email.canonical()))
            answer = self.script.pop(0) if self.script else Answer.ACCEPT
        self.on_call(provider_key)
        return self._answer(answer, provider_key, email.canonical())

    def _answer(self, answer: Answer, key: str, body: bytes) -> Outcome:
        outcome: Outcome = Unknown("no answer")
        if answer in {Answer.ACCEPT, Answer.ACCEPT_THEN_SILENCE, Answer.ACCEPT_THEN_CRASH}:
            outcome = self._accept(key, body)
        if answer in {Answer.CRASH, Answer.ACCEPT_THEN_CRASH}:
            raise Crash
        if answer in {Answer.SILENCE, Answer.ACCEPT_THEN_SILENCE}:
            return Unknown("no answer")
        refusals: dict[Answer, Outcome] = {
            Answer.REFUSE: NotSent("HTTP 429"),
            Answer.FORBID: Rejected("HTTP 403", Ground.GATE),
            Answer.INVALID: Rejected("HTTP 422"),
            Answer.CONFLICT: Rejected("HTTP 409", Ground.CONFLICT),
        }
        return refusals.get(answer, outcome)

    def _accept(self, key: str, body: bytes) -> Outcome:
        with self._lock:
            if self.window_seconds is not None and key in self._known:
                message_id, bound, at = self._known[key]
                if self.clock.now() < at + self.window_seconds:
                    if bound != body:
                        return Rejected("another body under the key", Ground.CONFLICT)
                    return Accepted(message_id, replayed=True)
            self.accepted.append((key, body))
            message_id = f"m{len(self.accepted)}"
            self._known[key] = (message_id, body, self.clock.now())
            return Accepted(message_id)


class Fault(Enum):
    """What happens to one write."""

    REFUSED = auto()
    """Not applied, and the caller is told that nobody answered."""
    ANSWER_LOST = auto()
    """Applied, and the caller is told that nobody answered."""
    RETRIED = auto()
    """Applied; the driver, not having heard, writes again by itself and reports what the second write met."""
    LATE = auto()
    """The caller is told that nobody answered; applied when the test says so."""


def outage(at: int, fault: Fault) -> dict[int, Fault]:
    """Faults for a store that meets `fault` at its write number `at` and does not answer any more."""
    return {at: fault} | dict.fromkeys(range(at + 1, 100_000), Fault.REFUSED)


class FaultyStore:
    """A store whose writes go wrong by a script: the n-th write (from 1) meets `faults[n]`."""

    def __init__(self, store: Store, faults: Mapping[int, Fault] | None = None) -> None:
        self._store = store
        self.faults = dict(faults or {})
        self.counted: Counter[str] = Counter()
        self.late: list[tuple[Record | None, Record]] = []

    def create(self) -> Sequence[str]:
        return self._store.create()

    def check(self) -> Sequence[str]:
        return self._store.check()

    def read(self, key: str) -> Record | None:
        self.counted["read"] += 1
        return self._store.read(key)

    def swap(self, old: Record | None, new: Record) -> Record | None:
        self.counted["swap"] += 1
        fault = self.faults.get(self.counted["swap"])
        if fault is None:
            return self._store.swap(old, new)
        if fault is Fault.LATE:
            self.late.append((old, new))
        elif fault is not Fault.REFUSED:
            self._store.swap(old, new)
        if fault is Fault.RETRIED:
            return self._store.swap(old, new)
        raise LedgerUnavailable("no answer")

    def apply_late(self) -> list[Record | None]:
        """Let the delayed writes arrive now; returns what each met."""
        met = [self._store.swap(old, new) for old, new in self.late]
        self.late.clear()
        return met

    def list(self, state: State, limit: int) -> Iterator[Record]:
        return self._store.list(state, limit)

    def asked(self, limit: int) -> Iterator[Record]:
        return self._store.asked(limit)

    def count(self) -> Mapping[State, int]:
        return self._store.count()

    def close(self) -> None:
        self._store.close()


def make_email(subject: str = "Hello", **parts: object) -> Email:
    """A small valid email."""
    return Email.from_dict(
        {"from": "shop@example.com", "to": ["ann@example.com"], "subject": subject, "text": "Hi", **parts}
    )
