"""Workers killed in the middle of adding and of closing: each event is in one email, and none is missing."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.scene import Scene
from workers.process import idem_command, start_process

#: Now and then, a worker kills itself on the way to the store: between any two writes of a digest, or of a job's claim.
_APP = """
import os, random, signal
from datetime import timedelta
from idem import Email
from workers import App

app = App.from_env()
chance = random.Random()

class Deadly:
    def __init__(self, store):
        self._store = store
    def __getattr__(self, name):
        if name == "swap" and "DEADLY" in os.environ and chance.random() < float(os.environ["DEADLY"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return getattr(self._store, name)

app.__dict__["_store"] = Deadly(app._store)

@app.digest(every=timedelta(seconds=1))
def news(recipient, items, slot):
    return Email(from_="a@example.com", to=recipient, subject=" ".join(items), text=slot.instant.isoformat())

@app.job()
def happened(number):
    news.add(f"r{number % 3}@example.com", str(number), key=f"event-{number}")
"""
_EVENTS = 60
_KILLS = 3
_ENQUEUE = f"import news\nfor n in range({_EVENTS}): news.happened.send(n, key=f'first-{{n}}')"
_AGAIN = f"import news\nfor n in range({_EVENTS}): news.happened.send(n, key=f'second-{{n}}')"


@pytest.mark.parametrize("ledger", ["sqlite", "redis"])
def test_each_event_is_in_one_email_whoever_is_killed(
    scene: Scene, ledger: str, request: pytest.FixtureRequest
) -> None:
    """Each event comes twice, the second time while and after its window is closed."""
    scene.environ |= request.getfixturevalue(ledger) | {"IDEM_SWEEP_SECONDS": "1", "IDEM_RECONCILE_SECONDS": "0.5"}
    (scene.folder / "news.py").write_text(_APP, encoding="utf-8")
    scene.idem("init")
    chance, kills = random.Random(20261122), 0
    _enqueue(scene, _ENQUEUE)
    working = {**scene.environ, "DEADLY": "0.03"}
    workers = [_start(scene, working) for _ in range(2)]
    until = time.monotonic() + 60
    while kills < _KILLS:
        assert time.monotonic() < until, "the workers do nothing that could be interrupted"
        time.sleep(chance.uniform(0.1, 0.5))
        for number, worker in enumerate(workers):
            if worker.poll() is not None:
                workers[number] = _start(scene, working)
                kills += 1
    _enqueue(scene, _AGAIN)
    for worker in workers:
        worker.kill()
        worker.wait()
    scene.idem("worker", "--until-empty", "--app", "news:app")

    items = Counter(item for subject in scene.accepted().elements() for item in subject.split())

    assert items == Counter({str(number): 1 for number in range(_EVENTS)})
    assert max(scene.accepted().values()) == 1


def _enqueue(scene: Scene, script: str) -> None:
    subprocess.run([sys.executable, "-c", script], cwd=scene.folder, env=scene.environ, check=True)


def _start(scene: Scene, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    command = idem_command("worker", "--threads", "4", "--app", "news:app")
    return start_process(command, cwd=scene.folder, env=environ, stderr=subprocess.DEVNULL)
