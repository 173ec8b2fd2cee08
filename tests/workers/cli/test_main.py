"""The command line as a whole: exit statuses, one-line errors, and a quick start."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.workers.parts import RunIdem
from workers.cli import run
from workers.process import idem_command

_COMMANDS = [
    "cancel", "dead", "demo", "doctor", "enqueue", "explain", "init", "list", "outbox", "preview", "reconcile", "relay",
    "reopen", "resolve", "sandbox", "schedule", "scheduler", "status", "suppress", "webhooks", "worker",
]  # fmt: skip


def test_help_lists_every_command(call_idem: RunIdem) -> None:
    ran = call_idem("--help")

    assert ran.status == 0
    assert [line.split()[0] for line in ran.out.partition("Commands:\n")[2].splitlines()] == _COMMANDS


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_has_a_help_of_its_own(call_idem: RunIdem, command: str) -> None:
    ran = call_idem(command, "--help")

    assert ran.status == 0
    assert ran.out.startswith(f"Usage: idem {command} ")


def test_help_loads_no_driver() -> None:
    """`idem --help` should not wait for a queue library."""
    code = "import sys, workers.cli; workers.cli.run(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded = set(done.stderr.strip("[]\n").replace("'", "").split(", "))
    assert "workers.cli" in loaded
    assert not loaded & {"dramatiq", "redis", "httpcore2", "starlette", "uvicorn", "rich"}


def test_version(call_idem: RunIdem) -> None:
    assert call_idem("--version").out == f"idem, version {version('idem-workers')}\n"


@pytest.mark.parametrize(
    "args",
    [
        ["no-such-command"],
        ["status", "--no-such-option"],
        ["list"],
        ["list", "--state", "no-such-state"],
        ["list", "--state", "sent", "--limit", "0"],
        ["explain"],
        ["enqueue"],
        ["enqueue", "--format", "xml", "-"],
        ["worker", "--threads", "0"],
        ["worker", "--processes", "many"],
        ["sandbox", "--port", "70000"],
        ["demo", "--jobs", "0"],
    ],
)
def test_bad_usage_is_status_2(call_idem: RunIdem, args: list[str]) -> None:
    ran = call_idem(*args)

    assert ran.status == 2
    assert "Error: " in ran.err
    assert ran.out == ""


def test_python_m_is_the_command(run_idem: RunIdem) -> None:
    assert run_idem("--version").status == 0
    assert idem_command("x")[1:] == ["-P", "-m", "workers.cli", "x"]


def test_a_reader_that_has_gone_is_no_traceback(tmp_path: Path, environ: dict[str, str]) -> None:
    """As in `idem --help | head -n 0`."""
    with subprocess.Popen(
        idem_command("status"), cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_an_error_masks_addresses(capsys: pytest.CaptureFixture[str], call_idem: RunIdem) -> None:
    ran = call_idem("enqueue", "ann@example.com.eml")

    assert ran.status == 2
    assert "ann@" not in ran.err
    assert run(["--help"]) == 0
    assert capsys.readouterr().out
