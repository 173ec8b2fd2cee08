"""The ledgers of the end-to-end tests: what the environment says for each."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import services
from tests.valkey import DURABLE, Server


@pytest.fixture
def sqlite() -> dict[str, str]:
    """The default: a file in the working directory."""
    return {}


@pytest.fixture
def dynamodb() -> dict[str, str]:
    """A table of DynamoDB Local that is not there yet."""
    return {
        "IDEM_LEDGER_URL": f"dynamodb://eu-west-1/ledger-{uuid.uuid4().hex}",
        "IDEM_AWS_ENDPOINT_URL": services.dynamodb_local(),
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
    }


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Valkey server whose append-only file is synced at every write."""
    server = Server(tmp_path / "valkey", *DURABLE)
    server.start()
    try:
        yield {"IDEM_LEDGER_URL": server.url}
    finally:
        server.kill()
