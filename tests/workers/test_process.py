"""Worker processes: how they end, what they leave behind, and what they say when they cannot work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from idem.errors import IdemError, SettingsError
from idem.protocol import State
from tests.workers.parts import (
    RunIdem,
    Running,
    Sandbox,
    StartIdem,
    alive,
    children_of,
    make_email,
    wait_for,
)
from workers import App, Settings
from workers.brokers.base import Backlog
from workers.brokers.redis import RedisBroker
from workers.process import load_app

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

_EMPTY = Backlog(0, 0, 0, 0)


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    """The producer's side, and a look into the queue and the ledger."""
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


def _enqueue(app: App, count: int) -> list[str]:
    for number in range(count):
        app.enqueue(make_email(number), key=f"k{number}")
    return sorted(f"r{number}@example.com" for number in range(count))


class TestUntilEmpty:
    def test_it_ends_when_everything_is_done_retries_too(self, app: App, sandbox: Sandbox, run_idem: RunIdem) -> None:
        recipients = _enqueue(app, 8)
        sandbox.order("503", times=3)
        sandbox.order("429", times=2, retry_after=1)
        sandbox.order("accept_then_drop", times=2)

        ran = run_idem("worker", "--until-empty", "--threads", "2")

        assert ran.status == 0
        assert app.broker.backlog() == _EMPTY
        assert sorted(sandbox.recipients()) == recipients

    def test_with_nothing_to_do_it_ends_at_once_and_says_nothing(self, run_idem: RunIdem) -> None:
        ran = run_idem("worker", "--until-empty")

        assert (ran.status, ran.out, ran.err) == (0, "", "")

    def test_it_waits_for_what_others_have_in_hand(self, app: App, start_idem: StartIdem) -> None:
        _enqueue(app, 1)
        consumer = app.broker.consume("default", prefetch=1, timeout=10)
        message = wait_for(lambda: next(consumer))
        app.enqueue(make_email(1), key="other")

        worker = start_idem("worker", "--until-empty")
        # The empty looks of this consumer are its heartbeat.
        wait_for(lambda: next(consumer) or _state(app, "other") is State.SENT)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert next(consumer) is None
            assert worker.process.poll() is None
        consumer.requeue([message])

        assert worker.wait() == 0
        assert _state(app, "k0") is State.SENT

    def test_two_processes_end_together(self, app: App, sandbox: Sandbox, run_idem: RunIdem) -> None:
        recipients = _enqueue(app, 10)

        assert run_idem("worker", "--until-empty", "--processes", "2", "--threads", "2").status == 0
        assert sorted(sandbox.recipients()) == recipients


class TestStopping:
    @pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
    def test_what_was_begun_is_finished_and_the_rest_goes_back(
        self, app: App, sandbox: Sandbox, start_idem: StartIdem, number: int, processes: int
    ) -> None:
        recipients = _enqueue(app, 16)
        sandbox.order("delay", delay_ms=400)
        worker = start_idem("worker", "--threads", "2", "--processes", str(processes))
        # A request has arrived and is not answered: that one must be finished.
        wait_for(lambda: sandbox.accepted() and sandbox.requests_open())

        worker.signal(number)
        assert worker.wait() == 0

        assert worker.log == ""
        counts = app.ledger.count()
        assert counts[State.SENDING] == counts[State.UNSURE] == 0
        assert counts[State.SENT] == len(sandbox.accepted())
        assert app.broker.backlog() == Backlog(ready=16 - counts[State.SENT], delayed=0, in_flight=0, dead=0)
        assert 0 < counts[State.SENT] < 16

        sandbox.mend()
        assert start_idem("worker", "--until-empty").wait() == 0
        assert sorted(sandbox.recipients()) == recipients

    @linux_only
    def test_a_parent_that_is_stopped_at_once_ends_well(self, start_idem: StartIdem) -> None:
        """Its children have not begun to listen to signals by then."""
        parent = start_idem("worker", "--processes", "2")
        wait_for(lambda: len(children_of(parent.pid)) == 2)

        assert parent.stop() == 0

    @linux_only
    def test_children_stop_when_their_parent_is_killed(self, app: App, start_idem: StartIdem) -> None:
        parent, children = _parent_at_work(app, start_idem)

        parent.process.kill()

        wait_for(lambda: not any(alive(pid) for pid in children))

    @linux_only
    def test_a_child_that_is_killed_is_replaced(self, app: App, sandbox: Sandbox, start_idem: StartIdem) -> None:
        parent, children = _parent_at_work(app, start_idem)
        recipients = _enqueue(app, 6)
        os.kill(children[0], signal.SIGKILL)

        wait_for(lambda: len(found := children_of(parent.pid)) == 2 and children[0] not in found)
        wait_for(lambda: sorted(sandbox.recipients()) == recipients)
        assert parent.stop() == 0
        assert "a worker process was ended by signal 9; another one takes its place" in parent.log

    def test_a_worker_that_was_paused_too_long_sends_nothing_twice(
        self, app: App, sandbox: Sandbox, start_idem: StartIdem
    ) -> None:
        """SIGSTOP in the middle of a request, past lease and visibility; another worker finishes; then SIGCONT."""
        recipients = _enqueue(app, 6)
        sandbox.order("delay", delay_ms=300)
        # One thread: another one could be stopped while it holds the lock of the ledger's file, and nobody could write.
        zombie = start_idem("worker", "--threads", "1")
        wait_for(sandbox.requests_open)
        zombie.signal(signal.SIGSTOP)

        assert start_idem("worker", "--until-empty").wait() == 0
        assert sorted(sandbox.recipients()) == recipients
        zombie.signal(signal.SIGCONT)

        assert zombie.stop() == 0
        assert sorted(sandbox.recipients()) == recipients
        assert app.broker.backlog() == _EMPTY
        assert app.ledger.count()[State.SENT] == 6

    def test_the_jobs_of_a_killed_worker_go_to_another(self, app: App, sandbox: Sandbox, start_idem: StartIdem) -> None:
        recipients = _enqueue(app, 6)
        sandbox.order("accept_then_hang", times=2)
        victim = start_idem("worker", "--threads", "2")
        wait_for(lambda: len(sandbox.accepted()) == 2)
        victim.process.kill()
        begun = time.monotonic()

        assert start_idem("worker", "--until-empty").wait() == 0
        assert time.monotonic() - begun < 10
        assert sorted(sandbox.recipients()) == recipients


