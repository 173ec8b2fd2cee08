"""What can go wrong at an I/O step, and where: a plan, or chance that writes down what it did as one."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")


class Kind(StrEnum):
    """One fault. The three positions of a step are BEFORE, LOST and LATE; CRASH_* are the same, in a dying process."""

    BEFORE = "not applied, no answer"
    LOST = "applied, answer lost"
    LATE = "no answer, applied later"
    RETRIED = "applied, and written again by the driver"
    OUTAGE = "the store does not answer for a while"
    CRASH_BEFORE = "crash, not applied"
    CRASH_AFTER = "crash, applied"
    CRASH_LATE = "crash, applied later"
    PAUSE_BEFORE = "stopped before it"
    PAUSE_AFTER = "stopped after it"
    STEP = "the clock is set"
    NOT_SENT = "connection refused"
    LIMITED = "429"
    GATE = "403"
    BUSY = "409, a request under the key is running"
    FAILED = "500, not applied"
    MISSED = "an email is not shown"
    VANISHED = "applied, and lost by the queue"


@dataclass(frozen=True, slots=True)
class Fault:
    """`size`: seconds of a pause, an outage, a clock step and of a late request; of a late write, the transitions."""

    kind: Kind
    size: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind} ({self.size:g})" if self.size else str(self.kind)


class Spot(NamedTuple):
    """The n-th step of one job, or of another actor."""

    name: str
    number: int


Plan = Mapping[Spot, Fault]

_CRASHES = (Kind.CRASH_BEFORE, Kind.CRASH_AFTER)
_PAUSES = (Kind.PAUSE_BEFORE, Kind.PAUSE_AFTER, Kind.STEP)
#: What can happen at which step.
KINDS: Mapping[str, tuple[Kind, ...]] = {
    "enqueue": (Kind.BEFORE, Kind.LOST),
    "enqueue durable": (Kind.BEFORE, Kind.LOST, Kind.VANISHED, *_CRASHES),
    "cell": (Kind.BEFORE, Kind.LOST, *_CRASHES, *_PAUSES),
    "point": (Kind.CRASH_BEFORE, Kind.PAUSE_BEFORE),
    "swap": (
        Kind.BEFORE, Kind.LOST, Kind.LATE, Kind.RETRIED, Kind.OUTAGE, Kind.CRASH_LATE, *_CRASHES, *_PAUSES,
    ),
    "read": (Kind.BEFORE, Kind.OUTAGE, *_CRASHES, *_PAUSES),
    "asked": (Kind.BEFORE, Kind.CRASH_BEFORE),
    "list": (Kind.BEFORE, Kind.CRASH_BEFORE),
    "send": (
        Kind.BEFORE, Kind.LOST, Kind.LATE, Kind.CRASH_LATE, Kind.NOT_SENT, Kind.LIMITED, Kind.GATE, Kind.BUSY,
        Kind.FAILED, *_CRASHES, *_PAUSES,
    ),
    "find": (Kind.BEFORE, Kind.MISSED, Kind.CRASH_BEFORE, Kind.PAUSE_AFTER),
    "dispose": (Kind.BEFORE, Kind.LOST, *_CRASHES, *_PAUSES),
    "dispose durable": (Kind.BEFORE, Kind.LOST, Kind.VANISHED, *_CRASHES, *_PAUSES),
}  # fmt: skip
TRANSITIONS = (1, 2, 3, 4, 5)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long things take: pauses (past what?), outages, late requests, clock steps; seconds, one is drawn."""

    pauses: tuple[float, ...] = (0.01, 1.0, 30.0, 70.0, 100.0, 400.0)
    outages: tuple[float, ...] = (0.2, 1.0, 5.0, 70.0)
    late: tuple[float, ...] = (0.5, 5.0, 39.0)
    steps: tuple[float, ...] = (-5.0, 1.0, 5.0)

    def of(self, kind: Kind, op: str) -> tuple[float, ...]:
        """Those that a fault of this kind can have at such a step."""
        match kind:
            case Kind.LATE | Kind.CRASH_LATE:
                return self.late if op == "send" else TRANSITIONS
            case Kind.PAUSE_BEFORE | Kind.PAUSE_AFTER:
                return self.pauses
            case Kind.OUTAGE:
                return self.outages
            case Kind.STEP:
                return self.steps
        return (0.0,)


class Faults:
    """By plan: what it says and nothing else. `done` is what happened, as a plan; `steps` counts what was met."""

    def __init__(self, plan: Plan) -> None:
        self.done: dict[Spot, Fault] = {}
        self.steps = 0
        self._plan = plan
        self._counts: dict[str, int] = {}

    def meet(self, name: str, op: str) -> Fault | None:
        """Count a step of `name`; the fault that it meets."""
        self.steps += 1
        number = self._counts.get(name, 0)
        self._counts[name] = number + 1
        fault = self._decide(name, number, op)
        if fault is not None:
            self.done[Spot(name, number)] = fault
        return fault

    def _decide(self, name: str, number: int, op: str) -> Fault | None:
        fault = self._plan.get(Spot(name, number))
        # In a plan that was made smaller, another step may stand there.
        return fault if fault is not None and fault.kind in KINDS[op] else None


class Noted(Faults):
    """By plan, and `met` are all steps, in order."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.met: list[tuple[Spot, str]] = []

    def _decide(self, name: str, number: int, op: str) -> Fault | None:
        self.met.append((Spot(name, number), op))
        return super()._decide(name, number, op)


#: How often chance has a fault at a step, if there is to be one yet: most often where an email may go out.
_RATES: Mapping[str, float] = {"send": 0.7, "find": 0.7, "swap": 0.4, "read": 0.4}
_OTHER_RATE = 0.2


#: How many faults a name meets, if it lives to: three, and one name in so many some more.
_USUAL_QUOTA, _LARGE_QUOTA = 3, 12
_ONE_IN = 30


class Chance(Faults):
    """By chance: each name meets three faults, some many more, early rather than late."""

    def __init__(self, seed: int, sizes: Sizes) -> None:
        super().__init__({})
        self._sizes = sizes
        self._chance = random.Random(f"faults of {seed}")
        #: Of each name how many steps there were, and how many faults it is to meet yet.
        self._names: dict[str, list[int]] = {}

    def meet(self, name: str, op: str) -> Fault | None:
        self.steps += 1
        known = self._names.get(name)
        if known is None:
            large = self._chance.random() * _ONE_IN < 1
            known = self._names[name] = [0, _LARGE_QUOTA if large else _USUAL_QUOTA]
        number, left = known
        known[0] = number + 1
        if not left or self._chance.random() >= _RATES.get(op, _OTHER_RATE):
            return None
        known[1] = left - 1
        kind = self._one_of(KINDS[op])
        fault = self.done[Spot(name, number)] = Fault(kind, self._one_of(self._sizes.of(kind, op)))
        return fault

    def _one_of(self, choices: Sequence[_T]) -> _T:
        """As `Random.choice`, in a third of the time."""
        return choices[int(self._chance.random() * len(choices))]
