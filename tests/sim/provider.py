"""The simulated provider: its append-only log of acceptances is the oracle that nothing else writes to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from enum import Enum

from idem.email import Email
from idem.providers.base import (
    USUAL,
    Contract,
    Found,
    Key,
    Lookup,
    Meaning,
    Memory,
    Missing,
    Place,
    Reply,
    Row,
    Sighting,
)
from idem.providers.http import Answer

WINDOW_SECONDS = 86_400.0
LAG_SECONDS = 30.0
_LOOKUP = Lookup(handle="tag", source="https://example.com", lag_seconds=LAG_SECONDS, horizon_seconds=30 * 86_400.0)
_KEY = Key(place=Place.HEADER, name="Idempotency-Key", window_seconds=WINDOW_SECONDS)

#: A subject that the provider refuses.
INVALID = "invalid"


class Offer(Enum):
    """What a provider offers: the classes of the fault matrix."""

    KEYED = "K"
    """Keys, and things go on well inside their window."""
    KEYED_LATE = "K>"
    """Keys, and pauses that outlast their window."""
    REFUSING = "R"
    """Keys; a second request is refused, which proves the first."""
    SEARCHABLE = "S"
    """No keys; an acceptance shows up after a while, and a look-up may miss one that is there."""
    NEITHER = "N"
    """No keys and no look-up."""

    @property
    def keyed(self) -> bool:
        """Whether a repeated request is no second email, inside the window."""
        return self in {Offer.KEYED, Offer.KEYED_LATE, Offer.REFUSING}

    @property
    def window_seconds(self) -> float | None:
        """How long a key is remembered."""
        return WINDOW_SECONDS if self.keyed else None


_MEMORY = {Offer.REFUSING: Memory.REFUSES, Offer.SEARCHABLE: Memory.NONE, Offer.NEITHER: Memory.NONE}


def _contract_of(offer: Offer) -> Contract:
    return Contract(
        name="simulated",
        title="Simulated",
        sources=("https://example.com",),
        checked=date(2026, 1, 1),
        base_url="https://example.com",
        memory=_MEMORY.get(offer, Memory.REPLAYS),
        key=_KEY if offer.keyed else None,
        table=(
            Row({409}, Meaning.KNOWN, code="duplicate"),
            Row({409}, Meaning.CONFLICT, code="conflict"),
            Row({409}, Meaning.IN_PROGRESS, code="in_progress"),
            *USUAL,
        ),
        reply=Reply(message_id=("id",), code=("code",)),
        lookup=_LOOKUP if offer is Offer.SEARCHABLE else None,
    )


_CONTRACTS = {offer: _contract_of(offer) for offer in Offer}


def answer(status: int, headers: Mapping[str, str] | None = None, **body: str) -> Answer:
    """An answer on the wire, which our own code then reads by the contract."""
    return Answer(status, headers or {}, json.dumps(body).encode())


@dataclass(frozen=True, slots=True)
class Acceptance:
    """One line of the log."""

    subject: str
    provider_key: str
    at: float
    message_id: str


class AcceptingSide:
    """The provider's own side: it sees requests, and nothing of ours. Times are true ones."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.contract = _CONTRACTS[offer]
        self.log: list[Acceptance] = []
        self._known: dict[str, tuple[Acceptance, bytes]] = {}

    def request(self, email: Email, provider_key: str, now: float) -> Answer:
        """Take a request, whether or not anybody hears the answer."""
        body = hashlib.sha256(email.canonical()).digest()
        known = self._remembered(provider_key, now)
        if known is not None:
            first, bound = known
            if self.offer is Offer.REFUSING:
                return answer(409, code="duplicate")
            if bound != body:
                return answer(409, code="conflict")
            return answer(200, id=first.message_id)
        if email.subject.startswith(INVALID):
            return answer(422, code="invalid")
        acceptance = Acceptance(email.subject, provider_key, now, f"m{len(self.log) + 1}")
        self.log.append(acceptance)
        self._known[provider_key] = acceptance, body
        return answer(200, id=acceptance.message_id)

    def look(self, provider_key: str, now: float) -> Sighting:
        """What a look-up shows at the latest, as documented."""
        shown = self._known.get(provider_key)
        if shown is None or shown[0].at > now - LAG_SECONDS:
            return Missing()
        return Found(shown[0].message_id)

    def accepted(self, subject: str) -> int:
        """How often an email was accepted."""
        return sum(1 for _ in self.of(subject))

    def of(self, subject: str) -> Iterator[Acceptance]:
        """The acceptances of an email."""
        return (each for each in self.log if each.subject == subject)

    def _remembered(self, provider_key: str, now: float) -> tuple[Acceptance, bytes] | None:
        known = self._known.get(provider_key)
        if known is None or not self.offer.keyed or now >= known[0].at + WINDOW_SECONDS:
            return None
        return known
