"""Many threads of several processes, one key: one winner a round. `tests/bench/races.py` runs more of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import services


@pytest.mark.parametrize("store", ["boto3 plain", "signed grouped"])
def test_of_threads_and_processes_one_wins_each_round(store: str) -> None:
    """No double claim and no self lock-out, with every tenth answer lost."""
    services.dynamodb_local()
    command = [sys.executable, "-m", "tests.bench.races", "--store", store, "--rounds", "120"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1920 raced claims in 120 rounds" in done.stdout
    assert ": 0 double claims, 0 self lock-outs, 0 claims" in done.stdout
