"""The acknowledgement rule's other half: what the actor says of a message, and when."""

from __future__ import annotations

import dataclasses
import gc
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.middleware import Interrupt, Shutdown, TimeLimitExceeded
from dramatiq.threading import raise_thread_exception

from idem import Email, State
from idem.bulk import Group, Ready
from idem.clock import SystemClock
from idem.errors import BrokerUnavailable, JobError
from idem.outcome import NotSent
from idem.send import Point
from tests.workers.parts import Sandbox, make_email, wait_for
from workers import App, Settings
from workers.actors import Performer
from workers.brokers.base import Acknowledge, Backlog, Bury, Disposition, Retry
from workers.jobs import email_message, job_message

#: A thread's connection to the provider is closed when the thread's memory is freed, of which Python warns.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

_SHORT = {
    "IDEM_HTTP_TIMEOUT_SECONDS": "0.4",
    "IDEM_LEASE_SECONDS": "0.8",
    "IDEM_BACKOFF_SECONDS": "0.05",
    "IDEM_GIVE_UP_SECONDS": "30",
}


class Stage:
    """An application, its performer, and the crash point at which to raise."""

    def __init__(self, environ: dict[str, str], directory: Path) -> None:
        self.app = App(Settings.load(environ | _SHORT, directory), reach=self._reach)
        self.on_point: Callable[[Point], None] = lambda _: None

    def _reach(self, point: Point) -> None:
        self.on_point(point)

    def perform(self, message: Message[None]) -> Disposition:
        return self.performer.perform(message, message.kwargs)

    def send(self, email: Email, key: str) -> Disposition:
        return self.perform(email_message(email, key)[0])

    def run(self, name: str, key: str, *args: Any) -> Disposition:
        return self.perform(job_message(name, args, {}, key)[0])

    def state(self, key: str) -> State | None:
        record = self.app.ledger.read(key)
        return None if record is None else record.state

    @property
    def performer(self) -> Performer:
        if not hasattr(self, "_performer"):
            self._performer = self.app.performer()
        return self._performer

    def backlog(self) -> Backlog:
        return self.app.broker.backlog()


