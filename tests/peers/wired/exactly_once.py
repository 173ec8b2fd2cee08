"""Dramatiq with exactly-once on Redis, with the policies that its page has for each kind of provider.

A keyed one gets the key, and the effect is run again (`auto_retry`: for effects that bear it). One that can be searched
is looked at before anything is run again (`check_then_decide`). Both with a lease, for workers that live side by side.
"""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from exactly_once import ProbeResult, Store, Verdict, auto_retry, check_then_decide, once

from tests.peers.wired.parts import KEYED, LEASE_SECONDS, RETRIES, deliver, find, redis_options

dramatiq.set_broker(RedisBroker(**redis_options()))


def _probe(key: str) -> ProbeResult:
    found = find(key)
    return ProbeResult(Verdict.COMMITTED, found) if found else ProbeResult(Verdict.NOT_COMMITTED)


@once(
    Store.redis(os.environ["PEERS_REDIS_URL"]),
    key=lambda number: f"job-{number}",
    policy=auto_retry if KEYED else check_then_decide(_probe),
    lease_ttl=LEASE_SECONDS,
)
def _deliver(number: int) -> str:
    return deliver(number)


@dramatiq.actor(**RETRIES)
def email(number: int) -> None:
    """Send one email, unless the store says that it was sent."""
    _deliver(number)
