"""What a provider remembers of idempotency keys."""

from __future__ import annotations

from dataclasses import dataclass

from workers.sandbox.dialect import Reply


@dataclass(frozen=True, slots=True)
class Remembered:
    """The first answer under a key, and the fingerprint of the body that it answered."""

    digest: str
    reply: Reply
    ids: tuple[str, ...]


class KeyMemory:
    """The keys of one provider; each is forgotten `window_seconds` after its first answer, replayed or not."""

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._known: dict[tuple[str, str], tuple[Remembered, float]] = {}

    def recall(self, account: str, key: str, now: float) -> Remembered | None:
        """What is still remembered at `now` of this account's key."""
        answer, until = self._known.get((account, key), (None, now))
        return answer if now < until else None

    def remember(self, account: str, key: str, answer: Remembered, now: float) -> None:
        """Bind the key to this answer from `now` on."""
        self._known[account, key] = (answer, now + self._window_seconds)
