"""One SQS queue and the requests that are made of it; up to ten messages each, every one with its own answer."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from workers.brokers.sqs.client import Client
from workers.brokers.sqs.failures import Place, translated
from workers.brokers.sqs.wire import ATTRIBUTES, Delivery

#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
BATCH: Final = 10

_SYSTEM_ATTRIBUTES = ("ApproximateReceiveCount", "MessageGroupId", "SentTimestamp")
_UNANSWERED: Final[Mapping[str, Any]] = {"Code": ""}


class Queue:
    """A queue by its name; its URL is asked for at the first use."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.place = Place(f"the SQS queue {name}", "run idem init")
        self._client = client
        self._url: str | None = None
        self._lock = threading.Lock()

    @property
    def fifo(self) -> bool:
        """Whether it is a FIFO queue: SQS goes by the name."""
        return self.name.endswith(".fifo")

    def url(self) -> str:
        """What requests name it by. Raises `BrokerError` when there is no such queue."""
        if self._url is None:
            answer = self.call("sqs:GetQueueUrl", "get_queue_url", QueueName=self.name)
            self._url = str(answer["QueueUrl"])
        return self._url

    def attributes(self, *names: str) -> Mapping[str, str]:
        """Attributes of the queue; one that it does not have is missing."""
        answer = self.call(
            "sqs:GetQueueAttributes", "get_queue_attributes", QueueUrl=self.url(), AttributeNames=list(names)
        )
        found: Mapping[str, str] = answer.get("Attributes", {})
        return found

    def receive(self, most: int, *, hidden_seconds: int, wait_seconds: int) -> list[Delivery]:
        """Up to `most` messages, hidden from others for that long; after a wait at the most when there are none."""
        answer = self.call(
            "sqs:ReceiveMessage",
            "receive_message",
            QueueUrl=self.url(),
            MaxNumberOfMessages=most,
            VisibilityTimeout=hidden_seconds,
            WaitTimeSeconds=wait_seconds,
            MessageSystemAttributeNames=list(_SYSTEM_ATTRIBUTES),
            MessageAttributeNames=list(ATTRIBUTES),
        )
        return [Delivery.read(found) for found in answer.get("Messages", ())]

    def send(self, entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | None]:
        """Send messages; for each Amazon's error, or None once SQS has it."""
        return self._batch("sqs:SendMessage", "send_message_batch", entries)

    def delete(self, receipts: Sequence[str]) -> list[Mapping[str, Any] | None]:
        """Delete messages. No error is no proof: a receipt that is stale may be accepted without effect."""
        entries = [{"ReceiptHandle": receipt} for receipt in receipts]
        return self._batch("sqs:DeleteMessage", "delete_message_batch", entries)

    def hide(self, hidden_seconds: Mapping[str, int]) -> list[Mapping[str, Any] | None]:
        """Hide messages, by receipt, for that long from now on; what was said of `delete` holds here too."""
        entries = [
            {"ReceiptHandle": receipt, "VisibilityTimeout": seconds} for receipt, seconds in hidden_seconds.items()
        ]
        return self._batch("sqs:ChangeMessageVisibility", "change_message_visibility_batch", entries)

    def call(self, action: str, method: str, **request: Any) -> dict[str, Any]:
        """One request; `action` is what a role needs to be allowed."""
        with translated(self.place, action):
            answer: dict[str, Any] = getattr(self._client.calls, method)(**request)
            return answer

    def _batch(self, action: str, method: str, entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | None]:
        numbered = [{"Id": str(number), **entry} for number, entry in enumerate(entries)]
        answer = self.call(action, method, QueueUrl=self.url(), Entries=numbered)
        done = {found["Id"] for found in answer.get("Successful", ())}
        failed = {found["Id"]: found for found in answer.get("Failed", ())}
        return [None if item["Id"] in done else failed.get(item["Id"], _UNANSWERED) for item in numbered]
