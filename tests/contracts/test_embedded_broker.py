"""The broker contract, run on the embedded server: killed, it is started again by the next one who needs it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.brokers import BrokerContract
from tests.contracts.redis_harness import VISIBILITY_SECONDS, RedisHarness
from tests.workers.parts import alive, wait_for
from workers.brokers.embedded import EmbeddedBroker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="as the embedded server's own tests")


class TestEmbedded(BrokerContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[RedisHarness]:
        def make(namespace: str) -> EmbeddedBroker:
            return EmbeddedBroker(tmp_path, namespace=namespace, visibility_seconds=VISIBILITY_SECONDS)

        def restart() -> None:
            (node,) = harness.open().link.nodes()
            server = int(node.info("server")["process_id"])
            os.kill(server, signal.SIGKILL)
            wait_for(lambda: not alive(server))

        harness = RedisHarness(make, restart=restart)
        yield harness
        harness.close()
