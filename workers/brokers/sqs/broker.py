"""The broker as dramatiq and the rest of the package see it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import dramatiq
from dramatiq import Message
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import CurrentMessage, Middleware

from idem.errors import BrokerError
from workers.brokers.base import Acknowledge, Backlog, Bury, DeadLetter, Retry, dispose, disposition_of
from workers.brokers.messages import InHand
from workers.brokers.sqs import setup
from workers.brokers.sqs.bodies import Bucket, fold
from workers.brokers.sqs.client import Client
from workers.brokers.sqs.dead import DeadLetters
from workers.brokers.sqs.failures import Unreadable
from workers.brokers.sqs.holding import Holding
from workers.brokers.sqs.queue import BATCH, Queue
from workers.brokers.sqs.receiving import THREADS_A_RECEIVER, Receiving
from workers.brokers.sqs.sending import GroupSender
from workers.brokers.sqs.settling import Limits, Settling
from workers.brokers.sqs.wire import Delivery, Outgoing, group_of
from workers.jobs import QUEUE

_log = logging.getLogger("idem.worker")

_READY: Final = "ApproximateNumberOfMessages"
_DELAYED: Final = "ApproximateNumberOfMessagesDelayed"
_HIDDEN: Final = "ApproximateNumberOfMessagesNotVisible"

#: The counts of SQS are estimates: so many readings must agree that it is empty, and so far apart.
_EMPTY_READINGS: Final = 5
_READING_SECONDS: Final = 1.0
#: The pause before a message is looked at again whose body is out of reach.
_OUT_OF_REACH_SECONDS: Final = 60.0


class SqsBroker(dramatiq.Broker):
    """Jobs in two queues of Amazon SQS: the jobs, and the dead letters.

    The queue hides what it hands out for `visibility_seconds`; this process asks for `hidden_seconds`, if given.
    """

    def __init__(  # noqa: PLR0913 - each is one thing that a deployment or a test decides
        self,
        client: Client,
        names: setup.Names,
        *,
        visibility_seconds: float,
        hidden_seconds: float | None = None,
        bucket: Bucket | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(middleware=[CurrentMessage(), _Workers(self)])
        self.names = names
        self.bucket = bucket
        self.limits = limits or Limits()
        self.visibility_seconds = visibility_seconds
        self.hidden_seconds = visibility_seconds if hidden_seconds is None else hidden_seconds
        self.jobs, self.dead = Queue(client, names.jobs), Queue(client, names.dead)
        self.jobs_sender = GroupSender(self.jobs, longest_delay_seconds=self.limits.longest_delay_seconds)
        self.dead_sender = GroupSender(self.dead)
        #: How many threads the worker of this process has; None before it starts.
        self.threads: int | None = None
        self._client = client
        self._consumer: _Consumer | None = None
        self._empty_readings = 0
        self._read_at = 0.0

    def declare_queue(self, queue_name: str) -> None:
        """Declare the one queue that there is."""
        if queue_name not in self.queues:
            if queue_name != QUEUE:
                raise BrokerError(f"there is one queue, {QUEUE}, and none named {queue_name}")
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = None
            self.emit_after("declare_queue", queue_name)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Return once SQS has the message; `BrokerUnavailable` when that is not known. `delay` in milliseconds."""
        self.jobs_sender.send(self._outgoing(message, delay))
        return message

    def enqueue_many(self, messages: Sequence[Message[Any]]) -> list[BrokerError | None]:
        """See `JobBroker.enqueue_many`; one that is too large keeps none of the others from being sent."""
        made = [self._made(message) for message in messages]
        sent = iter(self.jobs_sender.send_all([item for item in made if isinstance(item, Outgoing)]))
        return [item if isinstance(item, BrokerError) else next(sent) for item in made]

    def _made(self, message: Message[Any]) -> Outgoing | BrokerError:
        try:
            return self._outgoing(message, None)
        except BrokerError as error:
            return error

    def _outgoing(self, message: Message[Any], delay: int | None) -> Outgoing:
        body = fold(message.encode().decode(), self.bucket)
        return Outgoing(body, group_of(message), due=time.time() + delay / 1000 if delay else 0.0)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> Consumer:
        """What dramatiq's worker reads this broker through; `timeout` in milliseconds."""
        try:
            attributes = self.jobs.attributes("RedrivePolicy")
            receives = setup.max_receives(self.jobs, attributes, self.names.dead)
        except BrokerError as error:
            raise ConnectionClosed(error) from error
        self._consumer = _Consumer(self, queue_name, self.threads or prefetch, timeout / 1000, receives)
        return self._consumer

    def backlog(self) -> Backlog:
        """How many messages there are, by the estimates of SQS; a job that waits for a retry counts as in flight.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
        """
        jobs, dead = (
            {name: int(value) for name, value in queue.attributes(_READY, _DELAYED, _HIDDEN).items()}
            for queue in (self.jobs, self.dead)
        )
        return Backlog(jobs.get(_READY, 0), jobs.get(_DELAYED, 0), jobs.get(_HIDDEN, 0), sum(dead.values()))

    def is_empty(self) -> bool:
        """See `JobBroker.is_empty`: nothing in hand or received lately, and five empty readings a second apart."""
        now = time.monotonic()
        if now < self._read_at + _READING_SECONDS:
            return False
        self._read_at = now
        quiet_seconds = _EMPTY_READINGS * _READING_SECONDS if self._consumer is None else self._consumer.quiet_seconds()
        empty = quiet_seconds > 0 and self.backlog().pending == 0
        self._empty_readings = self._empty_readings + 1 if empty else 0
        return min(self._empty_readings, quiet_seconds / _READING_SECONDS) >= _EMPTY_READINGS

    def create(self) -> Sequence[str]:
        """See `JobBroker.create`: the two queues."""
        setup.create(self._client, self.names, visibility_seconds=self.visibility_seconds)
        return self.check()

    def check(self) -> Sequence[str]:
        """See `JobBroker.check`: whether the queues are there and as they must be."""
        if self.bucket is not None:
            self.bucket.check()
        return setup.check(self._client, self.names, visibility_seconds=self.visibility_seconds)

    def dead_letters(self) -> Iterator[DeadLetter]:
        """See `JobBroker.dead_letters`; SQS keeps no order. Hidden from others until the iterator is closed."""
        return self._dead_letters().all()

    def requeue_dead(self, letter: DeadLetter) -> bool:
        """See `JobBroker.requeue_dead`; in two steps, between which a crash leaves two messages of one key."""
        return self._dead_letters().requeue(letter)

    def drop_dead(self, letter: DeadLetter) -> bool:
        """See `JobBroker.drop_dead`."""
        return self._dead_letters().drop(letter)

    def _dead_letters(self) -> DeadLetters:
        return DeadLetters(self.dead, self.jobs_sender, self.bucket)

    def stop_receiving(self) -> None:
        """A worker that finishes what it began takes nothing new."""
        if self._consumer is not None:
            self._consumer.receiving.stop()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        if self.bucket is not None:
            self.bucket.close()


