"""Messages as they come off a wire, for every broker: nothing in them is trusted before it was looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from dramatiq import Message
from dramatiq.broker import MessageProxy
from dramatiq.errors import DecodeError

#: More than any message can have had; a larger count is not ours.
_MAX_TRIES = 1_000_000


class InHand(MessageProxy):
    """A message that a worker has; dramatiq writes it into log lines, where no part of an email belongs."""

    def __str__(self) -> str:
        return str(self.message_id)

    __repr__ = __str__


class _Fields(msgspec.Struct):
    """What a message must be before dramatiq's threads get it: what they do not expect, they do not survive."""

    actor_name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    message_id: str
    message_timestamp: Annotated[int, msgspec.Meta(ge=0, le=2**53)]


# Made for what making it does: msgspec learns about the type now, and not in two threads at once (see stores.codec).
_FIELDS_DECODER = msgspec.json.Decoder(_Fields)


def decode(data: bytes, queue_name: str, options: Mapping[str, Any]) -> Message[None]:
    """Read a message, on the queue that it was found in, with the broker's own options and the count of its tries.

    Of the others, `eta` would copy the message without end, and `throws` would end the thread that performs it.
    Raises `DecodeError` for what is no message.
    """
    message: Message[None] = Message.decode(data)
    try:
        fields = msgspec.convert(message.asdict(), _Fields)
    except msgspec.ValidationError as error:
        raise DecodeError(str(error), data, error) from error
    tries = fields.options.get("tries")
    known = {"tries": tries} if type(tries) is int and 0 <= tries < _MAX_TRIES else {}
    return dataclasses.replace(message, queue_name=queue_name, options={**known, **options})
