"""Keys and certificates that tests sign with, made once a process."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

NOW = 1_800_000_000


@lru_cache(maxsize=4)
def rsa_key(name: str = "sns") -> rsa.RSAPrivateKey:
    assert name
    return rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


@lru_cache(maxsize=4)
def ec_key(name: str = "sendgrid") -> ec.EllipticCurvePrivateKey:
    assert name
    return ec.generate_private_key(ec.SECP256R1())


def private(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    """As an order of the sandbox takes it."""
    return base64.b64encode(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())).decode()


def public(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    """As SendGrid shows it."""
    found = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(found).decode()


def certificate(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, at: float = NOW, days: int = 365) -> bytes:
    """One that signs itself and is valid for so long on both sides of `at`."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    middle = datetime.fromtimestamp(at, UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(middle - timedelta(days=days))
        .not_valid_after(middle + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM)
