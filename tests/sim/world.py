"""The simulated world: real workers, and everything that they meet replaced, faults included.

A worker is what a process with one thread has: its own clock, ledger, sender, gate and performer, all of them the
production classes. What it does to the world outside (a write, a request, a word to the broker) is a step, and meets
what `tests.sim.faults` has for it.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import count
from typing import Any, TypeVar
from unittest.mock import patch

import msgspec
from dramatiq import Message

from idem import bulk, send
from idem.bulk import cut, parts_of
from idem.clock import Deadline
from idem.email import Email
from idem.errors import BrokerError, BrokerUnavailable, IdemError, JobError, LedgerUnavailable
from idem.events import EventNotes
from idem.gate import Gate
from idem.keys import provider_key
from idem.ledger import Ledger, Lost
from idem.outcome import Accepted, Outcome
from idem.policy import Policy
from idem.protocol import ACCEPTANCE, Evidence, InDoubt, Record, Resolution, State
from idem.providers import reading
from idem.providers.api import CLOCK_SKEW_SECONDS
from idem.providers.base import Batched, BatchKeys, CannotTell, Missing, Sighting
from idem.providers.http import Answer, NoAnswer, Phase
from idem.reconcile import Patience, Reconciler
from idem.send import Building, Point, Sender
from idem.stores.memory import MemoryStore
from tests.fakes import START, Crash
from tests.sim.faults import Fault, Faults, Kind
from tests.sim.provider import INVALID, Acceptance, AcceptingSide, Offer, answer, ids_of
from tests.sim.scheduler import Scheduler
from workers import actors
from workers.actors import JobFunction, Performer
from workers.app import App
from workers.brokers.base import Acknowledge, Bury, Disposition, Retry, enqueue_each
from workers.jobs import Asked, email_message, job_message, part_message, read_message
from workers.settings import Settings
from workers.timing import Timing

LEASE, HTTP, VISIBILITY = 60.0, 20.0, 90.0
NAMESPACE = "sim"
#: The providers: the one that is tried first, and the one that is tried after its definite failures.
FIRST, SECOND = "simulated", "second"
#: How long events are noted: as long as records are kept.
KEEP_SECONDS = 90 * 86_400.0
PATIENCE = Patience.of(lease=LEASE, http_timeout=HTTP, evidence=0.0, visibility=VISIBILITY)
#: What a step takes when nothing is wrong.
_STEP_SECONDS = 0.004
#: Nobody sleeps for less: what is added to the time would be lost to rounding.
_SHORTEST_SECONDS = 0.000_001
#: Less than that before its patience is over, the ledger does not ask again.
_LAST_PAUSE_SECONDS = 0.1
#: Nobody is told of a late write before its client has given up.
_DEAF_SECONDS = 150.0
#: How often somebody looks after what is in doubt: often where that can find something.
_RECONCILE_SECONDS = 1_800.0
_SEARCH_SECONDS = 61.0
#: When reconcilers have found nothing to do for so long, they are through: longer than any patience of theirs.
_QUIET_SECONDS = 40_000.0
_RECONCILER = "reconciler"
_APP = App(Settings())
#: More than any job can need, be it refused again and again until its window is over.
_MOST_STEPS = 6_000
_T = TypeVar("_T")
#: What the provider answers: once, or for each email.
_A = TypeVar("_A", Answer, Sequence[Answer])


@dataclass(frozen=True, slots=True)
class Job:
    """What a producer asks for. `copies` are the seconds at which messages of it are enqueued.

    `emails` is how many its function builds, None for an email that is ready; `bulk`, how many a bulk carries; `slots`,
    how many runs of a schedule there are to be. The provider refuses one that is `invalid`, and of several emails the
    one with the number `refused`. One that is `durable` is in the ledger before it is in the queue, which
    may then lose it. `long` is how many thirds of a lease it builds for: so often its claim is renewed. It is too late
    for a first attempt `expires` seconds after its first message. At `cancelled` seconds somebody calls it back; at
    `mended` seconds, one that is invalid is opened again if it was rejected, and enqueued without what was wrong.
    """

    name: str
    copies: tuple[float, ...] = (0.0,)
    emails: int | None = None
    keyed: bool = True
    choice: InDoubt | None = None
    invalid: bool = False
    refused: int = 0
    conflict: bool = False
    unknown_until: float = 0.0
    long: int = 0
    bulk: int = 0
    slots: int = 0
    durable: bool = False
    expires: float | None = None
    cancelled: float | None = None
    mended: float | None = None

    @property
    def key(self) -> str:
        """The key of the job as a whole."""
        return self.name if self.keyed else f"message-{self.name}"

    @property
    def expires_at(self) -> float | None:
        """By the clock on the wall."""
        return None if self.expires is None else START + self.copies[0] + self.expires

    def subject(self, name: str) -> str:
        """That of one of its emails, which tells the provider whether to refuse it."""
        refused = self.invalid or (self.refused and name == f"{self.name}/{self.refused}")
        return f"{INVALID} {name}" if refused else name


class Violation(AssertionError):
    """An invariant does not hold; its letter comes first."""


class Clock:
    """A machine's clocks: the wall clock is off by `skew`, the boot clock began whenever."""

    def __init__(self, world: World, skew: float, boot: float) -> None:
        self.skew = skew
        self.deaf_until = 0.0
        #: By how much it was set forward, in all.
        self.set_forward = 0.0
        self.held: Callable[[float], None] = world.scheduler.hold
        self._world = world
        self._scheduler = world.scheduler
        self._boot = boot

    def now(self) -> float:
        return self._scheduler.now + self.skew

    def boot(self) -> float:
        return self._scheduler.now - self._boot

    def most(self) -> float:
        """An instant, as seen by a deadline that believes the clock which leaves less: a step forward is time gone."""
        return self.boot() + self.set_forward

    def sleep(self, seconds: float) -> None:
        """May take longer than asked for, as sleeping does: while the store is away, seconds at a time."""
        away = self.deaf_until - self._scheduler.now
        self.held(max(seconds, min(away, 5.0), _SHORTEST_SECONDS))


