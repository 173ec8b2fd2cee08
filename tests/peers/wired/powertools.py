"""Dramatiq with the idempotency of Powertools for AWS Lambda, on DynamoDB.

Outside of Lambda nothing says how long an attempt may take; without that, a killed worker's record stands in the way
for an hour. So a context is registered, as the documentation does for functions that are no handlers.
"""

from __future__ import annotations

import os
from typing import Any, cast

import boto3  # type: ignore[import-untyped]  # ships no types
import dramatiq
from aws_lambda_powertools.utilities.idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyConfig,
    idempotent_function,
)
from dramatiq.brokers.redis import RedisBroker

from tests.peers.wired.parts import LEASE_SECONDS, RETRIES, deliver, redis_options

dramatiq.set_broker(RedisBroker(**redis_options()))


class _Context:
    def get_remaining_time_in_millis(self) -> int:
        return int(LEASE_SECONDS * 1_000)


_store = DynamoDBPersistenceLayer(
    os.environ["PEERS_TABLE"],
    boto3_client=boto3.client("dynamodb", endpoint_url=os.environ["PEERS_DYNAMODB_URL"], region_name="us-east-1"),
)
_config = IdempotencyConfig(lambda_context=cast("Any", _Context()))


@idempotent_function(data_keyword_argument="number", persistence_store=_store, config=_config)
def _deliver(*, number: int) -> str:
    return deliver(number)


@dramatiq.actor(**RETRIES)
def email(number: int) -> None:
    """Send one email, unless the record says that it was sent."""
    _deliver(number=number)
