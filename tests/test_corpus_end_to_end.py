"""Real input that nobody here wrote: CPython's own email test corpus, from `idem enqueue` to the provider's log."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.scene import Scene
from workers.process import idem_command


def _corpus() -> list[Path]:
    try:
        from test import test_email as package  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: PLC0415 - may be missing
    except ImportError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("this interpreter comes without its test package")
    return sorted(Path(package.__file__).parent.glob("data/msg_*.txt"))


def test_every_message_is_accepted_once_or_refused_clearly(scene: Scene) -> None:
    """Each ends in the provider's log, or in one line that names the header at fault; a second run adds nothing."""
    files = _corpus()
    command = idem_command("enqueue", "--json", "--format", "eml", *map(str, files))

    reports = []
    for _ in range(2):
        done = subprocess.run(
            command, cwd=scene.folder, env=scene.environ, text=True, capture_output=True, timeout=60, check=False
        )

        assert done.returncode == 1
        assert "Traceback" not in done.stderr

        reports.append(json.loads(done.stdout))
        scene.idem("worker", "--until-empty")
    first, second = reports

    assert len(files) > 40
    assert first["enqueued"] + len(first["refused"]) == len(files)
    assert first["enqueued"] >= 25
    assert scene.accepted().total() == first["enqueued"]
    assert second["enqueued"] == 0
    assert second["ended"] == {"sent": first["enqueued"]}
    assert second["refused"] == first["refused"]
    for refusal in first["refused"]:
        field, colon, problem = refusal["error"].partition(": ")

        assert field in {"From", "To", "subject", "Content-Type"}, refusal
        assert colon
        assert problem
