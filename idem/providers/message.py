"""The message, for providers that take MIME: addresses that every server can read, and the bytes."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Final

from idem.address import Address, parse_address
from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.mime import to_message

_LISTS: Final = ("to", "cc", "bcc", "reply_to")


def with_ascii_domains(email: Email) -> Email:
    """The same email with every domain in its ASCII form (`xn--...`); raises `UnsupportedEmail` where that is unsure.

    The standard library knows IDNA 2003, in which some names (with ß, for one) come out as those of another domain
    than browsers go to: one that does not decode to what was written is refused, not guessed.
    """
    lists: dict[str, tuple[str, ...]] = {"from": (email.from_,)} | {name: getattr(email, name) for name in _LISTS}
    found = {name: tuple(_ascii(name, item) for item in items) for name, items in lists.items()}
    if found == lists:
        return email
    (sender,) = found.pop("from")
    return Email.from_dict(email.as_dict() | {"from": sender, **found})


def bare(address: str) -> str:
    """The address without the name shown beside it."""
    return parse_address("to", address).spec


def domain_of(address: str) -> str:
    """What is behind the @."""
    return bare(address).rpartition("@")[2]


def message_bytes(email: Email, headers: Mapping[str, str]) -> bytes:
    """The message with CRLF line ends and these headers, which must be ASCII, before its own; without Bcc."""
    message = to_message(email)
    own = [f"{name}: {value}\r\n".encode("ascii") for name, value in headers.items()]
    return b"".join(own) + message.as_bytes()


def _ascii(field: str, value: str) -> str:
    address = parse_address(field, value)
    local, _, domain = address.spec.rpartition("@")
    if domain.isascii():
        return value
    encoded = _encoded(domain)
    if encoded is None:
        raise UnsupportedEmail(field, "has a domain whose ASCII form is not certain; write that form (xn--...)")
    return str(Address(f"{local}@{encoded}", address.name))


def _encoded(domain: str) -> str | None:
    try:
        encoded = domain.encode("idna")
        same = encoded.decode("idna") == unicodedata.normalize("NFC", domain).lower()
    except UnicodeError:
        return None
    return encoded.decode("ascii") if same else None
