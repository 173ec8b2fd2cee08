"""Emails that are larger than a message of SQS may be, without a bucket for them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from idem import Email, State
from idem.errors import JobTooLarge
from tests import services
from tests.workers.brokers.sqs.parts import Proxy, Side, refusal
from tests.workers.parts import RunIdem, Sandbox, make_email
from workers import App, Settings
from workers.actors import Performer
from workers.brokers.base import Acknowledge, Bury, Retry
from workers.jobs import email_message, job_message

#: A thread's connection to the provider is closed when the thread's memory is freed, of which Python warns.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

#: Half of it is left when it is compressed.
_LARGE = random.Random(0).randbytes(550_000).hex()


@pytest.fixture
def app(faulty: Side, environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    """An application on the queues of `faulty`."""
    env = services.aws_environ(faulty.endpoint) | {"IDEM_BROKER_URL": str(faulty.names)}
    app = App(Settings.load(environ | env, tmp_path))
    yield app
    app.close()


@pytest.fixture
def performer(app: App) -> Performer:
    return app.performer()


def _enqueued(faulty: Side, count: int) -> list[str]:
    """The keys of so many messages, which are all there are."""
    taken = [faulty.take() for _ in range(count)]
    for message in taken:
        faulty.end(message, Acknowledge())
    assert faulty.counts()[:3] == (0, 0, 0)
    return sorted(message.kwargs.get("key") or message.kwargs["group"][0]["key"] for message in taken)


class TestLists:
    def _run(self, app: App, performer: Performer, *, durable: bool = False) -> Acknowledge | Bury | Retry:
        def several() -> list[Email]:
            return [make_email(1), make_email(2, text=_LARGE), make_email(3)]

        job = app.job("several")(several)
        message, _ = job_message("several", (), {}, "k")
        if durable:
            job.send(key="k", durable=True)
        return performer.perform(message, message.kwargs)

    def test_the_others_go_and_a_person_is_told_of_the_large_one(
        self, app: App, performer: Performer, faulty: Side
    ) -> None:
        said = self._run(app, performer)

        assert isinstance(said, Bury)
        assert "is too large for SQS" in said.reason
        assert "IDEM_BODIES_BUCKET" in said.reason
        assert _enqueued(faulty, 2) == ["k/1", "k/3"]

    def test_that_of_a_durable_list_goes_by_its_key(self, app: App, performer: Performer, faulty: Side) -> None:
        assert self._run(app, performer, durable=True) == Acknowledge()

        assert _enqueued(faulty, 4) == ["k", "k/1", "k/2", "k/3"]
        record = app.ledger.read("k/2")
        assert record is not None
        assert record.state is State.PENDING

    def test_a_queue_that_does_not_answer_is_asked_again(
        self, app: App, performer: Performer, faulty: Side, proxy: Proxy
    ) -> None:
        proxy.answer("SendMessageBatch", refusal("ServiceUnavailable", status=503))

        assert isinstance(self._run(app, performer), Retry)
        assert faulty.counts() == (0, 0, 0, 0)


class TestDurable:
    def test_it_goes_by_its_key_and_no_error_has_the_caller_send_it_twice(self, app: App, faulty: Side) -> None:
        app.enqueue(make_email(text=_LARGE), key="k", durable=True)

        message = faulty.take()
        assert message.kwargs == {"key": "k", "resume": True}
        faulty.end(message, Acknowledge())

    def test_it_is_as_late_as_was_asked(self, app: App, faulty: Side) -> None:
        app.enqueue(make_email(text=_LARGE), key="k", delay=600, durable=True)

        assert faulty.counts() == (0, 1, 0, 0)

    def test_one_that_the_ledger_does_not_hold_is_refused(
        self, app: App, faulty: Side, performer: Performer, sandbox: Sandbox
    ) -> None:
        """A message that is not durable had it: another one with the key alone would find nothing to send."""
        sandbox.order("429", times=1)
        message, _ = email_message(make_email(text=_LARGE), "k")
        assert isinstance(performer.perform(message, message.kwargs), Retry)

        with pytest.raises(JobTooLarge):
            app.enqueue(make_email(text=_LARGE), key="k", durable=True)
        assert faulty.counts() == (0, 0, 0, 0)

    def test_a_line_that_the_ledger_cannot_hold_is_a_bad_line(
        self, side: Side, call_idem: RunIdem, tmp_path: Path
    ) -> None:
        emails = (make_email(number, text=_LARGE if number == 1 else "x") for number in range(3))
        file = tmp_path / "mails.jsonl"
        file.write_text("".join(json.dumps(email.as_dict()) + "\n" for email in emails))
        ledger = f"dynamodb://{services.REGION}/{services.table(side.endpoint)}"
        env = {"IDEM_BROKER_URL": str(side.names), "IDEM_LEDGER_URL": ledger}

        ran = call_idem("enqueue", file, "--durable", env=services.aws_environ(side.endpoint) | env)

        assert (ran.status, ran.out) == (1, "enqueued 2, refused 1\n")
        assert "mails.jsonl line 2: " in ran.problem
        assert "configure a bucket" in ran.problem
        assert side.counts() == (2, 0, 0, 0)
