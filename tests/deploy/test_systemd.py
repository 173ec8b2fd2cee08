"""The systemd units: systemd understands them, and they give a worker the time that it needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from configparser import SectionProxy
from pathlib import Path

import pytest

from tests.deploy.files import BIN, DEPLOY, load_unit, load_yaml, understood
from workers.settings import Settings
from workers.webhooks.server import _GRACE_SECONDS

_UNITS = sorted(path.name for path in (DEPLOY / "systemd").iterdir())
_SERVICES = [name for name in _UNITS if name.endswith(".service")]
_WORKER = load_unit("idem-worker@.service")["Service"]
_WATCH = load_unit("idem-in-doubt-age@.service")["Service"]
_RECEIVER = load_unit("idem-webhooks@.service")["Service"]
_RELAY = load_unit("idem-relay@.service")["Service"]
_SCHEDULER = load_unit("idem-scheduler@.service")["Service"]

#: Of 100: systemd's sum of what a service could do; one that is not restricted has 92 or more.
_MOST_EXPOSED = 20

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
    """The units under an instance's name, with the programs of this environment in place of those in /opt/idem."""
    for name in _UNITS:
        text = (DEPLOY / "systemd" / name).read_text(encoding="utf-8")
        unit = tmp_path / name.replace("@", "@shop")
        unit.write_text(text.replace("/opt/idem/bin/", f"{BIN}/"), encoding="utf-8")
    return tmp_path


@needs_systemd
@pytest.mark.parametrize("name", _UNITS)
def test_systemd_understands_it(installed: Path, name: str) -> None:
    """A name that is misspelt, or a value that is not understood, is a line of output and not a failure."""
    said = _analyze("verify", "--man=no", str(installed / name.replace("@", "@shop")))

    assert [line for line in said.splitlines() if "shop" in line] == []


@needs_systemd
@pytest.mark.parametrize("name", _SERVICES)
def test_systemd_finds_little_that_it_could_do(installed: Path, name: str) -> None:
    unit = str(installed / name.replace("@", "@shop"))

    _analyze("security", "--offline=yes", f"--threshold={_MOST_EXPOSED}", unit)


def test_a_worker_has_time_to_finish() -> None:
    """SIGTERM to the first process alone: it tells the others, and SIGKILL is for who is left at the end."""
    assert int(_WORKER["TimeoutStopSec"]) > Settings().shutdown_seconds
    assert _WORKER["KillMode"] == "mixed"


def test_a_receiver_has_time_to_answer() -> None:
    assert int(_RECEIVER["TimeoutStopSec"]) > _GRACE_SECONDS


@pytest.mark.parametrize(
    ("service", "given"),
    [
        (_WORKER, "--app shop:app --processes 2 --threads 16"),
        (_SCHEDULER, "--app shop:app --verbose"),
        (_RECEIVER, "--app shop:app --port 8026"),
        (_RELAY, "--verbose"),
    ],
)
def test_its_command_is_understood(service: SectionProxy, given: str) -> None:
    _, command, options = service["ExecStart"].split()

    assert service["Environment"] == f"{options.removeprefix('$')}="
    understood(command, *given.split())


def test_what_they_may_do_is_the_same() -> None:
    """From there on, the files are copies of each other."""
    texts = [(DEPLOY / "systemd" / name).read_text(encoding="utf-8") for name in _SERVICES]
    allowed = {text[text.index("CapabilityBoundingSet=") :].partition("\n\n")[0].strip() for text in texts}

    assert len(allowed) == 1


def test_what_is_published_is_what_there_is_to_publish() -> None:
    """Often enough for the alarm not to take it for silence."""
    every = load_unit("idem-in-doubt-age@.timer")["Timer"]["OnUnitActiveSec"]
    alarm = load_yaml("stack.yaml")["Resources"]["InDoubt"]["Properties"]

    assert int(every.removesuffix("min")) * 60 < alarm["Period"]
    assert (DEPLOY / Path(_WATCH["ExecStart"].split()[-1]).name).is_file()


@pytest.mark.parametrize("service", [_WORKER, _WATCH, _SCHEDULER, _RECEIVER, _RELAY])
def test_it_stays_in_its_own_directory(service: SectionProxy) -> None:
    assert service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"
    assert service["EnvironmentFile"] == "/etc/idem/%i.env"
    assert service["User"] != "root"
