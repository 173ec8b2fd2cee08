"""Brevo: nothing is signed; a bearer token is what proves who posts, so take it by HTTPS only.

The `id` of its events is that of the webhook. What is delivered again is the same body, whose digest is the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from workers.webhooks.delivery import Delivery, Said, instant, named
from workers.webhooks.postmark import check_authorization, digest_id
from workers.webhooks.signatures import Scheme, Tolerance


def _check(delivery: Delivery, keys: Sequence[bytes], _tolerance: Tolerance) -> None:
    check_authorization(delivery, [b"Bearer " + key for key in keys])


def _read(delivery: Delivery, data: dict[str, Any]) -> Said:
    return Said(digest_id(delivery), named("event", data.get("event")), instant(data.get("ts_event")))


SCHEME: Final = Scheme(
    title="Brevo",
    source="https://developers.brevo.com/docs/username-and-password-authentication",
    check=_check,
    read=_read,
)