@pytest.fixture
def stage(environ: dict[str, str], tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(environ, tmp_path)
    yield stage
    stage.app.close()
    vars(stage).clear()
    gc.collect()


@pytest.fixture
def worker(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[dramatiq.Worker]:
    """Dramatiq's threads, as in a worker process."""
    monkeypatch.setattr("workers.brokers.base.UNSAID_SECONDS", 0.1)
    assert stage.performer is not None
    worker = dramatiq.Worker(stage.app.broker, worker_threads=2, worker_timeout=10)
    worker.start()
    yield worker
    worker.stop(5_000)


class TestGate:
    def _pause(self, stage: Stage, seconds: float) -> None:
        assert stage.app.gate.enter() == 0.0
        stage.app.gate.heed("lettermint", "k", NotSent("HTTP 429", seconds, limited=True))
        stage.app.gate.leave()

    def test_a_paused_provider_costs_no_claim_and_no_try(self, stage: Stage, sandbox: Sandbox) -> None:
        self._pause(stage, 60.0)

        returned = stage.send(make_email(), "k")

        assert isinstance(returned, Retry)
        assert not returned.tried
        assert 58 < returned.delay_seconds < 66
        assert stage.state("k") is None
        assert sandbox.seen() == []

    def test_what_the_provider_says_reaches_the_gate(self, stage: Stage, sandbox: Sandbox) -> None:
        sandbox.order("429", times=1, retry_after=30)
        stage.send(make_email(), "k")

        paused = stage.app.gate.look().pause

        assert paused is not None
        assert paused.seconds == 30
        assert isinstance(stage.send(make_email(2), "other"), Retry)
        assert stage.state("other") is None

    def test_a_last_replay_passes_a_closed_gate(self, stage: Stage, sandbox: Sandbox) -> None:
        """The window of a key in doubt would close during the pause: the email is settled, not left in doubt."""
        sandbox.order("accept_then_drop", times=1)
        stage.send(make_email(), "k")
        assert stage.state("k") is State.UNSURE
        due = stage.app.ledger.passes_at("k")
        assert due is not None
        self._pause(stage, 1.1 * (due - time.time()))

        returned = stage.send(make_email(), "k")
        assert isinstance(returned, Retry)
        assert returned.delay_seconds <= min(due - time.time() + 1, 900)

        stage.performer._clock = _Later(due)
        # The ledger's clock goes on as it was: its own pause after the first attempt has to be over.
        wait_for(lambda: stage.send(make_email(), "k") == Acknowledge())
        assert stage.state("k") is State.SENT
        assert len(sandbox.accepted()) == 1

    def test_of_a_request_with_many_emails_any_in_doubt_counts(self, stage: Stage, sandbox: Sandbox) -> None:
        """The first email of the message is long settled, another one is in doubt: its window counts."""
        stage.send(make_email(1), "settled")
        sandbox.order("accept_then_drop", times=1)
        stage.send(make_email(2), "unsure")
        due = stage.app.ledger.passes_at("unsure")
        assert due is not None

        group = Group((Ready("settled", make_email(1)), Ready("new", make_email(3)), Ready("unsure", make_email(2))))

        assert stage.performer._shortened(group, 1e9) <= due - time.time() + 1

    def test_an_unreachable_provider_leaves_it_in_doubt_after_the_last_replay(
        self, environ: dict[str, str], tmp_path: Path, sandbox: Sandbox
    ) -> None:
        """A short window, and an outage that outlasts it: only then IN_DOUBT, and not by the closed gate alone."""
        stage = Stage(environ | {"IDEM_WINDOW_SECONDS": "4.8"}, tmp_path)
        sandbox.order("503")
        stage.send(make_email(), "k")
        self._pause(stage, 600.0)
        delays = []
        while stage.state("k") is State.UNSURE:
            returned = stage.send(make_email(), "k")
            if isinstance(returned, Retry):
                delays.append(returned.delay_seconds)
                time.sleep(min(returned.delay_seconds, 0.2))

        record = stage.app.ledger.read("k")
        assert record is not None
        assert record.state is State.IN_DOUBT
        assert record.attempts >= 2, "the pause did not keep it from its last replay"
        assert max(delays) < 5
        stage.app.close()
        vars(stage).clear()
        gc.collect()


class _Later(SystemClock):
    """A clock that shows an instant to come."""

    def __init__(self, instant: float) -> None:
        self._instant = instant

    def now(self) -> float:
        return self._instant


class TestAcknowledging:
    @pytest.mark.usefixtures("worker")
    @pytest.mark.parametrize("point", [point for point in Point if point not in {Point.RENDERED, Point.FROZEN}])
    def test_whatever_breaks_before_the_end_leaves_the_message_in_the_queue(
        self, stage: Stage, sandbox: Sandbox, point: Point
    ) -> None:
        """At each crash point: at that instant the message is there, it comes again, and one email is accepted."""
        seen: list[Backlog] = []

        def break_once(reached: Point) -> None:
            if reached is point and not seen:
                seen.append(stage.backlog())
                raise RuntimeError("a bug")

        stage.on_point = break_once
        stage.app.enqueue(make_email(), key="k")

        wait_for(lambda: stage.state("k") is State.SENT and stage.backlog().pending == 0)
        assert seen == [Backlog(ready=0, delayed=0, in_flight=1, dead=0)]
        assert len(sandbox.accepted()) == 1

    @pytest.mark.usefixtures("worker")
    @pytest.mark.parametrize("point", [Point.CLAIMED, Point.RENDERED, Point.FROZEN, Point.ANSWERED, Point.SETTLED])
    def test_so_for_a_job_that_builds_its_email(self, stage: Stage, sandbox: Sandbox, point: Point) -> None:
        """What was frozen is what is sent, although the function would build something else the second time."""
        built: list[int] = []
        broken: list[Point] = []

        @stage.app.job()
        def job() -> Email:
            built.append(1)
            return make_email(len(built))

        def break_once(reached: Point) -> None:
            if reached is point and not broken:
                broken.append(point)
                raise RuntimeError("a bug")

        stage.on_point = break_once
        job.send(key="k")

        wait_for(lambda: stage.state("k") is State.SENT and stage.backlog().pending == 0)
        frozen = point not in {Point.CLAIMED, Point.RENDERED}
        assert sandbox.recipients() == ["r1@example.com" if frozen or point is Point.CLAIMED else "r2@example.com"]

    def test_a_durable_outcome_is_acknowledged(self, stage: Stage) -> None:
        assert stage.send(make_email(), "k") == Acknowledge()
        assert stage.state("k") is State.SENT

    def test_so_is_a_redelivery_without_another_call(self, stage: Stage, sandbox: Sandbox) -> None:
        stage.send(make_email(), "k")
        before = sandbox.requests()

        assert stage.send(make_email(), "k") == Acknowledge()
        assert sandbox.requests() == before

    def test_a_rejection_is_acknowledged(self, stage: Stage, sandbox: Sandbox) -> None:
        """Two tags: Lettermint takes one, and a foreign producer did not check."""
        assert stage.send(make_email(tags=["a", "b"]), "k") == Acknowledge()
        assert stage.state("k") is State.REJECTED
        assert sandbox.accepted() == []

    @pytest.mark.parametrize(("fault", "state"), [("503", State.UNSURE), ("429", State.RETRY), ("drop", State.UNSURE)])
    def test_what_has_not_ended_comes_again(self, stage: Stage, sandbox: Sandbox, fault: str, state: State) -> None:
        sandbox.order(fault, times=1)

        said = stage.send(make_email(), "k")

        assert isinstance(said, Retry)
        assert stage.state("k") is state
        time.sleep(said.delay_seconds)
        assert stage.send(make_email(), "k") == Acknowledge()
        assert len(sandbox.accepted()) == 1

    def test_a_retry_after_is_obeyed(self, stage: Stage, sandbox: Sandbox) -> None:
        sandbox.order("429", times=1, retry_after=77)

        said = stage.send(make_email(), "k")

        assert isinstance(said, Retry)
        assert 76 < said.delay_seconds <= 77


class TestLedger:
    @pytest.fixture
    def locked(self, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
        """Another process holds the ledger's file."""
        monkeypatch.setattr("idem.stores.sqlite._BUSY_SECONDS", 0.1)
        stage.app.ledger.count()
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield connection

    def test_a_ledger_that_does_not_answer_means_no_call_at_all(
        self, stage: Stage, sandbox: Sandbox, locked: sqlite3.Connection
    ) -> None:
        before = sandbox.requests()

        said = stage.send(make_email(), "k")

        assert isinstance(said, Retry)
        assert sandbox.requests() == before
        locked.execute("ROLLBACK")
        assert stage.send(make_email(), "k") == Acknowledge()

    def test_a_ledger_that_is_gone_after_the_call_leaves_the_message(
        self, stage: Stage, sandbox: Sandbox, locked: sqlite3.Connection
    ) -> None:
        locked.execute("ROLLBACK")

        def lock(point: Point) -> None:
            if point is Point.ANSWERED:
                locked.execute("BEGIN EXCLUSIVE")

        stage.on_point = lock
        assert isinstance(stage.send(make_email(), "k"), Retry)
        assert len(sandbox.accepted()) == 1

        locked.execute("ROLLBACK")
        stage.on_point = lambda _: None
        said = wait_for(lambda: stage.send(make_email(), "k") == Acknowledge())
        assert said
        assert len(sandbox.accepted()) == 1


class TestJobs:
    @pytest.mark.usefixtures("worker")
    def test_a_list_of_emails_fans_out_under_sub_keys(self, stage: Stage, sandbox: Sandbox) -> None:
        @stage.app.job()
        def several() -> Sequence[Email]:
            return [make_email(1), make_email(2), make_email(3, headers={"Idempotency-Key": "own"})]

        several.send(key="k")

        wait_for(lambda: len(sandbox.accepted()) == 3 and stage.backlog().pending == 0)
        assert stage.state("k") is State.SPLIT
        assert [stage.state(key) for key in ("k/1", "k/2", "own")] == [State.SENT] * 3

    def test_a_job_that_fanned_out_does_so_again_with_the_same_emails(self, stage: Stage) -> None:
        """A crash before the acknowledgement repeats the fan-out: the same keys, the same frozen emails."""
        built: list[int] = []

        def several() -> Sequence[Email]:
            built.append(1)
            return [make_email(len(built)), make_email(10)]

        stage.app.job()(several)
        assert stage.run("several", "k") == stage.run("several", "k") == Acknowledge()

        consumer = stage.app.broker.consume("default", prefetch=10, timeout=10)
        found = [next(consumer) for _ in range(2)]
        sent = [(item["key"], item["email"]["to"]) for message in found if message for item in message.kwargs["group"]]
        assert sent == 2 * [("k/1", ["r1@example.com"]), ("k/2", ["r10@example.com"])]

    def test_a_fan_out_that_the_broker_does_not_take_is_not_acknowledged(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage.app.job("several")(lambda: [make_email(1), make_email(2)])

        def lose(*_: object) -> None:
            raise BrokerUnavailable("the broker does not answer")

        monkeypatch.setattr(stage.app.broker, "enqueue", lose)
        assert isinstance(stage.run("several", "k"), Retry)
        monkeypatch.undo()

        assert stage.run("several", "k") == Acknowledge()
        assert stage.backlog().ready == 1, "both together, as this provider takes them"

    @pytest.mark.parametrize("nothing", [None, []])
    def test_none_is_no_email_and_done(self, stage: Stage, sandbox: Sandbox, nothing: list[Email] | None) -> None:
        stage.app.job("job")(lambda: nothing)

        assert stage.run("job", "k") == Acknowledge()
        assert stage.state("k") is State.SPLIT
        assert (stage.backlog().pending, sandbox.accepted()) == (0, [])

    @pytest.mark.parametrize("wrong", ["text", 7, [1], {"to": "x"}, (x for x in [1])])
    def test_what_is_no_email_is_rejected(self, stage: Stage, wrong: Any) -> None:
        stage.app.job("job")(lambda: wrong)

        assert stage.run("job", "k") == Acknowledge()
        assert stage.state("k") is State.REJECTED

    def test_a_function_that_raises_runs_again_later(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        tries: list[int] = []

        @stage.app.job()
        def job() -> Email:
            tries.append(1)
            if len(tries) == 1:
                raise LookupError("no order of ann@example.com")
            return make_email()

        said = stage.run("job", "k")
        assert isinstance(said, Retry)
        record = stage.app.ledger.read("k")
        assert record is not None
        assert record.reason == "job job raised LookupError: no order of <address>"

        time.sleep(said.delay_seconds)
        assert stage.run("job", "k") == Acknowledge()
        assert (job.name, stage.state("k")) == ("job", State.SENT)
        assert "ann@" not in "".join(entry.getMessage() for entry in caplog.records)

    def test_what_it_raises_may_hold_what_no_utf_8_can_carry(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The argument of a foreign message, in the words of the error: else the record would keep its claim."""
        # Nor can pytest's own report carry the traceback from one process to another.
        caplog.set_level(logging.CRITICAL, logger="idem.send")

        def job(name: str) -> Email:
            raise LookupError(f"no such customer: {name}")

        stage.app.job()(job)
        message = job_message("job", [""], {}, "k")[0]
        foreign = dataclasses.replace(message, kwargs=message.kwargs | {"args": ["\ud83d"]})

        assert isinstance(stage.perform(foreign), Retry)
        record = stage.app.ledger.read("k")
        assert record is not None
        assert (record.state, record.reason) == (State.RETRY, "job job raised LookupError: no such customer: ?")

    def test_a_function_that_says_that_its_job_is_wrong_ends_it(self, stage: Stage) -> None:
        def job() -> Email:
            raise JobError("there is no such order")

        stage.app.job()(job)
        assert stage.run("job", "k") == Acknowledge()
        assert stage.state("k") is State.REJECTED

    def test_an_unknown_job_waits_for_a_worker_that_knows_it(self, stage: Stage) -> None:
        assert isinstance(stage.run("another", "k"), Retry)
        assert stage.state("k") is None

    def test_after_the_time_to_give_up_it_is_buried(self, stage: Stage) -> None:
        message, _ = job_message("another", [], {}, "k")
        old = dataclasses.replace(message, message_timestamp=int((time.time() - 31) * 1000))

        assert stage.perform(old) == Bury("no worker knew the job 'another'")


class TestForgetting:
    """A message that is older than the ledger's memory: an absent record proves nothing then."""

    @pytest.fixture
    def forgetful(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
        policy = dataclasses.replace(stage.performer._policy, memory_seconds=3_600.0)
        monkeypatch.setattr(stage.performer, "_policy", policy)
        return stage

    def _old(self, message: Message[None], seconds: float) -> Message[None]:
        return dataclasses.replace(message, message_timestamp=int((time.time() - seconds) * 1000))

    def test_an_old_message_without_a_record_is_buried(self, forgetful: Stage, sandbox: Sandbox) -> None:
        """It may be a dead letter that was put back after its email went out and its record was forgotten."""
        message, _ = email_message(make_email(), "k")
        disposed = forgetful.perform(self._old(message, 3_601))

        assert isinstance(disposed, Bury)
        assert "under a new key" in disposed.reason
        assert forgetful.state("k") is None
        assert sandbox.accepted() == []

    def test_a_younger_one_is_sent(self, forgetful: Stage, sandbox: Sandbox) -> None:
        message, _ = email_message(make_email(), "k")

        assert forgetful.perform(self._old(message, 3_590)) == Acknowledge()
        assert len(sandbox.accepted()) == 1

    def test_an_old_one_whose_record_has_ended_is_not_claimed_again(self, forgetful: Stage, sandbox: Sandbox) -> None:
        """The record could be forgotten between the look and the claim."""
        message, _ = email_message(make_email(), "k")
        forgetful.perform(message)

        assert isinstance(forgetful.perform(self._old(message, 3_601)), Bury)
        assert len(sandbox.accepted()) == 1

    def test_an_old_one_whose_record_is_live_goes_on(self, forgetful: Stage, sandbox: Sandbox) -> None:
        """What has not ended is never forgotten."""
        message, _ = email_message(make_email(), "k")
        sandbox.order("429", times=1)
        assert isinstance(forgetful.perform(message), Retry)
        wait_for(lambda: forgetful.perform(self._old(message, 3_601)) == Acknowledge())

        assert len(sandbox.accepted()) == 1

    def test_the_emails_of_a_list_are_as_old_as_their_job(
        self, forgetful: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else a late redelivery of the job would bring emails that look new, and whose records are forgotten."""

        def job() -> list[Email]:
            return [make_email(), make_email()]

        forgetful.app.job()(job)
        enqueued: list[Message[None]] = []
        monkeypatch.setattr(forgetful.app.broker, "enqueue", enqueued.append)
        message = self._old(job_message("job", [], {}, "k")[0], 3_000)
        assert forgetful.perform(message) == Acknowledge()

        assert [part.message_timestamp for part in enqueued] == [message.message_timestamp]


class TestRefusing:
    @pytest.mark.parametrize(
        ("payload", "reason"),
        [
            ({}, "the message is malformed: "),
            ({"job": "j", "email": {}}, "the message is malformed: "),
            ({"job": 7}, "the message is malformed: "),
            ({"email": {"to": "x"}}, "from: is missing"),
            ({"email": {"from": "a@b.c", "to": "nobody", "subject": "s", "text": "t"}}, "to"),
            ({"job": "j", "key": "a\nb"}, "a key holds a character that does not print"),
        ],
    )
    def test_a_malformed_message_is_buried_with_the_reason(
        self, stage: Stage, payload: dict[str, Any], reason: str
    ) -> None:
        message = dataclasses.replace(email_message(make_email(), "k")[0], kwargs=payload)

        said = stage.perform(message)

        assert isinstance(said, Bury)
        assert said.reason.startswith(reason)

    @pytest.mark.usefixtures("worker")
    @pytest.mark.parametrize("change", [{"args": [1]}, {"kwargs": {"self": 1}}, {"kwargs": {"args": 1}}])
    def test_so_is_one_that_the_actor_could_not_be_called_with(self, stage: Stage, change: dict[str, Any]) -> None:
        message = dataclasses.replace(email_message(make_email(), "k")[0], **change)
        stage.app.broker.enqueue(message)

        wait_for(lambda: stage.backlog() == Backlog(0, 0, 0, 1))

    def test_a_conflict_is_buried_and_noted(self, stage: Stage, sandbox: Sandbox) -> None:
        stage.send(make_email(1), "k")

        assert stage.send(make_email(2), "k") == Bury("its key already stands for another email or job")

        record = stage.app.ledger.read("k")
        assert record is not None
        assert [item.kind for item in record.evidence] == ["conflict"]
        assert sandbox.recipients() == ["r1@example.com"]

    def test_refused_credentials_keep_the_job_and_raise_the_flag_once(
        self, stage: Stage, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
    ) -> None:
        sandbox.order("401")
        with caplog.at_level(logging.WARNING, "idem.worker"):
            first, second = stage.send(make_email(1), "k1"), stage.send(make_email(2), "k2")

        assert isinstance(first, Retry)
        assert isinstance(second, Retry)
        assert stage.performer.credentials_refused.is_set()
        assert stage.state("k1") is State.RETRY
        (line,) = [entry.getMessage() for entry in caplog.records]
        assert line.startswith("lettermint refuses the credentials (HTTP 401: ")
        assert "check IDEM_LETTERMINT_TOKEN; jobs stay in the queue" in line

    def test_another_refusal_does_not_raise_it(self, stage: Stage, sandbox: Sandbox) -> None:
        sandbox.order("429", times=1)
        stage.send(make_email(), "k")

        assert not stage.performer.credentials_refused.is_set()

    def test_the_actor_runs_inside_a_worker_only(self, stage: Stage) -> None:
        assert stage.performer is not None
        with pytest.raises(RuntimeError, match="inside a worker only"):
            stage.app.broker.get_actor("idem")()


class TestInterrupts:
    """Dramatiq raises these in another thread's middle, at any instruction: each counts as a crash."""

    @pytest.mark.usefixtures("worker")
    @pytest.mark.parametrize(
        ("point", "kind"),
        [
            (Point.BEFORE_CLAIM, Shutdown),
            (Point.CLAIMED, TimeLimitExceeded),
            (Point.BEFORE_CALL, Shutdown),
            (Point.ANSWERED, TimeLimitExceeded),
            (Point.SETTLED, Shutdown),
        ],
    )
    def test_in_a_thread_that_sends(self, stage: Stage, sandbox: Sandbox, point: Point, kind: type[Interrupt]) -> None:
        interrupted: list[Point] = []

        def interrupt(reached: Point) -> None:
            if reached is point and not interrupted:
                interrupted.append(reached)
                raise_thread_exception(threading.get_ident(), kind)

        stage.on_point = interrupt
        stage.app.enqueue(make_email(), key="k")

        wait_for(lambda: stage.state("k") is State.SENT and stage.backlog().pending == 0)
        assert interrupted == [point]
        assert len(sandbox.accepted()) == 1
        assert stage.backlog().dead == 0

    @pytest.mark.usefixtures("worker")
    @pytest.mark.parametrize("point", [Point.CLAIMED, Point.RENDERED, Point.FROZEN, Point.ANSWERED, Point.SETTLED])
    def test_in_a_thread_that_builds(self, stage: Stage, sandbox: Sandbox, point: Point) -> None:
        interrupted: list[Point] = []

        def interrupt(reached: Point) -> None:
            if reached is point and not interrupted:
                interrupted.append(reached)
                raise_thread_exception(threading.get_ident(), Shutdown)

        stage.on_point = interrupt
        job = stage.app.job("job")(make_email)
        job.send(key="k")

        wait_for(lambda: stage.state("k") is State.SENT and stage.backlog().pending == 0)
        assert interrupted == [point]
        assert len(sandbox.accepted()) == 1

    def test_none_of_our_middleware_raises_any(self, stage: Stage) -> None:
        """Neither a time limit, as the HTTP timeout is one, nor a shutdown, as what was begun is finished."""
        names = {type(middleware).__name__ for middleware in stage.app.broker.middleware}

        assert not names & {"TimeLimit", "ShutdownNotifications", "Retries", "AgeLimit", "Callbacks", "Pipelines"}
