"""Two schedulers and two workers, killed for real; the provider's log has each slot once, and none is missing."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from datetime import UTC, datetime

from tests.scene import Scene

_APP = """
from datetime import timedelta
from idem import Email
from workers import App

app = App.from_env()

@app.schedule(every=timedelta(seconds=1), catch_up="all")
def beat(slot):
    return Email(from_="a@example.com", to="b@example.com", subject=slot.instant.isoformat(), text="built once")
"""
_COMMANDS = [("scheduler",), ("scheduler",), ("worker", "--threads", "2"), ("worker", "--threads", "2")]
_KILLS = 9


def _last(scene: Scene) -> float:
    (beat,) = json.loads(scene.idem("schedule", "list", "--json", "--app", "beats:app"))
    return datetime.fromisoformat(beat["last"]).timestamp() if beat["last"] else 0.0


def test_every_slot_is_one_email_whoever_is_killed(scene: Scene) -> None:
    (scene.folder / "beats.py").write_text(_APP, encoding="utf-8")
    scene.idem("init")
    chance = random.Random(20261122)
    running = [scene.start(*command, "--app", "beats:app") for command in _COMMANDS]
    try:
        while not _last(scene):
            pass
        for _ in range(_KILLS):
            time.sleep(chance.uniform(0.2, 0.9))
            # Now and then both schedulers, so that slots are missed.
            for number in chance.choice([[0], [1], [2], [3], [0, 1], [2, 3]]):
                running[number].kill()
                running[number].wait()
                running[number] = scene.start(*_COMMANDS[number], "--app", "beats:app")
        killed_at = time.time()
        while _last(scene) < killed_at:
            pass
    finally:
        for process in running:
            process.terminate()
            process.wait()
    scene.idem("worker", "--until-empty", "--app", "beats:app")

    accepted = scene.accepted()
    first, last = (int(datetime.fromisoformat(subject).timestamp()) for subject in (min(accepted), max(accepted)))

    assert last == _last(scene) >= killed_at
    assert accepted == Counter(datetime.fromtimestamp(at, UTC).isoformat() for at in range(first, last + 1))
    assert len(accepted) >= _KILLS // 3
