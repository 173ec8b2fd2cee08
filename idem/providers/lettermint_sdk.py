"""Lettermint by its official SDK (3 or later), for those who hold a client of it already.

The same contract, and the same bytes as our own adapter sends, so that an attempt by one can be repeated by the other.
What is lost is the wire phase: the SDK tells a refused connection from a lost answer only in words, so every failure
without an answer is `Unknown`. It never retries. At the deadline it leaves its request to a thread of its own, which
may still reach the API: the key makes that harmless, as it does any late request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from idem.clock import Deadline
from idem.email import Email
from idem.outcome import Outcome
from idem.providers import lettermint
from idem.providers.api import Content, Keyed, in_halves
from idem.providers.base import Contract
from idem.providers.http import Answer, NoAnswer, Phase
from idem.providers.reading import outcome

if TYPE_CHECKING:
    from lettermint import Lettermint


class LettermintSdk:
    """Sends through a client that its owner made and closes; it needs the project's sending token."""

    def __init__(self, client: Lettermint) -> None:
        self._emails = client.emails

    @property
    def contract(self) -> Contract:
        """See `Provider.contract`."""
        return lettermint.CONTRACT

    def check(self, email: Email) -> None:
        """See `Provider.check`."""
        self.contract.limits.check(email, self.contract.title)
        lettermint.check(email)

    def send(self, email: Email, provider_key: str, deadline: Deadline) -> Outcome:
        """See `Provider.send`."""
        message = _parsed(lettermint.encode(email, provider_key))
        answer = _exchange(
            lambda left: self._emails.send(message, idempotency_key=provider_key, timeout=left), deadline
        )
        return outcome(self.contract, answer)

    def send_each(self, emails: Sequence[tuple[Email, str]], deadline: Deadline) -> tuple[Outcome, ...]:
        """See `KeyedBatches.send_each`."""

        def send(some: Keyed) -> tuple[Outcome, ...] | None:
            messages = _parsed(lettermint.encode_batch(some))
            answer = _exchange(lambda left: self._emails.send_batch(messages, timeout=left), deadline)
            return lettermint.read_batch(answer, len(some))

        return in_halves(send, emails)


def _parsed(content: Content) -> Any:
    """What the SDK encodes to these very bytes: it keeps the order of the names, and both write JSON alike."""
    return msgspec.json.decode(content.data)


def _exchange(call: Callable[[float], object], deadline: Deadline) -> Answer | NoAnswer:
    left = deadline.left()
    if left <= 0:
        return NoAnswer(Phase.NOT_CONNECTED, "the deadline has passed")
    try:
        body = call(left)
    except Exception as error:
        return _failure(error)
    return Answer(202, {}, msgspec.json.encode(body))


def _failure(error: Exception) -> Answer | NoAnswer:
    """The answer that the SDK made an exception of; without a status, there was none, or none that it says."""
    status, wait = getattr(error, "status", None), getattr(error, "retry_after", None)
    if not isinstance(status, int):
        return NoAnswer(Phase.WRITTEN, f"no answer by the SDK ({type(error).__name__})")
    headers = {} if wait is None else {"retry-after": str(wait)}
    return Answer(status, headers, msgspec.json.encode(getattr(error, "body", None)))
