"""What a user declares, and what is refused at once rather than in a worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from idem import BrokerUnavailable, Email, InvalidKey, JobError, SettingsError, UnsupportedEmail
from tests.workers.parts import make_email, payloads
from workers import App, Settings


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


def _ready(app: App) -> int:
    return app.broker.backlog().ready


class TestDeclaring:
    def test_a_job_is_named_after_its_function_or_as_told(self, app: App) -> None:
        @app.job()
        def first() -> Email:
            return make_email()

        @app.job("another name")
        def second() -> None: ...

        assert list(app.jobs) == ["first", "another name"]
        assert (first.name, second.name) == ("first", "another name")

    def test_calling_a_job_builds_its_email_and_sends_nothing(self, app: App) -> None:
        @app.job()
        def welcome(number: int) -> Email:
            return make_email(number)

        assert welcome(3) == make_email(3)
        assert _ready(app) == 0

    def test_two_jobs_of_one_name(self, app: App) -> None:
        def job() -> None: ...

        app.job()(job)
        with pytest.raises(JobError, match="two jobs are named 'job'"):
            app.job()(job)
        app.job("other")(job)

    def test_a_decorator_without_parentheses(self, app: App) -> None:
        def job() -> None: ...

        with pytest.raises(JobError, match="with parentheses"):
            app.job(job)  # type: ignore[arg-type]  # the mistake that is tested
        assert app.jobs == {}

    def test_a_coroutine(self, app: App) -> None:
        async def job() -> None: ...

        async def generator() -> Any:
            yield make_email()

        mistakes: list[Any] = [job, generator]
        for mistake in mistakes:
            with pytest.raises(JobError, match="coroutines are not awaited"):
                app.job()(mistake)
        assert app.jobs == {}

    def test_a_parameter_named_key(self, app: App) -> None:
        def job(key: str) -> None: ...

        with pytest.raises(JobError, match="rename the parameter"):
            app.job()(job)

    def test_a_callable_without_a_name_needs_one(self, app: App) -> None:
        def job(number: int) -> Email:
            return make_email(number)

        with pytest.raises(JobError, match=r"partial has no name: write @app\.job\('a-name'\)"):
            app.job()(partial(job, 1))
        assert app.job("named")(partial(job, 1))() == make_email(1)


class TestSending:
    @pytest.fixture
    def job(self, app: App) -> Any:
        @app.job()
        def order(number: str, *, urgent: bool = False) -> Email:
            return make_email(int(number), subject="urgent" if urgent else "calm")

        return order

    def test_the_key_is_the_messages_own_id_unless_it_is_given(self, app: App, job: Any) -> None:
        given, own = job.send("1", key="order-1"), job.send("2", urgent=True)

        first, second = payloads(app)
        assert given == "order-1"
        assert first == {"key": "order-1", "job": "order", "args": ["1"], "kwargs": {}}
        assert second == {"key": own, "job": "order", "args": ["2"], "kwargs": {"urgent": True}}

    @pytest.mark.parametrize(
        ("args", "kwargs"), [((), {}), (("1", "2"), {}), (("1",), {"number": "1"}), (("1",), {"ugent": True})]
    )
    def test_arguments_that_the_function_does_not_take(
        self, app: App, job: Any, args: tuple[str, ...], kwargs: dict[str, Any]
    ) -> None:
        with pytest.raises(JobError, match="job order: "):
            job.send(*args, **kwargs)
        assert _ready(app) == 0

    def test_arguments_that_are_not_json(self, app: App, job: Any) -> None:
        with pytest.raises(JobError, match="must be JSON values, and bytes is not one"):
            job.send(b"1")
        assert _ready(app) == 0

    def test_a_key_that_cannot_be_one(self, app: App, job: Any) -> None:
        with pytest.raises(InvalidKey):
            job.send("1", key="")
        assert _ready(app) == 0

    def test_a_broker_that_does_not_answer(self, environ: dict[str, str], tmp_path: Path) -> None:
        """Port 1 on this machine: nothing listens there."""
        app = App(Settings.load(environ | {"IDEM_BROKER_URL": "redis://127.0.0.1:1/0"}, tmp_path))
        with pytest.raises(BrokerUnavailable, match="the broker does not answer"):
            app.enqueue(make_email(), key="k1")
        app.close()


class TestEnqueueing:
    def test_the_header_is_the_key_unless_the_argument_is(self, app: App) -> None:
        email = make_email(headers={"Idempotency-Key": "from-header"})

        assert [app.enqueue(email), app.enqueue(email, key="argument")] == ["from-header", "argument"]
        own = app.enqueue(make_email())
        assert [payload["key"] for payload in payloads(app)] == ["from-header", "argument", own]

    def test_an_email_that_the_provider_cannot_express_is_not_enqueued(self, app: App) -> None:
        with pytest.raises(UnsupportedEmail, match="Lettermint takes at most 1"):
            app.enqueue(make_email(tags=["a", "b"]))
        assert _ready(app) == 0

    def test_it_needs_no_token(self, environ: dict[str, str], tmp_path: Path) -> None:
        del environ["IDEM_LETTERMINT_TOKEN"]
        app = App(Settings.load(environ, tmp_path))

        assert app.enqueue(make_email(), key="k") == "k"
        with pytest.raises(SettingsError, match="IDEM_LETTERMINT_TOKEN is not set"):
            app.performer()
        app.close()


_QUIET = """
import os, socket, subprocess
def refuse(*args, **kwargs): raise AssertionError("a connection, or a process")
socket.socket.connect = refuse
subprocess.Popen = refuse
import workers, workers.app, workers.actors, workers.process, workers.wiring, workers.brokers.embedded
import workers.cli, workers.cli.worker, workers.cli.enqueue, workers.cli.records, workers.cli.init, workers.cli.sandbox
app = workers.App.from_env()
@app.job()
def job(): ...
app.close()
assert os.listdir() == [], os.listdir()
"""


def test_importing_and_making_an_app_touch_nothing(tmp_path: Path) -> None:
    """With the defaults: no directory .idem appears, no server starts."""
    done = subprocess.run([sys.executable, "-c", _QUIET], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_closing_twice_and_using_again(app: App) -> None:
    app.enqueue(make_email())
    app.close()
    app.close()

    assert _ready(app) == 1
    assert app.ledger.read("k") is None


def test_the_shape_that_the_readme_shows(app: App) -> None:
    """A job may return one email, several, or none."""

    @app.job()
    def one(number: str) -> Email:
        return make_email(int(number))

    @app.job()
    def several() -> Sequence[Email]:
        return [make_email(1), make_email(2)]

    @app.job()
    def none() -> None: ...

    built: list[Callable[[], object]] = [lambda: one("1"), several, none]
    assert [build() for build in built] == [make_email(1), [make_email(1), make_email(2)], None]
