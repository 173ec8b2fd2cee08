"""The two logs of the sandbox: what was accepted, and what was asked."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from workers.sandbox.dialect import Mail, Shown


def timestamp(now: float) -> str:
    """An instant as ISO 8601 in UTC, with microseconds."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """One acceptance of one email; `digest` is of the whole request, `key` the idempotency key that came with it."""

    provider: str
    id: str
    key: str | None
    to: tuple[str, ...]
    subject: str
    digest: str
    at: str


class AcceptedLog:
    """Every acceptance, in order; only a person's `clear` takes any away, and a provider's look-ups show it even so."""

    def __init__(self) -> None:
        self._entries: list[Accepted] = []
        self._by_id: dict[str, tuple[Accepted, Mail]] = {}
        self._shown: dict[str, list[Shown]] = {}
        self.generation = secrets.token_hex(8)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Accepted, mail: Mail, at: float) -> None:
        """Append one acceptance, made `at` (Unix seconds)."""
        self._entries.append(entry)
        self._by_id[entry.id] = (entry, mail)
        self._shown.setdefault(entry.provider, []).append(Shown(entry.id, entry.key, at, mail))

    def entries(self, *, provider: str | None = None, after: int = 0) -> list[Accepted]:
        """The acceptances behind the first `after` ones, of one provider or of all."""
        later = self._entries[after:]
        return later if provider is None else [entry for entry in later if entry.provider == provider]

    def shown(self, provider: str, since: float, until: float) -> list[Shown]:
        """The acceptances of a provider from `since` up to and with `until` (Unix seconds), newest first."""
        return [one for one in reversed(self._shown.get(provider, ())) if since <= one.at <= until]

    def find(self, entry_id: str) -> dict[str, Any] | None:
        """One acceptance with everything that is known of its email."""
        found = self._by_id.get(entry_id)
        if found is None:
            return None
        entry, mail = found
        shown = asdict(mail)
        return {"from": shown.pop("sender"), **shown, **asdict(entry)}

    def clear(self) -> None:
        """Forget every acceptance; `generation` changes, so that a reader knows that its offset is void."""
        self._entries.clear()
        self._by_id.clear()
        self.generation = secrets.token_hex(8)


@dataclass(slots=True, kw_only=True)
class Seen:
    """One request to a provider, listed from its arrival and completed as it goes on.

    `status` stays None as long as no answer was sent, `id` is that of the (first) email accepted or replayed.
    """

    at: str
    provider: str
    method: str
    path: str
    key: str | None
    status: int | None = None
    fault: str | None = None
    replayed: bool = False
    id: str | None = None
