"""Postmark: nothing is signed; the URL's user and password are what proves who posts, so take it by HTTPS only.

Its events have no id. What is delivered again is the same body, whose digest is the event's name.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final

from workers.webhooks.delivery import Delivery, Refused, Said, instant, named
from workers.webhooks.signatures import Scheme, Tolerance

#: Where each type of event says when it happened.
_TIMES: Final = ("DeliveredAt", "BouncedAt", "ReceivedAt", "ChangedAt")


def check_authorization(delivery: Delivery, expected: Sequence[bytes]) -> None:
    """Raise `Refused` unless the header `Authorization` is one of these."""
    given = delivery.header("authorization").encode(errors="replace")
    if not sum(hmac.compare_digest(one, given) for one in expected):
        raise Refused(401, "the header authorization is wrong")


def digest_id(delivery: Delivery) -> str:
    """A name for an event that has none: the same for the same body."""
    return sha256(delivery.body).hexdigest()[:32]


def _key(secret: str) -> bytes:
    if ":" not in secret.strip(":"):
        raise ValueError("it is user:password, as in the URL that Postmark was given")
    return b"Basic " + base64.b64encode(secret.encode())


def _check(delivery: Delivery, keys: Sequence[bytes], _tolerance: Tolerance) -> None:
    check_authorization(delivery, keys)


def _read(delivery: Delivery, data: dict[str, Any]) -> Said:
    at = next((data[name] for name in _TIMES if name in data), None)
    return Said(digest_id(delivery), named("RecordType", data.get("RecordType")), instant(at))


SCHEME: Final = Scheme(
    title="Postmark",
    source="https://postmarkapp.com/developer/webhooks/webhooks-overview",
    check=_check,
    read=_read,
    key=_key,
)
