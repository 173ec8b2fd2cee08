"""`idem worker`: its options. How it stops and what it says in trouble is in `test_process`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from idem.protocol import State
from tests.workers.parts import RunIdem, Sandbox, StartIdem, make_email
from workers import App, Settings
from workers.schedule.board import Entry

_SHOP = """\
from pathlib import Path
from idem import Email
from workers import App
app = App.from_env()
@app.job()
def order(number: str) -> Email:
    if number == "0" and not Path("tried").exists():
        Path("tried").touch()
        raise LookupError("no order of ann@example.com")
    return Email(from_="shop@example.com", to=f"r{number}@example.com", subject="Canary subject", text="Canary text")
"""


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    """The producer's side: it knows the job's name and arguments, and not how to build its email."""
    (tmp_path / "shop.py").write_text(_SHOP)
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


def _order(_number: str) -> None: ...


def test_several_processes_run_the_jobs_of_an_app(app: App, sandbox: Sandbox, run_idem: RunIdem) -> None:
    job = app.job("order")(_order)
    for number in range(1, 9):
        job.send(str(number), key=f"k{number}")

    ran = run_idem("worker", "--app", "shop:app", "--processes", "2", "--threads", "1", "--until-empty")

    assert (ran.status, ran.out, ran.err) == (0, "", "")
    assert sorted(sandbox.recipients()) == [f"r{number}@example.com" for number in range(1, 9)]


def test_verbose_says_what_became_of_every_email(app: App, run_idem: RunIdem) -> None:
    app.enqueue(make_email(1), key="welcome-1")
    app.enqueue(make_email(2, tags=["a"]), key="to-ann@example.com")

    ran = run_idem("worker", "--verbose", "--until-empty")

    said = sorted(line.split(maxsplit=2)[2] for line in ran.err.splitlines())
    assert said == ["key <address> is sent", "key welcome-1 is sent"]
    assert "Hello" not in ran.err


def test_verbose_shows_whole_tracebacks_with_addresses_masked(app: App, start_idem: StartIdem) -> None:
    app.job("order")(_order).send("0", key="k")
    worker = start_idem("worker", "--app", "shop:app", "--verbose", "--until-empty")

    assert worker.process.wait(30) == 0
    assert "Traceback (most recent call last):" in worker.log
    assert "LookupError: no order of <address>" in worker.log
    assert "key k is sent" in worker.log
    assert "ann@" not in worker.log
    assert app.ledger.count()[State.SENT] == 1


def test_a_conflict_and_what_is_malformed_are_said_without_being_asked_for(app: App, run_idem: RunIdem) -> None:
    """They are for a person to decide: the dead letters hold them."""
    app.enqueue(make_email(1), key="k")
    assert run_idem("worker", "--until-empty").err == ""
    app.enqueue(make_email(2), key="k")

    ran = run_idem("worker", "--until-empty")

    assert ran.status == 0
    assert ran.problem.endswith("error    key k already stands for another email; this one is buried")
    assert app.broker.backlog().dead == 1


_BEATS = """\
from datetime import timedelta
from idem import Email
from workers import App
app = App.from_env()
@app.schedule(every=timedelta(seconds=1))
def beat(slot):
    return Email(from_="shop@example.com", to="ann@example.com", subject=slot.instant.isoformat(), text="x")
"""
#: As a bug of ours would: it passes the start, and fails in the middle of the work.
_BROKEN = """
class Broken:
    text, zone, asked = "broken", None, 0
    def next(self, after):
        self.asked += 1
        if self.asked > 3:
            raise ZeroDivisionError
        return after + 1
from dataclasses import replace
app.schedules["beat"] = replace(app.schedules["beat"], rule=Broken())
"""


def test_a_worker_with_a_scheduler_is_both_and_stops_as_one(
    sandbox: Sandbox, start_idem: StartIdem, tmp_path: Path
) -> None:
    (tmp_path / "beats.py").write_text(_BEATS)
    worker = start_idem("worker", "--app", "beats:app", "--with-scheduler")
    while len(sandbox.recipients()) < 2:
        assert worker.process.poll() is None, worker.log
    worker.process.terminate()

    assert worker.process.wait(30) == 0
    assert worker.log == ""


def test_a_worker_does_not_outlive_its_scheduler(start_idem: StartIdem, tmp_path: Path) -> None:
    (tmp_path / "beats.py").write_text(_BEATS + _BROKEN)
    worker = start_idem("worker", "--app", "beats:app", "--with-scheduler")

    assert worker.process.wait(30) == 1
    assert "the scheduler in this worker has died" in worker.log
    assert "a mistake of ours: ZeroDivisionError at" in worker.log


def test_until_empty_with_a_scheduler_sends_what_is_due_and_ends(
    app: App, sandbox: Sandbox, run_idem: RunIdem, tmp_path: Path
) -> None:
    """What a line in a crontab needs: no process of ours stays."""
    (tmp_path / "beats.py").write_text(_BEATS)
    app.board.set("beat", lambda _: Entry(int(time.time()) - 3_600))

    ran = run_idem("worker", "--app", "beats:app", "--with-scheduler", "--until-empty")

    assert ran.status == 0
    assert "slots from" in ran.err
    assert "were missed" in ran.err
    assert len(sandbox.recipients()) >= 1


def test_a_scheduler_without_schedules_is_a_mistake(app: App, run_idem: RunIdem) -> None:
    ran = run_idem("worker", "--app", "shop:app", "--with-scheduler")

    assert ran.status == 2
    assert "declares no schedule" in ran.problem
    assert app.broker.backlog().pending == 0
