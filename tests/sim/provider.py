"""The simulated provider: its append-only log of acceptances is the oracle that nothing else writes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import Enum
from functools import cache

import msgspec

from idem.email import Email
from idem.outcome import Accepted, Rejected
from idem.providers.base import (
    USUAL,
    Batch,
    BatchKeys,
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
HORIZON_SECONDS = 30 * 86_400.0
_LOOKUP = Lookup(handle="tag", source="https://example.com", lag_seconds=LAG_SECONDS, horizon_seconds=HORIZON_SECONDS)
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
        return self is not Offer.SEARCHABLE and self is not Offer.NEITHER

    @property
    def window_seconds(self) -> float | None:
        """How long a key is remembered."""
        return WINDOW_SECONDS if self.keyed else None


_MEMORY = {Offer.REFUSING: Memory.REFUSES, Offer.SEARCHABLE: Memory.NONE, Offer.NEITHER: Memory.NONE}


@cache
def _contract_of(name: str, offer: Offer, keys: BatchKeys | None) -> Contract:
    return Contract(
        name=name,
        title=name.title(),
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
        batch=None if keys is None else Batch(path="/batch", most=100, keys=keys),
        lookup=_LOOKUP if offer is Offer.SEARCHABLE else None,
    )


def answer(status: int, headers: Mapping[str, str] | None = None, **body: object) -> Answer:
    """An answer on the wire, which our own code then reads by the contract."""
    return Answer(status, headers or {}, msgspec.json.encode(body))


@dataclass(frozen=True, slots=True)
class Acceptance:
    """One line of the log."""

    subject: str
    provider_key: str
    at: float
    message_id: str


class AcceptingSide:
    """The provider's own side: it sees requests, and nothing of ours. Times are true ones.

    `log` may be that of other providers too: what counts is how often an email was accepted by anybody.

    Keys of emails that came in a request with others are kept apart, as the worst of providers keeps them.
    """

    def __init__(self, name: str, offer: Offer, log: list[Acceptance], batch: BatchKeys | None = None) -> None:
        self.offer = offer
        self.contract = _contract_of(name, offer, batch)
        self.log = log
        self.heed: Callable[[Acceptance], None] = lambda _: None
        self._known: dict[str, tuple[tuple[Acceptance, ...], tuple[Email, ...]]] = {}

    def request(self, email: Email, provider_key: str, now: float) -> Answer:
        """Take a request, whether or not anybody hears the answer."""
        return self._request([email], provider_key, "", now)

    def request_all(self, emails: Sequence[Email], provider_key: str, now: float) -> Answer:
        """Take a request for several emails under one key: all of them or none."""
        return self._request(emails, provider_key, "", now)

    def request_each(self, emails: Sequence[tuple[Email, str]], now: float) -> Sequence[Answer]:
        """Take a request for several emails under keys of their own."""
        return [self._request([email], key, "together/", now) for email, key in emails]

    def _request(self, emails: Sequence[Email], provider_key: str, door: str, now: float) -> Answer:
        name = door + provider_key
        known = self._remembered(name, now)
        if known is not None:
            first, bound = known
            if self.offer is Offer.REFUSING:
                return answer(409, code="duplicate")
            if bound != tuple(emails):
                return answer(409, code="conflict")
            return _accepted(first)
        if any(email.subject.startswith(INVALID) for email in emails):
            return answer(422, code="invalid")
        count = len(self.log) + 1
        taken = tuple(Acceptance(email.subject, provider_key, now, f"m{n}") for n, email in enumerate(emails, count))
        self.log += taken
        self._known[name] = taken, tuple(emails)
        for acceptance in taken:
            self.heed(acceptance)
        return _accepted(taken)

    def look(self, provider_key: str, since: float, now: float) -> Sighting:
        """What a look-up shows at the latest, as documented, of what was accepted since then."""
        shown = self._known.get(provider_key)
        if shown is None:
            return Missing()
        acceptance = shown[0][0]
        if not max(since, now - HORIZON_SECONDS) <= acceptance.at <= now - LAG_SECONDS:
            return Missing()
        return Found(acceptance.message_id)

    def accepted(self, subject: str) -> int:
        """How often an email was accepted."""
        return sum(1 for _ in self.of(subject))

    def of(self, subject: str) -> Iterator[Acceptance]:
        """The acceptances of an email."""
        return (each for each in self.log if each.subject == subject)

    def _remembered(self, name: str, now: float) -> tuple[tuple[Acceptance, ...], tuple[Email, ...]] | None:
        known = self._known.get(name)
        if known is None or not self.offer.keyed or now >= known[0][0].at + WINDOW_SECONDS:
            return None
        return known


def _accepted(taken: Sequence[Acceptance]) -> Answer:
    return answer(200, id=taken[0].message_id, ids=[each.message_id for each in taken])


def ids_of(body: bytes) -> tuple[Accepted | Rejected, ...]:
    """What the answer to a request for several emails says of each."""
    return tuple(Accepted(message_id) for message_id in msgspec.json.decode(body)["ids"])
