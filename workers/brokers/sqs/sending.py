"""Sends: threads that send at the same moment share one request of ten messages and one MiB at the most."""

from __future__ import annotations

from collections.abc import Sequence

from idem.errors import BrokerError, BrokerUnavailable
from idem.together import Together
from workers.brokers.sqs.bodies import LARGEST
from workers.brokers.sqs.failures import failure
from workers.brokers.sqs.queue import BATCH, Queue
from workers.brokers.sqs.wire import Outgoing

_Result = BrokerError | None


class GroupSender:
    """Sends to one queue. `longest_delay_seconds` is what SQS can delay a message."""

    def __init__(self, queue: Queue, *, longest_delay_seconds: int = 900) -> None:
        self._queue = queue
        self._longest_delay_seconds = longest_delay_seconds
        self._together = Together[Outgoing, None](
            self._commit,
            lambda waiting: range(_fitting(waiting)),
            full=BATCH,
            unanswered=lambda why: BrokerUnavailable(f"{queue.place.name}: {why}"),
        )

    def send(self, message: Outgoing) -> None:
        """Return once SQS has it; `BrokerUnavailable` when that is not known, `BrokerError` when it has not."""
        self._together.ask(message)

    def send_all(self, messages: Sequence[Outgoing]) -> list[_Result]:
        """Send many messages for one caller; for each the error, or None once SQS has it."""
        results: list[_Result] = []
        while len(results) < len(messages):
            rest = messages[len(results) :]
            results += self._commit(rest[: _fitting(rest)])
        return results

    def _commit(self, messages: Sequence[Outgoing]) -> list[_Result]:
        """One request; the result of each message, whatever happens."""
        fifo, longest = self._queue.fifo, self._longest_delay_seconds
        try:
            answers = self._queue.send([item.entry(fifo=fifo, longest_delay_seconds=longest) for item in messages])
        except BrokerError as error:
            return [error] * len(messages)
        return [None if said is None else failure(self._queue.place, "sqs:SendMessage", said) for said in answers]


def _fitting(messages: Sequence[Outgoing]) -> int:
    """How many of the first messages go into one request; one at least, which SQS may refuse."""
    size = 0
    for number, message in enumerate(messages[:BATCH]):
        size += message.size()
        if size > LARGEST and number:
            return number
    return min(len(messages), BATCH)
