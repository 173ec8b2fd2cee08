"""From `idem enqueue` to the provider, through SQS, with real processes."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from tests import services
from tests.scene import Scene
from tests.workers.brokers.sqs.parts import opened
from tests.workers.parts import wait_for
from workers.brokers.sqs import Names


@pytest.fixture
def names(scene: Scene) -> Names:
    names = Names(services.REGION, f"e{uuid.uuid4().hex}")
    scene.environ |= services.aws_environ(services.ministack()) | {"IDEM_BROKER_URL": str(names)}
    return names


def _enqueue(scene: Scene, count: int) -> None:
    """Each under a key of its own, always the same."""
    lines = [
        json.dumps(
            {"from": "shop@example.com", "to": [f"r{n}@example.com"], "subject": f"S {n}", "text": "T", "key": f"k{n}"}
        )
        for n in range(count)
    ]
    Path(scene.folder, "mails.jsonl").write_text("\n".join(lines))
    scene.idem("enqueue", "mails.jsonl")


def test_a_killed_workers_jobs_are_sent_once_by_another(scene: Scene, names: Names) -> None:
    """With copies of some, and messages of others: one that can be read, and one that cannot."""
    scene.idem("init")
    assert f"goes to {names.dead} for 14 days" in scene.idem("doctor")
    _enqueue(scene, 30)
    _enqueue(scene, 3)
    scene.call("/api/faults", "POST", {"provider": "*", "fault": "accept_then_hang", "times": 4})
    worker = scene.start("worker")
    wait_for(lambda: len(scene.accepted()) >= 4)
    worker.kill()
    worker.wait()
    with opened(services.ministack(), names) as side:
        side.send_raw(_foreign())
        side.send_raw("hello")

    scene.idem("worker", "--until-empty")

    assert scene.accepted() == {f"S {n}": 1 for n in range(30)} | {"foreign": 1}
    status = json.loads(scene.idem("status", "--json"))
    assert status["queue"] == {"ready": 0, "delayed": 0, "in_flight": 0, "dead": 1}
    assert status["ledger"]["sent"] == 31
    with opened(services.ministack(), names) as side:
        assert [item.reason for item in side.broker.dead_letters()] == ["the message cannot be read: it is not JSON"]


def test_a_worker_refuses_a_queue_that_is_not_there(scene: Scene, names: Names) -> None:
    assert scene.idem("worker", status=1) == ""

    assert f"FAIL  broker    the SQS queue {names.jobs} does not exist" in scene.idem("doctor", status=1)


def _foreign() -> str:
    email = {"from": "shop@example.com", "to": ["r@example.com"], "subject": "foreign", "text": "T"}
    return json.dumps({"email": email})
