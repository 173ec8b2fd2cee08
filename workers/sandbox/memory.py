"""What a provider remembers of idempotency keys."""

from __future__ import annotations

from dataclasses import dataclass

from workers.sandbox.dialect import Reply, Taken


@dataclass(frozen=True, slots=True)
class Slot:
    """Whose key it is: that of a request of an account, or of one email in a request with many."""

    account: str
    key: str
    of_email: bool = False


@dataclass(frozen=True, slots=True)
class Remembered:
    """The first answer under a key (of an email in a request: which it is), and the digest of what it answered."""

    digest: str
    reply: Reply | None
    taken: tuple[Taken, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids that the emails were given."""
        return tuple(taken.id for taken in self.taken)


class KeyMemory:
    """The keys of one provider; each is forgotten `window_seconds` after its first answer, replayed or not."""

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._known: dict[Slot, tuple[Remembered, float]] = {}
        self._running: set[Slot] = set()

    def recall(self, slot: Slot, now: float) -> Remembered | None:
        """What is still remembered of it at `now`."""
        answer, until = self._known.get(slot, (None, now))
        return answer if now < until else None

    def remember(self, slot: Slot, answer: Remembered, now: float) -> None:
        """Bind the key to this answer from `now` on."""
        self._known[slot] = (answer, now + self._window_seconds)

    def begin(self, slots: set[Slot]) -> bool:
        """Lock these keys while a request under them runs; False, and nothing is locked, if one already is."""
        if slots & self._running:
            return False
        self._running |= slots
        return True

    def end(self, slots: set[Slot]) -> None:
        """Unlock them."""
        self._running -= slots
