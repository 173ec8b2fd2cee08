"""Signatures by private keys, as Amazon SNS and SendGrid make them; the secret of an order is then such a key."""

from __future__ import annotations

import base64
import importlib
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=16)
def _key(secret: str, kind: str) -> Any:
    try:
        asymmetric = importlib.import_module(f"cryptography.hazmat.primitives.asymmetric.{kind}")
        serialization = importlib.import_module("cryptography.hazmat.primitives.serialization")
    except ImportError:
        raise ValueError("signing needs cryptography: install idem-workers[events]") from None
    try:
        key = serialization.load_der_private_key(base64.b64decode(secret, validate=True), None)
    except Exception:  # of many kinds, for what is no key
        key = None
    if not isinstance(key, asymmetric.RSAPrivateKey if kind == "rsa" else asymmetric.EllipticCurvePrivateKey):
        problem = f"the secret is the Base64 of a private key of {kind.upper()}, in PKCS #8"
        raise ValueError(problem)  # noqa: TRY004 - what is wrong with an order
    return key


def sign_rsa(secret: str, content: bytes) -> str:
    """PKCS #1 over SHA-256, in Base64: version 2 of Amazon SNS."""
    key = _key(secret, "rsa")
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - the same

    return base64.b64encode(key.sign(content, PKCS1v15(), SHA256())).decode()


def sign_ec(secret: str, content: bytes) -> str:
    """ECDSA over SHA-256, in Base64."""
    key = _key(secret, "ec")
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - the same

    return base64.b64encode(key.sign(content, ECDSA(SHA256()))).decode()
