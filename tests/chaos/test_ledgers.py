"""The demo on the ledgers that many machines share: the same faults, the same kills, the same count."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import services
from tests.valkey import DURABLE, Server
from workers.process import idem_command
from workers.settings import environ_without_settings

_JOBS = 100


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[str]:
    server = Server(tmp_path, *DURABLE)
    server.start()
    try:
        yield server.url
    finally:
        server.kill()


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


def test_the_demo_on_dynamodb(tmp_path: Path) -> None:
    _assert_kept(
        _demo(
            tmp_path,
            IDEM_LEDGER_URL=f"dynamodb://eu-west-1/demo-{uuid.uuid4().hex}",
            IDEM_AWS_ENDPOINT_URL=services.dynamodb_local(),
            AWS_ACCESS_KEY_ID="local",
            AWS_SECRET_ACCESS_KEY="local",
        )
    )


def test_the_demo_on_redis(tmp_path: Path, valkey: str) -> None:
    _assert_kept(_demo(tmp_path, IDEM_LEDGER_URL=valkey))
