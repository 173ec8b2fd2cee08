"""An email in a request's JSON, read field by field, as most providers have it; their dialects word what is wrong."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from workers.sandbox.dialect import Attachment

#: Senders at this domain are refused as those of a domain that nobody verified; `.test` is never anybody's (RFC 6761).
UNVERIFIED = "unverified.test"

_ADDRESS = re.compile(r'(?:[^\s<>@"(),:;\\]+|"[^"\r\n]+")@[^\s<>@"(),:;\\]+')


class Form:
    """A request's JSON object; `problems` collects what is wrong, by field, each as the end of a sentence.

    With `lone`, a single string stands for a list of one.
    """

    def __init__(self, fields: Mapping[str, object], *, lone: bool = False) -> None:
        self._fields = fields
        self._lone = lone
        self.problems: dict[str, list[str]] = {}

    def blame(self, name: str, problem: str) -> None:
        """Note one problem: `is required`."""
        self.problems.setdefault(name, []).append(problem)

    def text(self, name: str, *, required: bool = False) -> str | None:
        """A string; an empty one counts as absent."""
        value = self._fields.get(name)
        if value is not None and not isinstance(value, str):
            self.blame(name, "must be a string")
            return None
        if required and not (value or "").strip():
            self.blame(name, "is required")
        return value or None

    def sender(self, name: str = "from") -> str:
        """The one address that an email is from."""
        found = self.text(name, required=True)
        if found and not bare(found):
            self.blame(name, "must be a valid email address")
        return found or ""

    def items(self, name: str, *, required: bool = False) -> list[object]:
        """A list; absent counts as empty."""
        value = self._fields.get(name)
        if self._lone and isinstance(value, str):
            return [value]
        if required and not value:
            self.blame(name, "is required")
        elif value is not None and not isinstance(value, list):
            self.blame(name, "must be an array")
        return value if isinstance(value, list) else []

    def addresses(self, name: str, *, required: bool = False) -> tuple[str, ...]:
        """A list of addresses, as they were given; each may carry a display name."""
        found = []
        for index, value in enumerate(self.items(name, required=required)):
            if isinstance(value, str) and bare(value):
                found.append(value)
            else:
                self.blame(f"{name}.{index}", "must be a valid email address")
        return tuple(found)

    def recipients(self, name: str = "to") -> tuple[str, ...]:
        """The addresses that an email is to, without their display names."""
        return tuple(bare(address) or "" for address in self.addresses(name, required=True))

    def strings(self, name: str) -> dict[str, str]:
        """An object whose values are strings; PHP clients write an empty one as an empty list."""
        value = self._fields.get(name)
        if not value:
            return {}
        if not isinstance(value, dict):
            self.blame(name, "must be an object")
            return {}
        for field, content in value.items():
            if not isinstance(content, str):
                self.blame(f"{name}.{field}", "must be a string")
        return value

    def pairs(self, name: str, allowed: re.Pattern[str], value_allowed: re.Pattern[str]) -> tuple[str, ...]:
        """A list of `{name, value}`, each as `name=value`."""
        found = []
        for index, item in enumerate(self.items(name)):
            key, value = (item.get("name"), item.get("value")) if isinstance(item, dict) else (None, None)
            if _matches(allowed, key) and _matches(value_allowed, value):
                found.append(f"{key}={value}")
            else:
                self.blame(f"{name}.{index}", "format is invalid")
        return tuple(found)

    def attachments(self, type_name: str = "content_type") -> tuple[Attachment, ...]:
        """The attachments, their content decoded for its size only."""
        found = []
        for index, item in enumerate(self.items("attachments")):
            attachment = _attachment(item, type_name)
            if attachment is None:
                self.blame(f"attachments.{index}", "must have a filename and base64 content")
            else:
                found.append(attachment)
        return tuple(found)


def bare(address: str) -> str | None:
    """The address without its display name; None when it does not look like one."""
    found = address.strip()
    if found.endswith(">"):
        found = found[:-1].rpartition("<")[2].strip()
    return found if _ADDRESS.fullmatch(found) else None


def is_unverified(sender: str) -> bool:
    """Whether the sandbox plays that nobody verified this sender's domain."""
    return (bare(sender) or "").lower().endswith(f"@{UNVERIFIED}")


def bearer(headers: Mapping[str, str]) -> str | None:
    """The token of `Authorization: Bearer`, if there is one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" and re.fullmatch(r"[!-~]+", token) else None


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _attachment(item: object, type_name: str) -> Attachment | None:
    if not isinstance(item, dict):
        return None
    filename, content, content_type = item.get("filename"), item.get("content"), item.get(type_name)
    if not (isinstance(filename, str) and filename and isinstance(content, str)):
        return None
    try:
        size = len(base64.b64decode(content, validate=True))
    except binascii.Error:
        return None
    return Attachment(filename, content_type if isinstance(content_type, str) else None, size)
