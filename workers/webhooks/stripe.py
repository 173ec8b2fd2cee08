"""Stripe: the secret with its `whsec_` as it is; the event's id is in the body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from workers.webhooks.delivery import Delivery, Said, instant, named
from workers.webhooks.signatures import Scheme, Tolerance, check_timed


def _check(delivery: Delivery, keys: Sequence[bytes], tolerance: Tolerance) -> None:
    check_timed(delivery.header("stripe-signature"), "v1", delivery, keys, tolerance)


def _read(_delivery: Delivery, data: dict[str, Any]) -> Said:
    return Said(named("id", data.get("id")), named("type", data.get("type")), instant(data.get("created")))


SCHEME: Final = Scheme(title="Stripe", source="https://docs.stripe.com/webhooks", check=_check, read=_read)
