"""What the schemes share: HMAC-SHA256 compared in constant time, the tolerance of a signed instant, and secrets.

A candidate is compared, as the text that it is, with the text that we would have written: there is nothing to decode,
so that nothing can fail to, and one signature has one spelling.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from workers.webhooks.delivery import Delivery, Refused, Said, parse

#: Rotation needs two; each costs a comparison.
_MOST_CANDIDATES: Final = 16
_SHORTEST_KEY: Final = 8
_UNIX_SECONDS: Final = re.compile(r"[0-9]{1,12}", re.ASCII)
_WHSEC: Final = "whsec_"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far from `now` (Unix seconds) a signed instant may be, in seconds, either way."""

    now: float
    seconds: float

    def admit(self, text: str) -> bytes:
        """The instant as it was signed, if it is near enough."""
        if _UNIX_SECONDS.fullmatch(text) is None:
            raise Refused(400, "the signed instant is not in Unix seconds")
        if abs(self.now - int(text)) > self.seconds:
            raise Refused(401, f"the signed instant is more than {self.seconds:g} s from now")
        return text.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How one sender signs and names its events; `source` is where it says so.

    `key` makes the HMAC's key from a secret as people copy it (`ValueError` when it is none), `check` raises `Refused`
    unless the delivery was signed with one of the keys, `read` finds the event in one that was. A sender whose
    deliveries are not one event as one JSON object has `several` for `read`: what it reads, and the body of each.
    `waits`: checking may have to ask another server, and does not belong on an event loop.
    """

    title: str
    source: str
    check: Callable[[Delivery, Sequence[bytes], Tolerance], None]
    read: Callable[[Delivery, dict[str, Any]], Said] | None = None
    several: Callable[[Delivery], Iterable[tuple[Said, dict[str, Any]]]] | None = None
    key: Callable[[str], bytes] = str.encode
    waits: bool = False

    def events(self, delivery: Delivery) -> list[tuple[Said, dict[str, Any]]]:
        """The events of a delivery that was checked, each with its body."""
        if self.several is not None:
            return list(self.several(delivery))
        data = parse(delivery.body)
        return [] if self.read is None else [(self.read(delivery, data), data)]

    def keys(self, secrets: Iterable[str]) -> tuple[bytes, ...]:
        """The keys of these secrets; `ValueError` for one that anybody could guess."""
        found = tuple(self.key(secret) for secret in secrets)
        if not all(len(key) >= _SHORTEST_KEY for key in found):
            raise ValueError(f"a secret has fewer than {_SHORTEST_KEY} bytes")
        return found


def hexadecimal(key: bytes, content: bytes) -> str:
    """A signature as most write it."""
    return hmac.new(key, content, sha256).hexdigest()


def in_base64(key: bytes, content: bytes) -> str:
    """A signature in Base64."""
    return base64.b64encode(hmac.digest(key, content, sha256)).decode()


def match(
    candidates: Sequence[str], keys: Sequence[bytes], content: bytes, write: Callable[[bytes, bytes], str]
) -> None:
    """Raise `Refused` unless one of the candidates is the content's signature under one of the keys."""
    given = [candidate.encode(errors="replace") for candidate in candidates[:_MOST_CANDIDATES]]
    matched = False
    for key in keys:
        expected = write(key, content).encode()
        for candidate in given:
            matched |= hmac.compare_digest(expected, candidate)
    if not matched:
        raise Refused(401, "the signature is wrong")


def check_timed(  # noqa: PLR0913 - the parts of one scheme
    text: str, version: str, delivery: Delivery, keys: Sequence[bytes], tolerance: Tolerance, *, bare: bool = False
) -> str:
    """Check `t=<Unix seconds>,<version>=<hex of t.body>`, with more of the latter while secrets rotate; gives `t`.

    With `bare`, candidates after the first may stand without their name.
    """
    parts = [part.strip().partition("=") for part in text.split(",")]
    instants = [value for name, _, value in parts if name == "t"]
    if len(instants) != 1:
        raise Refused(400, "the signature does not say when it was made, once")
    candidates = [value for name, _, value in parts if name == version]
    candidates += [name for name, equals, _ in parts if bare and not equals]
    content = tolerance.admit(instants[0]) + b"." + delivery.body
    match(candidates, keys, content, hexadecimal)
    return instants[0]


def check_prefixed(name: str) -> Callable[[Delivery, Sequence[bytes], Tolerance], None]:
    """What checks `sha256=<hex of the body>` in that header; nothing says when it was signed."""

    def check(delivery: Delivery, keys: Sequence[bytes], _tolerance: Tolerance) -> None:
        prefix, equals, digest = delivery.header(name).partition("=")
        if (prefix, equals) != ("sha256", "="):
            raise Refused(400, f"the header {name} is not sha256=...")
        match([digest], keys, delivery.body, hexadecimal)

    return check


def decoded_key(secret: str) -> bytes:
    """The secret without its `whsec_`, from Base64."""
    try:
        return base64.b64decode(secret.removeprefix(_WHSEC), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a secret is not whsec_ and Base64") from None


def bare_key(secret: str) -> bytes:
    """The secret without its `whsec_`, as text."""
    return secret.removeprefix(_WHSEC).encode()
