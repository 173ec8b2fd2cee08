"""Parts of an email as several providers' requests have them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from idem.address import parse_address, split_addresses
from idem.errors import EmailError
from workers.sandbox.dialect import Attachment


class Invalid(ValueError):
    """Raised for a request that a provider refuses; `code` is its own for that, the message its own words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def bare(address: str) -> str | None:
    """The address without its display name; None for what is none."""
    try:
        return parse_address("address", address).spec
    except EmailError:
        return None


def listed(addresses: str) -> tuple[str, ...] | None:
    """The addresses between commas, as they were given; None when one of them is none."""
    found = split_addresses(addresses)
    return tuple(found) if all(bare(one) for one in found) else None


def mailbox(value: object) -> str | None:
    """`{"email", "name"}` as one text; None for what is no mailbox."""
    if not isinstance(value, dict) or not isinstance(value.get("email"), str) or not bare(value["email"]):
        return None
    name = value.get("name")
    return f"{name} <{value['email']}>" if isinstance(name, str) and name else value["email"]


def mailboxes(value: object) -> tuple[str, ...] | None:
    """A list of mailboxes; None when one of them is none."""
    found = [mailbox(one) for one in value] if isinstance(value, list) else [None]
    given = tuple(one for one in found if one is not None)
    return given if len(given) == len(found) else None


def strings(value: object) -> dict[str, str] | None:
    """An object whose values are strings, absent counting as empty; None for anything else."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        return None
    return value


def attachment(item: Mapping[str, object], name: str, content: str, content_type: str) -> Attachment | None:
    """A file under these names of its fields, its content decoded for its size only; None for what is none."""
    filename, data, kind = item.get(name), item.get(content), item.get(content_type)
    if not (isinstance(filename, str) and filename and isinstance(data, str)):
        return None
    try:
        size = len(base64.b64decode(data, validate=True))
    except binascii.Error:
        return None
    return Attachment(filename, kind if isinstance(kind, str) else None, size)
