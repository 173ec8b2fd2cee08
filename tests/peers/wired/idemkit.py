"""Dramatiq with idemkit on Redis: its decorator for synchronous tasks, under the actor as its page says."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from idemkit import MethodConfig, RedisBackend, idempotent_sync

from tests.peers.wired.parts import LEASE_SECONDS, RETRIES, deliver, redis_options

dramatiq.set_broker(RedisBroker(**redis_options()))


@dramatiq.actor(**RETRIES)
@idempotent_sync(
    backend=RedisBackend.from_url(os.environ["PEERS_REDIS_URL"], namespace="peers"),
    config=MethodConfig(key_fields=["number"], lease_ttl_seconds=LEASE_SECONDS),
)
def email(number: int) -> str:
    """Send one email, unless the store says that it was sent."""
    return deliver(number)
