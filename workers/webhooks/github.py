"""GitHub: no instant is signed, and the event's id and name are headers outside of the signature.

Whoever has seen a signed delivery could post it again under another id: take it by HTTPS only.
"""

from __future__ import annotations

from typing import Any, Final

from workers.webhooks.delivery import Delivery, Said, named
from workers.webhooks.signatures import Scheme, check_prefixed


def _read(delivery: Delivery, _data: dict[str, Any]) -> Said:
    return Said(
        named("id", delivery.header("x-github-delivery")),
        named("type", delivery.header("x-github-event")),
    )


SCHEME: Final = Scheme(
    title="GitHub",
    source="https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries",
    check=check_prefixed("x-hub-signature-256"),
    read=_read,
)
