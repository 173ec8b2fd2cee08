"""The two logs of the sandbox: what was accepted, and what was asked."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from workers.sandbox.dialect import Mail, Shown

#: How much text and HTML of emails is kept, in characters. Beside it an acceptance takes 1 KiB, a request 0.4 KiB.
MAX_TEXT: Final = 64 * 1024 * 1024


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


@dataclass(slots=True)
class _Kept:
    """One acceptance, and how a look-up shows it."""

    entry: Accepted
    shown: Shown
    shortened: bool = False

    def shorten(self) -> None:
        mail = replace(self.shown.mail, text=None, html=None)
        self.shown, self.shortened = replace(self.shown, mail=mail), True


class AcceptedLog:
    """Every acceptance, in order; only a person's `clear` takes any away, and a provider's look-ups show it even so.

    The texts of the emails are kept up to `MAX_TEXT` in all: beyond, those of the oldest emails go.
    """

    def __init__(self) -> None:
        self._entries: list[Accepted] = []
        self._by_id: dict[str, _Kept] = {}
        self._by_provider: dict[str, list[_Kept]] = {}
        self._whole: deque[_Kept] = deque()
        self._kept_length = 0
        self._told: list[Callable[[Accepted, Mail], None]] = []
        self.generation = secrets.token_hex(8)

    def __len__(self) -> int:
        return len(self._entries)

    def tell(self, listener: Callable[[Accepted, Mail], None]) -> None:
        """Call it for every acceptance from now on."""
        self._told.append(listener)

    def add(self, entry: Accepted, mail: Mail, at: float) -> None:
        """Append one acceptance, made `at` (Unix seconds)."""
        kept = _Kept(entry, Shown(entry.id, entry.key, at, mail))
        self._entries.append(entry)
        self._by_id[entry.id] = kept
        self._by_provider.setdefault(entry.provider, []).append(kept)
        self._whole.append(kept)
        self._kept_length += _length(mail)
        while self._kept_length > MAX_TEXT:
            oldest = self._whole.popleft()
            self._kept_length -= _length(oldest.shown.mail)
            oldest.shorten()
        for listener in self._told:
            listener(entry, mail)

    def entries(self, *, provider: str | None = None, after: int = 0) -> list[Accepted]:
        """The acceptances behind the first `after` ones, of one provider or of all."""
        later = self._entries[after:]
        return later if provider is None else [entry for entry in later if entry.provider == provider]

    def shown(self, provider: str, since: float, until: float) -> Iterator[Shown]:
        """The acceptances of a provider from `since` up to and with `until` (Unix seconds), newest first."""
        for kept in reversed(self._by_provider.get(provider, ())):
            if since <= kept.shown.at <= until:
                yield kept.shown

    def find(self, entry_id: str) -> dict[str, Any] | None:
        """One acceptance with everything that is known of its email; `shortened` once its texts are gone."""
        kept = self._by_id.get(entry_id)
        if kept is None:
            return None
        shown = asdict(kept.shown.mail)
        whole = {"from": shown.pop("sender"), **shown, **asdict(kept.entry)}
        return whole | {"shortened": True} if kept.shortened else whole

    def clear(self) -> None:
        """Forget every acceptance; `generation` changes, so that a reader knows that its offset is void."""
        self._entries.clear()
        self._by_id.clear()
        self.generation = secrets.token_hex(8)


def _length(mail: Mail) -> int:
    return len(mail.text or "") + len(mail.html or "")


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
