"""Every interleaving of two workers on one key, over the real functions of `idem.protocol`.

An explicit-state search: claims, crashes, lost answers, requests that arrive late, pauses anywhere, leases, windows and
clocks that disagree, in ticks of a small clock. It must find nothing wrong; with any rule taken away, it must.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from idem import protocol
from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.policy import Policy
from idem.protocol import CLAIM, EVIDENCE, SETTLE, Close, Doubt, Intent, Move, Record, Rules, Standing, State, Verdict

LEASE, HTTP, WINDOW = 2, 1, 10
#: A delayed request arrives within so many ticks, or never.
DELAY = 2
NOW = 1_000.0
KEYED = Policy(lease_seconds=LEASE, http_timeout_seconds=HTTP, window_seconds=WINDOW, backoff_seconds=1)
KEYLESS = dataclasses.replace(KEYED, window_seconds=None)
HASTY = dataclasses.replace(KEYED, give_up_seconds=3)
#: Ages at which a repetition is still allowed, by the real margin: 0..3.
OPEN = 4
ENDED = (State.SENT, State.REJECTED, State.IN_DOUBT, State.EXPIRED, State.CANCELLED)
UNSENT = (State.REJECTED, State.RETRY, State.EXPIRED, State.CANCELLED)


class Pc(Enum):
    """Where a worker is."""

    IDLE = auto()
    RENDERING = auto()
    CLAIMED = auto()
    CHECKED = auto()
    GOT = auto()


class Worker(NamedTuple):
    """One worker; `left` is the lease it still counts on, then what its request's deadline leaves."""

    pc: Pc
    claim_id: str = ""
    left: int = 0
    outcome: int = 0


class World(NamedTuple):
    """Everything that decides what can happen next. Times are ticks relative to now."""

    record: int
    """Its number among the records met, 0 for none."""
    accepted: int
    memory: int
    """Ticks until the provider forgets the key, 0 when it does not know it."""
    late: tuple[int, ...]
    """For each request still on its way, how much longer it may arrive."""
    since: int
    """Age of the first attempt that is not known to have failed, -1 without one."""
    workers: tuple[Worker, Worker]


#: As unique as they must be: one is used again only when nobody has it any more.
_CLAIM_IDS = ("c1", "c2", "c3", "c4")

