"""A digest as a user has it: declared on an application, added to by jobs and webhooks, sent by real workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from idem import Email
from idem.errors import InvalidKey, JobError, ScheduleError
from idem.protocol import State
from tests.workers.parts import RunIdem, Sandbox, Valkey
from workers import App, Settings
from workers.brokers.base import Backlog
from workers.schedule.slots import Slot

_NEWS = """\
from datetime import timedelta
from idem import Email
from workers import App
app = App.from_env()
@app.digest(every=timedelta(seconds=2))
def news(recipient, items, slot):
    return Email(from_="shop@example.com", to=recipient, subject=",".join(items), text=slot.instant.isoformat())
@app.job()
def happened(number):
    news.add("ann@example.com", str(number), key=f"event-{number}")
"""


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


def _build(recipient: str, items: list[Any], slot: Slot) -> Email | None:
    return Email(from_="shop@example.com", to=recipient, subject=json.dumps(items), text=str(slot.instant))


def test_what_jobs_add_goes_out_in_few_emails_and_each_item_once(
    app: App, sandbox: Sandbox, run_idem: RunIdem, tmp_path: Path
) -> None:
    """Each job is enqueued twice, as a sender's second delivery would be, the second time under a key of its own."""
    (tmp_path / "news.py").write_text(_NEWS)
    job = app.job("happened")(lambda _number: None)
    for number in [*range(12), *range(12)]:
        job.send(number)

    ran = run_idem("worker", "--app", "news:app", "--threads", "4", "--until-empty")

    items = ",".join(entry["subject"] for entry in sandbox.accepted())
    assert (ran.status, ran.err) == (0, "")
    assert sorted(items.split(","), key=int) == [str(number) for number in range(12)]
    assert len(sandbox.accepted()) <= 6


def test_the_first_item_of_a_window_enqueues_its_job_and_the_others_do_not(app: App) -> None:
    digest = app.digest(every=timedelta(days=1))(_build)
    keys = {digest.add("ann@example.com", number, key=f"event-{number}") for number in range(5)}

    (key,) = keys
    record = app.ledger.read(key)

    assert app.broker.backlog() == Backlog(ready=0, delayed=1, in_flight=0, dead=0)
    assert record is not None
    assert (record.state, record.durable, record.job) == (State.PENDING, True, "_build")
    assert "ann" not in key
    assert key.startswith("_build/")


def test_recipients_have_emails_of_their_own(app: App) -> None:
    digest = app.digest("0 7 * * *", tz="Europe/Amsterdam", name="news")(_build)

    assert digest.add("ann", 1, key="e") != digest.add("bob", 1, key="e")
    assert app.broker.backlog().delayed == 2


def test_the_job_builds_from_what_was_added_and_from_nothing_nothing(app: App) -> None:
    digest = app.digest(every=timedelta(hours=1), name="news")(_build)
    key = digest.add("ann@example.com", {"order": 1}, key="e1")
    digest.add("ann@example.com", {"order": 2}, key="e2")
    instant = key.rpartition("/")[2]

    built = digest.run("ann@example.com", instant)

    assert isinstance(built, Email)
    assert built.subject == '[{"order": 1}, {"order": 2}]'
    assert digest.run("ann@example.com", instant) == built
    assert digest.run("bob@example.com", instant) is None
    assert digest.add("ann@example.com", {"order": 3}, key="e3") > key
    assert digest.add("ann@example.com", {"order": 1}, key="e1") == key


def test_a_window_that_was_called_back_takes_nothing_that_comes_first_afterwards(app: App) -> None:
    digest = app.digest(every=timedelta(days=1), name="news")(_build)
    key = digest.add("ann", 1, key="e1")
    other = key.replace(key.split("/")[1], digest._stem("bob").split("/")[1])
    app.cancel(other)

    assert digest.add("bob", 1, key="e1") > other
    assert app.broker.backlog().delayed == 2


@pytest.mark.parametrize(
    ("recipient", "item", "key", "error"),
    [
        ("", 1, "e", JobError),
        ("a\nb", 1, "e", JobError),
        ("ann", object(), "e", JobError),
        ("ann", "x" * 100_000, "e", JobError),
        ("ann", 1, "", InvalidKey),
    ],
)
def test_what_is_no_item_is_refused_before_anything_is_written(
    app: App, recipient: str, item: Any, key: str, error: type[Exception]
) -> None:
    digest = app.digest(every=timedelta(days=1), name="news")(_build)
    with pytest.raises(error):
        digest.add(recipient, item, key=key)

    assert app.broker.backlog().pending == 0


def test_a_window_that_outlasts_the_memory_of_the_ledger_is_refused(
    environ: dict[str, str], valkey: Valkey, tmp_path: Path
) -> None:
    """A store that forgets would have forgotten the items by then."""
    app = App(Settings.load(environ | {"IDEM_LEDGER_URL": valkey.url}, tmp_path))
    digest = app.digest(every=timedelta(days=20_000), name="news")(_build)
    with pytest.raises(JobError, match="longer than the ledger remembers"):
        digest.add("ann", 1, key="e")
    app.close()


def test_what_can_be_no_digest_is_said_where_it_is_declared(app: App) -> None:
    async def late(_recipient: str, _items: list[Any], _slot: Slot) -> None: ...

    with pytest.raises(JobError, match="takes the recipient, the items and the slot"):
        app.digest("@daily")(lambda _: None)  # type: ignore[arg-type, misc]  # the mistake
    with pytest.raises(JobError, match="coroutines are not awaited"):
        app.digest("@daily")(late)  # type: ignore[arg-type]  # the mistake
    with pytest.raises(JobError, match="it may have 140"):
        app.digest("@daily", name="n" * 141)(_build)
    with pytest.raises(ScheduleError, match="a schedule has one of"):
        app.digest()
    with pytest.raises(ScheduleError, match="with a cron expression"):
        app.digest(_build)  # type: ignore[arg-type]  # the mistake
    assert not app.jobs
