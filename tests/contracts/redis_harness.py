"""What can happen to a queue on a server of Redis's kind, for the broker contract."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable

import pytest

from workers.brokers.redis import RedisBroker
from workers.jobs import QUEUE

VISIBILITY_SECONDS = 1.0


class RedisHarness:
    """A namespace of its own on a server; `make` opens a broker in it."""

    visibility_seconds = VISIBILITY_SECONDS
    limit_bytes = None

    def __init__(
        self,
        make: Callable[[str], RedisBroker],
        *,
        restart: Callable[[], None] | None = None,
        stop: Callable[[], None] | None = None,
    ) -> None:
        namespace = uuid.uuid4().hex
        self._make: Callable[[], RedisBroker] = lambda: make(namespace)
        self._restart = restart
        self._stop = stop
        self._opened: list[RedisBroker] = []
        self._own = self.open()

    def open(self) -> RedisBroker:
        broker = self._make()
        broker.declare_queue(QUEUE)
        self._opened.append(broker)
        return broker

    def die(self, broker: RedisBroker) -> None:
        broker.link.close()

    def retire(self, broker: RedisBroker) -> None:
        broker.stopping.set()

    def expire(self, broker: RedisBroker) -> None:
        self._own.link.client.zadd(f"{self._own.namespace}:__heartbeats__", {broker.broker_id: 1})
        self._own.move("maintain", QUEUE, int(VISIBILITY_SECONDS * 1000), QUEUE)

    def disturb(self) -> None:
        client, ready = self._own.link.client, f"{self._own.namespace}:{QUEUE}"
        ids = list(client.lrange(ready, 0, -1))
        for message_id in list(ids):
            copy = uuid.uuid4().hex.encode()
            data = client.hget(f"{ready}.msgs", message_id)
            assert data is not None
            client.hset(f"{ready}.msgs", mapping={copy: data})
            ids.append(copy)
        random.Random(0).shuffle(ids)
        client.delete(ready)
        client.rpush(ready, *ids)

    def put(self, data: bytes) -> None:
        client, ready = self._own.link.client, f"{self._own.namespace}:{QUEUE}"
        message_id = uuid.uuid4().hex
        client.hset(f"{ready}.msgs", message_id, data)
        client.rpush(ready, message_id)

    def restart(self) -> None:
        if self._restart is None:
            pytest.skip("a node of a cluster is started by its cluster")
        self._restart()

    def refuse(self) -> None:
        if self._stop is None:
            pytest.skip("a server that nobody may stop, or that is started by whoever needs it")
        self._stop()

    def close(self) -> None:
        for broker in self._opened:
            broker.close()
