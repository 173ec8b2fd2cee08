"""Fixtures for the tests of workers/: real parts, and settings under which the whole protocol takes seconds."""

from __future__ import annotations

import io
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.workers.parts import Ran, RunIdem, Running, Sandbox, StartIdem, Valkey
from workers.cli import run
from workers.process import idem_command
from workers.settings import environ_without_settings


@pytest.fixture(scope="session")
def _shared_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def valkey(_shared_valkey: Valkey) -> Valkey:
    """The session's server, emptied; not to be killed."""
    with _shared_valkey.client() as client:
        client.flushall()
    return _shared_valkey


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server of the test's own, to be killed and started at will."""
    (tmp_path / "valkey").mkdir()
    server = Valkey(tmp_path / "valkey")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def _shared_sandbox() -> Iterator[Sandbox]:
    command = idem_command("sandbox", "--port", "0")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environ_without_settings())
    assert process.stdout is not None
    with process, process.stdout:
        try:
            yield Sandbox(process.stdout.readline().decode().split()[-1].rstrip("/"))
        finally:
            process.terminate()


@pytest.fixture
def sandbox(_shared_sandbox: Sandbox) -> Iterator[Sandbox]:
    """The session's sandbox, with an empty log and no faults."""
    _shared_sandbox.clear()
    yield _shared_sandbox
    _shared_sandbox.clear()


@pytest.fixture
def environ(tmp_path: Path, valkey: Valkey, sandbox: Sandbox) -> dict[str, str]:
    """The environment of a process of ours: short durations, the real server, the sandbox, keys of this test's own."""
    return environ_without_settings() | {
        "IDEM_BROKER_URL": valkey.url,
        "IDEM_LEDGER_URL": f"sqlite:///{tmp_path}/ledger.db",
        "IDEM_LETTERMINT_TOKEN": "lm_canary",
        "IDEM_LETTERMINT_BASE_URL": sandbox.base_url,
        "IDEM_NAMESPACE": f"test-{uuid.uuid4().hex}",
        "IDEM_HTTP_TIMEOUT_SECONDS": "1",
        "IDEM_LEASE_SECONDS": "2",
        "IDEM_VISIBILITY_SECONDS": "2",
        "IDEM_SHUTDOWN_SECONDS": "5",
        "IDEM_BACKOFF_SECONDS": "0.1",
        # Dramatiq's own pause before it connects again.
        "dramatiq_restart_delay": "100",
    }


@pytest.fixture
def run_idem(tmp_path: Path, environ: dict[str, str]) -> RunIdem:
    """Run `idem` as a process in `tmp_path` to its end; it never writes a traceback."""

    def run(*args: str | Path, env: Mapping[str, str] | None = None, stdin: str = "") -> Ran:
        done = subprocess.run(
            idem_command(*map(str, args)),
            cwd=tmp_path,
            env=environ | dict(env or {}),
            input=stdin.encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        ran = Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert "Traceback" not in ran.err, ran.err
        assert "lm_canary" not in ran.out + ran.err
        return ran

    return run


@pytest.fixture
def start_idem(tmp_path: Path, environ: dict[str, str]) -> Iterator[StartIdem]:
    """Start `idem` as a process in `tmp_path`; what still runs at the end of the test is killed."""
    started: list[Running] = []

    def start(*args: str | Path, env: Mapping[str, str] | None = None) -> Running:
        running = Running(idem_command(*map(str, args)), tmp_path, environ | dict(env or {}))
        started.append(running)
        return running

    yield start
    for running in started:
        running.end()


@pytest.fixture
def call_idem(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunIdem:
    """What `run_idem` does, in this process and so in no time: for commands that start no threads."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str | Path, env: Mapping[str, str] | None = None, stdin: str = "") -> Ran:
        with monkeypatch.context() as patch:
            for name, value in (environ | dict(env or {})).items():
                patch.setenv(name, value)
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            capsys.readouterr()
            status = run([str(arg) for arg in args])
        written = capsys.readouterr()
        assert "lm_canary" not in written.out + written.err
        return Ran(status, written.out, written.err)

    return call
