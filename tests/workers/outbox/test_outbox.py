"""The outbox on every database: what is committed is relayed, by one relay at a time, whatever dies in between."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dramatiq import Message
from sqlalchemy import Engine, insert, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from idem.bulk import Ready
from idem.email import Email
from idem.errors import (
    BodyTooLarge,
    BrokerError,
    BrokerUnavailable,
    EmailError,
    InvalidKey,
    JobError,
    JobTooLarge,
    LedgerUnavailable,
    OutboxError,
    OutboxUnavailable,
)
from idem.protocol import InDoubt
from tests.fakes import Crash
from tests.workers.parts import StartIdem, make_email, wait_for
from workers import App, Settings
from workers.jobs import Call, read_message
from workers.outbox import Database, Relay, Turn
from workers.outbox.relay import keep_relaying
from workers.outbox.tables import make_tables
from workers.timing import Timing

_LEASE = 8.0


@dataclass
class Queue:
    """The way into a queue that remembers the keys it was given, and refuses what it is told to."""

    keys: list[str] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)
    failure: Exception | None = None
    failed: int = 0
    refuses: dict[str, Exception] = field(default_factory=dict)

    def ask(self, message: Message[None], timing: Timing) -> None:
        if self.failure is not None:
            self.failed += 1
            raise self.failure
        asked = read_message(message.kwargs, message.message_id)
        assert isinstance(asked, Ready | Call)
        if asked.key in self.refuses:
            raise self.refuses[asked.key]
        self.keys.append(asked.key)
        if timing.delay_ms is not None:
            self.delays.append(timing.delay_ms)

    def ask_all(self, messages: Sequence[Message[None]]) -> list[BrokerError | None]:
        """As the broker in a Redis server does: none behind one that failed."""
        answers: list[BrokerError | None] = []
        for message in messages:
            try:
                self.ask(message, Timing())
            except BrokerError as error:
                return answers + [error] * (len(messages) - len(answers))
            answers.append(None)
        return answers


class Clock:
    """Runs forward when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Stage:
    """An application, its database, a queue, and relays that share them."""

    def __init__(self, engine: Engine, database: Database) -> None:
        self.engine = engine
        self.database = database
        self.app = App(Settings(provider="lettermint"))
        self.outbox = self.app.outbox
        self.queue = Queue()
        self.clock = Clock()

    def commit(self, *keys: str) -> None:
        with Session(self.engine) as session, session.begin():
            for key in keys:
                self.outbox.add(session, make_email(), key=key)

    def relay(self, reach: Callable[[str], None] = lambda _: None, *, together: bool = True) -> Relay:
        """A process that has just started."""
        turn = Turn(self.database, lease_seconds=_LEASE, monotonic=self.clock)
        return Relay(self.database, turn, self.queue.ask, self.queue.ask_all if together else None, reach=reach)

    def drain(self, relay: Relay) -> list[str]:
        """Relay all there is, and so much only: a relay that does nothing is found out."""
        for _ in range(50):
            if self.database.is_empty():
                return self.queue.keys
            self.step(relay)
        pytest.fail("the outbox does not become empty")

    def step(self, relay: Relay) -> None:
        """A look, and some time after it: soon enough to keep the turn, and never too soon to get it in the end."""
        relay.tick()
        self.clock.now += _LEASE / 4

    def run(self, relay: Relay) -> None:
        for _ in range(50):
            self.step(relay)

    def insert(self, message: bytes) -> None:
        row = {"created_at": time.time(), "message": message}
        with self.engine.begin() as connection:
            connection.execute(insert(make_tables("idem_outbox").waiting), row)


@pytest.fixture
def stage(engine: Engine, database: Database) -> Stage:
    return Stage(engine, database)


