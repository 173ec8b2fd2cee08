"""Not before, not after, not at all: delays, expiry and cancels, from what a caller says to what becomes of the key."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from idem import Email, JobError, State
from idem.bulk import Ready
from tests.workers.parts import RunIdem, Sandbox, StartIdem, Valkey, make_email, payloads, wait_for
from workers import App, Settings
from workers.brokers.base import Acknowledge, Retry
from workers.jobs import email_message, intent_of_message, job_message, part_message, read_message, record_message
from workers.timing import Timing

#: A thread's connection to the provider is closed when the thread's memory is freed, of which Python warns.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

NOW = 1_700_000_000.0
DAY = 86_400.0


def _timing(**said: Any) -> Timing:
    known: dict[str, Any] = {"delay": None, "at": None, "expires": None, "memory_seconds": 81 * DAY}
    return Timing.of(NOW, **known | said)


def _later(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW + seconds, UTC)


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


def _state(app: App, key: str) -> State | None:
    record = app.ledger.read(key)
    return None if record is None else record.state


class TestWhatIsSaid:
    @pytest.mark.parametrize(
        ("said", "timing"),
        [
            ({}, Timing()),
            ({"delay": 0}, Timing(NOW, 0)),
            ({"delay": 1.5}, Timing(NOW + 1.5, 1_500)),
            ({"at": _later(60)}, Timing(NOW + 60, 60_000)),
            ({"at": _later(60).astimezone(timezone(timedelta(hours=5, minutes=45)))}, Timing(NOW + 60, 60_000)),
            ({"expires": 30}, Timing(expires_at=NOW + 30)),
            ({"delay": 10, "expires": _later(11)}, Timing(NOW + 10, 10_000, NOW + 11)),
            ({"delay": 1_000 * DAY, "memory_seconds": None}, Timing(NOW + 1_000 * DAY, int(1_000 * DAY * 1_000))),
        ],
    )
    def test_is_instants(self, said: dict[str, Any], timing: Timing) -> None:
        assert _timing(**said) == timing

    @pytest.mark.parametrize(
        ("said", "why"),
        [
            ({"delay": -1}, "delay is -1: it must be a number of seconds from 0 on"),
            ({"delay": float("nan")}, "delay is nan: "),
            ({"delay": float("inf")}, "delay is inf: "),
            ({"delay": "5"}, "delay is str: it must be a number of seconds"),
            ({"delay": True}, "delay is bool: "),
            ({"delay": timedelta(seconds=5)}, "delay is timedelta: "),
            ({"delay": 1, "at": _later(5)}, "delay and at are both given: give one of them"),
            ({"at": datetime(2030, 1, 1)}, "at has no time zone: "),  # noqa: DTZ001 - the mistake that is tested
            ({"at": _later(-1)}, "at is in the past"),
            ({"at": 5.0}, "at is float: it must be a datetime with a time zone"),
            ({"expires": _later(-1)}, "expires is in the past"),
            ({"expires": datetime(2030, 1, 1)}, "expires has no time zone: "),  # noqa: DTZ001 - the same
            ({"expires": 0}, "it could never be sent"),
            ({"expires": -5}, "expires is -5: "),
            ({"delay": 60, "expires": 60}, "it could never be sent"),
            ({"at": _later(60), "expires": _later(59)}, "it could never be sent"),
            ({"delay": 81 * DAY}, r"for longer than the ledger remembers keys \(81 days\): enqueue it later"),
        ],
    )
    def test_and_makes_no_sense(self, said: dict[str, Any], why: str) -> None:
        with pytest.raises(JobError, match=why):
            _timing(**said)

    @pytest.mark.parametrize("name", ["key", "delay", "at", "expires", "durable"])
    def test_a_job_has_no_argument_of_such_a_name(self, app: App, name: str) -> None:
        namespace: dict[str, Any] = {}
        exec(f"def job({name}): ...", namespace)  # noqa: S102 - a function with that parameter
        with pytest.raises(JobError, match=f"`{name}` is an argument of send"):
            app.job()(namespace["job"])

    def test_nothing_is_enqueued_then(self, app: App) -> None:
        @app.job()
        def job() -> None: ...

        for call in (
            lambda: job.send(delay=-1),
            lambda: app.enqueue(make_email(), delay=-1),
            lambda: app.enqueue_bulk([make_email()], delay=-1),
        ):
            with pytest.raises(JobError):
                call()
        assert app.broker.backlog().pending == 0


class TestDelays:
    def test_the_broker_holds_it_back(self, app: App) -> None:
        @app.job()
        def job() -> None: ...

        job.send(delay=60)
        app.enqueue(make_email(), at=datetime.now(UTC) + timedelta(hours=1))
        app.enqueue_bulk([make_email(1), make_email(2)], delay=60, durable=True)
        backlog = app.broker.backlog()
        assert (backlog.ready, backlog.delayed) == (0, 3)

    def test_and_lets_it_go(self, app: App, sandbox: Sandbox, run_idem: RunIdem) -> None:
        due = time.time() + 1.0
        app.enqueue(make_email(), delay=1.0, durable=True)
        assert run_idem("worker", "--until-empty").status == 0
        assert sandbox.recipients() == ["r1@example.com"]
        assert time.time() >= due

    def test_a_delayed_record_is_due_with_its_message(self, app: App) -> None:
        """The sweeper would else enqueue it before its time."""
        app.enqueue(make_email(), key="k", delay=5_000, durable=True)
        record = app.ledger.read("k")
        assert record is not None
        assert record.ready_at is not None
        assert record.ready_at > time.time() + 4_900
        assert app.reconciler().run() == {}


class TestExpiry:
    @pytest.mark.parametrize("durable", [True, False])
    def test_what_is_begun_too_late_ends_as_expired(self, app: App, sandbox: Sandbox, *, durable: bool) -> None:
        message, _ = email_message(make_email(), "k", None, time.time() - 1)
        if durable:
            app.ask(message, Timing(), durable=True)
        assert app.performer().perform(message, message.kwargs) == Acknowledge()
        record = app.ledger.read("k")
        assert record is not None
        assert (record.state, record.reason, record.body) == (State.EXPIRED, "it was too late to send it", None)
        assert sandbox.seen() == []

    def test_in_time_it_is_sent(self, app: App, sandbox: Sandbox) -> None:
        message, _ = email_message(make_email(), "k", None, time.time() + 100)
        assert app.performer().perform(message, message.kwargs) == Acknowledge()
        assert _state(app, "k") is State.SENT
        assert len(sandbox.accepted()) == 1

    def test_what_may_have_been_accepted_never_expires(self, app: App, sandbox: Sandbox) -> None:
        """The answer is lost, the time passes, and the same request goes out again: that is not a late email."""
        end = time.time() + 0.5
        message, _ = email_message(make_email(), "k", None, end)
        performer = app.performer()
        sandbox.order("accept_then_drop", times=1)
        assert isinstance(performer.perform(message, message.kwargs), Retry)
        assert _state(app, "k") is State.UNSURE
        wait_for(lambda: time.time() > end and performer.perform(message, message.kwargs) == Acknowledge())
        assert _state(app, "k") is State.SENT
        assert len(sandbox.accepted()) == 1

    def test_explain_says_so(self, app: App, call_idem: RunIdem) -> None:
        message, _ = email_message(make_email(), "k", None, 1_000.0)
        app.performer().perform(message, message.kwargs)
        shown = call_idem("explain", "k", "--json").json
        assert (shown["state"], shown["expires_at"]) == ("expired", "1970-01-01T00:16:40.000+00:00")

    def test_the_emails_of_a_list_have_the_jobs_end(self, app: App) -> None:
        @app.job()
        def several() -> list[Email]:
            return [make_email(1), make_email(2)]

        message, _ = job_message("several", (), {}, "k", expires_at=9e9)
        assert app.performer().perform(message, message.kwargs) == Acknowledge()
        [group] = payloads(app)
        assert group["expires"] == 9e9


class TestCancel:
    @pytest.mark.parametrize("durable", [True, False])
    def test_what_waits_is_not_sent_and_its_message_goes(self, app: App, sandbox: Sandbox, *, durable: bool) -> None:
        @app.job()
        def job() -> Email:
            return make_email()

        performer = app.performer()
        for message in (email_message(make_email(), "email")[0], job_message("job", (), {}, "job")[0]):
            app.ask(message, Timing(), durable=durable)
            key = message.kwargs["key"]
            app.cancel(key)
            app.cancel(key)
            assert performer.perform(message, message.kwargs) == Acknowledge()
            assert _state(app, key) is State.CANCELLED
        assert sandbox.seen() == []

    def test_a_sent_key_is_refused(self, app: App, call_idem: RunIdem) -> None:
        message, _ = email_message(make_email(), "k")
        app.performer().perform(message, message.kwargs)
        with pytest.raises(JobError, match="the key cannot be cancelled any more: it is sent"):
            app.cancel("k")
        ran = call_idem("cancel", "k")
        assert (ran.status, ran.problem) == (1, "idem: the key cannot be cancelled any more: it is sent")

    def test_an_attempt_under_way_is_refused(self, app: App, sandbox: Sandbox, start_idem: StartIdem) -> None:
        sandbox.order("hang", times=1)
        app.enqueue(make_email(), key="k")
        start_idem("worker")
        wait_for(lambda: _state(app, "k") is State.SENDING)
        with pytest.raises(JobError, match=r"it is (sending|unsure)"):
            app.cancel("k")

    def test_by_the_command_line(self, app: App, call_idem: RunIdem) -> None:
        app.enqueue(make_email(), key="k", durable=True)
        ran = call_idem("cancel", "k")
        assert (ran.status, ran.out) == (0, "cancelled\n")
        record = app.ledger.read("k")
        assert record is not None
        assert (record.state, record.body) == (State.CANCELLED, None)
        assert call_idem("cancel", "k").status == 0


class TestOnTheWire:
    def test_an_end_survives_it(self) -> None:
        part = Ready("k", make_email(), None, 1_000.5)
        message = part_message(part)
        assert read_message(message.kwargs, message.message_id) == part

    @pytest.mark.parametrize("expires", ["soon", True, [1]])
    def test_a_wrong_one_is_refused(self, expires: object) -> None:
        with pytest.raises(JobError, match="malformed"):
            read_message({"key": "k", "email": make_email().as_dict(), "expires": expires}, "id")

    def test_a_job_is_made_again_from_its_record(self, app: App, valkey: Valkey) -> None:
        assert valkey.port

        @app.job()
        def job(number: int, *, name: str) -> None: ...

        job.send(7, name="é", key="k", expires=50, durable=True)
        record = app.ledger.read("k")
        assert record is not None
        [first] = payloads(app)
        assert record_message(record).kwargs == first

    def test_arguments_that_are_too_large_to_be_durable(self, app: App) -> None:
        @app.job()
        def job(text: str) -> None: ...

        with pytest.raises(JobError, match="durable, they may be 200,000"):
            job.send("x" * 200_000, durable=True)
        assert app.broker.backlog().pending == 0

    def test_what_a_producer_asks_for_has_all_of_it(self) -> None:
        message, _ = email_message(make_email(), "k", None, 9.0)
        intent = intent_of_message(message)
        assert intent.body == make_email().canonical()
        assert replace(intent, body=None, fingerprint=None).expires_at == 9.0
