"""What can happen to a queue on Amazon SQS, for the broker contract; by what an emulator lets anybody do."""

from __future__ import annotations

import random
import uuid

import pytest

from tests import services
from tests.workers.brokers.sqs.parts import client
from workers.brokers.sqs import Client, Names, SqsBroker
from workers.brokers.sqs.bodies import LARGEST
from workers.brokers.sqs.broker import _Consumer
from workers.brokers.sqs.queue import BATCH
from workers.brokers.sqs.settling import Limits
from workers.jobs import QUEUE

#: SQS counts in whole seconds.
VISIBILITY_SECONDS = 2.0


class SqsHarness:
    """Two queues of their own in an emulator."""

    visibility_seconds = VISIBILITY_SECONDS
    limit_bytes = LARGEST

    def __init__(self, endpoint: str) -> None:
        self._names = Names(services.REGION, f"c{uuid.uuid4().hex}")
        self._client = client(endpoint)
        self._opened: list[SqsBroker] = []
        self._own = self.open()
        self._own.create()

    def open(self) -> SqsBroker:
        # What was said is done at once, and not with what others say in the next second.
        limits = Limits(linger_seconds=0.0)
        broker = SqsBroker(self._client, self._names, visibility_seconds=VISIBILITY_SECONDS, limits=limits)
        broker.declare_queue(QUEUE)
        self._opened.append(broker)
        return broker

    def die(self, broker: SqsBroker) -> None:
        self.retire(broker)
        _consumer(broker)._holding.stop()

    def retire(self, broker: SqsBroker) -> None:
        _consumer(broker).receiving.close()

    def expire(self, broker: SqsBroker) -> None:
        holding = _consumer(broker)._holding
        for delivery in list(holding._held.values()):
            holding.let_go(delivery)
            broker.jobs.hide({delivery.receipt: 0})

    def disturb(self) -> None:
        found = []
        while received := self._own.jobs.receive(BATCH, hidden_seconds=60, wait_seconds=0):
            found += received
        copies = [item.body for item in found for _ in range(2)]
        random.Random(0).shuffle(copies)
        for body in copies:
            self.put(body.encode())
        for item in found:
            self._own.jobs.delete([item.receipt])

    def put(self, data: bytes) -> None:
        try:
            body = data.decode()
        except UnicodeDecodeError:
            pytest.skip("SQS takes text only")
        if not body:
            pytest.skip("SQS takes no message without a body")
        self._client.calls.send_message(QueueUrl=self._own.jobs.url(), MessageBody=body)

    def restart(self) -> None:
        pytest.skip("Amazon's own servers cannot be killed, and an emulator keeps its queues in memory")

    def refuse(self) -> None:
        nobody = Client("sqs", services.REGION, "http://127.0.0.1:9")
        for broker in self._opened:
            for queue in (broker.jobs, broker.dead):
                queue._client = nobody

    def close(self) -> None:
        """Without waiting for the last polls: nobody else has these queues."""
        for broker in self._opened:
            broker.stop_receiving()
            if broker._consumer is not None:
                broker._consumer._holding.stop()


def _consumer(broker: SqsBroker) -> _Consumer:
    assert broker._consumer is not None
    return broker._consumer
