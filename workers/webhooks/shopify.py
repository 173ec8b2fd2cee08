"""Shopify: Base64 over the body, no instant; the event's id and topic are headers outside of the signature.

`X-Shopify-Event-Id` names the event; `X-Shopify-Webhook-Id`, which some guides use, names the delivery.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from workers.webhooks.delivery import Delivery, Said, named
from workers.webhooks.signatures import Scheme, Tolerance, in_base64, match


def _check(delivery: Delivery, keys: Sequence[bytes], _tolerance: Tolerance) -> None:
    match([delivery.header("x-shopify-hmac-sha256")], keys, delivery.body, in_base64)


def _read(delivery: Delivery, _data: dict[str, Any]) -> Said:
    return Said(
        named("id", delivery.header("x-shopify-event-id")),
        named("type", delivery.header("x-shopify-topic")),
    )


SCHEME: Final = Scheme(
    title="Shopify",
    source="https://shopify.dev/docs/apps/build/webhooks/subscribe/https",
    check=_check,
    read=_read,
)
