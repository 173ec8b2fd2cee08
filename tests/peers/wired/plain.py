"""Dramatiq as it comes, on Redis: the guide asks that actors be idempotent, which the provider's key makes them."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from tests.peers.wired.parts import RETRIES, deliver, redis_options

dramatiq.set_broker(RedisBroker(**redis_options()))


@dramatiq.actor(**RETRIES)
def email(number: int) -> None:
    """Send one email."""
    deliver(number)
