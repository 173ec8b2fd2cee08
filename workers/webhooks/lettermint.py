"""Lettermint: the secret with its `whsec_` as it is; the signed instant once more in a header of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from workers.webhooks.delivery import Delivery, Refused, Said, instant, named
from workers.webhooks.signatures import Scheme, Tolerance, check_timed


def _check(delivery: Delivery, keys: Sequence[bytes], tolerance: Tolerance) -> None:
    told = delivery.header("x-lettermint-delivery")
    if check_timed(delivery.header("x-lettermint-signature"), "v1", delivery, keys, tolerance) != told:
        raise Refused(401, "the header x-lettermint-delivery is not the signed instant")


def _read(_delivery: Delivery, data: dict[str, Any]) -> Said:
    return Said(named("id", data.get("id")), named("type", data.get("event")), instant(data.get("timestamp")))


SCHEME: Final = Scheme(
    title="Lettermint",
    source="https://lettermint.co/docs/platform/webhooks/signing",
    check=_check,
    read=_read,
)