class Table(MemoryStore):
    """What all stores of the world stand for: the records, and the writes that are still on their way."""

    def __init__(self, heard: Callable[[Record | None, Record], None]) -> None:
        super().__init__()
        self._heard = heard
        self.late: dict[str, list[tuple[int, Record | None, Record]]] = {}
        self.writes = 0
        self._in_state: dict[State, dict[str, Record]] = {state: {} for state in State}

    def swap(self, old: Record | None, new: Record) -> Record | None:
        stored = super().swap(old, new)
        if stored is None:
            self.writes += 1
            if old is not None:
                del self._in_state[old.state][old.key]
            self._in_state[new.state][new.key] = new
            self._applied(old, new)
        return stored

    def list(self, state: State, limit: int) -> Iterator[Record]:
        """As every store; nobody goes through all records for those in one state."""
        return iter(sorted(self._in_state[state].values(), key=_changed_at)[:limit])

    def delay(self, old: Record | None, new: Record, transitions: int) -> None:
        """Let a write arrive after that many further transitions of its key, or when all is over."""
        self.late.setdefault(new.key, []).append((transitions, old, new))

    def arrive(self) -> None:
        """What never arrived arrives now."""
        while self.late:
            _, waiting = self.late.popitem()
            for _, old, new in waiting:
                self.swap(old, new)

    def records(self) -> Iterable[Record]:
        return self._records.values()

    def _applied(self, old: Record | None, new: Record) -> None:
        self._heard(old, new)
        waiting = self.late.pop(new.key, None)
        if waiting is None:
            return
        left = [(transitions - 1, before, after) for transitions, before, after in waiting]
        if later := [each for each in left if each[0]]:
            self.late[new.key] = later
        for transitions, before, after in left:
            if not transitions:
                self.swap(before, after)


def _changed_at(record: Record) -> float:
    return record.updated_at


@dataclass(slots=True)
class Call:
    """One attempt, as it looks from outside: what was heard, and whether it was written down by who heard it.

    `started` is by the clock of who made it. `waived`: it does not matter any more, as its job rather has it twice, or
    as look-ups showed none.
    """

    key: str
    claim_id: str
    started: float
    provider: str
    asked: bool = False
    outcome: Outcome | None = None
    #: When the write that began it was first tried, and when an answer was heard: see `Clock.most`.
    tried_at: float = 0.0
    heard_at: float = 0.0
    recorded: bool = False
    waived: bool = False


class _Store:
    """A worker's connection to the table."""

    def __init__(self, worker: Worker, table: Table) -> None:
        self._worker = worker
        self._table = table

    def create(self) -> Sequence[str]:
        return ()

    def check(self) -> Sequence[str]:
        return ()

    def read(self, key: str) -> Record | None:
        return self._worker.io("read", partial(self._table.read, key), LedgerUnavailable)

    def swap(self, old: Record | None, new: Record) -> Record | None:
        if new.state is State.SENDING:
            self._worker.tries(new)
        self._worker.untold.add(new.key)
        stored = self._worker.io(
            "swap",
            lambda: self._swap(old, new),
            LedgerUnavailable,
            late=lambda transitions: self._table.delay(old, new, transitions),
        )
        self._worker.untold.discard(new.key)
        return stored

    def _swap(self, old: Record | None, new: Record) -> Record | None:
        stored = self._table.swap(old, new)
        if stored is None:
            self._worker.wrote(old, new)
        return stored

    def list(self, state: State, limit: int) -> Iterator[Record]:
        return self._worker.io("list", partial(self._table.list, state, limit), LedgerUnavailable)

    def asked(self, limit: int) -> Iterator[Record]:
        return self._worker.io("asked", partial(self._table.asked, limit), LedgerUnavailable)

    def count(self) -> Mapping[State, int]:
        return self._table.count()

    def read_cell(self, name: str) -> bytes | None:
        return self._table.read_cell(name)

    def swap_cell(self, name: str, old: bytes | None, new: bytes, *, keep_seconds: float | None = None) -> bytes | None:
        return self._table.swap_cell(name, old, new, keep_seconds=keep_seconds)

    def close(self) -> None:
        return


