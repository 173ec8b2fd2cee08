"""The demo on the ledgers that many machines share: the same faults, the same kills, the same count."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from workers.process import idem_command
from workers.settings import environ_without_settings

_JOBS = 100


def _demo(folder: Path, **environ: str) -> dict[str, int]:
    done = subprocess.run(
        idem_command("demo", "--jobs", str(_JOBS), "--json"),
        cwd=folder,
        env=environ_without_settings() | environ,
        text=True,
        capture_output=True,
        timeout=200,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr

    result: dict[str, int] = json.loads(done.stdout)
    return result


def _assert_kept(result: dict[str, int]) -> None:
    assert result["accepted"] == result["jobs"] == _JOBS
    assert result["duplicates"] == result["lost"] == result["in_doubt"] == 0
    assert result["kills"] >= 20


@pytest.mark.parametrize("ledger", ["dynamodb", "redis"])
def test_the_demo_on_a_shared_ledger(tmp_path: Path, ledger: str, request: pytest.FixtureRequest) -> None:
    _assert_kept(_demo(tmp_path, **request.getfixturevalue(ledger)))