class _Workers(Middleware):
    """Hears from dramatiq's worker how many threads it has, and that it stops."""

    def __init__(self, broker: SqsBroker) -> None:
        self._broker = broker

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002 - dramatiq's
        self._broker.threads = worker.worker_threads

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002 - the same
        self._broker.stop_receiving()


class _Received(InHand):
    """A message with the delivery that it came by."""

    def __init__(self, message: Message[None], delivery: Delivery) -> None:
        super().__init__(message)
        self.delivery = delivery


class _Consumer(Consumer):
    """The queue, as dramatiq's worker reads it. What SQS does not do now is tried again, or comes again by itself."""

    def __init__(
        self, broker: SqsBroker, queue_name: str, threads: int, idle_seconds: float, max_receives: int
    ) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._idle_seconds = idle_seconds
        # One receipt beyond what the threads work on, so that none waits for the network.
        prefetch = min(BATCH, 2 * threads)
        self._holding = Holding(
            broker.jobs,
            threads + prefetch,
            visibility_seconds=broker.hidden_seconds,
            longest_hidden_seconds=broker.limits.longest_hidden_seconds,
        )
        self._settling = Settling(
            broker.jobs, broker.jobs_sender, broker.dead_sender, self._holding, broker.limits, max_receives
        )
        self.receiving = Receiving(
            broker.jobs,
            self._holding,
            self._settling.postpone,
            receivers=1 + threads // THREADS_A_RECEIVER,
            least=prefetch,
            visibility_seconds=broker.hidden_seconds,
        )
        self._holding.start()
        self.receiving.start()

    def __next__(self) -> MessageProxy | None:
        """The next message, or None when none has come for a moment."""
        self._settling.flush(overdue=True)
        delivery = self.receiving.next(self._idle_seconds)
        return None if delivery is None else self._read(delivery)

    def _read(self, delivery: Delivery) -> MessageProxy | None:
        try:
            return _Received(delivery.message(self._queue_name, self._broker.bucket), delivery)
        except Unreadable as error:
            _log.error("message %s is buried: %s", delivery.message_id, error)
            self._settling.bury(delivery, f"the message cannot be read: {error}")
        except BrokerError as error:
            _log.error("message %s cannot be read yet: %s", delivery.message_id, error)
            self._settling.retry(delivery, _OUT_OF_REACH_SECONDS)
        return None

    def ack(self, message: MessageProxy) -> None:
        """Do with the message what was said of it; the worker calls this when it is through, whatever happened."""
        delivery: Delivery = message.delivery
        match disposition_of(message):
            case Acknowledge():
                self._settling.delete(delivery)
            case Retry(delay_seconds=delay, tried=tried, said=said):
                self._settling.retry(delivery, max(0.0, delay), tried=tried, said=said)
            case Bury(reason=reason):
                self._settling.bury(delivery, reason)

    def nack(self, message: MessageProxy) -> None:
        """Dramatiq itself refuses a message: it names an actor that is not ours."""
        dispose(message, Bury(f"it names the actor {message.actor_name}, not one of ours"))
        self.ack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Give back messages that were received and not begun."""
        self._settling.hand_back(message.delivery for message in messages)

    def close(self) -> None:
        """Give back what was received and not handed over, and do what still waits for company."""
        self.receiving.close()
        self._settling.hand_back(self.receiving.rest())
        self._settling.finish()
        self._holding.stop()

    def quiet_seconds(self) -> float:
        """How long ago a message was last received; 0 while one is in hand."""
        return 0.0 if len(self._holding) else time.monotonic() - self.receiving.fed_at
