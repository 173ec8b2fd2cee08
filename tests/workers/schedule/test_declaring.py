"""`@app.schedule`: what is declared, and what is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from idem import Email, JobError
from idem.errors import ScheduleError
from tests.workers.parts import make_email
from workers import App, Settings, Slot


@pytest.fixture
def app() -> App:
    return App(Settings())


def test_a_schedule_is_a_job_that_takes_the_instant_of_its_slot(app: App) -> None:
    seen: list[Slot] = []

    @app.schedule("0 7 * * *", tz="Europe/Amsterdam")
    def daily(slot: Slot) -> Email:
        seen.append(slot)
        return make_email()

    assert app.jobs["daily"]("2026-03-29T05:00:00Z") == make_email()
    assert seen[0].local.isoformat() == "2026-03-29T07:00:00+02:00"
    assert seen[0].late > timedelta(days=100)
    # Plain, as it was written: for tests and previews.
    assert daily(seen[0]) == make_email()


def test_a_function_may_take_nothing(app: App) -> None:
    @app.schedule(every=timedelta(hours=1), name="hourly")
    def nothing() -> None: ...

    @app.schedule(at=datetime(2027, 1, 1, tzinfo=UTC))
    def optional(slot: Slot | None = None) -> Email:
        return make_email(subject=str(slot is not None))

    assert app.jobs["hourly"]("2026-03-29T05:00:00Z") is None
    assert app.jobs["optional"]("2026-03-29T05:00:00Z") == make_email(subject="True")
    assert list(app.schedules) == ["hourly", "optional"]


def test_a_malformed_slot_ends_its_job(app: App) -> None:
    """A `JobError` does not come again and again."""
    app.schedule("@daily", name="report")(lambda: None)

    with pytest.raises(JobError, match="'today' is no instant"):
        app.jobs["report"]("today")


def _nothing() -> None: ...


async def _coroutine() -> None: ...


def _two(slot: Slot, other: int) -> None: ...


@pytest.mark.parametrize(
    "declare",
    [
        lambda app: app.schedule("0 7 * *"),
        lambda app: app.schedule("0 7 30 2 *"),
        lambda app: app.schedule("@daily", tz="Mars/Olympus"),
        lambda app: app.schedule("@daily", catch_up="sometimes"),
        lambda app: app.schedule(),
        lambda app: app.schedule("@daily", every=timedelta(1)),
        lambda app: app.schedule(_nothing),
        lambda app: app.schedule("@daily")(_coroutine),
        lambda app: app.schedule("@daily")(_two),
        lambda app: app.schedule("@daily")(partial(_nothing)),
        lambda app: app.schedule("@daily", name="x" * 250)(_nothing),
    ],
)
def test_what_can_be_no_schedule_is_refused_when_it_is_declared(app: App, declare: Callable[[Any], Any]) -> None:
    with pytest.raises(ScheduleError):
        declare(app)

    assert not app.schedules
    assert not app.jobs


def test_two_schedules_of_one_name(app: App) -> None:
    app.schedule("@daily")(_nothing)
    with pytest.raises(JobError, match="two jobs are named '_nothing'"):
        app.schedule("@hourly")(_nothing)
    app.schedule("@hourly", name="other")(_nothing)

    assert [schedule.rule.text for schedule in app.schedules.values()] == ["@daily", "@hourly"]
