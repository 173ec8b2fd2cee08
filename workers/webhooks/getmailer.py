"""GetMailer: no instant is signed, so that an old delivery is as good as a new one; its id tells."""

from __future__ import annotations

from typing import Any, Final

from workers.webhooks.delivery import Delivery, Said, instant, named
from workers.webhooks.signatures import Scheme, check_prefixed


def _read(_delivery: Delivery, data: dict[str, Any]) -> Said:
    return Said(named("id", data.get("id")), named("type", data.get("type")), instant(data.get("created_at")))


SCHEME: Final = Scheme(
    title="GetMailer",
    source="https://getmailer.co/docs/webhooks",
    check=check_prefixed("x-getmailer-signature"),
    read=_read,
)
