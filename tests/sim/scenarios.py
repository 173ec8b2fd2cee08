"""What is run: the small scenarios of the exhaustive tier, and a large one for each seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

from idem.protocol import InDoubt
from idem.providers.base import BatchKeys
from tests.sim import oracle
from tests.sim.faults import KINDS, TRANSITIONS, Chance, Fault, Faults, Kind, Noted, Plan, Sizes, Spot
from tests.sim.neighbours import world_of
from tests.sim.oracle import Tally
from tests.sim.provider import WINDOW_SECONDS, Offer
from tests.sim.world import Job, Scenario, Violation

#: Pauses that outlast a provider's window, for the class that is about them.
_LATE = Sizes(pauses=(1.0, 70.0, WINDOW_SECONDS - 66_400.0, WINDOW_SECONDS - 16_400.0, WINDOW_SECONDS + 4_000.0))
_USUAL = Sizes()
#: Clocks that are off by no more differ by less than look-ups allow for, however often they are set meanwhile.
_AGREE_SECONDS = 5.0
#: What a second provider may offer: pauses that outlast its window are not what it is about.
_FALLBACKS = (Offer.KEYED, Offer.REFUSING, Offer.SEARCHABLE, Offer.NEITHER)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run came to: `problem` is None when everything held; `plan` replays it."""

    scenario: Scenario
    plan: Plan
    problem: str | None
    tally: Tally | None
    trace: tuple[str, ...] = ()

    @property
    def letter(self) -> str:
        """The invariant that did not hold."""
        return "" if self.problem is None else self.problem.split()[0]


def run(scenario: Scenario, faults: Faults, *, tracing: bool = False) -> Verdict:
    """Run a scenario and judge it. What production code raises unasked is a violation too."""
    world = world_of(scenario, faults, tracing=tracing)
    try:
        world.run()
        problem = next(oracle.problems(world), None)
    except Violation as violation:
        problem = str(violation)
    except Exception as error:
        problem = f"X {type(error).__name__}: {error}"
    tally = oracle.tally(world) if problem is None else None
    return Verdict(scenario, dict(faults.done), problem, tally, tuple(world.trace))


def of_seed(seed: int, jobs: int) -> tuple[Scenario, Chance]:
    """One of the random tier: the seed decides about everything."""
    chance = random.Random(seed)
    offer = tuple(Offer)[seed % len(Offer)]
    given = tuple(_job(chance, number, offer) for number in range(1, jobs + 1))
    skews = _skews(chance)
    scenario = Scenario(
        offer=offer,
        jobs=given,
        skews=skews,
        seed=seed,
        gated=chance.random() < 0.2,
        points=chance.random() < 0.3,
        batch=chance.choice((None, *BatchKeys)) if offer.keyed else None,
        fallback=chance.choice(_FALLBACKS) if chance.random() < 0.25 else None,
        events=not offer.keyed and chance.random() < 0.3,
        dated=max(map(abs, skews)) <= _AGREE_SECONDS,
    )
    if scenario.batch is not BatchKeys.REQUEST:
        scenario = replace(scenario, jobs=tuple(_with_one_refused(chance, job) for job in given))
    return scenario, Chance(seed, _LATE if offer is Offer.KEYED_LATE else _USUAL)


