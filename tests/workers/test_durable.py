"""Jobs that survive a queue which loses them: producers killed for real, a broker that forgets what it answered."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from dramatiq import Message
from starlette.testclient import TestClient

from idem import Email, InvalidKey, State
from idem.errors import BrokerError, BrokerUnavailable
from tests.valkey import Server
from tests.workers.parts import Sandbox, StartIdem, Valkey, make_email, payloads, wait_for
from tests.workers.webhooks.deliveries import WHSEC, post
from workers import App, Settings
from workers.brokers.base import Acknowledge
from workers.jobs import job_message
from workers.schedule.board import Entry

#: A producer that is killed before it writes, between the write and the enqueueing, or after both.
_PRODUCER = """
import os, signal, sys
from idem import Email
from workers import App, Settings

app = App(Settings.load())

@app.job()
def welcome(number):
    return Email(from_="shop@example.com", to=f"r{number}@example.com", subject="Welcome", text="Hi")

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    at, kind = sys.argv[1:]
    enqueue = app.broker.enqueue
    if at == "before":
        app.ledger.ask = lambda *_, **__: die()
    if at == "between":
        app.broker.enqueue = lambda *_, **__: die()
    if at == "after":
        app.broker.enqueue = lambda *args, **kwargs: (enqueue(*args, **kwargs), die())
    if kind == "job":
        welcome.send(1, key="k", durable=True)
    elif kind == "email":
        app.enqueue(welcome(1), key="k", durable=True)
    else:
        app.enqueue_bulk([welcome(number) for number in range(1, 4)], key="k", durable=True)
