"""Dramatiq with dramatiq-sqs, as its page shows; visibility is lowered from 12 hours to 30 s, retries are sooner."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.middleware import AgeLimit, Callbacks, Pipelines, Retries, TimeLimit
from dramatiq_sqs import SQSBroker  # type: ignore[import-untyped]

from tests.peers.wired.parts import RETRIES, SQS_VISIBILITY_SECONDS, deliver

dramatiq.set_broker(
    SQSBroker(
        namespace=os.environ["PEERS_NAMESPACE"],
        middleware=[AgeLimit(), TimeLimit(), Callbacks(), Pipelines(), Retries()],
        dead_letter=True,
        visibility_timeout=SQS_VISIBILITY_SECONDS,
        endpoint_url=os.environ["PEERS_SQS_URL"],
        region_name="us-east-1",
    )
)


@dramatiq.actor(**RETRIES)
def email(number: int) -> None:
    """Send one email."""
    deliver(number)