def _job(chance: random.Random, number: int, offer: Offer) -> Job:
    begins = round(chance.uniform(0, 40), 3)
    copies = [begins, *(begins + chance.choice((0.0, 0.5, 30.0, 200.0)) for _ in range(chance.choice((0, 0, 0, 1, 2))))]
    if number % 50 == 0:
        return Job(f"slots-{number}", copies=(), slots=1)
    expires = chance.choice((60.0, 3_600.0)) if chance.random() < 0.05 else None
    if chance.random() < 0.05:
        return Job(f"bulk-{number}", copies=tuple(copies), bulk=3, durable=chance.random() < 0.3, expires=expires)
    emails = chance.choice((None, None, None, None, None, 1, 1, 0, 3))
    durable = chance.random() < 0.15
    invalid = emails is None and chance.random() < 0.005
    conflict = emails is None and not durable and len(copies) > 1 and chance.random() < 0.05
    called_back = emails in {None, 1} and not conflict and chance.random() < 0.03
    choice = chance.choice((InDoubt.RESEND, InDoubt.DROP)) if not offer.keyed and chance.random() < 0.15 else None
    return Job(
        f"job-{number}",
        copies=tuple(copies),
        emails=emails,
        keyed=durable or chance.random() < 0.8,
        choice=choice,
        invalid=invalid,
        conflict=conflict,
        unknown_until=100.0 if emails == 1 and chance.random() < 0.1 else 0.0,
        long=chance.choice((1, 3, 9)) if emails is not None and chance.random() < 0.3 else 0,
        durable=durable,
        expires=None if emails == 0 else expires,
        cancelled=chance.uniform(0.0, chance.choice((100.0, 20_000.0))) if called_back else None,
        mended=chance.uniform(100.0, 4_000.0) if invalid and not called_back and chance.random() < 0.5 else None,
    )


def _with_one_refused(chance: random.Random, job: Job) -> Job:
    """Some lists and bulks, where each email has a request, or an answer, of its own."""
    several = max(job.bulk, job.emails or 0)
    return replace(job, refused=chance.randint(1, several)) if several > 1 and chance.random() < 0.05 else job


def _skews(chance: random.Random) -> tuple[float, ...]:
    """One clock is wrong. Less than the margin, where there is a window: that is what the margin is for (rule 7)."""
    off = chance.choice((0.0, 1.0, 5.0, 300.0, 7_200.0)) * chance.choice((-1.0, 1.0))
    return (0.0, 0.0, 0.0, off)


_PLAIN = (Job("job-1", copies=(0.0, 0.01)),)
_BUILT = (Job("job-1", copies=(0.0, 0.01), emails=1),)
_BUILT_LONG = (Job("job-1", copies=(0.0, 0.01), emails=1, long=4),)


def small(offer: Offer) -> Iterator[Scenario]:
    """One job, two copies of its message, two machines; every crash point is a step."""
    for jobs in (_PLAIN, _BUILT, _BUILT_LONG):
        yield Scenario(offer=offer, jobs=jobs, points=True)


_LIST = Job("job-1", copies=(0.0, 0.01), emails=3)
_BULK = Job("job-1", copies=(0.0, 0.01), bulk=3)


def wide(offer: Offer) -> Iterator[Scenario]:
    """What is more than one email, or comes from somebody else than a producer who waits."""
    for job in (
        _LIST,
        replace(_LIST, copies=(0.0,), durable=True),
        _BULK,
        replace(_BULK, copies=(0.0,), durable=True),
        replace(_PLAIN[0], copies=(0.0,), durable=True),
    ):
        yield Scenario(offer=offer, jobs=(job,))
    yield Scenario(offer=offer, jobs=(Job("slots-1", copies=(), slots=2),))
    for job in (_PLAIN[0], _BUILT_LONG[0]):
        yield Scenario(offer=offer, jobs=(replace(job, expires=70.0),))
    if offer.keyed:
        for keys in BatchKeys:
            yield Scenario(offer=offer, jobs=(_BULK,), batch=keys)
            yield Scenario(offer=offer, jobs=(replace(_LIST, copies=(0.0,), durable=True),), batch=keys)
        yield Scenario(offer=offer, jobs=(replace(_BULK, refused=2),), batch=BatchKeys.EACH)
    else:
        yield Scenario(offer=offer, jobs=_PLAIN, events=True)
        yield Scenario(offer=offer, jobs=(replace(_PLAIN[0], choice=InDoubt.RESEND),))