_STOP_AT_EVERY_LINE = """
import signal, sys
from workers.process import stop_signals
def tracer(line):
    def trace(frame, event, arg):
        nonlocal line
        line -= event == "line"
        if line == 0:
            line = -1
            signal.raise_signal(signal.SIGTERM)
        return trace
    return trace
for line in range(1, 60):
    with stop_signals() as stop:
        sys.settrace(tracer(line))
        while not stop.wait(0.0001):
            pass
        sys.settrace(None)
"""


def test_a_signal_is_heard_at_whatever_line_it_comes() -> None:
    """A handler runs between two lines of the main thread; if it needs a lock that they hold, nothing goes on."""
    done = subprocess.run([sys.executable, "-c", _STOP_AT_EVERY_LINE], timeout=30, check=False, capture_output=True)

    assert (done.returncode, done.stderr) == (0, b"")


class TestTroubles:
    def test_a_refused_token_is_one_line_and_the_jobs_stay(self, app: App, sandbox: Sandbox, run_idem: RunIdem) -> None:
        recipients = _enqueue(app, 3)
        sandbox.order("401")

        ran = run_idem("worker", "--until-empty")

        assert ran.status == 1
        assert "lettermint refuses the credentials (HTTP 401: " in ran.problem
        assert "check IDEM_LETTERMINT_TOKEN; jobs stay in the queue" in ran.problem
        assert app.broker.backlog().pending == 3

        sandbox.mend()
        assert run_idem("worker", "--until-empty").status == 0
        assert sorted(sandbox.recipients()) == recipients

    def test_a_provider_that_cannot_be_reached_costs_no_job(
        self, app: App, sandbox: Sandbox, start_idem: StartIdem
    ) -> None:
        """Port 1 on this machine: nothing listens there."""
        recipients = _enqueue(app, 3)
        worker = start_idem("worker", env={"IDEM_LETTERMINT_BASE_URL": "http://127.0.0.1:1/v1"})
        wait_for(lambda: app.ledger.count()[State.RETRY] == 3)

        assert worker.stop() == 0
        assert app.broker.backlog().pending == 3
        assert "comes again later: no connection to the provider" in worker.log
        assert start_idem("worker", "--until-empty").wait() == 0
        assert sorted(sandbox.recipients()) == recipients

    @pytest.mark.parametrize("args", [["worker"], ["worker", "--until-empty"], ["status"], ["enqueue", "-"]])
    def test_a_broker_that_cannot_be_reached_is_one_line(self, run_idem: RunIdem, args: list[str]) -> None:
        line = json.dumps(make_email().as_dict())

        ran = run_idem(*args, env={"IDEM_BROKER_URL": "redis://user:lm_canary@127.0.0.1:1/0"}, stdin=line)

        assert ran.status == 1
        assert ran.problem.startswith("idem: the broker does not answer (")

    def test_an_embedded_broker_that_cannot_start_is_one_line(self, tmp_path: Path, call_idem: RunIdem) -> None:
        (tmp_path / "file").touch()

        ran = call_idem("worker", "--until-empty", env={"IDEM_BROKER_URL": f"embedded://{tmp_path}/file/queue"})

        assert ran.status == 1
        assert "file/queue cannot start (Not a directory): name a directory that can be written in" in ran.problem

    def test_a_damaged_ledger_is_one_line(self, app: App, sandbox: Sandbox, tmp_path: Path, run_idem: RunIdem) -> None:
        _enqueue(app, 1)
        (tmp_path / "ledger.db").write_bytes(b"not a database" * 1_000)

        ran = run_idem("worker", "--until-empty")

        assert ran.status == 1
        assert "is damaged or not a ledger" in ran.problem
        assert app.broker.backlog().ready == 1
        assert sandbox.accepted() == []

    @pytest.mark.parametrize(
        ("env", "problem"),
        [
            (
                {"IDEM_LETTERMINT_TOKEN": ""},
                "idem: IDEM_LETTERMINT_TOKEN is not set: put the provider's API token there",
            ),
            ({"IDEM_LEASE_SECONDS": "soon"}, "idem: IDEM_LEASE_SECONDS in the environment is not a number of seconds"),
            ({"IDEM_LEASE_SECONDS": "1"}, "idem: the HTTP timeout (1 s) must be < the lease (1 s)"),
            ({"IDEM_WINDOW_SECONDS": "90000"}, "idem: IDEM_WINDOW_SECONDS is 90000, but lettermint remembers"),
            ({"IDEM_BROKER_URL": "nowhere"}, "idem: IDEM_BROKER_URL names no broker"),
            ({"IDEM_LEDGER_URL": "nowhere"}, "idem: IDEM_LEDGER_URL names no ledger"),
            ({"IDEM_LAESE_SECONDS": "1"}, "idem: unknown setting IDEM_LAESE_SECONDS"),
        ],
    )
    def test_a_setting_that_is_wrong_is_one_line(self, call_idem: RunIdem, env: dict[str, str], problem: str) -> None:
        ran = call_idem("worker", "--until-empty", env=env)

        assert ran.status == 2
        assert ran.problem.startswith(problem)

    def test_several_processes_with_a_wrong_setting_say_it_once(self, run_idem: RunIdem) -> None:
        ran = run_idem("worker", "--processes", "3", env={"IDEM_LETTERMINT_TOKEN": ""})

        assert ran.status == 2
        assert ran.problem.startswith("idem: IDEM_LETTERMINT_TOKEN is not set")

    def test_a_job_that_raises_is_one_line_with_its_place_and_runs_again(
        self, app: App, sandbox: Sandbox, tmp_path: Path, start_idem: StartIdem
    ) -> None:
        (tmp_path / "shop.py").write_text(_SHOP)
        app.job("order")(_order).send("7", key="k")

        worker = start_idem("worker", "--app", "shop:app", "--until-empty")

        assert worker.wait() == 0
        (line,) = worker.log.splitlines()
        assert "job order raised LookupError; nothing was sent, it runs again later [LookupError at " in line
        assert f"{tmp_path}/shop.py:10; run with --verbose for the traceback]" in line
        assert sandbox.recipients() == ["r7@example.com"]

    def test_a_job_that_nobody_declares_waits(self, app: App, start_idem: StartIdem) -> None:
        app.job("order")(_order).send("7", key="k")
        worker = start_idem("worker")
        wait_for(lambda: "no job is named 'order' here: start the worker with --app MODULE:APP" in worker.log)

        assert worker.stop() == 0
        assert app.broker.backlog().pending == 1