class _Line:
    """A worker's connection to the provider: the adapter, as far as the protocol can tell."""

    def __init__(self, worker: Worker, side: AcceptingSide) -> None:
        self.contract = side.contract
        self._worker = worker
        self._side = side

    def check(self, email: Email) -> None:
        assert email

    def send(self, email: Email, provider_key: str, deadline: Deadline) -> Outcome:
        answer = self._exchange(lambda now: self._side.request(email, provider_key, now), [provider_key], deadline)
        return self._worker.heard(provider_key, self._read(answer))

    def send_all(self, emails: Sequence[Email], provider_key: str, deadline: Deadline) -> Batched:
        answer = self._exchange(lambda now: self._side.request_all(emails, provider_key, now), [provider_key], deadline)
        batched = reading.batched(self.contract, answer, ids_of)
        self._worker.heard(provider_key, batched.whole)
        return batched

    def send_each(self, emails: Sequence[tuple[Email, str]], deadline: Deadline) -> tuple[Outcome, ...]:
        keys = [key for _, key in emails]
        answer = self._exchange(lambda now: self._side.request_each(emails, now), keys, deadline)
        answers = (answer,) * len(keys) if isinstance(answer, Answer | NoAnswer) else answer
        return tuple(self._worker.heard(key, self._read(one)) for key, one in zip(keys, answers, strict=True))

    def _exchange(
        self, request: Callable[[float], _A], keys: Sequence[str], deadline: Deadline
    ) -> _A | Answer | NoAnswer:
        fault = self._worker.meet("send")
        kind = None if fault is None else fault.kind
        if kind is Kind.NOT_SENT:
            return NoAnswer(Phase.NOT_CONNECTED, "connection refused")
        # As the HTTP client does, right before the first byte.
        if deadline.left() <= 0:
            return NoAnswer(Phase.NOT_WRITTEN, "the deadline passed before the first byte")
        if kind in _REFUSALS:
            return _REFUSALS[kind]
        self._worker.asks(keys)
        heard = self._ask(request, fault)
        if heard is None:
            self._worker.hold(max(0.0, deadline.left()))
            return NoAnswer(Phase.WRITTEN, "no answer")
        return heard

    def _ask(self, request: Callable[[float], _A], fault: Fault | None) -> _A | Answer | None:
        """Send the request, and wait for its answer, which may never come."""
        scheduler = self._worker.world.scheduler
        if fault is None or fault.kind in _BEFORE_THE_CALL:
            return request(scheduler.now)
        match fault.kind:
            case Kind.LATE | Kind.CRASH_LATE:
                self._worker.world.later(fault.size, lambda: void(request(scheduler.now)))
            case Kind.FAILED:
                return answer(500)
            case Kind.PAUSE_AFTER:
                heard = request(scheduler.now)
                self._worker.hold(fault.size)
                return heard
            case Kind.LOST | Kind.CRASH_AFTER:
                request(scheduler.now)
        if fault.kind in {Kind.CRASH_AFTER, Kind.CRASH_LATE}:
            raise Crash
        return None

    def _read(self, found: Answer | NoAnswer) -> Outcome:
        return reading.outcome(self.contract, found)

    def find(self, provider_key: str, since: float, deadline: Deadline) -> Sighting:
        worker = self._worker
        fault = worker.meet("find")
        if deadline.left() <= 0 or (fault is not None and fault.kind is Kind.BEFORE):
            return CannotTell("no answer")
        # As adapters do whose provider shows what was accepted since an instant: our clock is not the provider's.
        begin = since - CLOCK_SKEW_SECONDS if worker.world.scenario.dated else 0.0
        sighting = self._side.look(provider_key, begin, worker.world.scheduler.now)
        if fault is None:
            return sighting
        if fault.kind is Kind.PAUSE_AFTER:
            worker.hold(fault.size)
        # The contract allows for one such miss of an email.
        if fault.kind is Kind.MISSED and provider_key not in worker.world.missed:
            worker.world.missed.add(provider_key)
            return Missing()
        return sighting


def void(_answer: object) -> None:
    """Nobody hears it."""


_REFUSALS: Mapping[Kind | None, Answer] = {
    Kind.LIMITED: answer(429, {"retry-after": "7"}),
    Kind.GATE: answer(403),
    Kind.BUSY: answer(409, code="in_progress"),
}
_BEFORE_THE_CALL = {Kind.PAUSE_BEFORE, Kind.STEP}


@dataclass(slots=True)
class Letter:
    """A message in the queue; `receipt` counts its deliveries."""

    number: int
    message: Message[None]
    job: str
    keys: Sequence[str]
    receipt: int = 0
    in_flight: bool = False


class Queue:
    """A broker that delivers at least once, in any order. What it has acknowledged to a producer is never lost."""

    def __init__(self, world: World) -> None:
        self.letters: dict[int, Letter] = {}
        self._keys: Counter[str] = Counter()
        self.dead: list[tuple[Letter, str]] = []
        self._world = world
        self._ready: list[Letter] = []
        self._last = 0
        self._touched = 0

    def put(self, message: Message[None], job: str) -> None:
        self._last += 1
        self._touched = self._last
        letter = self.letters[self._last] = Letter(self._last, message, job, keys_of(message))
        for key in letter.keys:
            self._keys[key] += 1
        self._due(letter, 0.0)

    def take(self) -> Letter | None:
        """The next message that is ready; if nothing is said about it, it is ready again after the visibility."""
        while self._ready:
            letter = self._ready.pop(0)
            if letter.number in self.letters:
                letter.receipt += 1
                letter.in_flight = True
                return letter
        return None

    @property
    def has_ready(self) -> bool:
        return bool(self._ready)

    def holds(self, key: str) -> bool:
        return self._keys[key] > 0

    def lose(self) -> None:
        """What it was told of last, it has forgotten."""
        if self._touched in self.letters:
            self._drop(self.letters[self._touched])

    def expire(self, letter: Letter, receipt: int, seconds: float) -> None:
        """Nobody extends this delivery any more."""
        self._world.later(seconds, lambda: self._expired(letter, receipt))

    def end(self, letter: Letter, receipt: int, disposition: Disposition) -> None:
        """What a worker says about its delivery; about one that is another worker's by now, only that it is done."""
        # Also about one that is gone already: what is lost now must not be another one.
        self._touched = letter.number
        if letter.number not in self.letters:
            return
        match disposition:
            case Acknowledge():
                self._world.check_acknowledged(letter)
                self._drop(letter)
            case Retry(delay_seconds=delay, tried=tried) if letter.receipt == receipt:
                tries = letter.message.options.get("tries", 0) + tried
                letter.message = changed(letter.message, options={"tries": tries})
                self._due(letter, delay)
            case Bury(reason=reason) if letter.receipt == receipt:
                self._drop(letter)
                self.dead.append((letter, reason))

    def _drop(self, letter: Letter) -> None:
        del self.letters[letter.number]
        for key in letter.keys:
            self._keys[key] -= 1

    def _expired(self, letter: Letter, receipt: int) -> None:
        if letter.in_flight and letter.receipt == receipt and letter.number in self.letters:
            self._due(letter, 0.0)

    def _due(self, letter: Letter, seconds: float) -> None:
        letter.in_flight = False
        if seconds > 0:
            self._world.later(seconds, lambda: self._make_ready(letter))
        else:
            self._make_ready(letter)

    def _make_ready(self, letter: Letter) -> None:
        self._ready.append(letter)
        self._world.dispatch()


