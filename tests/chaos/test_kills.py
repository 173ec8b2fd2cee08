"""Real processes, killed for real; what is counted comes from the provider's log, not from our ledger."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter

import pytest

from idem.send import Point
from tests.scene import Scene
from tests.workers.parts import wait_for

#: An application whose worker kills itself at the point that its environment names.
_CRASHING = """
import os, signal
from idem import Email
from workers import App, Settings

def reach(point):
    if point == os.environ.get("CRASH_AT"):
        os.kill(os.getpid(), signal.SIGKILL)

app = App(Settings.load(), reach=reach)

@app.job()
def report(number):
    return Email(from_="a@example.com", to="b@example.com", subject=f"Report {number}", text="built once")
"""


def _wait_for_more(scene: Scene, there: int) -> None:
    """Where a process takes longer to start than to be killed, nobody would be killed in the middle of anything."""
    wait_for(lambda: len(scene.accepted()) > there, seconds=120)


@pytest.mark.parametrize(("ledger", "total"), [("sqlite", 2_000), ("dynamodb", 500), ("redis", 500)])
def test_two_workers_one_killed_every_second(
    scene: Scene, ledger: str, total: int, request: pytest.FixtureRequest
) -> None:
    """Faults, and a kill a second: each line is accepted once, and enqueueing the file again adds nothing."""
    scene.environ |= request.getfixturevalue(ledger)
    scene.idem("init")
    lines = [
        {"from": "a@example.com", "to": f"user-{number}@example.com", "subject": f"Line {number}", "text": "x"}
        for number in range(1, total + 1)
    ]
    (scene.folder / "mails.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for fault, rate in (("accept_then_drop", 0.03), ("accept_then_500", 0.02), ("503", 0.02), ("drop", 0.02)):
        scene.call("/api/faults", "POST", {"provider": "*", "fault": fault, "rate": rate, "times": None})
    scene.call("/api/faults", "POST", {"provider": "*", "fault": "delay", "delay_ms": 30, "times": None})
    scene.idem("enqueue", "mails.jsonl")

    kills = 0
    workers = [scene.start("worker", "--threads", "4") for _ in range(2)]
    try:
        while (there := len(scene.accepted())) < total:
            time.sleep(1)
            _wait_for_more(scene, there)
            victim = workers.pop(0)
            victim.kill()
            victim.wait()
            workers.append(scene.start("worker", "--threads", "4"))
            kills += 1
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    scene.idem("worker", "--until-empty")

    assert kills >= 3
    assert scene.accepted() == Counter({f"Line {number}": 1 for number in range(1, total + 1)})

    status = json.loads(scene.idem("status", "--json"))

    assert status["queue"] == {"ready": 0, "delayed": 0, "in_flight": 0, "dead": 0}
    assert status["ledger"]["sent"] == (None if ledger == "dynamodb" else total)
    assert status["ledger"]["in_doubt"] == status["ledger"]["rejected"] == 0

    again = scene.idem("enqueue", "mails.jsonl")

    assert again.strip() == f"enqueued 0, {total:,} already sent"

    scene.idem("worker", "--until-empty")

    assert scene.accepted().total() == total


def test_a_kill_at_every_crash_point(scene: Scene) -> None:
    """One worker after the other dies at its point with a job in hand; each job's email is accepted once."""
    (scene.folder / "crashing.py").write_text(_CRASHING, encoding="utf-8")
    produce = f"import crashing\nfor n in range({len(Point)}): crashing.report.send(n, key=f'report-{{n}}')"
    subprocess.run([sys.executable, "-c", produce], cwd=scene.folder, env=scene.environ, check=True)

    for point in Point:
        scene.idem("worker", "--app", "crashing:app", "--threads", "1", status=-9, CRASH_AT=point.value)
    scene.idem("worker", "--app", "crashing:app", "--until-empty")

    assert scene.accepted() == Counter({f"Report {number}": 1 for number in range(len(Point))})
    assert json.loads(scene.idem("status", "--json"))["ledger"]["sent"] == len(Point)
