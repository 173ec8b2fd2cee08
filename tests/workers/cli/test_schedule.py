"""`idem schedule` and `idem scheduler`: what a person sees and does, and what drives them instead of our scheduler."""

from __future__ import annotations

import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from idem.protocol import State
from tests.workers.parts import RunIdem, Sandbox, StartIdem, wait_for
from workers import App, Settings

_APP = """\
from datetime import datetime, timedelta, UTC
from idem import Email
from workers import App
app = App.from_env()

def _email(slot):
    return Email(from_="shop@example.com", to="r@example.com", subject=f"{slot.local:%d %H:%M}", text=f"{slot.late}")

@app.schedule("0 7 * * *", tz="Europe/Amsterdam", catch_up="all(3)")
def daily(slot):
    return _email(slot)

@app.schedule(every=timedelta(seconds=1), name="beat")
def tick(slot):
    return _email(slot)

@app.schedule(at=datetime(2020, 1, 1, tzinfo=UTC))
def launch():
    return None
"""


@pytest.fixture(autouse=True)
def _app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reports.py").write_text(_APP)
    # Imported anew by each test, with its own environment.
    monkeypatch.delitem(sys.modules, "reports", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def idem_(call_idem: RunIdem, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `idem schedule ... --app reports:app`."""

    def run(*args: str) -> Any:
        monkeypatch.delitem(sys.modules, "reports", raising=False)
        return call_idem("schedule", *args, "--app", "reports:app")

    return run


def test_list_says_what_is_scheduled(idem_: Any) -> None:
    beat, daily, launch = idem_("list", "--json").json

    assert daily | {"next": None} == {
        "name": "daily", "rule": "0 7 * * *", "tz": "Europe/Amsterdam", "catch_up": "all(3)", "paused": False,
        "last": None, "next": None,
    }  # fmt: skip
    assert beat["rule"] == "every 0:00:01"
    assert (launch["rule"], launch["next"]) == ("at 2020-01-01T00:00:00+00:00", None)
    assert idem_("list").out.splitlines()[2] == "launch  at 2020-01-01T00:00:00+00:00  UTC  latest  on  -  -"


def test_next_says_when(idem_: Any) -> None:
    found = idem_("next", "daily", "--count", "400", "--json").json

    assert len({each["instant"] for each in found}) == 400
    assert {each["local"][11:16] for each in found} == {"07:00"}
    assert len(idem_("next", "--count", "2").out.splitlines()) == 4


def test_a_slot_run_by_many_is_sent_once(idem_: Any, run_idem: RunIdem, sandbox: Sandbox) -> None:
    """As by a CronJob that comes twice, and a person beside it; in whichever zone they write the instant."""
    yesterday = datetime.now(UTC).replace(hour=12) - timedelta(days=2)
    slot = idem_("backfill", "daily", "--from", f"{yesterday:%Y-%m-%dT%H:%M:%SZ}", "--dry-run").out.split()[0]
    instant = slot.partition("/")[2]
    keys = [idem_("run", "daily", "--slot", text).out.strip() for text in (instant, instant.replace("Z", "+00:00"))]
    run_idem("worker", "--app", "reports:app", "--until-empty")
    idem_("run", "daily", "--slot", instant)
    run_idem("worker", "--app", "reports:app", "--until-empty")

    assert keys == [slot, slot]
    (sent,) = sandbox.accepted()
    assert sent["subject"].endswith(" 07:00")


def test_now_slot_is_the_one_that_has_come_last(idem_: Any) -> None:
    (key,) = idem_("run", "daily", "--now-slot").out.split()
    since = datetime.now(UTC) - datetime.fromisoformat(key.partition("/")[2])

    assert timedelta(seconds=-6) < since < timedelta(hours=25)


def test_backfill_enqueues_what_is_between(idem_: Any) -> None:
    now = datetime.now(UTC)
    ran = idem_("backfill", "daily", "--from", f"{now - timedelta(days=5):%Y-%m-%dT%H:%M:%SZ}")

    assert ran.status == 0
    assert len(set(ran.out.split())) == 5
    assert idem_("backfill", "daily", "--from", "2099-01-01T00:00:00Z").status == 1


def test_pause_and_resume(idem_: Any) -> None:
    assert idem_("pause", "daily").out == "daily is paused\n"
    assert [each["paused"] for each in idem_("list", "--json").json] == [False, True, False]
    assert idem_("resume", "daily").out == "daily is not paused\n"

    (_, daily, _) = idem_("list", "--json").json

    assert not daily["paused"]
    assert datetime.now(UTC) - datetime.fromisoformat(daily["last"]) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["run", "weekly", "--now-slot"], "no schedule is named 'weekly'"),
        (["run", "daily", "--slot", "2026-03-29T07:30:00+02:00"], "near it: 2026-03-29T05:00:00Z and 2026-03-30T05"),
        (["run", "daily", "--slot", "07:00"], "write it with its offset"),
        (["run", "daily"], "write --slot INSTANT or --now-slot"),
        (["run", "daily", "--now-slot", "--slot", "2026-03-29T05:00:00Z"], "write --slot INSTANT or --now-slot"),
        (["backfill", "daily"], "--from"),
    ],
)
def test_what_cannot_be_done_is_said(idem_: Any, args: list[str], problem: str) -> None:
    ran = idem_(*args)

    assert ran.status == 2
    assert problem in " ".join(ran.err.split())


def test_what_the_ledger_may_have_forgotten_is_not_run(call_idem: RunIdem) -> None:
    """SQLite never forgets; the others do."""
    ran = call_idem(
        "schedule", "run", "daily", "--slot", "2020-01-01T06:00:00Z", "--app", "reports:app",
        env={"IDEM_LEDGER_URL": "redis://127.0.0.1:1/0"},
    )  # fmt: skip

    assert ran.status == 2
    assert "longer ago than the ledger remembers" in ran.problem


def test_the_scheduler_enqueues_and_stops_when_told(
    start_idem: StartIdem, environ: dict[str, str], tmp_path: Path, run_idem: RunIdem
) -> None:
    scheduler = start_idem("scheduler", "--app", "reports:app", "--verbose")
    app = App(Settings.load(environ, tmp_path))
    try:
        wait_for(lambda: app.broker.backlog().ready >= 2)
        scheduler.signal(signal.SIGTERM)

        assert scheduler.wait() == 0
        assert "key beat/" in scheduler.log

        enqueued = app.broker.backlog().ready
        run_idem("worker", "--app", "reports:app", "--until-empty")

        assert app.ledger.count()[State.SENT] == enqueued
    finally:
        app.close()


def test_a_scheduler_without_schedules(call_idem: RunIdem, tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("from workers import App\napp = App.from_env()\n")
    ran = call_idem("scheduler", "--app", "bare:app")

    assert ran.status == 2
    assert "declares no schedule" in ran.problem
