"""Each contestant does its work when nothing goes wrong, and what it holds is found by key when something does.

So what the table shows of it is not a mistake of the wiring.
"""

from __future__ import annotations

import time
from argparse import Namespace

import pytest

from tests.peers.__main__ import stage
from tests.peers.contestants import CONTESTANTS, Contestant, ExactlyOnce, Held, Ours
from tests.peers.run import Request, kill, look_up, lost, open_keys
from tests.valkey import wait_for

_JOBS = 4
_SUBJECTS = frozenset(f"job-{number}" for number in range(_JOBS))


#: All with the provider that keeps keys; without one, those that do something else there.
_CASES: list[tuple[type[Contestant], str]] = [
    *((kind, "lettermint") for kind in CONTESTANTS),
    (ExactlyOnce, "postmark"),
]
_WITH_KEYS = [kind for kind in CONTESTANTS if kind.held_means and kind is not Ours]


@pytest.mark.parametrize(("kind", "provider"), _CASES, ids=[f"{kind.name}, {provider}" for kind, provider in _CASES])
def test_sends_each_email_once_and_holds_nothing(kind: type[Contestant], provider: str) -> None:
    with stage(kind, provider) as (contestant, sandbox):
        contestant.enqueue(_JOBS)
        worker = contestant.start(_JOBS)
        try:
            wait_for(lambda: len(sandbox.accepted()) == _JOBS)
            wait_for(lambda: contestant.held() == Held(0, 0, frozenset()))
        finally:
            kill(worker)
        assert set(sandbox.accepted().values()) == {1}
        assert contestant.queued() == set()


@pytest.mark.parametrize("kind", CONTESTANTS, ids=[kind.name for kind in CONTESTANTS])
def test_a_job_that_nobody_began_is_found_by_its_subject(kind: type[Contestant]) -> None:
    with stage(kind, "lettermint") as (contestant, _):
        contestant.enqueue(_JOBS)
        assert contestant.queued() == _SUBJECTS


@pytest.mark.parametrize("kind", _WITH_KEYS, ids=[kind.name for kind in _WITH_KEYS])
def test_a_key_that_a_killed_worker_left_behind_is_found_by_its_subject(kind: type[Contestant]) -> None:
    with stage(kind, "lettermint") as (contestant, sandbox):
        sandbox.order("delay", delay_ms=1_500)
        contestant.enqueue(_JOBS)
        worker = contestant.start(_JOBS)
        try:
            wait_for(lambda: len(sandbox.sends()) == _JOBS)
        finally:
            kill(worker)
        assert contestant.held().undecided == _SUBJECTS


def test_ours_in_doubt_are_found_by_their_subjects() -> None:
    with stage(Ours, "postmark") as (contestant, sandbox):
        sandbox.order("accept_then_drop")
        contestant.enqueue(_JOBS)
        worker = contestant.start(_JOBS)
        try:
            wait_for(lambda: contestant.held() == Held(0, 0, _SUBJECTS))
        finally:
            kill(worker)


@pytest.mark.parametrize(("fault", "before"), [("accept_then_drop", {1}), ("drop", set[int]())])
def test_look_ups_tell_what_became_of_ours_in_doubt(fault: str, before: set[int]) -> None:
    with stage(Ours, "postmark") as (contestant, sandbox):
        sandbox.order(fault, times=_JOBS)
        contestant.enqueue(_JOBS)
        worker = contestant.start(_JOBS)
        try:
            wait_for(lambda: contestant.held() == Held(0, 0, _SUBJECTS))
        finally:
            kill(worker)
        assert set(sandbox.accepted().values()) == before

        look_up(contestant, sandbox, Namespace(jobs=_JOBS, kills=0, patience=30.0))

        assert contestant.held() == Held(0, 0, frozenset())
        assert sandbox.accepted() == dict.fromkeys(_SUBJECTS, 1)


def test_a_job_is_lost_of_which_neither_the_provider_nor_its_own_parts_know() -> None:
    # Not a matter of sums: what is held twice, or was accepted too, makes up for nothing.
    assert lost(3, {"job-0"}, {"job-0", "job-1"}) == ["job-2"]


def test_in_flight_is_what_somebody_still_waits_for() -> None:
    now = time.time()
    requests = [
        Request(now - 5, "given up", answered=False),
        Request(now - 1, "answered", answered=True),
        Request(now - 4, "again", answered=True),
        Request(now - 1, "again", answered=False),
        Request(now - 1, "first", answered=False),
    ]

    assert open_keys(requests, now) == {"again", "first"}
