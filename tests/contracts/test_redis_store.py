"""The store contract, run on a real Valkey server and on a real cluster of three."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import pytest

from idem.stores.redis import RedisStore, connector
from tests.contracts.cells import Both, Opener
from tests.contracts.store import StoreContract
from tests.valkey import DURABLE, Cluster, Server


def redis_stores(url: str) -> Opener:
    """Handles on one server or cluster, in namespaces that only this opener has."""
    own = uuid.uuid4().hex
    return lambda namespace: RedisStore(connector(url), f"{own}/{namespace}")


@pytest.fixture(scope="module", params=["server", "cluster"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("valkey")
    valkey = Server(directory, *DURABLE) if request.param == "server" else Cluster(directory, *DURABLE)
    try:
        valkey.start()
        yield valkey.url
    finally:
        valkey.kill()


class TestRedisStore(StoreContract):
    @pytest.fixture
    def open_store(self, url: str) -> Iterator[Opener]:
        open_one = redis_stores(url)
        with contextlib.ExitStack() as opened:

            def open_store(namespace: str) -> Both:
                store = open_one(namespace)
                opened.callback(store.close)
                return store

            yield open_store