class TestAdding:
    def test_what_is_committed_is_relayed_and_what_is_rolled_back_is_not(self, stage: Stage) -> None:
        stage.commit("k1", "k2")
        with Session(stage.engine) as session:
            stage.outbox.add(session, make_email(), key="never")
            session.flush()
            session.rollback()
        with Session(stage.engine) as session, session.begin():
            savepoint = session.begin_nested()
            stage.outbox.add(session, make_email(), key="nor this")
            savepoint.rollback()
            stage.outbox.add(session, make_email(), key="k3")

        assert stage.drain(stage.relay()) == ["k1", "k2", "k3"]

    def test_a_connection_a_scoped_session_and_one_that_writes_more_beside(self, stage: Stage) -> None:
        with stage.engine.begin() as connection:
            connection.execute(text("CREATE TABLE orders (id INTEGER PRIMARY KEY)"))
            stage.outbox.add(connection, make_email(), key="k1")
        scoped = scoped_session(sessionmaker(stage.engine))
        stage.outbox.add(scoped, make_email(), key="k2")
        scoped.execute(text("INSERT INTO orders VALUES (1)"))
        scoped.commit()
        scoped.remove()
        with stage.engine.connect() as connection:
            stage.outbox.add(connection, make_email(), key="never")

        assert stage.drain(stage.relay()) == ["k1", "k2"]

    def test_an_asynchronous_session_has_it_without_waiting(self, stage: Stage) -> None:
        """By the session behind it, which SQLAlchemy calls so; its own class asks for greenlet."""
        with Session(stage.engine) as session, session.begin():
            behind: Any = SimpleNamespace(sync_session=session)
            stage.outbox.add(behind, make_email(), key="k1")

        assert stage.drain(stage.relay()) == ["k1"]

    def test_the_message_is_what_the_application_would_enqueue(self, stage: Stage) -> None:
        @stage.app.job(in_doubt="drop")
        def welcome(name: str, *, times: int = 1) -> Email:
            return make_email(times, subject=name)

        with Session(stage.engine) as session, session.begin():
            job_key = stage.outbox.add_job(session, welcome, "Ann", times=2, expires=60)
            header = make_email(headers={"Idempotency-Key": "from-header"})
            header_key = stage.outbox.add(session, header, in_doubt="resend")
            own_key = stage.outbox.add(session, make_email())
        rows = stage.database.next()
        asked = [read_message(m.kwargs, m.message_id) for m in (Message.decode(row.message) for row in rows)]

        assert isinstance(asked[0], Call)
        assert (asked[0].key, asked[0].args, asked[0].kwargs) == (job_key, ["Ann"], {"times": 2})
        assert asked[0].in_doubt is InDoubt.DROP
        assert asked[0].expires_at is not None
        assert asked[1] == Ready("from-header", make_email(), InDoubt.RESEND)
        assert isinstance(asked[2], Ready)
        assert header_key == "from-header"
        assert asked[2].key == own_key == Message.decode(rows[2].message).message_id

    def test_a_mistake_is_the_callers_and_leaves_no_row(self, stage: Stage) -> None:
        add = stage.outbox.add
        with Session(stage.engine) as session, session.begin():
            mistakes: list[tuple[type[Exception], Callable[[], object]]] = [
                (InvalidKey, lambda: add(session, make_email(), key="")),
                (JobError, lambda: add(session, make_email(), in_doubt="perhaps")),  # type: ignore[arg-type]  # a mistake
                (JobError, lambda: add(session, make_email(), delay=-1)),
                (EmailError, lambda: add(session, make_email(tags=["a", "b"]))),
                (JobError, lambda: add(stage.engine, make_email())),  # type: ignore[arg-type]  # a mistake
                (JobError, lambda: add(None, make_email())),  # type: ignore[arg-type]  # a mistake
            ]
            for error, mistake in mistakes:
                with pytest.raises(error):
                    mistake()

        assert stage.database.is_empty()

    def test_arguments_that_a_job_does_not_take(self, stage: Stage) -> None:
        @stage.app.job()
        def welcome(name: str) -> Email:
            return make_email(subject=name)

        with Session(stage.engine) as session, session.begin():
            for args in ((), ("a", "b"), (datetime.now(UTC),)):
                with pytest.raises(JobError):
                    stage.outbox.add_job(session, welcome, *args)

        assert stage.database.is_empty()

    def test_a_large_email_and_every_character(self, stage: Stage) -> None:
        email = make_email(subject="é✉\N{GRINNING FACE}", text="x" * 3_000_000)
        with Session(stage.engine) as session, session.begin():
            for number in range(4):
                stage.outbox.add(session, email, key=f"é-{number}-\N{GRINNING FACE}")
                # Together, they would be more than MySQL takes in one statement by its defaults.
                session.flush()
        first = stage.database.next()

        assert len(first) == 2, "no more than fits into memory"
        assert stage.drain(stage.relay()) == [f"é-{number}-\N{GRINNING FACE}" for number in range(4)]


