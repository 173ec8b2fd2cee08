"""Each contestant does its work when nothing goes wrong: what the table shows of it is not a mistake of the wiring."""

from __future__ import annotations

import pytest

from tests.peers.__main__ import stage
from tests.peers.contestants import CONTESTANTS, Contestant, ExactlyOnce, Held
from tests.peers.run import kill
from tests.valkey import wait_for

_JOBS = 4


#: All with the provider that keeps keys; without one, those that do something else there.
_CASES: list[tuple[type[Contestant], str]] = [
    *((kind, "lettermint") for kind in CONTESTANTS),
    (ExactlyOnce, "postmark"),
]


@pytest.mark.parametrize(("kind", "provider"), _CASES, ids=[f"{kind.name}, {provider}" for kind, provider in _CASES])
def test_sends_each_email_once_and_holds_nothing(kind: type[Contestant], provider: str) -> None:
    with stage(kind, provider) as (contestant, sandbox):
        contestant.enqueue(_JOBS)
        worker = contestant.start(_JOBS)
        try:
            wait_for(lambda: len(sandbox.accepted()) == _JOBS)
            wait_for(lambda: contestant.held() == Held(0, 0, 0))
        finally:
            kill(worker)
        assert set(sandbox.accepted().values()) == {1}
