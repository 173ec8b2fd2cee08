"""Messages that this project did not produce: a plain JSON object with `job` or `email`, and optionally a `key`.

EventBridge Scheduler, a Lambda, another language and SNS with raw delivery put the object itself into the queue; SNS
without raw delivery puts it, as a string, into an envelope. Without a `key`, the key is the message's id, which stays
the same at every redelivery: SNS's own where there is an envelope, else that of SQS. Whether the job is well-formed is
for `workers.jobs` to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from dramatiq import Message

from workers.brokers.sqs.failures import Unreadable
from workers.jobs import ACTOR


def read_foreign(
    body: str, queue_name: str, options: Mapping[str, Any], message_id: str, sent_at: float
) -> Message[None]:
    """A message for a worker. Raises `Unreadable` with the reason; no part of the body is in it."""
    payload = _object(body, "it")
    if payload.get("Type") == "Notification" and isinstance(payload.get("Message"), str):
        message_id = str(payload.get("MessageId") or message_id)
        payload = _object(payload["Message"], "the message in its SNS envelope")
    if not {"job", "email"} & payload.keys():
        raise Unreadable("it is a JSON object that has neither `job` nor `email`")
    return Message(
        queue_name=queue_name,
        actor_name=ACTOR,
        args=(),
        kwargs=payload,
        options=dict(options),
        message_id=message_id,
        message_timestamp=int(sent_at * 1000),
    )


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise Unreadable(f"{what} is not JSON") from error
    if not isinstance(found, dict):
        raise Unreadable(f"{what} is JSON, but not an object")
    return found
