"""Mailgun: the signature is in the body, over an instant and a token and nothing else: take it by HTTPS only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from workers.webhooks.delivery import Delivery, Refused, Said, instant, named, parse
from workers.webhooks.signatures import Scheme, Tolerance, hexadecimal, match


def _check(delivery: Delivery, keys: Sequence[bytes], tolerance: Tolerance) -> None:
    signed = parse(delivery.body).get("signature")
    parts = signed if isinstance(signed, dict) else {}
    at, token, digest = (parts.get(name) for name in ("timestamp", "token", "signature"))
    if not (isinstance(at, str) and isinstance(token, str) and isinstance(digest, str)):
        raise Refused(400, "the body has no signature of a timestamp and a token")
    match([digest], keys, tolerance.admit(at) + token.encode(), hexadecimal)


def _read(_delivery: Delivery, data: dict[str, Any]) -> Said:
    event = data.get("event-data")
    event = event if isinstance(event, dict) else {}
    return Said(named("id", event.get("id")), named("event", event.get("event")), instant(event.get("timestamp")))


SCHEME: Final = Scheme(
    title="Mailgun",
    source="https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/securing-webhooks",
    check=_check,
    read=_read,
)
