"""One pace for all workers: real processes against the sandbox, counted in its own log of requests."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from idem.outcome import NotSent, Unknown
from idem.protocol import State
from tests.workers.parts import RunIdem, Running, Sandbox, StartIdem, make_email, wait_for
from workers import App, Settings

_PROCESSES = 3
_THREADS = 4


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


def _enqueue(app: App, count: int) -> list[str]:
    for number in range(count):
        app.enqueue(make_email(number), key=f"k{number}")
    return sorted(f"r{number}@example.com" for number in range(count))


def _start(start_idem: StartIdem, **env: str) -> list[Running]:
    return [start_idem("worker", "--until-empty", "--threads", str(_THREADS), env=env) for _ in range(_PROCESSES)]


def _at(seen: dict[str, Any]) -> float:
    return datetime.fromisoformat(seen["at"]).timestamp()


def test_what_one_was_told_everybody_respects(app: App, sandbox: Sandbox, start_idem: StartIdem) -> None:
    """One 429 with `Retry-After: 5`: until then, none but those who could not know yet."""
    recipients = _enqueue(app, 400)
    sandbox.order("delay", delay_ms=100)
    workers = _start(start_idem)
    wait_for(lambda: len(sandbox.accepted()) > 50)
    sandbox.order("429", times=1, retry_after=5)

    (refused,) = wait_for(lambda: [seen for seen in sandbox.seen() if seen["status"] == 429])
    told = _at(refused)
    wait_for(lambda: [seen for seen in sandbox.seen() if _at(seen) >= told + 5])

    # A process looks at the shared cell once a second; what it has in hand by then takes a moment more.
    ignorant = [seen for seen in sandbox.seen() if told < _at(seen) < told + 5]
    assert [seen for seen in ignorant if _at(seen) > told + 2.5] == []

    sandbox.mend()
    assert [worker.wait() for worker in workers] == [0] * _PROCESSES
    assert sorted(sandbox.recipients()) == recipients


def test_an_outage_costs_few_requests_and_no_attempts(app: App, sandbox: Sandbox, start_idem: StartIdem) -> None:
    """Five seconds of 503 with 500 jobs waiting: the jobs stay in the queue, most of them untouched."""
    recipients = _enqueue(app, 500)
    sandbox.order("503")
    workers = _start(start_idem)
    begun = wait_for(sandbox.seen)[0]
    wait_for(lambda: datetime.now().astimezone().timestamp() > _at(begun) + 5)
    sandbox.mend()
    during = sandbox.seen()
    assert [worker.wait() for worker in workers] == [0] * _PROCESSES

    assert sorted(sandbox.recipients()) == recipients
    # Each thread may be in a call when the first ones fail, and once more before its process knows; then come probes.
    assert len(during) <= 2 * _PROCESSES * _THREADS + 10
    records = [app.ledger.read(f"k{number}") for number in range(500)]
    tried = [record.attempts for record in records if record is not None and record.state is State.SENT]
    assert len(tried) == 500
    # More attempts than requests where a request did not get through on a busy machine.
    assert sum(tried) <= 500 + 2 * _PROCESSES * _THREADS + 10
    assert sum(attempts == 1 for attempts in tried) >= 450
    assert any("circuit is open" in worker.log for worker in workers)


def test_all_together_keep_the_rate(app: App, sandbox: Sandbox, start_idem: StartIdem) -> None:
    """20 a second by three processes that could send hundreds."""
    recipients = _enqueue(app, 80)
    workers = _start(start_idem, IDEM_RATE_PER_SECOND="20", IDEM_RATE_BURST="5")
    assert [worker.wait() for worker in workers] == [0] * _PROCESSES

    assert sorted(sandbox.recipients()) == recipients
    times = sorted(_at(seen) for seen in sandbox.seen())
    # Half a second of allowance for what passes between the gate and the sandbox; three rates would be 60 a second.
    for first in range(len(times)):
        for last in range(first, len(times)):
            assert last - first + 1 <= 20 * (times[last] - times[first] + 0.5) + 5


class TestStatus:
    def test_a_pause_is_shown(self, app: App, sandbox: Sandbox, call_idem: RunIdem, run_idem: RunIdem) -> None:
        assert call_idem("status", "--json").json["provider"] == {"name": "lettermint", "standing": "asked"}
        assert "lettermint: asked" in call_idem("status").out

        _enqueue(app, 1)
        sandbox.order("429", times=1, retry_after=2)
        run_idem("worker", "--until-empty")
        app.gate.enter()
        app.gate.heed("lettermint", "k", NotSent("HTTP 429: slow down", 60.0, limited=True))
        app.gate.leave()

        shown = call_idem("status", "--json").json["provider"]
        assert (shown["standing"], shown["reason"]) == ("paused", "HTTP 429: slow down")
        assert shown["since"] < shown["until"]
        assert f"lettermint: paused until {shown['until']} after HTTP 429: slow down" in call_idem("status").out
        assert f"lettermint: paused until {shown['until']} after HTTP 429" in call_idem("doctor").out

    def test_an_open_circuit_is_shown(self, app: App, call_idem: RunIdem) -> None:
        for number in range(5):
            assert app.gate.enter() == 0.0
            app.gate.heed("lettermint", f"k{number}", Unknown("HTTP 503: down"))
            app.gate.leave()

        shown = call_idem("status", "--json").json["provider"]
        assert (shown["standing"], shown["reason"]) == ("open", "HTTP 503: down")
        assert f"lettermint: circuit open since {shown['since']}, tried again at" in call_idem("status").out

    def test_the_rate_is_shown(self, call_idem: RunIdem) -> None:
        ran = call_idem("doctor", env={"IDEM_RATE_PER_SECOND": "10"})

        assert "at most 10 emails a second, 2.5 at once" in ran.out