class TestOrder:
    def test_a_transaction_that_commits_late_is_not_passed_over(self, stage: Stage) -> None:
        if stage.engine.dialect.name == "sqlite":
            pytest.skip("it has one writer at a time: ids are in the order of commits")
        relay = stage.relay()
        with Session(stage.engine) as late:
            stage.outbox.add(late, make_email(), key="late")
            late.flush()
            stage.commit("early")

            assert stage.drain(relay) == ["early"]

            late.commit()

        assert stage.drain(relay) == ["early", "late"]

    def test_more_than_one_reading_goes_in_order(self, stage: Stage) -> None:
        keys = [f"k{number}" for number in range(250)]
        stage.commit(*keys)

        assert stage.drain(stage.relay()) == keys

    def test_what_is_delayed_says_so_to_the_queue(self, stage: Stage) -> None:
        with Session(stage.engine) as session, session.begin():
            stage.outbox.add(session, make_email(), key="later", at=datetime.now(UTC) + timedelta(hours=1))
            stage.outbox.add(session, make_email(), key="now", delay=0)
        keys = stage.drain(stage.relay())

        assert sorted(keys) == ["later", "now"]
        assert [round(delay / 3_600_000, 1) for delay in stage.queue.delays] == [1.0]

    def test_one_after_the_other_where_each_is_written_down_first(self, stage: Stage) -> None:
        stage.commit("k1", "k2")

        assert stage.drain(stage.relay(together=False)) == ["k1", "k2"]


class TestDying:
    @pytest.mark.parametrize(
        ("point", "times"), [("looked", 1), ("some", 1), ("some", 2), ("enqueued", 1), ("removed", 1)]
    )
    def test_at_every_point_loses_nothing(self, stage: Stage, point: str, times: int) -> None:
        """One relay after the other dies when it gets to the point so many times."""
        keys = [f"k{number}" for number in range(25)]
        stage.commit(*keys)
        for _ in range(2):
            relay = stage.relay(_dying_at(point, times))
            with pytest.raises(Crash):
                stage.run(relay)

        assert list(dict.fromkeys(stage.drain(stage.relay()))) == keys

    def test_the_next_one_takes_the_turn_after_the_lease_and_at_once_after_a_release(self, stage: Stage) -> None:
        first, second = stage.relay(), stage.relay()
        first.tick()
        first.tick()
        stage.commit("k1")

        assert not second.tick()

        stage.clock.now += _LEASE * 0.9

        assert not second.tick()

        stage.clock.now += _LEASE * 0.2

        assert second.tick()
        assert stage.queue.keys == ["k1"]

        second.release()
        stage.commit("k2")

        assert stage.drain(stage.relay()) == ["k1", "k2"]

    def test_one_that_gives_signs_of_life_keeps_the_turn(self, stage: Stage) -> None:
        first, second = stage.relay(), stage.relay()
        for _ in range(20):
            first.tick()
            stage.clock.now += _LEASE / 2
            stage.commit("k")

            assert not second.tick()

    def test_one_that_slept_changes_nothing(self, stage: Stage) -> None:
        """It has enqueued its rows when it falls asleep; another relay takes them, and a new row is not deleted."""
        other = stage.relay()
        other.tick()
        other.release()

        def sleep(point: str) -> None:
            if point == "enqueued":
                stage.drain(other)
                stage.commit("k2")

        stage.commit("k1")
        stage.relay(sleep).tick()

        assert [row.message.count(b"k2") for row in stage.database.next()] == [1]
        assert stage.drain(other) == ["k1", "k1", "k2"]

    def test_one_that_is_slow_stops_before_another_may_take_the_turn(self, stage: Stage) -> None:
        stage.commit(*(f"k{number}" for number in range(30)))

        def hang(point: str) -> None:
            if point == "some":
                stage.clock.now += _LEASE * 0.6

        stage.relay(hang).tick()

        assert len(stage.queue.keys) == 10
        assert len(stage.database.next()) == 20

    def test_two_at_once(self, url: str, stage: Stage) -> None:
        """Real time and threads: each row is relayed once, as nobody dies."""
        keys = [f"k{number}" for number in range(200)]
        databases = [Database(url, "idem_outbox") for _ in range(3)]
        relays = [Relay(each, Turn(each, lease_seconds=30), stage.queue.ask, stage.queue.ask_all) for each in databases]
        threads = [threading.Thread(target=_until_empty, args=[relay]) for relay in relays]
        stage.commit(*keys)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each in databases:
            each.close()

        assert stage.queue.keys == keys