def least(offer: Offer) -> Iterator[Scenario]:
    """What pairs of faults are tried on: one email that is ready, and one that may rather arrive twice."""
    yield next(small(offer))
    if not offer.keyed:
        yield Scenario(offer=offer, jobs=(replace(_PLAIN[0], copies=(0.0,), choice=InDoubt.RESEND),))


def singles(scenario: Scenario, plan: Plan | None = None) -> Iterator[Plan]:
    """Every fault at every step that is met, one at a time, on top of those of a plan and after them.

    The plan alone, where that goes wrong already.
    """
    before = dict(plan or {})
    try:
        spots = _met_after(scenario, before)
    except Exception:
        yield before
        return
    for spot, op in spots:
        yield from ({**before, spot: fault} for fault in _faults(scenario.offer, op))


def _met_after(scenario: Scenario, plan: Plan) -> Sequence[tuple[Spot, str]]:
    """The steps that are met after the faults of a plan."""
    noted = Noted(plan)
    world_of(scenario, noted).run()
    last: dict[str, int] = {}
    for spot in plan:
        last[spot.name] = max(last.get(spot.name, -1), spot.number)
    return [(spot, op) for spot, op in noted.met if spot.number > last.get(spot.name, -1)]


def pairs(scenario: Scenario) -> Iterator[Plan]:
    """Every fault after every other one."""
    for plan in singles(scenario):
        yield plan
        yield from singles(scenario, plan)


def second_thoughts(offer: Offer) -> Iterator[tuple[Scenario, Plan]]:
    """What is called back before it is sent, after that, or when it was dropped; what is opened again once mended."""
    for job in (
        replace(_PLAIN[0], cancelled=0.0),
        replace(_PLAIN[0], cancelled=0.5),
        replace(_BUILT_LONG[0], cancelled=30.0),
        Job("job-1", durable=True, cancelled=0.5),
        replace(_PLAIN[0], choice=InDoubt.DROP, cancelled=5_000.0),
        Job("job-1", invalid=True, mended=300.0),
    ):
        scenario = Scenario(offer=offer, jobs=(job,))
        yield from ((scenario, plan) for plan in singles(scenario))


#: What the first provider says when the second one is to have the email.
_DEFINITE = frozenset({Kind.NOT_SENT, Kind.LIMITED, Kind.GATE, Kind.BUSY})


def two_providers(offer: Offer) -> Iterator[tuple[Scenario, Plan]]:
    """One email that the first provider does not take, and every other fault after that."""
    for fallback in _FALLBACKS:
        scenario = Scenario(offer=offer, jobs=_PLAIN, fallback=fallback)
        for first in singles(scenario):
            if all(fault.kind in _DEFINITE for fault in first.values()):
                yield scenario, first
                yield from ((scenario, plan) for plan in singles(scenario, first))


def late_writes(offer: Offer) -> Iterator[tuple[Scenario, Plan]]:
    """Of a durable list, every write that arrives late, after every other fault."""
    scenario = Scenario(offer=offer, jobs=(Job("job-1", emails=2, long=1, durable=True),))
    for first in singles(scenario):
        for plan in singles(scenario, first):
            if list(plan.values())[-1].kind in {Kind.LATE, Kind.CRASH_LATE}:
                yield scenario, plan


#: What an outage of half a day is made of: two requests that nobody hears an answer to, hours apart.
_HALF_A_DAY = (
    Fault(Kind.LOST),
    Fault(Kind.PAUSE_BEFORE, 20_000.0),
    Fault(Kind.LOST),
    Fault(Kind.PAUSE_BEFORE, WINDOW_SECONDS - 16_400.0),
)


def long_outages(offer: Offer) -> Iterator[tuple[Scenario, Plan]]:
    """One email through such an outage, each part of it at every step; nobody else is there to go on with it."""
    scenario = Scenario(offer=offer, jobs=(Job("job-1"),), skews=(0.0,))
    yield from ((scenario, plan) for plan in _in_order(scenario, _HALF_A_DAY, {}))


