"""Nuntly: the secret without its `whsec_`; while secrets rotate its page writes `v0=a,b`, its SDK `v0=a,v0=b`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from workers.webhooks.delivery import Delivery, Said, instant, named
from workers.webhooks.signatures import Scheme, Tolerance, bare_key, check_timed


def _check(delivery: Delivery, keys: Sequence[bytes], tolerance: Tolerance) -> None:
    check_timed(delivery.header("webhook-signature"), "v0", delivery, keys, tolerance, bare=True)


def _read(_delivery: Delivery, data: dict[str, Any]) -> Said:
    return Said(named("id", data.get("id")), named("type", data.get("type")), instant(data.get("createdAt")))


SCHEME: Final = Scheme(
    title="Nuntly",
    source="https://nuntly.com/docs/guides/integrate-webhooks",
    check=_check,
    read=_read,
    key=bare_key,
)
