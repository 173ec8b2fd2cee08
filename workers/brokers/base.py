"""What every broker does with a message once a worker is through with it: one rule, in one place.

A message is acknowledged only when the actor has said so, and the actor says so only after a durable outcome (rule 1).
Saying nothing, because an exception, an interrupt or a bug came between, means that the message comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
from dramatiq import Message
from dramatiq.broker import MessageProxy

from idem.errors import BrokerError

#: As many messages as a caller of `enqueue_many` gives at once: more would share no request with any broker.
TOGETHER: Final = 10

#: The pause before a message comes again about which nothing was said.
UNSAID_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The outcome is durable: the message may go."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The message must come again, after `delay_seconds`; `tried` is False when it was not looked at this time."""

    delay_seconds: float
    tried: bool = True
    said: bool = True
    """False where the actor said nothing: a mistake of ours, which may never end, or an interrupt."""


@dataclass(frozen=True, slots=True)
class Bury:
    """The message can never succeed as it is: it goes to the dead letters, with the reason, for a person to decide."""

    reason: str


Disposition = Acknowledge | Retry | Bury


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


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was buried. Of what it holds, all but `payload` may be shown to anybody who may see keys."""

    id: str
    """The broker's own name for it, printable or not."""
    reason: str
    buried_at: float | None
    """Unix seconds; None where the broker does not say."""
    key: str | None
    """The idempotency key, if the message can be read so far."""
    job: str | None
    """The name of its job, `email` for one that carries its email, None if it cannot be read so far."""
    tries: int | None
    payload: bytes = field(repr=False)
    """The message as it was on the wire."""
    place: str = field(default="", repr=False)
    """What the broker needs to find it again: a queue, a receipt."""


class JobBroker(Protocol):
    """What the rest of the package asks of a broker, beside what dramatiq's worker does."""

    def enqueue(self, message: Message[None], *, delay: int | None = None) -> Message[None]:
        """Return once the broker has the message durably; `delay` in milliseconds. `BrokerUnavailable` if unsure."""
        ...

    def enqueue_many(self, messages: Sequence[Message[None]]) -> list[BrokerError | None]:
        """Enqueue them in as few requests as can be; for each None once the broker has it, or the error."""
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

    def dead_letters(self) -> Iterator[DeadLetter]:
        """The messages that were buried, the one longest buried first where the broker keeps an order."""
        ...

    def requeue_dead(self, letter: DeadLetter) -> bool:
        """Make it ready again under the same key, its tries forgotten, in one step; False if it is no longer dead."""
        ...

    def drop_dead(self, letter: DeadLetter) -> bool:
        """Let go of it for good; False if it is no longer dead. Only a person asks for that."""
        ...

    def check(self) -> Sequence[str]:
        """What the jobs in it can survive, in sentences; `BrokerError` when it could lose them by its settings."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def enqueue_each(
    enqueue: Callable[[Message[None]], object], messages: Sequence[Message[None]]
) -> list[BrokerError | None]:
    """`JobBroker.enqueue_many` where a request takes one message: one by one, and none behind one that failed."""
    results: list[BrokerError | None] = []
    for message in messages:
        try:
            enqueue(message)
        except BrokerError as error:
            return results + [error] * (len(messages) - len(results))
        results.append(None)
    return results


def dispose(message: Message[None] | MessageProxy, disposition: Disposition) -> None:
    """Say what becomes of the message that this thread is working on; its consumer acts on it."""
    message.__dict__[_DISPOSITION] = disposition


def disposition_of(message: MessageProxy) -> Disposition:
    """What was said about a message; what was not said is a retry."""
    said: Disposition = message.__dict__.get(_DISPOSITION, Retry(UNSAID_SECONDS, said=False))
    return said


def read_letter(  # noqa: PLR0913 - what a broker knows of a dead letter
    letter_id: str, payload: bytes, *, reason: str, buried_at: float | None, place: str, tries: int | None = None
) -> DeadLetter:
    """A dead letter whose message is one of dramatiq's, or anything else: what cannot be read is None.

    `tries` is for a broker that counts them beside the message.
    """
    message = _as_dict(payload)
    body = message.get("kwargs")
    body = body if isinstance(body, dict) else {}
    key = body.get("key", message.get("message_id"))
    job = "email" if body.get("email") is not None else body.get("job")
    options = message.get("options")
    if tries is None and isinstance(options, dict):
        counted = options.get("tries", 0)
        tries = counted if type(counted) is int else None
    return DeadLetter(
        id=letter_id,
        reason=reason,
        buried_at=buried_at,
        key=key if isinstance(key, str) else None,
        job=job if isinstance(job, str) else None,
        tries=tries,
        payload=payload,
        place=place,
    )


def _as_dict(payload: bytes) -> dict[str, Any]:
    try:
        message = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


_DISPOSITION = "idem_disposition"
