"""A message that ends its worker, over and over, ends among the dead letters; those beside it do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dramatiq.broker import MessageProxy

from tests.workers.parts import Sandbox, StartIdem, Valkey, make_email, wait_for
from workers import App, Settings
from workers.brokers.base import Acknowledge, Retry, dispose
from workers.brokers.redis import RedisBroker
from workers.brokers.servers import connect
from workers.jobs import QUEUE, email_message

#: As in queue.lua.
_ALONE_AFTER, _BURIED_AFTER = 5, 10

_VISIBILITY_SECONDS = 0.3


@pytest.fixture
def make_broker(valkey: Valkey) -> Iterator[Callable[[], RedisBroker]]:
    made: list[RedisBroker] = []

    def make() -> RedisBroker:
        broker = RedisBroker(connect(valkey.url), namespace="test", visibility_seconds=_VISIBILITY_SECONDS)
        broker.declare_queue(QUEUE)
        made.append(broker)
        return broker

    yield make
    for broker in made:
        broker.close()


def _fetch(broker: RedisBroker, count: int = 100) -> list[MessageProxy]:
    """What a worker gets that asks once."""
    consumer = broker.consume(QUEUE, prefetch=count, timeout=1)
    found = []
    while (message := next(consumer)) is not None:
        found.append(message)
    return [message for message in found if isinstance(message, MessageProxy)]


def _die(broker: RedisBroker, heir: RedisBroker) -> None:
    """The worker has died; the server comes to know of it by another one's maintenance."""
    with broker.link.nodes()[0] as raw:
        raw.zadd(f"{broker.namespace}:__heartbeats__", {broker.broker_id: 1})
    heir._maintained_at = 0.0
    heir.maintain(QUEUE)


def _enqueue(broker: RedisBroker, count: int) -> None:
    for number in range(count):
        broker.enqueue(email_message(make_email(number), f"k{number}")[0])


def test_what_its_workers_die_with_is_buried_with_the_reason(make_broker: Callable[[], RedisBroker]) -> None:
    heir = make_broker()
    _enqueue(heir, 1)
    for _ in range(_BURIED_AFTER):
        assert heir.backlog().dead == 0
        worker = make_broker()
        assert len(_fetch(worker)) == 1
        _die(worker, heir)

    (letter,) = heir.dead_letters()
    assert letter.reason == "10 workers died while they had it, and none said a word of it"
    assert (letter.key, letter.job) == ("k0", "email")
    assert heir.backlog().pending == 0


def test_those_beside_it_are_suspected_and_cleared(make_broker: Callable[[], RedisBroker]) -> None:
    """One of five kills whoever begins it. The others are given out beside it at first, and get done."""
    heir = make_broker()
    _enqueue(heir, 5)
    workers = 0
    while heir.backlog().pending:
        worker = make_broker()
        workers += 1
        held = _fetch(worker)
        consumer = worker.consume(QUEUE, prefetch=100, timeout=1)
        if any(message.kwargs["key"] == "k3" for message in held):
            _die(worker, heir)
            continue
        for message in held:
            dispose(message, Acknowledge())
            consumer.ack(message)

    (letter,) = heir.dead_letters()
    assert letter.key == "k3"
    assert workers >= _BURIED_AFTER


def test_one_suspect_at_a_time_and_others_meanwhile(make_broker: Callable[[], RedisBroker]) -> None:
    heir = make_broker()
    _enqueue(heir, 3)
    for _ in range(_ALONE_AFTER):
        worker = make_broker()
        assert len(_fetch(worker)) == 3
        _die(worker, heir)
    heir.enqueue(email_message(make_email(), "new")[0])

    held = _fetch(heir)
    assert len(held) == 2
    assert "new" in {message.kwargs["key"] for message in held}
    assert len(_fetch(make_broker())) == 1

    consumer = heir.consume(QUEUE, prefetch=100, timeout=1)
    for message in held:
        dispose(message, Acknowledge())
        consumer.ack(message)
    # Done with one, it is woken for the next.
    assert heir.woken(QUEUE, 1)
    assert len(_fetch(heir)) == 1


def test_what_was_said_of_it_or_given_back_does_not_count(make_broker: Callable[[], RedisBroker]) -> None:
    heir = make_broker()
    _enqueue(heir, 1)
    for turn in range(3 * _BURIED_AFTER):
        worker = make_broker()
        (message,) = _fetch(worker)
        consumer = worker.consume(QUEUE, prefetch=1, timeout=1)
        if turn % 3 == 0:
            _die(worker, heir)
        elif turn % 3 == 1:
            dispose(message, Retry(0))
            consumer.ack(message)
        else:
            consumer.requeue([message])

    assert heir.backlog().dead == 0


_KILLING = """
import os, signal
from idem import Email
from workers import App, Settings

app = App(Settings.load())

@app.job()
def kill(number):
    os.kill(os.getpid(), signal.SIGKILL)

@app.job()
def report(number):
    return Email(from_="a@example.com", to=f"r{number}@example.com", subject="S", text="T")
"""


def test_a_job_that_kills_its_process_ends_while_others_proceed(
    environ: dict[str, str], tmp_path: Path, sandbox: Sandbox, start_idem: StartIdem
) -> None:
    (tmp_path / "killing.py").write_text(_KILLING)
    short = {
        "IDEM_HTTP_TIMEOUT_SECONDS": "0.3",
        "IDEM_LEASE_SECONDS": "0.5",
        "IDEM_VISIBILITY_SECONDS": "0.5",
    }
    app = App(Settings.load(environ | short, tmp_path))
    kill = app.job("kill")(lambda _number: None)
    report = app.job("report")(lambda _number: None)
    kill.send(1, key="killer")
    for number in range(6):
        report.send(number, key=f"k{number}")

    parent = start_idem("worker", "--app", "killing:app", "--processes", "2", "--threads", "2", env=short)
    wait_for(lambda: app.broker.backlog().dead and not app.broker.backlog().pending, seconds=60)

    assert parent.stop() == 0
    (letter,) = app.broker.dead_letters()
    app.close()
    assert (letter.key, letter.job) == ("killer", "kill")
    assert sorted(sandbox.recipients()) == [f"r{number}@example.com" for number in range(6)]