class TestRefused:
    def test_what_the_queue_cannot_get_is_set_aside_and_the_others_go(self, stage: Stage) -> None:
        stage.queue.refuses = {"k2": JobTooLarge("it is too large"), "k4": InvalidKey("its key is taken")}
        stage.commit("k1", "k2", "k3", "k4", "k5")
        relay = stage.relay()

        assert stage.drain(relay) == ["k1", "k3", "k5"]
        assert [(letter.key, letter.reason) for letter in stage.database.list_aside()] == [
            ("k2", "it is too large"),
            ("k4", "its key is taken"),
        ]

        stage.queue.refuses = {}
        first, second = stage.database.list_aside()

        assert stage.database.put_back(first)
        assert not stage.database.put_back(first)
        assert stage.database.drop_aside(second)
        assert not stage.database.drop_aside(second)
        assert stage.drain(relay) == ["k1", "k3", "k5", "k2"]
        assert stage.database.list_aside() == []

    def test_so_is_what_the_ledger_cannot_hold(self, stage: Stage) -> None:
        stage.queue.refuses = {"k2": BodyTooLarge("too large without a bucket")}
        stage.commit("k1", "k2", "k3")

        assert stage.drain(stage.relay(together=False)) == ["k1", "k3"]
        assert [(letter.key, letter.reason) for letter in stage.database.list_aside()] == [
            ("k2", "too large without a bucket")
        ]

    def test_what_is_no_message_is_set_aside(self, stage: Stage) -> None:
        nothings = [b"", b"\xff\xfe", b"[]", b'{"kwargs": 1}', b"null", b"[" * 100_000, b'{"a": "\\ud800"}']
        stage.commit("k1")
        for message in nothings:
            stage.insert(message)
        stage.commit("k2")

        assert stage.drain(stage.relay()) == ["k1", "k2"]

        aside = stage.database.list_aside()

        assert [letter.payload for letter in aside] == nothings
        assert {letter.reason for letter in aside} == {"it holds no message that can be read"}

    def test_what_cannot_be_written_again_is_set_aside(self, stage: Stage) -> None:
        """Such as one so deep that it could just be read; which it was, only asking for each alone tells."""
        stage.queue.refuses = {"k2": RecursionError("too deep, and here a part of the email")}
        stage.commit("k1", "k2", "k3")

        assert stage.drain(stage.relay()) == ["k1", "k1", "k3"]
        assert [letter.reason for letter in stage.database.list_aside()] == ["it holds no message that can be read"]

    @pytest.mark.parametrize("failure", [BrokerUnavailable("no answer"), BrokerError("odd"), LedgerUnavailable("no")])
    def test_a_queue_that_does_not_answer_is_nobodys_fault(self, stage: Stage, failure: Exception) -> None:
        stage.commit("k1")
        stage.queue.failure = failure
        for together in (True, False):
            relay = stage.relay(together=together)
            if isinstance(failure, LedgerUnavailable) and together:
                continue
            with pytest.raises(type(failure)):
                stage.run(relay)
            relay.release()
        stage.queue.failure = None

        assert stage.database.list_aside() == []
        assert stage.drain(stage.relay()) == ["k1"]

    def test_what_went_before_a_failure_is_not_enqueued_again(self, stage: Stage) -> None:
        stage.queue.refuses = {"k3": BrokerUnavailable("no answer")}
        stage.commit("k1", "k2", "k3", "k4")
        relay = stage.relay()
        with pytest.raises(BrokerUnavailable):
            stage.run(relay)
        stage.queue.refuses = {}

        assert stage.drain(relay) == ["k1", "k2", "k3", "k4"]


