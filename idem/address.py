"""Email addresses by an allow-grammar: what every provider takes, and nothing that could end a header line early."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from idem.errors import EmailError

#: C0, DEL, C1, the Unicode line and paragraph separators, and lone surrogates (which no UTF-8 can carry).
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\u00a0-\ud7ff\ue000-\U0010ffff]"
_LOCAL = re.compile(rf"{_ATEXT}+(?:\.{_ATEXT}+)*")
_LABEL = re.compile("(?!-)[A-Za-z0-9\\-\u00a1-\ud7ff\ue000-\U0010ffff]{1,63}(?<!-)")
_PLAIN_NAME = re.compile(r"[^\x00-\x1f\x7f\"(),.:;<>@\[\\\]]*")
_MAX_LOCAL_BYTES = 64
_MAX_BYTES = 254
_MAX_NAME = 320


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox, with the name shown beside it; `str()` gives the one canonical form."""

    spec: str
    name: str = ""

    def __str__(self) -> str:
        if not self.name:
            return self.spec
        if _PLAIN_NAME.fullmatch(self.name) and self.name == self.name.strip():
            return f"{self.name} <{self.spec}>"
        quoted = self.name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}" <{self.spec}>'


def refuse_controls(field: str, value: str) -> None:
    """Raise `EmailError` when `value` holds a control character; they are how headers are injected."""
    found = _CONTROL.search(value)
    if found:
        raise EmailError(field, f"holds the control character U+{ord(found[0]):04X} at position {found.start() + 1}")


# A sender's address is the same in every email, and a recipient's is read again with each delivery of its message.
@lru_cache(maxsize=1_024)
def parse_address(field: str, value: str) -> Address:
    """Read `user@example.com` or `Name <user@example.com>`; raise `EmailError` naming `field` for anything else."""
    refuse_controls(field, value)
    name, spec = _split(value.strip())
    problem = _problem(spec)
    if problem:
        raise EmailError(field, f"{problem}; write user@example.com or Name <user@example.com>")
    if len(name) > _MAX_NAME:
        raise EmailError(field, f"the display name has {len(name)} characters; the limit is {_MAX_NAME}")
    return Address(spec, name)


def split_addresses(value: str) -> list[str]:
    """Cut a comma-separated list where the commas are not inside quotes or angle brackets; empty parts are dropped."""
    parts, start, quoted, angle, escaped = [], 0, False, False, False
    for index, char in enumerate(value):
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif not quoted and char in "<>":
            angle = char == "<"
        elif char == "," and not quoted and not angle:
            parts.append(value[start:index])
            start = index + 1
    parts.append(value[start:])
    return [part.strip() for part in parts if part.strip()]


def _split(value: str) -> tuple[str, str]:
    before, angle, spec = value.removesuffix(">").rpartition("<") if value.endswith(">") else ("", "", value)
    return (_unquote(before.rstrip()), spec.strip()) if angle else ("", value)


def _unquote(name: str) -> str:
    if len(name) >= 2 and name[0] == name[-1] == '"':  # noqa: PLR2004 - the two quotes
        return re.sub(r"\\(.)", r"\1", name[1:-1])
    return name


def _problem(spec: str) -> str | None:
    local, at, domain = spec.rpartition("@")
    if not at:
        return "is not an email address: it has no @" if spec else "is empty"
    if not _LOCAL.fullmatch(local) or len(local.encode()) > _MAX_LOCAL_BYTES:
        return "is not an email address: the part before @ is malformed"
    if len(spec.encode()) > _MAX_BYTES or not all(_LABEL.fullmatch(label) for label in domain.split(".")):
        return "is not an email address: the part after @ is malformed"
    return None
