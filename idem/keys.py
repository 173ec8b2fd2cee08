"""Keys: the names of intended effects, and the provider keys derived from them.

Priority: an explicit key (an argument, or an `Idempotency-Key` header in the email) beats a derived one.
"""

from __future__ import annotations

import base64
import hashlib

from idem.email import Email
from idem.errors import InvalidKey

MAX_KEY = 255
_KEY_HEADER = "idempotency-key"


def check_key(key: object) -> str:
    """Return `key` if it is 1 to 255 printable characters; raise `InvalidKey` saying why it is not."""
    if not isinstance(key, str):
        raise InvalidKey(f"a key is {type(key).__name__}; it must be a string")
    if not 1 <= len(key) <= MAX_KEY:
        raise InvalidKey(f"a key has {len(key)} characters; it must have 1 to {MAX_KEY}")
    if not key.isprintable():
        raise InvalidKey("a key holds a character that does not print")
    return key


def take_explicit(email: Email, key: str | None) -> tuple[Email, str | None]:
    """The email without its `Idempotency-Key` header, and the explicit key: the argument's, else the header's."""
    header = next((value for name, value in email.headers.items() if name.lower() == _KEY_HEADER), None)
    if header is not None:
        email = email.without_header(_KEY_HEADER)
    explicit = key if key is not None else header
    return email, None if explicit is None else check_key(explicit)


def sub_key(key: str, number: int) -> str:
    """The key of the `number`-th email (from 1) that one job returned in a list; stable, and never too long."""
    suffix = f"/{number}"
    if len(key) + len(suffix) <= MAX_KEY:
        return key + suffix
    return hashlib.sha256(key.encode()).hexdigest() + suffix


def provider_key(namespace: str, key: str, generation: int) -> str:
    """The key that the provider sees: 43 characters of `[A-Za-z0-9_-]`, which every provider takes.

    The namespace keeps two applications with one provider account apart; the generation moves on when a definite
    rejection is corrected and sent again (rule 9).
    """
    parts = b"\0".join([b"idem-workers/1", namespace.encode(), key.encode(), str(generation).encode()])
    return base64.urlsafe_b64encode(hashlib.sha256(parts).digest()).rstrip(b"=").decode("ascii")