"""

_TO = {"job": ["r1"], "email": ["r1"], "bulk": ["r1", "r2", "r3"]}


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"IDEM_SWEEP_SECONDS": "0.2", "IDEM_RECONCILE_SECONDS": "0.2"}


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


def _produce(tmp_path: Path, environ: dict[str, str], at: str, kind: str) -> int:
    (tmp_path / "producer.py").write_text(_PRODUCER)
    command = [sys.executable, "producer.py", at, kind]
    return subprocess.run(command, cwd=tmp_path, env=environ, check=False, timeout=60).returncode


def _sent(app: App) -> bool:
    counted = app.ledger.count()
    return not any(counted[state] for state in State if state not in {State.SENT, State.SPLIT})


class TestKilledProducers:
    """FAULTS 2.1, C1 to C3."""

    @pytest.mark.parametrize("kind", ["job", "bulk"])
    def test_before_the_write_nothing_happened_and_the_caller_may_repeat_it(  # noqa: PLR0913 - real parts
        self, tmp_path: Path, environ: dict[str, str], app: App, sandbox: Sandbox, start_idem: StartIdem, *, kind: str
    ) -> None:
        assert _produce(tmp_path, environ, "before", kind) == -signal.SIGKILL
        assert not any(app.ledger.count().values())
        assert app.broker.backlog().pending == 0

        assert _produce(tmp_path, environ, "never", kind) == 0
        start_idem("worker", "--app", "producer:app")
        wait_for(lambda: len(sandbox.recipients()) == len(_TO[kind]) and _sent(app))

        assert sorted(sandbox.recipients()) == [f"{name}@example.com" for name in _TO[kind]]

    @pytest.mark.parametrize("kind", ["job", "email", "bulk"])
    def test_between_the_write_and_the_queue_the_sweeper_enqueues_it(  # noqa: PLR0913 - the same
        self, tmp_path: Path, environ: dict[str, str], app: App, sandbox: Sandbox, start_idem: StartIdem, *, kind: str
    ) -> None:
        assert _produce(tmp_path, environ, "between", kind) == -signal.SIGKILL
        assert app.broker.backlog().pending == 0
        assert app.ledger.count()[State.PENDING] == 1

        start_idem("worker", "--app", "producer:app")
        wait_for(lambda: len(sandbox.recipients()) == len(_TO[kind]) and _sent(app))

        assert sorted(sandbox.recipients()) == [f"{name}@example.com" for name in _TO[kind]]

    @pytest.mark.parametrize("kind", ["job", "bulk"])
    def test_after_both_a_repetition_adds_nothing(  # noqa: PLR0913 - the same
        self, tmp_path: Path, environ: dict[str, str], app: App, sandbox: Sandbox, start_idem: StartIdem, *, kind: str
    ) -> None:
        assert _produce(tmp_path, environ, "after", kind) == -signal.SIGKILL
        assert _produce(tmp_path, environ, "never", kind) == 0
        assert app.broker.backlog().ready == 2

        start_idem("worker", "--app", "producer:app")
        wait_for(lambda: app.broker.backlog().pending == 0 and _sent(app))

        assert sorted(sandbox.recipients()) == [f"{name}@example.com" for name in _TO[kind]]


class TestABrokerThatForgets:
    @pytest.mark.parametrize("durable", [True, False])
    def test_jobs_that_it_answered_for_are_sent_once_if_durable_else_lost(
        self, tmp_path: Path, environ: dict[str, str], sandbox: Sandbox, start_idem: StartIdem, *, durable: bool
    ) -> None:
        """A server in memory, killed while a worker works: what it held is gone, and so is what the worker had."""
        server = Server(tmp_path / "forgetful")
        server.start()
        url = {"IDEM_BROKER_URL": server.url}
        app = App(Settings.load(environ | url, tmp_path))
        try:
            for number in range(40):
                app.enqueue(make_email(number), key=f"k{number}", durable=durable)
            sandbox.order("delay", delay_ms=100)
            worker = start_idem("worker", "--threads", "2", env=url)
            wait_for(lambda: len(sandbox.recipients()) >= 3)
            server.kill()
            server.start()
            sandbox.mend()
            wait_for(lambda: app.broker.backlog().pending == 0)

            if durable:
                wait_for(lambda: app.ledger.count()[State.SENT] == 40)
                # The sweeper's copies that came to nothing.
                wait_for(lambda: app.broker.backlog().pending == 0)
            worker.stop()
            counted = Counter(sandbox.recipients())
            assert max(counted.values()) == 1, "sent twice"
            assert (len(counted) == 40) is durable, "and without durable=True, what the server forgot is lost"
            if not durable:
                assert app.ledger.count()[State.SENT] == len(counted)
        finally:
            app.close()
            server.kill()

    def test_one_that_does_not_answer_is_no_error_and_the_job_goes_out(
        self, tmp_path: Path, environ: dict[str, str], sandbox: Sandbox, start_idem: StartIdem
    ) -> None:
        """Told of an error, a caller without a key would enqueue it under another one, and so send it twice."""
        server = Server(tmp_path / "late")
        url = {"IDEM_BROKER_URL": server.url}
        app = App(Settings.load(environ | url, tmp_path))
        try:
            key = app.enqueue(make_email(), durable=True)
            record = app.ledger.read(key)
            assert record is not None
            assert (record.state, record.durable) == (State.PENDING, True)
            server.start()
            start_idem("worker", env=url)
            wait_for(lambda: _sent(app))
            assert sandbox.recipients() == ["r1@example.com"]
        finally:
            app.close()
            server.kill()


class TestDurable:
    def test_the_setting_is_the_default_and_the_argument_wins(self, environ: dict[str, str], tmp_path: Path) -> None:
        app = App(Settings.load(environ | {"IDEM_DURABLE": "on"}, tmp_path))
        try:
            app.enqueue(make_email(), key="by setting")
            app.enqueue(make_email(), key="by argument", durable=False)
            assert [record.key for record in app.ledger.list(State.PENDING, 10)] == ["by setting"]
        finally:
            app.close()

    def test_a_key_that_stands_for_another_email_is_refused_at_once(self, app: App) -> None:
        app.enqueue(make_email(1), key="k", durable=True)
        app.enqueue(make_email(1), key="k", durable=True)
        with pytest.raises(InvalidKey, match="already stands for another email"):
            app.enqueue(make_email(2), key="k", durable=True)
        assert app.broker.backlog().ready == 2

    def test_a_key_that_has_ended_is_not_enqueued_again(self, app: App) -> None:
        app.cancel("k")
        app.enqueue(make_email(1), key="k", durable=True)
        assert app.broker.backlog().pending == 0

    def test_a_job_that_builds_several_is_durable_to_the_last(
        self, app: App, sandbox: Sandbox, start_idem: StartIdem, valkey: Valkey
    ) -> None:
        """Its emails are written down before its list is done with: the queue may lose their messages too."""

        @app.job()
        def several() -> list[Email]:
            return [make_email(number) for number in (1, 2, 3)]

        several.send(key="k", durable=True)
        message, _ = job_message("several", (), {}, "k")
        assert app.performer().perform(message, message.kwargs) == Acknowledge()
        with valkey.client() as client:
            client.flushall()
        assert {record.key for record in app.ledger.list(State.PENDING, 10)} == {"k/1", "k/2", "k/3"}

        start_idem("worker")
        wait_for(lambda: _sent(app))

        assert sorted(sandbox.recipients()) == [f"r{number}@example.com" for number in (1, 2, 3)]


class TestWhatNobodyEnqueuesByHand:
    """Slots and events go by the setting, too."""

    @pytest.fixture
    def environ(self, environ: dict[str, str]) -> dict[str, str]:
        return environ | {"IDEM_DURABLE": "on", "IDEM_STRIPE_WEBHOOK_SECRET": WHSEC}

    @pytest.fixture
    def app(self, app: App) -> App:
        app.schedule(every=timedelta(days=1), catch_up="all", name="beat")(make_email)
        app.webhook("stripe", "thing.happened", name="receipt")(lambda _event: make_email())
        return app

    def _catch_up(self, app: App, days: int) -> list[str]:
        """A scheduler that was away for so long; the keys of what it enqueues."""
        now = int(time.time())
        app.board.set("beat", lambda _: Entry(now - days * 86_400 - 60))
        scheduler = app.scheduler()
        scheduler.start()
        while scheduler.tick():
            pass
        return [
            app.schedules["beat"].key(slot) for slot in app.schedules["beat"].between(now - days * 86_400 - 60, now)
        ]

    def _post(self, app: App, event_id: str, **data: str) -> int:
        posted = post("stripe", event_id=event_id, at=int(time.time()), **data)
        with TestClient(app.webhooks()) as client:
            return client.post("/stripe", content=posted.body, headers=dict(posted.headers)).status_code

    def _pending(self, app: App) -> list[str]:
        return sorted(record.key for record in app.ledger.list(State.PENDING, 100) if record.durable)

    def test_slots_are_in_the_ledger_before_they_are_in_the_queue_and_there_together(
        self, app: App, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known: list[list[str]] = []
        enqueue_many = app.broker.enqueue_many

        def look(messages: Sequence[Message[None]]) -> list[BrokerError | None]:
            known.append(self._pending(app))
            return enqueue_many(messages)

        monkeypatch.setattr(app.broker, "enqueue_many", look)
        keys = self._catch_up(app, 12)

        assert len(keys) >= 12
        assert known == [sorted(keys[:10]), sorted(keys)]
        assert sorted(found["key"] for found in payloads(app)) == sorted(keys)

    def test_a_slot_that_has_ended_is_not_enqueued_and_one_whose_key_is_taken_is(self, app: App) -> None:
        first, second, third = self._catch_up(app, 3)[-3:]
        payloads(app)
        for key in (first, second):
            app.cancel(key)
        app.enqueue(make_email(), key="taken", durable=True)
        made = [job_message("beat", [key.partition("/")[2]], {}, key)[0] for key in (first, second, third, "taken")]

        assert list(app.ask_each(made)) == [None] * 4
        assert sorted(found["key"] for found in payloads(app)) == sorted([third, "taken", "taken"])

    def test_a_slot_waits_for_a_queue_that_does_not_answer(
        self, app: App, own_valkey: Valkey, environ: dict[str, str], tmp_path: Path
    ) -> None:
        """It is enqueued once there is one, and not only when the sweeper has seen it wait for long."""
        own_valkey.kill()
        late = App(Settings.load(environ | {"IDEM_BROKER_URL": own_valkey.url}, tmp_path))
        (error,) = late.ask_each([job_message("beat", ["x"], {}, "k")[0]])
        late.close()

        assert isinstance(error, BrokerUnavailable)
        assert self._pending(app) == ["k"]

    def test_an_event_is_in_both_before_it_is_answered(self, app: App) -> None:
        assert self._post(app, "evt_1") == self._post(app, "evt_1") == 200

        assert self._pending(app) == ["stripe/evt_1/receipt"]
        assert [found["key"] for found in payloads(app)] == ["stripe/evt_1/receipt"] * 2

    def test_one_that_is_too_large_for_the_ledger_is_enqueued_all_the_same(
        self, app: App, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its sender cannot post it any smaller."""
        assert self._post(app, "evt_1", filler="x" * 200_000) == 200

        assert self._pending(app) == []
        assert [found["key"] for found in payloads(app)] == ["stripe/evt_1/receipt"]
        assert "key stripe/evt_1/receipt is enqueued without being written to the ledger first" in caplog.text
