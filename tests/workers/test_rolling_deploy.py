"""Two versions of the program on one queue and one ledger, as while a deployment rolls.

The next version is a copy of this one whose records have the version one higher, with a field of its own, and which
reads both; it runs in processes of its own. What it must show: a worker leaves alone what it does not know, and every
email goes out once, whoever began it.
"""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from idem import State
from idem.errors import LedgerUnusable
from tests import services
from tests.workers.parts import Running, Sandbox, StartIdem, children_of, make_email, wait_for
from workers import App, Settings

_ROOT = Path(__file__).parent.parent.parent

#: What the next version changes: each text is there once.
_CHANGES = {
    "idem/stores/codec.py": [
        ("RECORD_VERSION = 2\n", "RECORD_VERSION = 3\n"),
        ("version = RECORD_VERSION if record.marked and record.state in _MARKED else", "version = RECORD_VERSION or"),
    ],
    "idem/protocol.py": [
        (
            "    evidence: tuple[Evidence, ...] = ()\n",
            '    evidence: tuple[Evidence, ...] = ()\n    era: str = "next"\n',
        )
    ],
}

_NEWER = (
    "a record in the ledger has version 3, this program knows 2: upgrade the program before it works on this ledger"
)


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the next version is, for `PYTHONPATH`."""
    folder = tmp_path_factory.mktemp("next")
    for package in ("idem", "workers"):
        shutil.copytree(_ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in _CHANGES.items():
        text = (folder / name).read_text()
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (folder / name).write_text(text)
    return folder


def _sqlite() -> dict[str, str]:
    """The one that `environ` names."""
    return {}


def _dynamodb() -> dict[str, str]:
    endpoint = services.dynamodb_local()
    services.connect("dynamodb", endpoint)
    credentials = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    url = f"dynamodb://{services.REGION}/{services.table(endpoint)}"
    return credentials | {"IDEM_LEDGER_URL": url, "IDEM_AWS_ENDPOINT_URL": endpoint}


@pytest.fixture(params=[_sqlite, _dynamodb], ids=["sqlite", "dynamodb"])
def environ(environ: dict[str, str], request: pytest.FixtureRequest) -> dict[str, str]:
    # A short pause: each look of the wrong version doubles it.
    named: dict[str, str] = request.param()
    return environ | named | {"IDEM_BACKOFF_SECONDS": "0.02"}


class Versions:
    """Workers of both versions."""

    def __init__(self, start: StartIdem, next_version: Path) -> None:
        self._start = start
        self._next: Mapping[str, str] = {"PYTHONPATH": str(next_version)}

    def old(self, *options: str) -> Running:
        return self._start("worker", "--threads", "1", *options)

    def new(self, *options: str) -> Running:
        return self._start("worker", "--threads", "1", *options, env=self._next)


@pytest.fixture
def versions(start_idem: StartIdem, next_version: Path) -> Versions:
    return Versions(start_idem, next_version)


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    """The producer, and what reads the ledger: this version."""
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


def _kill_in_the_call(worker: Running, sandbox: Sandbox) -> None:
    """SIGKILL once the provider has accepted and does not answer: the record stays SENDING, its job unacknowledged."""
    wait_for(lambda: len(sandbox.accepted()) == 1)
    children = children_of(worker.pid)
    worker.signal(signal.SIGKILL)
    for child in children:
        os.kill(child, signal.SIGKILL)
    worker.process.wait()
    sandbox.mend()


def _state(app: App, key: str) -> State | None:
    """None for a record that this version does not know."""
    try:
        record = app.ledger.read(key)
    except LedgerUnusable:
        return None
    assert record is not None
    return record.state


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def test_the_old_version_leaves_to_the_new_one_what_that_began(
    app: App, sandbox: Sandbox, versions: Versions, key: str
) -> None:
    """Begun by the new one, which dies in the call; the old one does nothing, in one line; the new one ends it."""
    sandbox.order("accept_then_hang")
    app.enqueue(make_email(), key=key)
    _kill_in_the_call(versions.new(), sandbox)
    requests = sandbox.requests()

    old = versions.old()
    wait_for(lambda: "the job stays in the queue" in old.log)

    # Beside a warning of the sweeper's, which cannot read it either.
    (said,) = {line.partition("error    ")[2] for line in old.log.splitlines() if "error    " in line}
    assert said == f"key {key}: {_NEWER}; the job stays in the queue"
    assert app.broker.backlog().pending == 1
    assert _state(app, key) is None

    assert old.stop() == 0
    # Each look by the old version doubled the pause.
    assert versions.new("--until-empty").wait(150) == 0
    assert app.broker.backlog().pending == 0
    assert sandbox.requests() == requests + 1, "one repetition under the same key, by the new one"
    assert len(sandbox.accepted()) == 1


@pytest.mark.parametrize("environ", [_sqlite], ids=["sqlite"], indirect=True)
def test_the_new_version_ends_what_the_old_one_began(app: App, sandbox: Sandbox, versions: Versions, key: str) -> None:
    sandbox.order("accept_then_hang")
    app.enqueue(make_email(), key=key)
    _kill_in_the_call(versions.old(), sandbox)

    assert _state(app, key) is State.SENDING

    # Each look by the old version doubled the pause.
    assert versions.new("--until-empty").wait(150) == 0

    assert _state(app, key) is None, "it is a record of the new version now"
    assert len(sandbox.accepted()) == 1


@pytest.mark.parametrize("environ", [_dynamodb], ids=["dynamodb"], indirect=True)
def test_both_work_on_one_queue(app: App, sandbox: Sandbox, versions: Versions, key: str) -> None:
    """Every email has answers lost, so that what one version began comes back to either; each goes out once."""
    # Every other one: in a row, they would be an outage, for which all workers wait.
    sandbox.order("accept_then_500", times=45, rate=0.5)
    for number in range(30):
        app.enqueue(make_email(number), key=f"{key}/{number}")
    old, new = versions.old(), versions.new()
    wait_for(lambda: _NEWER in old.log)

    assert old.stop() == 0
    assert new.stop() == 0
    # Each look by the old version doubled the pause.
    assert versions.new("--until-empty").wait(150) == 0
    assert sorted(sandbox.recipients()) == sorted(f"r{number}@example.com" for number in range(30))
    assert app.broker.backlog().pending == 0