def changed(message: Message[None], **changes: Any) -> Message[None]:
    """As `dataclasses.replace`, in a third of the time."""
    return Message(**(vars(message) | changes))


def keys_of(message: Message[None]) -> Sequence[str]:
    """The keys that a message is about."""
    group = message.kwargs.get("group")
    return [message.kwargs.get("key", message.message_id)] if group is None else [item["key"] for item in group]


class Producing:
    """A worker's connection to the queue, as far as it enqueues."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def enqueue(self, message: Message[None], *, delay: int | None = None) -> Message[None]:
        assert delay is None
        worker = self._worker
        put = partial(worker.world.queue.put, message, worker.enqueues_as(message))
        worker.io(worker.lossy("enqueue"), put, BrokerUnavailable)
        return message

    def enqueue_many(self, messages: Sequence[Message[None]]) -> list[BrokerError | None]:
        return enqueue_each(self.enqueue, messages)


class Worker:
    """One process; after a crash, another one takes its place on the same machine."""

    def __init__(self, world: World, number: int, skew: float) -> None:
        self.world = world
        self.name = f"worker-{number}"
        self.clock = Clock(world, skew, boot=world.scheduler.now - 1_000.0 * number)
        self.clock.held = self.hold
        self.number = number
        #: The keys whose last write was not answered.
        self.untold: set[str] = set()
        self._calls: dict[str, Call] = {}
        #: By claim id and version: a claim is decided anew, under a new lease, when a record turns out to be there.
        self._tried: dict[tuple[str, int], float] = {}
        self._delivery: tuple[Letter, int, float] | None = None
        self._store = _Store(self, world.table)
        self._lines = {name: _Line(self, side) for name, side in world.sides.items()}
        self.start()

    def start(self) -> None:
        """Begin anew: what a process knows is gone."""
        # Its parts are made when they are asked for: most processes die before that.
        for name in ("ledger", "performer", "app", "reconciler"):
            self.__dict__.pop(name, None)

    @cached_property
    def ledger(self) -> Ledger:
        """The process's own."""
        world = self.world
        return Ledger(
            self._store,
            policy=world.policy,
            provider=FIRST,
            others=world.policies,
            fallback=SECOND if SECOND in world.sides else None,
            clock=self.clock,
            new_id=world.new_id,
            jitter=world.jitter,
        )

    @cached_property
    def performer(self) -> Performer:
        """The process's own, with a gate and a sender."""
        world = self.world
        gate = Gate(self._store, FIRST, clock=self.clock, probe_seconds=2 * HTTP, jitter=world.jitter)
        heed: dict[str, Any] = {"heed": gate.heed} if world.gated else {}
        sender = Sender(
            self.ledger,
            self._lines[FIRST],
            others=[line for name, line in self._lines.items() if name != FIRST],
            clock=self.clock,
            http_timeout_seconds=HTTP,
            namespace=NAMESPACE,
            reach=self._reach,
            hold=self._building,
            **heed,
        )
        broker: Any = Producing(self)
        return Performer(
            sender, broker, world.functions, ledger=self.ledger, gate=gate, policy=world.policy, clock=self.clock
        )

    @cached_property
    def app(self) -> App:
        """The process's own, as far as it enqueues."""
        app = copy(_APP)
        app.__dict__ |= {"ledger": self.ledger, "broker": Producing(self)}
        return app

    @cached_property
    def reconciler(self) -> Reconciler:
        """The process's own."""
        return Reconciler(
            self.ledger,
            self._lines,
            clock=self.clock,
            namespace=NAMESPACE,
            patience=PATIENCE,
            # Most never have anything to resume, and an application of their own is made for it.
            resume=lambda key: self.app.resume(key),  # noqa: PLW0108
            events=EventNotes(self._store, clock=self.clock, keep_seconds=KEEP_SECONDS),
        )

    @contextmanager
    def _building(self, building: Building) -> Iterator[None]:
        """Between the claim and what the function returns: it takes a third of a lease as often as its job says."""
        for _ in range(self.world.long.get(building.source.key, 0)):
            self.hold(LEASE / 3)
            if building.lost is not None:
                break
            with suppress(LedgerUnavailable):
                renewed = self.ledger.renew(building.claim)
                if isinstance(renewed, Lost):
                    building.lost = renewed
                else:
                    building.claim = renewed
        yield

    def deliver(self, letter: Letter) -> None:
        """Perform one message, and say what becomes of it."""
        self.world.free.remove(self)
        self.name = letter.job
        receipt = letter.receipt
        self._delivery = letter, receipt, self.world.scheduler.now + VISIBILITY
        try:
            self._perform(letter, receipt)
        except Crash:
            self._crashed()
        finally:
            self._delivery = None
            self.world.free.append(self)
            self.name = f"worker-{self.number}"
        self.world.dispatch()

    def _perform(self, letter: Letter, receipt: int) -> None:
        message = letter.message
        self._calls, self._tried, self.untold = {}, {}, set()
        disposition = self.performer.perform(message, message.kwargs)
        self._check_answered()
        self.world.say(self, type(disposition).__name__)
        try:
            self.io(
                self.lossy("dispose"), partial(self.world.queue.end, letter, receipt, disposition), BrokerUnavailable
            )
        except BrokerUnavailable:
            self._expire()

    def _check_answered(self) -> None:
        """Whoever lives on tells the ledger of its attempts, unless the store is away for as long as it insists.

        That is until its claim is over, or, for an acceptance, a lease from when it has heard of it. Of an attempt that
        nothing was heard of, it need not know: a claim is not asked for as long.
        """
        for call in self._calls.values():
            since = call.heard_at if isinstance(call.outcome, Accepted) else call.tried_at
            excused = self.untold and (call.outcome is None or self._is_over(since))
            if not excused:
                self.world.check_answered(call)

    def _is_over(self, since: float) -> bool:
        """Whether a lease from then on may be over by one of this machine's clocks, but for a last pause."""
        return self.clock.most() - since > LEASE - _LAST_PAUSE_SECONDS

    def reconcile(self) -> None:
        """One run of this machine's reconciler."""
        self.world.free.remove(self)
        self.name = f"{_RECONCILER}-{self.number}"
        try:
            self.reconciler.run()
        except IdemError:
            pass
        except Crash:
            self._crashed()
        finally:
            self.world.free.append(self)
            self.name = f"worker-{self.number}"
        self.world.dispatch()

    def _crashed(self) -> None:
        self.world.say(self, "has crashed")
        self._expire()
        self._calls = {}
        self.clock.deaf_until = 0.0
        self.start()

    def _expire(self) -> None:
        if self._delivery is not None:
            letter, receipt, until = self._delivery
            self.world.queue.expire(letter, receipt, max(0.0, until - self.world.scheduler.now))

    # Steps, and what they meet.

    def enqueues_as(self, message: Message[None]) -> str:
        """Whose steps those of a message are."""
        assert message
        return self.name

    def lossy(self, op: str) -> str:
        """The step by its name, at which the queue may lose the message of a job that is durable."""
        return f"{op} durable" if self.name in self.world.durable else op

    def meet(self, op: str) -> Fault | None:
        """Come to a step: time goes on, and what can happen before it happens."""
        world = self.world
        world.scheduler.now += _STEP_SECONDS
        fault = world.faults.meet(self.name, op)
        if world.faults.steps > world.most_steps:
            raise Violation("L0 it does not come to an end")
        if world.tracing:
            world.say(self, op if fault is None else f"{op}: {fault}")
        if fault is None:
            return None
        if fault.kind is Kind.PAUSE_BEFORE:
            self.hold(fault.size)
        elif fault.kind is Kind.STEP:
            world.step_clock(self, fault.size)
        elif fault.kind is Kind.CRASH_BEFORE:
            raise Crash
        return fault

    def io(
        self,
        op: str,
        apply: Callable[[], _T],
        error: type[IdemError],
        late: Callable[[int], None] | None = None,
    ) -> _T:
        """One step: apply it, or what its fault makes of it."""
        fault = self.meet(op)
        if error is LedgerUnavailable and self.world.scheduler.now < self.clock.deaf_until:
            raise error("no answer")
        if fault is None or fault.kind in _BEFORE_THE_CALL:
            return apply()
        return self._fail(fault, apply, error, late)

    def _fail(
        self, fault: Fault, apply: Callable[[], _T], error: type[IdemError], late: Callable[[int], None] | None
    ) -> _T:
        match fault.kind:
            case Kind.OUTAGE:
                self.clock.deaf_until = self.world.scheduler.now + fault.size
            case Kind.LATE | Kind.CRASH_LATE if late is not None:
                self.clock.deaf_until = self.world.scheduler.now + _DEAF_SECONDS
                late(int(fault.size))
            case Kind.RETRIED:
                apply()
                return apply()
            case Kind.VANISHED:
                result = apply()
                self.world.queue.lose()
                return result
            case Kind.PAUSE_AFTER:
                result = apply()
                self.hold(fault.size)
                return result
            case Kind.LOST | Kind.CRASH_AFTER:
                apply()
        if fault.kind in {Kind.CRASH_AFTER, Kind.CRASH_LATE}:
            raise Crash
        raise error("no answer")

    def hold(self, seconds: float) -> None:
        """Let time pass for this process; what it has in hand may come to another one meanwhile."""
        if self._delivery is not None:
            letter, receipt, until = self._delivery
            left = until - self.world.scheduler.now
            if 0 <= left < seconds:
                self.world.queue.expire(letter, receipt, left)
        self.world.scheduler.hold(seconds)

    def _reach(self, point: Point) -> None:
        if self.world.points:
            fault = self.meet("point")
            assert fault is None or fault.kind is not Kind.CRASH_BEFORE, point

    # What the oracle notes.

    def tries(self, new: Record) -> None:
        """An attempt is to begin with this write, if it is applied."""
        self._tried.setdefault((new.claim_id, new.version), self.clock.most())

    def wrote(self, old: Record | None, new: Record) -> None:
        """A write of this worker was applied."""
        if self.world.tracing:
            self.world.say(self, f"wrote {new.key} {new.state} v{new.version}")
        if new.state is State.SENDING and (old is None or _begins(old, new)):
            call = self.world.calls[attempt_of(new)]
            call.tried_at = self._tried[new.claim_id, new.version]
            self._calls[provider_key(NAMESPACE, new.key, new.generation)] = call

    def asks(self, provider_keys: Sequence[str]) -> None:
        """Something of the request may leave this machine."""
        for name in provider_keys:
            if name in self._calls:
                self._calls[name].asked = True

    def heard(self, name: str, outcome: Outcome) -> Outcome:
        """An answer has come in about a provider key."""
        self.world.say(self, f"heard {type(outcome).__name__}")
        if name in self._calls:
            self._calls[name].outcome = outcome
            self._calls[name].heard_at = self.clock.most()
        return outcome


