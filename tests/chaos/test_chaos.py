"""Everything at once, in small; `.ci/run` has the size that counts. And that a fork inherits nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import services
from tests.chaos.zygote import Zygote, check_bare
from workers.settings import environ_without_settings

_ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("ledger", ["dynamodb", "sqlite"])
def test_a_small_chaos_on_the_other_ledgers(ledger: str) -> None:
    if ledger == "dynamodb":
        services.dynamodb_local()
    command = [sys.executable, "-m", "tests.chaos", "--jobs", "200", "--kills", "12", "--ledger", ledger, "--seed", "3"]
    done = subprocess.run(command, cwd=_ROOT, text=True, capture_output=True, timeout=280, check=False)

    assert done.returncode == 0, done.stdout + done.stderr

    figures = json.loads(done.stdout.splitlines()[-1])

    assert figures["killed"] >= 12
    assert figures["duplicates"] == figures["lost"] == figures["violations"] == 0
    assert figures["lanes"]["keyless"]["in_doubt"] == figures["in_doubt"]


def test_a_fork_runs_what_the_command_runs_in_a_place_of_its_own(tmp_path: Path) -> None:
    zygote = Zygote(environ_without_settings())
    try:
        pids = {zygote.fork(tmp_path / "{pid}.log", [word], os.environ) for word in ("--version", "no-such-command")}
        ended: dict[int, int] = {}
        while len(ended) < 2:
            ended |= dict(zygote.ended())
    finally:
        zygote.close()

    assert ended.keys() == pids
    assert sorted(ended.values()) == [0, 2]
    assert sum("version" in (tmp_path / f"{pid}.log").read_text() for pid in pids) == 1


def test_a_process_that_has_a_thread_is_not_forked() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="threads"):
            check_bare()
    finally:
        stop.set()
        thread.join()