class TestKeepingOn:
    def test_waits_longer_and_longer_says_so_once_and_goes_on(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        stage.commit("k1")
        stage.queue.failure = BrokerUnavailable("the broker does not answer")
        waits: list[float] = []

        def wait(seconds: float) -> bool:
            waits.append(seconds)
            if stage.queue.failed == 3:
                stage.queue.failure = None
            return _slept(seconds)

        keep_relaying(stage.relay(), wait, until_empty=True, poll_seconds=0.01, most_seconds=0.05)

        assert stage.queue.keys == ["k1"]
        assert sum(waits) > 0.1
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
            "rows wait in the outbox: the broker does not answer",
            "the outbox is relayed again",
        ]

    def test_a_stop_is_noticed_in_the_middle_of_a_wait(self, stage: Stage) -> None:
        waits: list[float] = []

        def wait(seconds: float) -> bool:
            waits.append(seconds)
            return len(waits) > 3

        keep_relaying(stage.relay(), wait, until_empty=False, poll_seconds=1_000, most_seconds=1_000)

        assert max(waits) <= 0.1


def test_a_relay_that_is_stopped_while_its_database_is_down_ends_in_order(
    tmp_path: Path, start_idem: StartIdem
) -> None:
    path = tmp_path / "shop.db"
    database = Database(f"sqlite:///{path}", "idem_outbox")
    database.create()
    database.close()
    # As long as SQLite waits for a lock.
    url = f"sqlite:///{path}?timeout=0.1"
    relay = start_idem("relay", env={"IDEM_OUTBOX_URL": url, "IDEM_OUTBOX_LEASE_SECONDS": "1"})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        wait_for(lambda: connection.execute("SELECT holder FROM idem_outbox_turn WHERE holder != ''").fetchone())
        connection.execute("BEGIN EXCLUSIVE")
        wait_for(lambda: "rows wait in the outbox" in relay.log)

        assert relay.stop() == 0
    assert len(relay.log.splitlines()) == 2
    assert "another relay takes the turn when its lease is over" in relay.log


class TestTheDatabase:
    def test_says_what_there_is(self, stage: Stage) -> None:
        assert stage.database.check() == ["0 rows wait; 0 are set aside; no relay has run yet"]

        stage.queue.refuses = {"k1": JobTooLarge("large")}
        stage.commit("k1")
        stage.drain(stage.relay())
        stage.commit("k2")
        (said,) = stage.database.check()

        assert said.startswith("1 rows wait, the oldest for ")
        assert "; 1 are set aside; a relay was at work " in said

    def test_without_its_tables(self, url: str) -> None:
        bare = Database(url, "others")
        try:
            with pytest.raises(OutboxError, match="has no table others: run idem init"):
                bare.check()
            with pytest.raises(OutboxUnavailable, match="the database of the outbox does not do its work"):
                bare.next()
            bare.create()
            bare.create()

            assert bare.is_empty()
        finally:
            bare.close()


def _dying_at(point: str, times: int) -> Callable[[str], None]:
    left = [times]

    def reach(reached: str) -> None:
        if reached == point:
            left[0] -= 1
            if left[0] == 0:
                raise Crash(point)

    return reach


def _until_empty(relay: Relay) -> None:
    keep_relaying(relay, _slept, until_empty=True, poll_seconds=0.01, most_seconds=1)
    relay.release()


def _slept(seconds: float) -> bool:
    time.sleep(seconds)
    return False