def attempt_of(record: Record) -> tuple[str, int]:
    """What tells an attempt from others: one claim may begin another one, when its first write was not heard of."""
    return record.claim_id, record.attempts


def _begins(old: Record, new: Record) -> bool:
    """Whether an attempt begins with this write, and no evidence is noted beside one."""
    return old.state is not State.SENDING or old.claim_id != new.claim_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All that a run depends on, its faults apart. `skews` has a machine each; `points` makes crash points steps.

    `batch`: the provider takes several emails in one request. `fallback`: what a second provider offers, which has what
    the first one definitely did not accept. `events`: they tell of what they have accepted. `dated`: a look-up shows
    what was accepted since an instant, and so not all when a clock is wrong by more than adapters allow.
    """

    offer: Offer
    jobs: tuple[Job, ...]
    skews: tuple[float, ...] = (0.0, 0.0)
    seed: int = 0
    gated: bool = False
    points: bool = False
    clerk: bool = True
    batch: BatchKeys | None = None
    fallback: Offer | None = None
    events: bool = False
    dated: bool = False


class World:
    """One run. `trace` is filled when asked for: a line a step, the same for the same scenario and plan."""

    def __init__(self, scenario: Scenario, faults: Faults, *, tracing: bool = False) -> None:
        self.scenario = scenario
        self.faults = faults
        self.scheduler = Scheduler(START)
        self.gated = scenario.gated
        self.points = scenario.points
        #: What all providers have accepted, in order.
        self.log: list[Acceptance] = []
        self.sides = {FIRST: AcceptingSide(FIRST, scenario.offer, self.log, scenario.batch)}
        if scenario.fallback is not None:
            self.sides[SECOND] = AcceptingSide(SECOND, scenario.fallback, self.log)
        self.policies = {
            name: Policy(lease_seconds=LEASE, http_timeout_seconds=HTTP, window_seconds=side.offer.window_seconds)
            for name, side in self.sides.items()
        }
        self.policy = self.policies[FIRST]
        self.searchable = any(side.offer is Offer.SEARCHABLE for side in self.sides.values())
        self.table = Table(self._applied)
        self.queue = Queue(self)
        self.calls: dict[tuple[str, int], Call] = {}
        #: The same by key, in order.
        self.attempts: defaultdict[str, list[Call]] = defaultdict(list)
        #: The key and the generation that a derived key is for.
        self.derived: dict[str, tuple[str, int]] = {}
        self.known: set[str] = set()
        #: Schedules that a scheduler has joined.
        self.begun: set[str] = set()
        #: Producers and schedulers that have something to enqueue yet.
        self.producing = 0
        self.missed: set[str] = set()
        self._jobs = {job.name: job for job in scenario.jobs}
        self.durable = {job.name for job in scenario.jobs if job.durable}
        #: Keys that somebody wants to call back, and of which somebody was told that they are; those opened again.
        self.called: set[str] = set()
        self.called_back: set[str] = set()
        self.mended: set[str] = set()
        self.trace: list[str] = []
        self.keys: dict[str, str] = {}
        #: For how many thirds of a lease the job of a key builds.
        self.long: dict[str, int] = {}
        self.tracing = tracing
        self.most_steps = _MOST_STEPS * len(scenario.jobs)
        #: When each email was asked for, by its name, and when each key ended: for the last time, if it was opened
        #: again, and not by a write that arrived when all was over. True times.
        self.asked: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self._at_rest = False
        self._skews = min(scenario.skews), max(scenario.skews)
        self._chance = random.Random(scenario.seed)
        self.jitter = self._chance.random
        self._ids = count(1)
        self._built = count(1)
        self.pause_seconds = _SEARCH_SECONDS if self.searchable else _RECONCILE_SECONDS
        self._assigning = False
        self._quiet = 0.0
        self._writes_seen = -1
        self._messages: dict[tuple[str, bool], Message[None]] = {}
        #: What each list was split into, which never changes.
        self._parts: dict[str, list[str]] = {}
        self.functions: dict[str, JobFunction] = {"build": self._build}
        self.workers = [Worker(self, number, skew) for number, skew in enumerate(scenario.skews, 1)]
        self.free = list(self.workers)

    def run(self) -> None:
        """Until everything rests, and again after what was late to the last has arrived. Raises `Violation`."""
        for job in self.scenario.jobs:
            self._announce(job)
        if self.scenario.clerk:
            self.later(self.pause_seconds, self._reconcile)
        with self._reading_once(), patch.object(uuid, "uuid4", self._message_id):
            self.scheduler.run()
            self._at_rest = True
            self.table.arrive()
            if self.scenario.clerk:
                self._reconcile()
                self.scheduler.run()

    @contextmanager
    def _reading_once(self) -> Iterator[None]:
        """What is the same bytes is the same emails, so it is read once; unless how to read is what is wrong."""
        if vars(actors)["read_message"] is not read_message:
            yield
            return
        asked: dict[tuple[bytes, str], Asked] = {}

        def read(payload: Mapping[str, Any], message_id: str) -> Asked:
            name = msgspec.json.encode(payload), "" if "key" in payload else message_id
            found = asked.get(name)
            return asked.setdefault(name, read_message(payload, message_id)) if found is None else found

        with (
            patch.object(actors, "read_message", _once(read)),
            patch.object(send, "intent_of", _once(send.intent_of)),
            patch.object(bulk, "decode", cache(bulk.decode)),
        ):
            yield

    def _message_id(self) -> str:
        return f"m{next(self._ids)}"

    def new_id(self) -> str:
        """A claim id."""
        return f"c{next(self._ids)}"

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Let it happen after so many true seconds."""
        self.scheduler.at(self.scheduler.now + seconds, action)

    def say(self, worker: Worker, what: str) -> None:
        """Write into the trace."""
        if self.tracing:
            at = self.scheduler.now - START
            self.trace.append(f"{at:12.3f} machine {worker.number} {worker.name}: {what}")

    def step_clock(self, worker: Worker, seconds: float) -> None:
        """Somebody sets a machine's wall clock."""
        skew = worker.clock.skew = worker.clock.skew + seconds
        worker.clock.set_forward += max(0.0, seconds)
        self._skews = min(skew, self._skews[0]), max(skew, self._skews[1])

    @property
    def spread_seconds(self) -> float:
        """By how much two clocks have differed at the most."""
        return self._skews[1] - self._skews[0]

    # What is asked for.

    def _announce(self, job: Job) -> None:
        if job.unknown_until:
            self.later(job.unknown_until, lambda: self.functions.update(late=self._build))
        for number, seconds in enumerate(job.copies):
            self._let(seconds, partial(self._produce, job, number))
        if job.cancelled is not None:
            self._let(job.cancelled, partial(self._call_back, job))
        if job.mended is not None:
            self._let(job.mended, partial(self._mend, job))

    def _let(self, seconds: float, produce: Callable[[], None]) -> None:
        """Let somebody from outside do something then, which is not over before."""

        def act() -> None:
            produce()
            self.producing -= 1

        self.producing += 1
        self.later(seconds, act)

    def _produce(self, job: Job, number: int) -> None:
        message = self._message(job, number)
        if job.durable:
            self._write_down(job, message)
        else:
            self._enqueue(job, message)

    def _enqueue(self, job: Job, message: Message[None]) -> None:
        """A producer: what it is not sure of, it enqueues again."""
        for _ in range(10):
            fault = self.faults.meet(job.name, "enqueue")
            if fault is None or fault.kind is Kind.LOST:
                self.queue.put(message, job.name)
            if fault is None:
                return

    def _write_down(self, job: Job, message: Message[None]) -> None:
        """A producer that has its job in the ledger first."""
        self._insist(job.name, lambda app: app.ask(message, Timing(), durable=True))

    def _call_back(self, job: Job) -> None:
        """Somebody calls a job back, and is told whether it was too late."""
        self.called.add(job.key)
        with suppress(JobError):
            self._insist(f"{job.name}/cancel", lambda app: app.cancel(job.key))
            self.called_back.add(job.key)

    def _mend(self, job: Job) -> None:
        """Somebody opens what was rejected again, if it was by then, and enqueues it as it should have been."""

        def reopen(app: App) -> None:
            record = app.ledger.read(job.key)
            if record is not None and record.state is State.REJECTED:
                self.mended.add(job.key)
                app.ledger.resolve(record, Resolution.REOPEN, by="by somebody")

        self._insist(f"{job.name}/reopen", reopen)
        if job.key in self.mended:
            self._enqueue(job, self._job_message(replace(job, invalid=False), other=False))

    def _insist(self, name: str, act: Callable[[App], None]) -> None:
        """Somebody who begins again when told of an error, or dead."""
        process = Worker(self, 0, 0.0)
        process.name = name
        for _ in range(100):
            try:
                act(process.app)
            except LedgerUnavailable:
                process.hold(20.0)
            except Crash:
                process.start()
            else:
                return
        raise Violation(f"L0 {name}: the ledger never answered")

    def _message(self, job: Job, number: int) -> Message[None]:
        """A copy of what asks for a job; the second one of a conflict is about another email."""
        name = job.name, job.conflict and number > 0
        if name not in self._messages:
            self._messages[name] = self._bulk_message(job) if job.bulk else self._job_message(job, other=name[1])
        return self._messages[name]

    def _bulk_message(self, job: Job) -> Message[None]:
        names = [f"{job.name}/{n}" for n in range(1, job.bulk + 1)]
        self._ask({name: name for name in names})
        emails = [self.email(job, name, "text") for name in names]
        message = part_message(next(cut(job.name, emails, expires_at=job.expires_at)))
        return changed(message, message_timestamp=self._timestamp())

    def _job_message(self, job: Job, *, other: bool) -> Message[None]:
        key = job.name if job.keyed else None
        if job.emails is None:
            email = self.email(job, job.name, "other" if other else "text")
            message = email_message(email, key, job.choice, job.expires_at)[0]
        else:
            name = "late" if job.unknown_until else "build"
            arguments = [job.name, job.emails]
            message = job_message(name, arguments, {}, key, job.choice, expires_at=job.expires_at)[0]
        kwargs = (
            message.kwargs if job.keyed else {name: value for name, value in message.kwargs.items() if name != "key"}
        )
        message_id = f"message-{job.name}"
        members = [f"/{n}" for n in range(1, job.emails + 1)] if job.emails is not None and job.emails > 1 else [""]
        self._ask({f"{job.name}{member}": f"{job.key}{member}" for member in members})
        self.long[job.key] = job.long
        return changed(message, kwargs=kwargs, message_id=message_id, message_timestamp=self._timestamp())

    def _timestamp(self) -> int:
        return int(self.scheduler.now * 1000)

    def _ask(self, keys: Mapping[str, str]) -> None:
        self.keys |= keys
        for name in keys:
            self.asked.setdefault(name, self.scheduler.now)

    def email(self, job: Job, name: str, text: str) -> Email:
        """One email of a job."""
        return Email(from_="shop@example.com", to="ann@example.com", subject=job.subject(name), text=text)

    def _build(self, name: str, emails: int) -> list[Email] | Email | None:
        """A function that never builds the same twice."""
        texts = [f"built {next(self._built)}" for _ in range(emails)]
        job = self._jobs[name]
        if emails > 1:
            return [self.email(job, f"{name}/{number}", text) for number, text in enumerate(texts, 1)]
        return self.email(job, name, texts[0]) if emails else None

    # Who does it.

    def dispatch(self) -> None:
        """Something is ready, or somebody free."""
        if self.free and self.queue.has_ready and not self._assigning:
            self._assigning = True
            self.scheduler.at(self.scheduler.now, self._assign)

    def _assign(self) -> None:
        self._assigning = False
        letter = self.queue.take() if self.free else None
        if letter is not None:
            worker = self._any_free()
            if len(self.free) > 1:
                self.dispatch()
            worker.deliver(letter)

    def _any_free(self) -> Worker:
        return self.free[int(self._chance.random() * len(self.free))]

    def _reconcile(self) -> None:
        if self._is_through():
            return
        self.later(self.pause_seconds, self._reconcile)
        if self.free:
            self._any_free().reconcile()

    def _is_through(self) -> bool:
        """Whether nothing can change any more: all ended, or the reconcilers have long found nothing to do."""
        if self.producing or self.queue.letters or len(self.free) < len(self.workers):
            self._quiet = 0.0
            return False
        if all(self._rests(record) for record in self.table.records()):
            return True
        self._quiet = self._quiet + self.pause_seconds if self.table.writes == self._writes_seen else 0.0
        self._writes_seen = self.table.writes
        return self._quiet > _QUIET_SECONDS

    def _rests(self, record: Record) -> bool:
        searchable = self.sides[record.provider].offer is Offer.SEARCHABLE
        hopeful = searchable or record.in_doubt in {InDoubt.RESEND, InDoubt.DROP}
        return record.ended and not (record.state is State.IN_DOUBT and hopeful)

    # What is looked at while it happens.

    def _applied(self, old: Record | None, new: Record) -> None:
        if old is not None and old.state in _FINAL and new.state is not old.state and not self._is_mended(old):
            raise Violation(f"L0 {new.key}: {old.state} became {new.state}")
        if new.state is State.SENDING:
            name = attempt_of(new)
            if name not in self.calls:
                call = self.calls[name] = Call(new.key, new.claim_id, new.updated_at, new.provider)
                self.attempts[new.key].append(call)
                self.derived[provider_key(NAMESPACE, new.key, new.generation)] = new.key, new.generation
        elif old is not None and old.state is State.SENDING and new.claim_id == old.claim_id:
            self.calls[attempt_of(old)].recorded = True
        if new.ended and not self._at_rest and (old is None or not old.ended):
            self.ended[new.key] = self.scheduler.now
        if old is not None and len(new.evidence) > len(old.evidence):
            self._noted(new.key, new.evidence[-1])

    def _is_mended(self, record: Record) -> bool:
        return record.state is State.REJECTED and record.key in self.mended

    def _noted(self, key: str, evidence: Evidence) -> None:
        """An acceptance that a lost claim has brought, the choice to send again, or that it is known not to be sent."""
        for call in self.attempts[key]:
            call.recorded |= evidence.kind == ACCEPTANCE and evidence.claim_id == call.claim_id
            call.waived |= evidence.kind in {Resolution.RESEND, Resolution.NOT_SENT}

    def check_answered(self, call: Call) -> None:
        """A ledger that answers is told of the attempt by who made it, unless somebody else has taken over."""
        record = self.table.read(call.key)
        if record is not None and record.state is State.SENDING and record.claim_id == call.claim_id:
            raise Violation(f"Q {call.key}: its claim is held by nobody")
        if isinstance(call.outcome, Accepted):
            self.known.add(call.key)

    def check_acknowledged(self, letter: Letter) -> None:
        """A: what is acknowledged has ended, durably, and what it split into is in the queue or has a record."""
        for key in letter.keys:
            self._check_ended(key)

    def _check_ended(self, key: str) -> None:
        record = self.table.read(key)
        if record is None or not (record.ended or _is_reopened(record)):
            raise Violation(f"A {key}: acknowledged while {record.state if record else 'absent'}")
        if record.state is State.SPLIT:
            if key not in self._parts:
                self._parts[key] = [part.key for part in parts_of(record)]
            for part in self._parts[key]:
                if self.table.read(part) is None and not self.queue.holds(part):
                    raise Violation(f"A {part}: nobody has it, and the list it belongs to is acknowledged")


def _once(function: Callable[..., _T]) -> Callable[..., _T]:
    """What it says about one and the same object, which never changes, it is asked once."""
    said: dict[int, tuple[object, _T]] = {}

    def ask(thing: object, *others: object) -> _T:
        found = said.get(id(thing))
        if found is None:
            # The object is kept, or another one could come to have its name.
            found = said[id(thing)] = thing, function(thing, *others)
        return found[1]

    return ask


def _is_reopened(record: Record) -> bool:
    """Whether it had ended, and goes on by another message: an acknowledgement of the former one may come late."""
    return any(item.kind in _REOPENS for item in record.evidence)


_REOPENS = {Resolution.NOT_SENT, Resolution.RESEND, Resolution.REOPEN}
_FINAL = {State.SENT, State.REJECTED, State.SPLIT}
