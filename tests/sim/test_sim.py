"""The tier of the simulation that runs with every change: every single fault, some pairs, some seeds."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator

import pytest

from idem.policy import Policy
from idem.protocol import State
from idem.providers.base import BatchKeys
from tests.fakes import START
from tests.sim.faults import TRANSITIONS, Fault, Faults, Kind, Plan, Spot
from tests.sim.provider import WINDOW_SECONDS, Offer
from tests.sim.scenarios import (
    interleavings,
    least,
    of_seed,
    run,
    second_thoughts,
    shrink,
    singles,
    small,
    two_providers,
    wide,
)
from tests.sim.world import HTTP, LEASE, Job, Scenario, World
from workers.jobs import email_message

SEEDS, JOBS = 150, 15
MARGIN = Policy(lease_seconds=LEASE, http_timeout_seconds=HTTP, window_seconds=WINDOW_SECONDS).margin_seconds


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What production code says of a fault is not of interest here, and takes longer than the fault."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def check(runs: Iterable[tuple[Scenario, Plan]]) -> int:
    """Run them all; fails with the smallest trace of the first violation."""
    count = 0
    for count, (scenario, plan) in enumerate(runs, 1):  # noqa: B007 - it is returned
        found = run(scenario, Faults(plan))
        if found.problem is not None:
            least = shrink(found)
            pytest.fail("\n".join([f"{least.problem}: {dict(least.plan)}", *least.trace]))
    return count


@pytest.mark.parametrize("offer", Offer)
def test_every_single_fault(offer: Offer) -> None:
    """At every step, crash points included, of an email that is ready and of one that a job builds."""
    done = check((scenario, plan) for scenario in small(offer) for plan in singles(scenario))
    assert done > 200


@pytest.mark.parametrize("offer", [Offer.KEYED, Offer.NEITHER])
def test_every_single_fault_of_lists_slots_and_events(offer: Offer) -> None:
    """Lists, bulks, batches, durable jobs, slots and provider events; of the other classes, by `--exhaustive`."""
    done = check((scenario, plan) for scenario in wide(offer) for plan in singles(scenario))
    assert done > 1_000


@pytest.mark.parametrize("offer", Offer)
def test_some_pairs_of_faults(offer: Offer) -> None:
    """A second fault after every first one would be thousands of runs: `python -m tests.sim --exhaustive`."""
    chance = random.Random(offer.value)

    def some() -> Iterator[tuple[Scenario, Plan]]:
        for scenario in least(offer):
            for first in singles(scenario):
                second = list(singles(scenario, first))
                yield from ((scenario, plan) for plan in chance.sample(second, min(2, len(second))))

    assert check(some()) > 200


@pytest.mark.parametrize("offer", Offer)
def test_two_providers(offer: Offer) -> None:
    """What the first one does not take goes to the second one, whatever that offers, and whatever fails then."""
    assert check(two_providers(offer)) > 1_000


@pytest.mark.parametrize("offer", Offer)
def test_second_thoughts(offer: Offer) -> None:
    """What is called back, or opened again, with every single fault."""
    assert check(second_thoughts(offer)) > 500


@pytest.mark.parametrize("offer", Offer)
def test_two_workers_take_turns(offer: Offer) -> None:
    """Held up at one step or at none, with each fate at each other step."""
    assert check(interleavings(offer, 1)) > 300


@pytest.mark.parametrize("part", range(5))
def test_random_runs(part: int) -> None:
    """Some jobs of every kind, clocks that are wrong, at least three faults for each job that lives to see them."""
    faults = jobs = 0
    for seed in range(part, SEEDS, 5):
        scenario, chance = of_seed(seed, JOBS)
        found = run(scenario, chance)
        assert found.problem is None, f"{found.problem}: python -m tests.sim --seed {seed} --jobs {JOBS}"
        assert found.tally is not None
        assert sum(found.tally.ends.values()) == found.tally.emails
        assert found.tally.ends[State.IN_DOUBT] == found.tally.doubted
        faults += found.tally.faults
        jobs += found.tally.jobs
    assert faults > 2.5 * jobs


@pytest.mark.parametrize("seed", range(5))
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    """And so does the plan that its faults are, as otherwise no failure could be replayed or made smaller."""
    scenario, chance = of_seed(seed, JOBS)
    first = run(scenario, chance, tracing=True)
    again = run(*of_seed(seed, JOBS), tracing=True)
    replayed = run(scenario, Faults(first.plan), tracing=True)
    assert len(first.trace) > 100
    assert first.trace == again.trace == replayed.trace


@pytest.mark.parametrize("skews", [(0.0, 7_200.0), (0.0, -7_200.0), (7_200.0, 0.0)])
def test_a_wrong_clock_does_not_make_a_look_up_conclusive(skews: tuple[float, ...]) -> None:
    """The request was late, and two looks came before it, as the reconciler's clock was ahead: accepted twice."""
    for seed in range(3):
        scenario = Scenario(offer=Offer.SEARCHABLE, jobs=(Job("job-1"),), skews=skews, seed=seed)
        assert check((scenario, plan) for plan in singles(scenario)) > 10


def test_a_renewal_whose_answer_was_lost_leaves_no_list_unfixed() -> None:
    """It passed for the write that fixes the list, so that after a crash emails of two lists were asked for."""
    job = Job("job-1", copies=(0.0, 200.0), emails=3, long=1, durable=True)
    scenario = Scenario(offer=Offer.REFUSING, jobs=(job,), batch=BatchKeys.EACH)
    lost = {Spot("job-1", 4): Fault(Kind.LOST)}
    late = [{Spot("job-1", step): Fault(Kind.LATE, float(size))} for step in range(5, 14) for size in TRANSITIONS]
    assert check((scenario, lost | other) for other in late) == len(late)


@pytest.mark.parametrize(
    ("behind", "slow", "accepted"),
    [
        (0.0, 0.0, 1),
        (MARGIN - LEASE, 0.0, 1),
        (MARGIN - LEASE, 39.0, 1),
        (MARGIN + 2.0, 0.0, 2),
        (-MARGIN, 0.0, 1),
    ],
)
def test_how_wrong_a_clock_may_be(behind: float, slow: float, accepted: int) -> None:
    """Up to the margin less a lease, never twice. Beyond, a replay may come when the provider has forgotten the key.

    The worst case: a worker whose clock is behind takes over in its window's last second, and its request is slow.
    """
    scenario = Scenario(offer=Offer.KEYED, jobs=(Job("job-1", copies=()),), skews=(0.0, -behind), clerk=False)
    plan: Plan = {Spot("job-1", 1): Fault(Kind.CRASH_AFTER), Spot("job-1", 4): Fault(Kind.PAUSE_BEFORE, slow)}
    world = World(scenario, Faults(plan))
    email = world.email(world.scenario.jobs[0], "job-1", "text")
    world.queue.put(email_message(email, "job-1")[0], "job-1")
    letter = world.queue.letters[1]
    punctual, late = world.workers
    punctual.deliver(letter)
    assert len(world.log) == 1, "the first request was accepted before its worker died"
    world.scheduler.now = START + WINDOW_SECONDS - MARGIN + behind - 1.0
    late.deliver(letter)
    assert len(world.log) == accepted
