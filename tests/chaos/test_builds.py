"""Jobs that take long to build their email, in real processes that are stopped and killed while they do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.scene import Scene

LEASE_SECONDS = 3
#: Says in `built` that it has begun, and goes on until there is a file `go`. No two builds are alike.
_SLOW = """
import os, pathlib, signal, time
from idem import Email
from workers import App, Settings

def reach(point):
    if point == os.environ.get("CRASH_AT"):
        os.kill(os.getpid(), signal.SIGKILL)

app = App(Settings.load(), reach=reach)

@app.job()
def report():
    with open("built", "a") as file:
        file.write(f"{os.getpid()}\\n")
    while not pathlib.Path("go").exists():
        time.sleep(0.05)
    return Email(from_="a@example.com", to="b@example.com", subject=f"Report {os.getpid()}", text="x")
"""


@pytest.fixture
def slow(scene: Scene) -> Scene:
    """Two messages of one job, in a queue that no worker has seen."""
    (scene.folder / "slow.py").write_text(_SLOW, encoding="utf-8")
    scene.environ |= {
        "IDEM_LEASE_SECONDS": str(LEASE_SECONDS),
        "IDEM_VISIBILITY_SECONDS": str(LEASE_SECONDS),
    }
    produce = "import slow\nfor _ in range(2): slow.report.send(key='report')"
    subprocess.run([sys.executable, "-c", produce], cwd=scene.folder, env=scene.environ, check=True)
    return scene


def start(scene: Scene) -> subprocess.Popen[bytes]:
    return scene.start("worker", "--app", "slow:app", "--threads", "2")


def built(scene: Scene) -> list[int]:
    """The process of each build that has begun."""
    path = scene.folder / "built"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def record(scene: Scene) -> dict[str, object]:
    shown = scene.idem("explain", "report", "--json", status=None)
    found: dict[str, object] = json.loads(shown) if shown else {}
    return found


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "it does not come"
        time.sleep(0.1)


def finish(scene: Scene) -> None:
    """Let the builds return, and the queue become empty."""
    (scene.folder / "go").touch()
    scene.idem("worker", "--app", "slow:app", "--until-empty")


def test_a_build_of_three_leases_is_built_once(slow: Scene) -> None:
    """Another worker has nothing to do but a second message of the same job."""
    workers = [start(slow), start(slow)]
    try:
        wait_for(lambda: built(slow))
        time.sleep(3 * LEASE_SECONDS)
        finish(slow)
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    (builder,) = built(slow)
    assert slow.accepted() == Counter({f"Report {builder}": 1})


def test_a_build_that_is_killed_is_built_again_elsewhere(slow: Scene) -> None:
    """Once the lease of its claim, and the visibility of its message, are over: also in the midst of renewals."""
    first = start(slow)
    wait_for(lambda: built(slow))
    time.sleep(LEASE_SECONDS)
    first.kill()
    first.wait()
    second = start(slow)
    try:
        wait_for(lambda: len(built(slow)) > 1, LEASE_SECONDS + 15)
        finish(slow)
    finally:
        second.terminate()
        second.wait()
    assert built(slow)[0] == first.pid
    assert slow.accepted() == Counter({f"Report {built(slow)[1]}": 1})


def test_a_builder_that_stood_still_has_lost_its_claim(slow: Scene) -> None:
    """It goes on, and what it builds is dropped: one freeze, one email."""
    first = start(slow)
    wait_for(lambda: built(slow))
    first.send_signal(signal.SIGSTOP)
    second = start(slow)
    try:
        wait_for(lambda: len(built(slow)) > 1)
        first.send_signal(signal.SIGCONT)
        time.sleep(LEASE_SECONDS)
        finish(slow)
    finally:
        for worker in (first, second):
            worker.terminate()
            worker.wait()
    assert built(slow) == [first.pid, second.pid]
    assert slow.accepted() == Counter({f"Report {second.pid}": 1})
    assert record(slow)["attempts"] == 1


def test_a_kill_after_the_freeze_sends_the_frozen_bytes(slow: Scene) -> None:
    """The function is not asked again, although it would build something else."""
    (slow.folder / "go").touch()
    slow.idem("worker", "--app", "slow:app", "--threads", "1", status=-signal.SIGKILL, CRASH_AT="frozen")
    finish(slow)
    (builder,) = built(slow)
    assert slow.accepted() == Counter({f"Report {builder}": 1})
