"""The broker contract, run on a real Valkey server and on a real cluster of three."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.brokers import BrokerContract
from tests.contracts.redis_harness import VISIBILITY_SECONDS, RedisHarness
from tests.valkey import DURABLE, Cluster, Server
from workers.brokers.redis import RedisBroker
from workers.brokers.servers import connect


def _make(url: str, namespace: str) -> RedisBroker:
    return RedisBroker(connect(url), namespace=namespace, visibility_seconds=VISIBILITY_SECONDS)


class TestServer(BrokerContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[RedisHarness]:
        server = Server(tmp_path / "valkey", *DURABLE)
        server.start()

        def restart() -> None:
            server.kill()
            server.start()

        harness = RedisHarness(lambda name: _make(server.url, name), restart=restart, stop=server.kill)
        yield harness
        harness.close()
        server.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), *DURABLE)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()


class TestCluster(BrokerContract):
    @pytest.fixture
    def harness(self, cluster: Cluster) -> Iterator[RedisHarness]:
        harness = RedisHarness(lambda name: _make(cluster.url, name))
        yield harness
        harness.close()