_SHOP = """\
from pathlib import Path
from idem import Email
from workers import App
app = App.from_env()
@app.job()
def order(number: str) -> Email:
    tried = Path("tried")
    if not tried.exists():
        tried.touch()
        raise LookupError("no order of ann@example.com")
    return Email(from_="shop@example.com", to=f"r{number}@example.com", subject="S", text="T")
"""


def _order(_number: str) -> None: ...


def _state(app: App, key: str) -> State | None:
    record = app.ledger.read(key)
    return None if record is None else record.state


def _parent_at_work(app: App, start_idem: StartIdem) -> tuple[Running, list[int]]:
    """A parent with two children that work: each has been seen by the broker."""
    parent = start_idem("worker", "--processes", "2")
    wait_for(lambda: len(children_of(parent.pid)) == 2)
    broker = app.broker
    assert isinstance(broker, RedisBroker)
    wait_for(lambda: broker.link.nodes()[0].zcard(f"{broker.namespace}:__heartbeats__") == 2)
    return parent, children_of(parent.pid)


class TestLoadingAnApp:
    @pytest.fixture(autouse=True)
    def _here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", sys.path[:])
        monkeypatch.setattr(sys, "dont_write_bytecode", True)

    @pytest.mark.parametrize("name", ["shop", "shop:", ":app", "", ":"])
    def test_a_name_that_is_not_module_and_app(self, name: str) -> None:
        with pytest.raises(IdemError, match=r"write MODULE:APP, such as shop\.mail:app"):
            load_app(name)

    @pytest.mark.parametrize(
        ("content", "name", "problem"),
        [
            ("", "no_such_module_1:app", "there is no module named no_such_module_1"),
            ("import no_such_module_2", "{}:app", "there is no module named no_such_module_2"),
            ("", "{}.deeper:app", "there is no module named {module}.deeper"),
            ("", "{}:app", "the module {module} has no app"),
            ("app = 7", "{}:app", "app is int; it must be a workers.App"),
            ("from workers import App as app", "{}:app", "app is type; it must be a workers.App"),
            ("\n1 / 0", "{}:app", "the module raised ZeroDivisionError at {path}:2"),
            ("def f(:", "{}:app", "the module raised SyntaxError"),
            ("from idem import nothing", "{}:app", "the module raised ImportError"),
            ("None.app", "{}:app", "the module raised AttributeError at {path}:1"),
            ("raise ValueError('to ann@example.com')", "{}:app", "the module raised ValueError at {path}:1"),
            ("", ".{}:app", "the module raised TypeError"),
            ("import sys; sys.exit(0)", "{}:app", "the module raised SystemExit"),
        ],
    )
    def test_a_module_that_is_not_one_of_an_app(
        self, tmp_path: Path, request: pytest.FixtureRequest, content: str, name: str, problem: str
    ) -> None:
        module = f"shop_{abs(hash(request.node.name))}"
        path = tmp_path / f"{module}.py"
        path.write_text(content)

        with pytest.raises(IdemError) as raised:
            load_app(name.format(module))

        assert problem.format(path=path, module=module) in str(raised.value)
        assert str(raised.value).startswith("--app ")
        assert "ann@" not in str(raised.value)

    def test_a_setting_that_the_module_finds_wrong(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IDEM_LEASE_SECONDS", "soon")
        (tmp_path / "shop_settings.py").write_text("from workers import App\napp = App.from_env()\n")

        with pytest.raises(SettingsError, match=r"^IDEM_LEASE_SECONDS"):
            load_app("shop_settings:app")

    def test_an_app_in_a_package_of_the_working_directory(self, tmp_path: Path) -> None:
        (tmp_path / "shop_package").mkdir()
        (tmp_path / "shop_package" / "mail.py").write_text("from workers import App, Settings\napp = App(Settings())\n")

        assert isinstance(load_app("shop_package.mail:app"), App)

    def test_the_command_says_it_in_one_line(self, tmp_path: Path, run_idem: RunIdem) -> None:
        (tmp_path / "broken.py").write_text("raise RuntimeError('to ann@example.com, lm_canary')\n")

        ran = run_idem("worker", "--app", "broken:app")

        assert ran.status == 2
        assert ran.problem == f"idem: --app broken:app: the module raised RuntimeError at {tmp_path}/broken.py:1"


def test_nothing_is_lost_or_doubled_with_the_embedded_server_and_two_processes(
    environ: dict[str, str], tmp_path: Path, sandbox: Sandbox, start_idem: StartIdem
) -> None:
    """The whole of it: enqueueing while two processes work, and one of them is killed."""
    env = {"IDEM_BROKER_URL": f"embedded://{tmp_path}/queue"}
    app = App(Settings.load(environ | env, tmp_path))
    worker = start_idem("worker", "--processes", "2", "--threads", "2", env=env)
    recipients = _enqueue(app, 20)
    if sys.platform == "linux":
        os.kill(wait_for(lambda: children_of(worker.pid))[0], signal.SIGKILL)
    wait_for(lambda: app.broker.backlog() == _EMPTY)

    assert worker.stop() == 0
    assert sorted(sandbox.recipients()) == recipients
    app.close()
