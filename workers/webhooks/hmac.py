"""Our own, for senders that have no scheme: `X-Signature: t=<Unix seconds>,v1=<hex HMAC-SHA256 of t.body>`.

The id and the type are in the body, where the signature covers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from workers.webhooks.delivery import Delivery, Said, instant, named
from workers.webhooks.signatures import Scheme, Tolerance, check_timed


def _check(delivery: Delivery, keys: Sequence[bytes], tolerance: Tolerance) -> None:
    check_timed(delivery.header("x-signature"), "v1", delivery, keys, tolerance)


def _read(_delivery: Delivery, data: dict[str, Any]) -> Said:
    return Said(named("id", data.get("id")), named("type", data.get("type")), instant(data.get("created")))


SCHEME: Final = Scheme(
    title="HMAC",
    source="https://datatracker.ietf.org/doc/html/rfc2104",
    check=_check,
    read=_read,
)
