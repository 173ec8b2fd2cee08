"""The systemd unit: systemd understands it, and it gives a worker the time that it needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.files import BIN, DEPLOY, load_unit, understood
from workers.settings import Settings

_NAME = "idem-worker@.service"
_SERVICE = load_unit(_NAME)["Service"]

#: Of 10: systemd's sum of what a service could do; a plain one has 9.2.
_MOST_EXPOSED = 2.0

needs_systemd = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing"
)


def _analyze(*args: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )

    assert done.returncode == 0, done.stdout

    return done.stdout


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with the `idem` of this environment in place of the one in /opt/idem, under an instance's name."""
    text = (DEPLOY / "systemd" / _NAME).read_text(encoding="utf-8")
    unit = tmp_path / _NAME.replace("@", "@shop")
    unit.write_text(text.replace("/opt/idem/bin", str(BIN)), encoding="utf-8")
    return unit


@needs_systemd
def test_systemd_understands_it(installed: Path) -> None:
    """A name that is misspelt, or a value that is not understood, is a line of output and not a failure."""
    assert [line for line in _analyze("verify", "--man=no", str(installed)).splitlines() if "shop" in line] == []


@needs_systemd
def test_systemd_finds_little_that_it_could_do(installed: Path) -> None:
    _analyze("security", "--offline=yes", f"--threshold={_MOST_EXPOSED * 10:.0f}", str(installed))


def test_a_worker_has_time_to_finish() -> None:
    """SIGTERM to the first process alone: it tells the others, and SIGKILL is for who is left at the end."""
    assert int(_SERVICE["TimeoutStopSec"]) > Settings().shutdown_seconds
    assert _SERVICE["KillMode"] == "mixed"


def test_its_command_is_understood() -> None:
    _, command, *options = _SERVICE["ExecStart"].split()

    assert options == ["$WORKER_OPTIONS"]
    understood(command, "--app", "shop:app", "--processes", "2", "--threads", "16")


def test_it_stays_in_its_own_directory() -> None:
    assert _SERVICE["WorkingDirectory"] == f"/var/lib/{_SERVICE['StateDirectory']}"
    assert _SERVICE["User"] != "root"
