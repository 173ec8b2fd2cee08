"""Content keys as a producer meets them: real brokers, real processes, one killed between the key and the queue."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from idem import Email, JobError
from tests.workers.parts import RunIdem, Sandbox, make_email, payloads
from workers import App, Settings, by_content

_HOUR = by_content(within=timedelta(hours=1))

_PRODUCER = """
import os, signal, sys
from datetime import timedelta
from idem import Email
from workers import App, by_content

app = App.from_env()
if sys.argv[1] == "die":
    app.broker.enqueue = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
email = Email(from_="shop@example.com", to="r1@example.com", subject="S", text="T", metadata={"pid": str(os.getpid())})
print(app.enqueue(email, key=by_content(within=timedelta(hours=1))))
"""


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


@pytest.mark.parametrize("durable", [False, True])
def test_the_same_content_is_one_email_whatever_else_it_is_filed_under(
    app: App, sandbox: Sandbox, run_idem: RunIdem, *, durable: bool
) -> None:
    emails = [make_email(metadata={"request": str(number)}) for number in range(3)]
    keys = {app.enqueue(email, key=_HOUR, durable=durable) for email in emails}
    other = app.enqueue(make_email(2), key=_HOUR, durable=durable)

    assert run_idem("worker", "--until-empty").status == 0
    assert len(keys) == 1
    assert other not in keys
    assert sorted(sandbox.recipients()) == ["r1@example.com", "r2@example.com"]
    assert app.broker.backlog().dead == 0

    assert app.enqueue(emails[0], key=_HOUR, durable=durable) in keys
    assert run_idem("worker", "--until-empty").status == 0
    assert len(sandbox.accepted()) == 2


def test_once_the_time_is_over_it_is_another_email(app: App) -> None:
    brief = by_content(within=timedelta(microseconds=1))
    assert app.enqueue(make_email(), key=brief) != app.enqueue(make_email(), key=brief)


def test_an_explicit_key_beats_it(app: App) -> None:
    given = make_email(headers={"Idempotency-Key": "own"})
    assert app.enqueue(given, key=_HOUR) == "own"
    assert app.enqueue(make_email(), key=_HOUR).startswith("content/")
    assert [payload["email"].get("headers") for payload in payloads(app)] == [None, None]


def test_a_job_is_what_it_is_called_with(app: App) -> None:
    @app.job()
    def welcome(number: int, name: str = "") -> Email:
        return make_email(number, subject=name)

    first = welcome.send(1, key=_HOUR)
    assert welcome.send(1, key=_HOUR) == first
    assert asyncio.run(welcome.asend(1, key=_HOUR)) == first
    assert welcome.send(2, key=_HOUR) != first
    assert welcome.send(1, name="Ann", key=_HOUR) != first
    for name in (b"Ann", "\ud83d"):
        with pytest.raises(JobError, match="must be JSON values"):
            welcome.send(1, name=name, key=_HOUR)
        with pytest.raises(JobError, match="must be JSON values"):
            welcome.send(1, name=name, durable=True)


def test_a_list_is_one_bulk(app: App) -> None:
    emails = [make_email(1), make_email(2)]
    first = app.enqueue_bulk(emails, key=_HOUR)
    assert app.enqueue_bulk(emails, key=_HOUR) == first
    assert app.enqueue_bulk(emails[::-1], key=_HOUR) != first
    assert app.enqueue(emails[0], key=_HOUR) not in first


def test_a_time_that_the_ledger_does_not_remember(environ: dict[str, str], tmp_path: Path) -> None:
    app = App(Settings.load(environ | {"IDEM_LEDGER_URL": environ["IDEM_BROKER_URL"]}, tmp_path))
    with pytest.raises(JobError, match=r"longer than the ledger remembers keys \(81 days\)"):
        app.enqueue(make_email(), key=by_content(within=timedelta(days=82)))
    assert app.broker.backlog().ready == 0
    app.close()


def test_what_the_provider_cannot_express_names_nothing(app: App) -> None:
    email = make_email(tags=["a", "b"])
    with pytest.raises(ValueError, match="tags"):
        app.enqueue(email, key=_HOUR)
    assert app.enqueue(make_email(), key=_HOUR) == app.enqueue(make_email(tags=["a"]), key=_HOUR)


class TestProcesses:
    def _start(self, tmp_path: Path, environ: dict[str, str], how: str) -> subprocess.Popen[str]:
        (tmp_path / "producer.py").write_text(_PRODUCER)
        command = [sys.executable, "producer.py", how]
        return subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True)

    def test_one_that_is_killed_before_the_queue_has_it_has_named_the_effect(
        self, tmp_path: Path, environ: dict[str, str], app: App, sandbox: Sandbox, run_idem: RunIdem
    ) -> None:
        with self._start(tmp_path, environ, "die") as killed:
            assert killed.wait(60) == -signal.SIGKILL
        assert app.broker.backlog().pending == 0

        with self._start(tmp_path, environ, "live") as again:
            key = again.communicate(timeout=60)[0].strip()
        named = f"{key} {app.enqueue(make_email(1, subject='S', text='T'), key=_HOUR)}"
        assert named == f"{key} {key}"
        assert run_idem("worker", "--until-empty").status == 0
        assert sandbox.recipients() == ["r1@example.com"]
        assert app.broker.backlog().dead == 0

    def test_of_several_at_once_all_have_one_key(
        self, tmp_path: Path, environ: dict[str, str], app: App, sandbox: Sandbox, run_idem: RunIdem
    ) -> None:
        app.ledger.read("k")
        running = [self._start(tmp_path, environ, "live") for _ in range(4)]
        keys = {process.communicate(timeout=60)[0].strip() for process in running}

        assert [process.returncode for process in running] == [0] * 4
        assert len(keys) == 1
        assert run_idem("worker", "--until-empty").status == 0
        assert sandbox.recipients() == ["r1@example.com"]
        assert app.broker.backlog().dead == 0
