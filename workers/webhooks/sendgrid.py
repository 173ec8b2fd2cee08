"""SendGrid: ECDSA over the instant and the body, with a public key for a secret; many events in one delivery."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

from idem.errors import MissingExtra
from workers.webhooks.delivery import Delivery, Refused, Said, instant, named, parse_list
from workers.webhooks.signatures import Scheme, Tolerance

_SIGNATURE: Final = "x-twilio-email-event-webhook-signature"
_TIMESTAMP: Final = "x-twilio-email-event-webhook-timestamp"


def _key(secret: str) -> bytes:
    """The public key, as it is shown: Base64 of a SubjectPublicKeyInfo."""
    try:
        key = base64.b64decode(secret, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it is the public key, in Base64") from None
    _public_key(key)
    return key


@lru_cache(maxsize=16)
def _public_key(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey  # noqa: PLC0415 - an extra
        from cryptography.hazmat.primitives.serialization import load_der_public_key  # noqa: PLC0415 - the same
    except ImportError as error:
        raise MissingExtra("events", "webhooks of SendGrid") from error
    try:
        found = load_der_public_key(key)
    except Exception:  # of many kinds, for what is no key, or one of an algorithm that it does not know
        raise ValueError("it is not a public key") from None
    if not isinstance(found, EllipticCurvePublicKey):
        raise ValueError("it is not the public key of an elliptic curve")  # noqa: TRY004 - a secret's errors are these
    return found


def _check(delivery: Delivery, keys: Sequence[bytes], tolerance: Tolerance) -> None:
    content = tolerance.admit(delivery.header(_TIMESTAMP)) + delivery.body
    try:
        signature = base64.b64decode(delivery.header(_SIGNATURE), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "the signature is not Base64") from None
    if not any(_is_signed(key, signature, content) for key in keys):
        raise Refused(401, "the signature is wrong")


def _is_signed(key: bytes, signature: bytes, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA  # noqa: PLC0415 - the same
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - the same

    try:
        _public_key(key).verify(signature, content, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _several(delivery: Delivery) -> Iterator[tuple[Said, dict[str, Any]]]:
    for data in parse_list(delivery.body):
        id_, kind = named("sg_event_id", data.get("sg_event_id")), named("event", data.get("event"))
        yield Said(id_, kind, instant(data.get("timestamp"))), data


SCHEME: Final = Scheme(
    title="SendGrid",
    source="https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/getting-started-event-webhook-security-features",
    check=_check,
    several=_several,
    key=_key,
)
