"""Deliveries as each sender signs them, written out here a second time: from the senders' pages, not from our code."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

WHSEC = "whsec_" + base64.b64encode(b"a secret of twenty-four!").decode()
PLAIN = "a-secret-of-thirty-two-characters"
NOW = 1_800_000_000

#: The secret that a source of each sender is given.
SECRETS = {
    "stripe": WHSEC,
    "github": PLAIN,
    "shopify": PLAIN,
    "standard": WHSEC,
    "lettermint": WHSEC,
    "getmailer": PLAIN,
    "nuntly": WHSEC,
    "resend": WHSEC,
    "hmac": PLAIN,
}
#: Those that sign an instant.
TIMED = ("stripe", "standard", "lettermint", "nuntly", "resend", "hmac")


@dataclass(frozen=True, slots=True)
class Posted:
    headers: Mapping[str, str]
    body: bytes

    def raw(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode(), value.encode("latin-1")) for name, value in self.headers.items()]


def hexed(secret: str, content: bytes) -> str:
    return hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()


def based(secret: bytes, content: bytes) -> str:
    return base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()


def svix(brand: str) -> Callable[[str, bytes, str, str, int], dict[str, str]]:
    def sign(secret: str, body: bytes, event_id: str, _type: str, at: int) -> dict[str, str]:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signature = based(key, f"{event_id}.{at}.".encode() + body)
        return {f"{brand}-id": event_id, f"{brand}-timestamp": str(at), f"{brand}-signature": f"v1,{signature}"}

    return sign


def _stripe(secret: str, body: bytes, _id: str, _type: str, at: int) -> dict[str, str]:
    return {"stripe-signature": f"t={at},v1={hexed(secret, f'{at}.'.encode() + body)}"}


def _github(secret: str, body: bytes, event_id: str, kind: str, _at: int) -> dict[str, str]:
    signature = f"sha256={hexed(secret, body)}"
    return {"x-hub-signature-256": signature, "x-github-delivery": event_id, "x-github-event": kind}


def _shopify(secret: str, body: bytes, event_id: str, kind: str, _at: int) -> dict[str, str]:
    signature = based(secret.encode(), body)
    return {"x-shopify-hmac-sha256": signature, "x-shopify-event-id": event_id, "x-shopify-topic": kind}


def _lettermint(secret: str, body: bytes, _id: str, _type: str, at: int) -> dict[str, str]:
    signature = hexed(secret, f"{at}.".encode() + body)
    return {"x-lettermint-signature": f"t={at},v1={signature}", "x-lettermint-delivery": str(at)}


def _getmailer(secret: str, body: bytes, _id: str, _type: str, _at: int) -> dict[str, str]:
    return {"x-getmailer-signature": f"sha256={hexed(secret, body)}"}


def _nuntly(secret: str, body: bytes, _id: str, _type: str, at: int) -> dict[str, str]:
    signature = hexed(secret.removeprefix("whsec_"), f"{at}.".encode() + body)
    return {"webhook-signature": f"t={at},v0={signature}", "webhook-timestamp": str(at * 1000)}


def _hmac(secret: str, body: bytes, _id: str, _type: str, at: int) -> dict[str, str]:
    return {"x-signature": f"t={at},v1={hexed(secret, f'{at}.'.encode() + body)}"}


SIGN: dict[str, Callable[[str, bytes, str, str, int], dict[str, str]]] = {
    "stripe": _stripe,
    "github": _github,
    "shopify": _shopify,
    "standard": svix("webhook"),
    "lettermint": _lettermint,
    "getmailer": _getmailer,
    "nuntly": _nuntly,
    "resend": svix("svix"),
    "hmac": _hmac,
}


def sign(sender: str, body: bytes, *, secret: str | None = None, event_id: str = "evt_1", at: int = NOW) -> Posted:
    """Any bytes, signed as the sender would."""
    return Posted(SIGN[sender](secret or SECRETS[sender], body, event_id, "thing.happened", at), body)


def post(sender: str, *, secret: str | None = None, event_id: str = "evt_1", at: int = NOW, **data: Any) -> Posted:
    """One genuine event of type `thing.happened`."""
    kind = {"event" if sender == "lettermint" else "type": "thing.happened"}
    return sign(sender, json.dumps({"id": event_id, **kind, **data}).encode(), secret=secret, event_id=event_id, at=at)