def _in_order(scenario: Scenario, faults: Sequence[Fault], plan: Plan) -> Iterator[Plan]:
    """Every plan with these faults, in this order; one that goes wrong before the last of them as it is."""
    if not faults:
        yield plan
        return
    try:
        spots = _met_after(scenario, plan)
    except Exception:
        yield plan
        return
    for spot, op in spots:
        if faults[0].kind in KINDS[op]:
            yield from _in_order(scenario, faults[1:], {**plan, spot: faults[0]})


def _faults(offer: Offer, op: str) -> Iterator[Fault]:
    for kind in KINDS[op]:
        yield from (Fault(kind, size) for size in _telling_sizes(offer, kind, op))


def _telling_sizes(offer: Offer, kind: Kind, op: str) -> tuple[float, ...]:
    """Few enough to try all."""
    match kind:
        case Kind.PAUSE_BEFORE | Kind.PAUSE_AFTER:
            return (100.0, WINDOW_SECONDS + 4_000.0) if offer is Offer.KEYED_LATE else (0.02, 100.0)
        case Kind.LATE | Kind.CRASH_LATE:
            return (39.0,) if op == "send" else (float(TRANSITIONS[0]), float(TRANSITIONS[1]), float(TRANSITIONS[-1]))
        case Kind.OUTAGE:
            return (1.0, 70.0)
        case Kind.STEP:
            return (-7_000.0, 7_000.0)
    return (0.0,)


#: What becomes of one step while workers take turns at others.
_FATES = (
    Fault(Kind.BEFORE),
    Fault(Kind.LOST),
    Fault(Kind.LATE, 1.0),
    Fault(Kind.OUTAGE, 70.0),
    Fault(Kind.CRASH_BEFORE),
    Fault(Kind.CRASH_AFTER),
    Fault(Kind.CRASH_LATE, 1.0),
    Fault(Kind.PAUSE_AFTER, 100.0),
    Fault(Kind.STEP, 7_000.0),
)


def interleavings(offer: Offer, most: int) -> Iterator[tuple[Scenario, Plan]]:
    """Two workers with copies of one message, held up at up to `most` steps, in turns; and one of them may fail."""
    spots = [Spot("job-1", number) for number in range(2, 14)]
    for job in (*_PLAIN, *_BUILT):
        scenario = Scenario(offer=offer, jobs=(replace(job, copies=(0.0, 0.0)),))
        for count in range(most + 1):
            for held in combinations(spots, count):
                turns = {spot: Fault(Kind.PAUSE_BEFORE, 0.001) for spot in held}
                yield scenario, turns
                for at in spots:
                    if at not in turns:
                        yield from ((scenario, {**turns, at: fate}) for fate in _FATES)


def shrink(found: Verdict) -> Verdict:
    """The same violation with fewer jobs and fewer faults: what it still happens without is left out."""

    def with_jobs(jobs: Sequence[Job]) -> bool:
        return _happens(found, replace(found.scenario, jobs=tuple(jobs)), found.plan)

    scenario = replace(found.scenario, jobs=tuple(_fewest(found.scenario.jobs, with_jobs)))

    def with_faults(items: Sequence[tuple[Spot, Fault]]) -> bool:
        return _happens(found, scenario, dict(items))

    plan = dict(_fewest(sorted(found.plan.items(), key=lambda item: item[0]), with_faults))
    return run(scenario, Faults(plan), tracing=True)


def _happens(found: Verdict, scenario: Scenario, plan: Plan) -> bool:
    return run(scenario, Faults(plan)).letter == found.letter


def _fewest(items: Sequence[_T], holds: Callable[[Sequence[_T]], bool]) -> Sequence[_T]:
    """Leave out as much as `holds` allows: halves first, then less, at last one by one."""
    size = len(items) // 2
    while size:
        at = 0
        while at < len(items):
            fewer = [*items[:at], *items[at + size :]]
            if fewer and holds(fewer):
                items = fewer
            else:
                at += size
        size //= 2
    return [] if len(items) == 1 and holds([]) else items
