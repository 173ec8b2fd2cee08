"""The seam of a provider: a `Contract` of documented facts, and one call that speaks only in outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Protocol

from idem.clock import Deadline
from idem.email import Email
from idem.outcome import Outcome


class Memory(StrEnum):
    """What a provider does with a key that it has seen before."""

    REPLAYS = "replays"
    """Answers as it did the first time; another body under the key is refused."""
    NONE = "none"
    """It has no keys: the same request again is a second email."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What a provider documents, dated and linked: read by its adapter, the sandbox, the documentation and the tests.

    `window_seconds` is how long it remembers a key (None without keys), `key_characters` a regular expression class.
    Derived keys satisfy every provider's limits; the limits here are what the sandbox enforces.
    """

    name: str
    title: str
    source: str
    checked: date
    base_url: str
    memory: Memory
    window_seconds: float | None
    key_header: str
    key_min: int = 1
    key_max: int = 255


class Provider(Protocol):
    """Where emails are accepted."""

    @property
    def contract(self) -> Contract:
        """The documented facts that the protocol and the sandbox go by."""
        ...

    def check(self, email: Email) -> None:
        """Raise `UnsupportedEmail` for what this provider cannot express, so that nothing is dropped in silence."""
        ...

    def send(self, email: Email, provider_key: str, deadline: Deadline) -> Outcome:
        """Make one attempt, the whole of it before `deadline`; never retries, never raises for what the wire does."""
        ...
