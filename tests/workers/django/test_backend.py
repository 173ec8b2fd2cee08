"""The backend in a Django project of its own, which is a process; a worker sends what it enqueues."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core import mail

from tests.workers.parts import RunIdem, Sandbox

_PROJECT = Path(__file__).with_name("project.py")


def _run(tmp_path: Path, environ: dict[str, str], what: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(_PROJECT), what]
    return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)


needs_mailers = pytest.mark.skipif(not hasattr(mail, "mailers"), reason="this Django has no MAILERS")


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"PROJECT_MAILERS": '{"on_commit": false}'}, marks=needs_mailers)], ids=str
)
def test_what_django_sends_is_sent_once(
    tmp_path: Path, environ: dict[str, str], sandbox: Sandbox, run_idem: RunIdem, changes: dict[str, str]
) -> None:
    done = _run(tmp_path, environ | changes, "send")
    assert done.returncode == 0, done.stderr

    gave: dict[str, Any] = json.loads(done.stdout)
    assert gave.pop("wrong").startswith("alternatives: are text/plain, text/calendar;")
    assert gave.pop("what the provider does not take").startswith("tags: ")
    assert gave == {
        "send_mail": 1,
        "send_mass_mail": 3,
        "mail_admins": None,
        "password reset": 302,
        "keyed": [1, 1],
        "nobody": 0,
        "none": 0,
        "wrong, silently": 0,
        "committed": 1,
        "rolled back": 1,
    }
    (said,) = done.stderr.splitlines()
    assert said.startswith("Django's email is not enqueued: alternatives: are text/plain, text/calendar;")

    assert run_idem("worker", "--until-empty").status == 0
    expected = ["admin", "committed", "keyed", "mass0", "mass1", "mass2", "one", "reset"]
    assert sorted(sandbox.recipients()) == [f"{name}@example.com" for name in expected]
    assert len({entry["key"] for entry in sandbox.accepted()}) == len(expected)


def test_a_broker_that_does_not_answer_is_an_error_or_none_said(tmp_path: Path, environ: dict[str, str]) -> None:
    done = _run(tmp_path, environ | {"IDEM_BROKER_URL": "redis://127.0.0.1:1/0"}, "send")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("idem.errors.BrokerUnavailable: the broker does not answer")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"IDEM_PROVIDER": "nobody"}, "IDEM_PROVIDER names no known provider"),
        ({"IDEM_BROKER_URL": "nowhere"}, "IDEM_BROKER_URL names no broker"),
        ({"IDEM_LEDGER_URL": "nowhere"}, "IDEM_LEDGER_URL names no ledger"),
        ({"PROJECT_APP": "shop:app"}, "IDEM_APP 'shop:app': there is no module named shop"),
        ({"PROJECT_APP": "mail:app"}, None),
        pytest.param(
            {"PROJECT_MAILERS": '{"app": "shop:app"}'},
            "IDEM_APP 'shop:app': there is no module named shop",
            marks=needs_mailers,
        ),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_told_at_the_start(
    tmp_path: Path, environ: dict[str, str], changes: dict[str, str], problem: str | None
) -> None:
    """Nothing is connected to: the broker's address is nobody's."""
    (tmp_path / "mail.py").write_text("from workers import App\n\napp = App.from_env()\n")
    paths = {"PYTHONPATH": str(tmp_path), "IDEM_BROKER_URL": "redis://127.0.0.1:1/0"}
    done = _run(tmp_path, environ | paths | changes, "check")

    if problem is None:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 1
        assert f"(idem.E001) {problem}" in done.stderr
