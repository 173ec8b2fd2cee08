"""What every broker does with a message once a worker is through with it: one rule, in one place.

A message is acknowledged only when the actor has said so, and the actor says so only after a durable outcome (rule 1).
Saying nothing, because an exception, an interrupt or a bug came between, means that the message comes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dramatiq import Message
from dramatiq.broker import MessageProxy


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The outcome is durable: the message may go."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The message must come again, after `delay_seconds`."""

    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Bury:
    """The message can never succeed as it is: it goes to the dead letters, with the reason, for a person to decide."""

    reason: str


Disposition = Acknowledge | Retry | Bury

#: What becomes of a message about which nothing was said.
UNSAID = Retry(5.0)


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many messages a broker holds, read at one instant."""

    ready: int
    delayed: int
    in_flight: int
    dead: int

    @property
    def pending(self) -> int:
        """Messages that are still to be worked on."""
        return self.ready + self.delayed + self.in_flight


class JobBroker(Protocol):
    """What the rest of the package asks of a broker, beside what dramatiq's worker does."""

    def enqueue(self, message: Message[None], *, delay: int | None = None) -> Message[None]:
        """Return once the broker has the message durably; `delay` in milliseconds. `BrokerUnavailable` if unsure."""
        ...

    def backlog(self) -> Backlog:
        """How much there is to do."""
        ...

    def is_empty(self) -> bool:
        """Whether nothing is left to do; one that can only estimate says so once that has held for a while."""
        ...

    def create(self) -> Sequence[str]:
        """Make what jobs need and is not there yet; says in sentences what there is now. For `idem init` alone."""
        ...

    def check(self) -> Sequence[str]:
        """What the jobs in it can survive, in sentences; `BrokerError` when it could lose them by its settings."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def dispose(message: Message[None] | MessageProxy, disposition: Disposition) -> None:
    """Say what becomes of the message that this thread is working on; its consumer acts on it."""
    message.__dict__[_DISPOSITION] = disposition


def disposition_of(message: MessageProxy) -> Disposition:
    """What was said about a message; what was not said is a retry."""
    said: Disposition = message.__dict__.get(_DISPOSITION, UNSAID)
    return said


_DISPOSITION = "idem_disposition"