OUTCOMES: tuple[Outcome, ...] = (
    Accepted("m"),
    Unknown("no answer"),
    NotSent("try again"),
    Rejected("not now", Ground.GATE),
    Rejected("invalid"),
)
ACCEPTED, UNKNOWN, NOT_SENT, REFUSED, INVALID = range(5)
NAMES = ("accepted", "unknown", "not sent", "refused before the key", "invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is searched; the last two are rules of the worker's that a test can take away.

    `pending`: a producer wrote the key down first, so that it may begin for `expires` ticks. `cancels`: somebody calls
    it back at any time.
    """

    policy: Policy = KEYED
    valid: bool = True
    job: str | None = None
    attempts: int = 4
    skew: int = 0
    pending: bool = False
    expires: int | None = None
    cancels: bool = False
    lease_check: bool = True
    deadline_from_check: bool = True

    @property
    def keyed(self) -> bool:
        return self.policy.window_seconds is not None


class Wrong(Exception):
    """A property does not hold."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to: `problem` is None when everything held."""

    states: int
    problem: str | None = None
    trace: tuple[str, ...] = ()


class Search:
    """Breadth first, so that the trace of a finding is a shortest one."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._rules = Rules(setting.policy, "p")
        self._intent = Intent("k", fingerprint=None if setting.job else "f", job=setting.job)
        # How long it matters when a record was made: until its jobs give up.
        self._creation_counts = setting.policy.give_up_seconds if setting.policy.give_up_seconds < WINDOW else 0.0
        self._records: list[Record | None] = [None]
        self._numbers: dict[Record, int] = {}
        self._memo: dict[tuple[Any, ...], Any] = {}

    def run(self) -> Found:
        start = World(self._asked(), 0, 0, (), -1, (Worker(Pc.IDLE), Worker(Pc.IDLE)))
        back: dict[World, tuple[World, str] | None] = {start: None}
        before: dict[World, list[World]] = {}
        queue = deque([start])
        while queue:
            world = queue.popleft()
            try:
                for label, following in self._steps(world):
                    self._check(world, following, label)
                    before.setdefault(following, []).append(world)
                    if following not in back:
                        back[following] = (world, label)
                        queue.append(following)
            except Wrong as wrong:
                return Found(len(back), str(wrong.args[0]), (*_trace(back, world), str(wrong.args[1])))
        stuck = self._stuck(before, back)
        if stuck is not None:
            return Found(len(back), "no end can be reached", _trace(back, stuck))
        return Found(len(back))

    # What can happen.

    def _steps(self, world: World) -> Iterator[tuple[str, World]]:
        yield "a tick", self._tick(world)
        for index in range(len(world.late)):
            rest = world.late[:index] + world.late[index + 1 :]
            yield "a late request arrives", self._arrive(world._replace(late=rest))
        for index, worker in enumerate(world.workers):
            for label, following in self._worker_steps(world, index, worker):
                yield f"worker {index} {label}", following
        cancelled = self._cancelled(world.record) if self._setting.cancels else None
        if cancelled is not None:
            yield "somebody cancels", world._replace(record=cancelled)

    def _worker_steps(self, world: World, index: int, worker: Worker) -> Iterator[tuple[str, World]]:
        if worker.pc is Pc.IDLE:
            yield from self._claim(world, index)
            return
        yield "crashes", _put(world, index, Worker(Pc.IDLE))
        if worker.pc is Pc.RENDERING:
            yield from self._render(world, index, worker)
        elif worker.pc is Pc.CLAIMED:
            if not self._setting.lease_check or worker.left > HTTP:
                yield "checks its lease", _put(world, index, worker._replace(pc=Pc.CHECKED, left=HTTP))
            else:
                yield "has too little lease", _put(world, index, worker._replace(pc=Pc.GOT, outcome=NOT_SENT))
        elif worker.pc is Pc.CHECKED:
            yield from self._call(world, index, worker)
        else:
            yield from self._settle(world, index, worker)

    def _claim(self, world: World, index: int) -> Iterator[tuple[str, World]]:
        held = {worker.claim_id for worker in world.workers} | {self._claim_id(world.record)}
        number = self._take(world.record, index, next(name for name in _CLAIM_IDS if name not in held))
        if number is None:
            return
        record = self._record(number)
        if record.state is State.RENDERING:
            yield "claims to render", _put(world, index, Worker(Pc.RENDERING, record.claim_id, LEASE), number)
        elif record.state is State.SENDING:
            following = _put(world, index, Worker(Pc.CLAIMED, record.claim_id, LEASE), number)
            yield "claims", following._replace(since=max(world.since, 0))
        else:
            yield f"closes as {record.state}", _put(world, index, Worker(Pc.IDLE), number)

    def _render(self, world: World, index: int, worker: Worker) -> Iterator[tuple[str, World]]:
        if self._holds(world, worker):
            frozen = self._freeze(world.record, index)
            following = _put(world, index, Worker(Pc.CLAIMED, worker.claim_id, LEASE), frozen)
            # Too late to begin, it ends instead.
            if self._record(frozen).state is State.EXPIRED:
                following = _put(world, index, Worker(Pc.IDLE), frozen)
            else:
                following = following._replace(since=max(world.since, 0))
            yield "freezes", following
            renewed = self._renewed(world.record, index)
            yield "renews its claim", _put(world, index, worker._replace(left=LEASE), renewed)
            for outcome in (NOT_SENT, INVALID):
                yield f"cannot build: {NAMES[outcome]}", _put(world, index, worker._replace(pc=Pc.GOT, outcome=outcome))
        else:
            yield "lost its claim", _put(world, index, Worker(Pc.IDLE))

    def _call(self, world: World, index: int, worker: Worker) -> Iterator[tuple[str, World]]:
        def got(outcome: int, following: World = world) -> tuple[str, World]:
            pc = worker._replace(pc=Pc.GOT, left=0, outcome=outcome)
            return f"gets {NAMES[outcome]}", _put(following, index, pc)

        yield got(NOT_SENT)
        if worker.left <= 0 and self._setting.deadline_from_check and self._setting.lease_check:
            return
        yield got(REFUSED)
        yield got(UNKNOWN)
        if len(world.late) < 2:
            label, following = got(UNKNOWN, world._replace(late=tuple(sorted((*world.late, DELAY)))))
            yield f"{label}, its request is late", following
        if not self._setting.valid:
            yield got(INVALID)
            return
        arrived = self._arrive(world)
        yield got(ACCEPTED, arrived)
        label, following = got(UNKNOWN, arrived)
        yield f"{label}, but was accepted", following
        yield "crashes, but was accepted", _put(arrived, index, Worker(Pc.IDLE))

    def _settle(self, world: World, index: int, worker: Worker) -> Iterator[tuple[str, World]]:
        if self._holds(world, worker):
            number = self._settled(world.record, index, worker.outcome)
            following = _put(world, index, Worker(Pc.IDLE), number)
            since = -1 if self._record(number).state is State.RETRY else world.since
            yield f"settles {NAMES[worker.outcome]}", following._replace(since=since)
        elif worker.outcome == ACCEPTED:
            number = self._testified(world.record, index, worker.claim_id)
            if not self._record(number).evidence:
                raise Wrong("an acceptance is not noted", "brings its acceptance as evidence")
            yield "brings its acceptance as evidence", _put(world, index, Worker(Pc.IDLE), number)
        else:
            yield "lost its claim", _put(world, index, Worker(Pc.IDLE))

    def _arrive(self, world: World) -> World:
        """A request reaches the provider, which accepts it unless it knows the key."""
        if not self._setting.valid or world.memory:
            return world
        return world._replace(accepted=min(world.accepted + 1, 2), memory=WINDOW if self._setting.keyed else 0)

    def _tick(self, world: World) -> World:
        workers = tuple(worker._replace(left=max(worker.left - 1, 0)) for worker in world.workers)
        return world._replace(
            record=self._older(world.record),
            memory=max(world.memory - 1, 0),
            late=tuple(left - 1 for left in world.late if left > 1),
            since=min(world.since + 1, OPEN) if world.since >= 0 else -1,
            workers=(workers[0], workers[1]),
        )

    # What the protocol makes of it: each asked once for each record, at that worker's own time.

    def _remember(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def _now(self, index: int) -> float:
        return NOW + self._setting.skew * index

    def _take(self, number: int, index: int, claim_id: str) -> int | None:
        def compute() -> int | None:
            stored = self._records[number]
            decision = protocol.claim(stored, self._intent, now=self._now(index), claim_id=claim_id, rules=self._rules)
            if isinstance(decision, protocol.Wait) and decision.until <= self._now(index):
                raise Wrong("a wait that is over already", "a claim")
            if not isinstance(decision, protocol.Take | Close) or decision.record.attempts > self._setting.attempts:
                return None
            return self._number(stored, decision.record)

        result: int | None = self._remember(("claim", number, index, claim_id), compute)
        return result

    def _asked(self) -> int:
        """The record to start from."""
        if not self._setting.pending:
            return 0
        expires_at = None if self._setting.expires is None else NOW + self._setting.expires
        intent = replace(self._intent, expires_at=expires_at)
        return self._number(None, protocol.ask(intent, now=NOW, claim_id="c0", rules=self._rules))

    def _cancelled(self, number: int) -> int | None:
        def compute() -> int | None:
            stored = self._records[number]
            cancelled = protocol.cancel(stored, "k", claim_id="c0", by="me", now=NOW, rules=self._rules)
            return None if cancelled is None else self._number(stored, cancelled)

        result: int | None = self._remember(("cancel", number), compute)
        return result

    def _freeze(self, number: int, index: int) -> int:
        def compute() -> int:
            stored = self._record(number)
            frozen = protocol.freeze(stored, b"body", "f", now=self._now(index), policy=self._setting.policy)
            return self._number(stored, frozen)

        result: int = self._remember(("freeze", number, index), compute)
        return result

    def _renewed(self, number: int, index: int) -> int:
        def compute() -> int:
            stored = self._record(number)
            return self._number(stored, protocol.renew(stored, now=self._now(index), policy=self._setting.policy))

        result: int = self._remember(("renew", number, index), compute)
        return result

    def _settled(self, number: int, index: int, outcome: int) -> int:
        def compute() -> int:
            stored = self._record(number)
            settled = protocol.settle(
                stored, OUTCOMES[outcome], now=self._now(index), policy=self._setting.policy, jitter=1.0
            )
            return self._number(stored, settled)

        result: int = self._remember(("settle", number, index, outcome), compute)
        return result

    def _testified(self, number: int, index: int, claim_id: str) -> int:
        def compute() -> int:
            stored = self._record(number)
            testified = protocol.testify(
                stored, Accepted("m"), claim_id=claim_id, now=self._now(index), rules=self._rules, detail=None
            )
            return self._number(stored, testified)

        result: int = self._remember(("testify", number, index, claim_id), compute)
        return result

    def _holds(self, world: World, worker: Worker) -> bool:
        stored = self._records[world.record]
        return stored is not None and protocol.holds(stored, worker.claim_id)

    def _older(self, number: int) -> int:
        def compute() -> int:
            stored = self._records[number]
            if stored is None:
                return 0
            times = (
                "created_at", "opened_at", "started_at", "lease_until", "ready_at", "unsure_since", "expires_at",
            )  # fmt: skip
            earlier = {name: getattr(stored, name) - 1 for name in times if getattr(stored, name) is not None}
            return self._intern(replace(stored, **earlier))

        result: int = self._remember(("tick", number), compute)
        return result

    def _number(self, old: Record | None, new: Record) -> int:
        """Number what a transition gave, which must be one version on."""
        if new.version != (0 if old is None else old.version) + 1:
            raise Wrong("a transition that does not raise the version by one", "a transition")
        return self._intern(new)

    def _intern(self, record: Record) -> int:
        """One number for all records that nothing can tell apart from now on."""

        def near(at: float, past: float) -> float:
            return max(at, NOW - past)

        def near_if(at: float | None, past: float) -> float | None:
            return None if at is None else near(at, past)

        live = record.state in {State.RENDERING, State.SENDING}
        like = replace(
            record,
            version=1,
            claim_id=record.claim_id if live else "",
            created_at=near(record.created_at, self._creation_counts),
            opened_at=near_if(record.opened_at, self._creation_counts),
            expires_at=near_if(record.expires_at, 1 + abs(self._setting.skew)),
            updated_at=NOW,
            started_at=near_if(record.started_at, OPEN + 2),
            lease_until=near_if(record.lease_until, 2),
            ready_at=near_if(record.ready_at, 2),
            unsure_since=near_if(record.unsure_since, OPEN + 2),
            message_id=None,
            reason=None,
            history=(),
            evidence=tuple(
                replace(item, at=0, claim_id=None) for item in record.evidence if item.kind == protocol.ACCEPTANCE
            )[:1],
        )
        if like not in self._numbers:
            self._numbers[like] = len(self._records)
            self._records.append(like)
        return self._numbers[like]

    def _claim_id(self, number: int) -> str:
        stored = self._records[number]
        return "" if stored is None else stored.claim_id

    def _record(self, number: int) -> Record:
        stored = self._records[number]
        assert stored is not None
        return stored

    # What must hold.

    def _check(self, old: World, new: World, label: str) -> None:
        if new.accepted > 1:
            raise Wrong("accepted twice", label)
        if old.record == new.record and old.accepted == new.accepted:
            return
        before, record = self._records[old.record], self._records[new.record]
        final = before is not None and before.state in {State.SENT, *UNSENT} - {State.RETRY}
        if before is not None and final and (record is None or record.state is not before.state):
            raise Wrong(f"{before.state} moved", label)
        if record is None:
            return
        problem = self._problem(new, record, None if before is None else before.state)
        if problem:
            raise Wrong(problem, label)

    def _problem(self, world: World, record: Record, before: State | None) -> str | None:
        state = record.state
        if state is State.SENT and world.accepted != 1:
            return "sent, but not accepted"
        if state in UNSENT and (world.accepted or (world.late and self._setting.valid)):
            return f"{state}, although it was or may be accepted"
        if record.evidence and state not in {State.SENT, State.SENDING}:
            return f"{state}, although an acceptance is known"
        open_yet = self._setting.keyed and world.since < OPEN - abs(self._setting.skew)
        if state is State.IN_DOUBT and before is not State.IN_DOUBT and open_yet:
            return "in doubt, although the window is open"
        return None

    def _stuck(self, before: dict[World, list[World]], worlds: dict[World, Any]) -> World | None:
        """A world with attempts left from which no end can be reached, if there is one."""
        live = {world for world in worlds if self._ended(world)}
        queue = deque(live)
        while queue:
            for world in before.get(queue.popleft(), ()):
                if world not in live:
                    live.add(world)
                    queue.append(world)
        return next((world for world in worlds if world not in live and self._may_go_on(world)), None)

    def _ended(self, world: World) -> bool:
        record = self._records[world.record]
        return record is not None and record.state in ENDED

    def _may_go_on(self, world: World) -> bool:
        record = self._records[world.record]
        return record is None or record.attempts < self._setting.attempts


def _put(world: World, index: int, worker: Worker, record: int | None = None) -> World:
    workers = (worker, world.workers[1]) if index == 0 else (world.workers[0], worker)
    return world._replace(workers=workers, record=world.record if record is None else record)


def _trace(back: dict[World, tuple[World, str] | None], world: World) -> tuple[str, ...]:
    labels: list[str] = []
    step = back[world]
    while step is not None:
        world, label = step
        labels.append(label)
        step = back[world]
    return tuple(reversed(labels))


_SETTINGS = {
    "keyed": Setting(attempts=5),
    "keyed, invalid": Setting(valid=False),
    "keyed, a clock ahead": Setting(skew=1),
    "keyed, a clock behind": Setting(skew=-1),
    "keyed, rendered": Setting(job="j", attempts=3),
    "keyed, rendered, invalid": Setting(job="j", valid=False),
    "keyed, gives up": Setting(policy=HASTY, attempts=3),
    "keyed, pending": Setting(pending=True, expires=3, cancels=True),
    "keyed, pending, a clock ahead": Setting(pending=True, expires=2, cancels=True, skew=1, attempts=3),
    "keyed, pending, rendered": Setting(pending=True, expires=3, cancels=True, job="j", attempts=2),
    "keyed, pending, gives up": Setting(
        pending=True, expires=2, policy=dataclasses.replace(KEYED, give_up_seconds=3), attempts=2
    ),
    "keyless, pending": Setting(pending=True, expires=3, cancels=True, policy=KEYLESS),
    "keyless, cancelled": Setting(cancels=True, policy=KEYLESS),
    "keyless, pending, rendered": Setting(pending=True, expires=3, cancels=True, policy=KEYLESS, job="j", attempts=3),
    "keyless": Setting(policy=KEYLESS, attempts=6),
    "keyless, invalid": Setting(policy=KEYLESS, valid=False, attempts=6),
    "keyless, a clock ahead": Setting(policy=KEYLESS, skew=3),
    "keyless, a clock behind": Setting(policy=KEYLESS, skew=-3),
    "keyless, rendered": Setting(policy=KEYLESS, job="j"),
    "keyless, rendered, a clock behind": Setting(policy=KEYLESS, job="j", skew=-3),
    "keyless, gives up": Setting(policy=dataclasses.replace(KEYLESS, give_up_seconds=3)),
}


@pytest.mark.parametrize("name", _SETTINGS)
def test_every_interleaving_keeps_the_promise(name: str) -> None:
    found = Search(_SETTINGS[name]).run()
    print(f"{name}: {found.states:,} states")  # noqa: T201 - a figure to read, with -rA
    assert found.problem is None, "\n".join(found.trace)
    assert found.states > 500, "the search did not get off the ground"


def _row(table: Any, row: Any, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setitem(table, row, value)


def _function(owner: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(owner, name, value)


def _without_evidence(record: Record, _accepted: Accepted, **_: Any) -> Record:
    return replace(record, version=record.version + 1)


def _latest_start(record: Record) -> float | None:
    return record.started_at if record.started_at is not None else record.unsure_since


_take = protocol._take


def _take_anew(record: Record, intent: Intent, _move: Move, **rest: Any) -> Record:
    return _take(record, intent, Move.BEGIN, **rest)


def _expire_any(move: Move, record: Record | None, _intent: Intent, now: float) -> Move:
    late = record is not None and record.expires_at is not None and now >= record.expires_at
    return Move.EXPIRE if late and move in {Move.BEGIN, Move.REPLAY, Move.DOUBT} else move


_RULES_TAKEN_AWAY: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a takeover does not look at the window": _row(CLAIM, Standing.UNSURE_CLOSED, Move.REPLAY),
    "a takeover forgets that it is one": _row(CLAIM, Standing.UNSURE_OPEN, Move.BEGIN),
    "a takeover never replays": _row(CLAIM, Standing.UNSURE_OPEN, Move.DOUBT),
    "a live claim is taken": _row(CLAIM, Standing.SENDING_LIVE, Move.BEGIN),
    "an email in doubt is sent again": _row(CLAIM, Standing.IN_DOUBT, Move.REPLAY),
    "a sent email is sent again": _row(CLAIM, Standing.SENT, Move.BEGIN),
    "a rejected email is sent again": _row(CLAIM, Standing.REJECTED, Move.BEGIN),
    "an early record is said to be late": _row(CLAIM, Standing.UNSURE_OPEN, Move.WAIT),
    "a retry never comes": _row(CLAIM, Standing.RETRY_DUE, Move.WAIT),
    "a timeout is a failure": _row(SETTLE, (Verdict.UNKNOWN, Doubt.OPEN), State.RETRY),
    "a timeout is a failure without keys": _row(SETTLE, (Verdict.UNKNOWN, Doubt.CLOSED), State.RETRY),
    "a timeout is final": _row(SETTLE, (Verdict.UNKNOWN, Doubt.OPEN), State.REJECTED),
    "not sent forgets the doubt": _row(SETTLE, (Verdict.NOT_SENT, Doubt.OPEN), State.RETRY),
    "not sent forgets an old doubt": _row(SETTLE, (Verdict.NOT_SENT, Doubt.CLOSED), State.RETRY),
    "a refusal settles a doubt": _row(SETTLE, (Verdict.REJECTED, Doubt.OPEN), State.REJECTED),
    "a refusal settles an old doubt": _row(SETTLE, (Verdict.REJECTED, Doubt.CLOSED), State.REJECTED),
    "giving up settles a doubt": _row(SETTLE, (Verdict.NOT_SENT_GIVING_UP, Doubt.OPEN), State.REJECTED),
    "giving up settles an old doubt": _row(SETTLE, (Verdict.NOT_SENT_GIVING_UP, Doubt.CLOSED), State.REJECTED),
    "a refusal is a success": _row(SETTLE, (Verdict.REJECTED, Doubt.NONE), State.SENT),
    "a proof is forgotten at the end of an attempt": _row(SETTLE, (Verdict.NOT_SENT, Doubt.PROVED), State.UNSURE),
    "a proof is forgotten by a takeover": _row(CLAIM, Standing.UNSURE_PROVED, Move.DOUBT),
    "evidence does not end a doubt": _row(EVIDENCE, Standing.IN_DOUBT, State.IN_DOUBT),
    "evidence does not end an open doubt": _row(EVIDENCE, Standing.UNSURE_OPEN, State.UNSURE),
    "what was written down first is never begun": _row(CLAIM, Standing.PENDING, Move.WAIT),
    "an expired key is sent": _row(CLAIM, Standing.EXPIRED, Move.BEGIN),
    "a cancelled key is sent": _row(CLAIM, Standing.CANCELLED, Move.BEGIN),
    "what may have been accepted expires": _function(protocol, "_begin_in_time", _expire_any),
    "an attempt under way is cancelled": _function(protocol, "CANCEL", protocol.CANCEL | {Standing.SENDING_LIVE}),
    "an open doubt is cancelled": _function(protocol, "CANCEL", protocol.CANCEL | {Standing.UNSURE_OPEN}),
    "an old doubt is cancelled": _function(protocol, "CANCEL", protocol.CANCEL | {Standing.UNSURE_CLOSED}),
    "evidence is dropped": _function(protocol, "testify", _without_evidence),
    "a settle is not fenced": _function(protocol, "holds", lambda *_: True),
    "the window counts from the latest attempt": _function(protocol, "_unsure_since", _latest_start),
    "the window counts from the first try": _function(protocol, "_unsure_since", lambda record: record.created_at),
    "the window has no margin": _function(Policy, "margin_seconds", 0.0),
    "every provider is taken to have keys": _function(Policy, "window_open", lambda *_: True),
    "a replay is taken for a first attempt": _function(protocol, "_take", _take_anew),
}


@pytest.mark.parametrize("rule", _RULES_TAKEN_AWAY)
def test_each_rule_taken_away_is_caught(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search has teeth: without any one of the protocol's rules it finds a schedule that breaks the promise."""
    _RULES_TAKEN_AWAY[rule](monkeypatch)
    _assert_caught(rule, _SETTINGS.values())


_WORKERS_RULES_TAKEN_AWAY: dict[str, Callable[[Setting], Setting]] = {
    "no look at the lease before the call": lambda setting: dataclasses.replace(setting, lease_check=False),
    "a deadline that starts after that look": lambda setting: dataclasses.replace(setting, deadline_from_check=False),
}


@pytest.mark.parametrize("rule", _WORKERS_RULES_TAKEN_AWAY)
def test_each_rule_of_the_worker_taken_away_is_caught(rule: str) -> None:
    """A worker that was paused long enough would send a second email."""
    _assert_caught(rule, map(_WORKERS_RULES_TAKEN_AWAY[rule], _SETTINGS.values()))


def _assert_caught(rule: str, settings: Iterable[Setting]) -> None:
    # The smaller searches first: most are found in a few thousand states.
    for setting in sorted(settings, key=lambda setting: (setting.keyed, setting.job is not None, setting.attempts)):
        found = Search(setting).run()
        if found.problem is not None:
            print(f"{rule}: {found.problem}, in {len(found.trace)} steps: {'; '.join(found.trace)}")  # noqa: T201 - to read, with -rA
            assert found.trace
            return
    pytest.fail(f"nothing caught it: {rule}")
