"""The message on the wire: a job by name with its arguments, an email that is ready, or a key that the ledger knows.

    {"key": "welcome-42", "email": {"from": ..., "to": [...], "subject": ..., "text": ...}}
    {"key": "order-1234", "job": "order_confirmation", "args": ["1234"], "kwargs": {}}
    {"key": "order-1234", "resume": true}

The first two may say what is to happen if the email is in doubt: `"in_doubt": "hold"`, `"resend"` or `"drop"`. The same
object is welcome from anyone (DESIGN section 7). It is read strictly: nothing in it is dropped in silence.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from dramatiq import Message

from idem.email import Email
from idem.errors import JobError
from idem.keys import check_key, take_explicit
from idem.protocol import InDoubt

QUEUE = "default"
ACTOR = "idem"


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one queue message asks for. Without `key`, the message's own id is the key."""

    key: str | None = None
    email: dict[str, Any] | None = None
    job: str | None = None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    resume: bool = False
    in_doubt: InDoubt | None = None

    def __post_init__(self) -> None:
        if [self.email is not None, self.job is not None, self.resume].count(True) != 1:
            raise ValueError("it must hold either an email, or the name of a job, or resume and a key")
        if self.job is None and (self.args or self.kwargs):
            raise ValueError("args and kwargs belong to a job, and it holds none")
        if self.resume and (self.key is None or self.in_doubt is not None):
            raise ValueError("resume goes with a key, and with nothing else")


# Made for what making it does: msgspec learns about the type now, and not in two threads at once (see stores.codec).
_JOB_DECODER = msgspec.json.Decoder(Job)


def email_message(email: Email, key: str | None, in_doubt: InDoubt | None = None) -> tuple[Message[None], str]:
    """A message that carries `email`, and its key: the argument, else the email's header, else the message's id."""
    email, explicit = take_explicit(email, key)
    return _message(explicit, {"email": email.as_dict()} | _choice(in_doubt))


def resume_message(key: str) -> Message[None]:
    """A message that names a key whose email the ledger holds."""
    return _message(key, {"resume": True})[0]


def job_message(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], key: str | None, in_doubt: InDoubt | None = None
) -> tuple[Message[None], str]:
    """A message that names a job, and its key. Raises `JobError` when an argument is not JSON."""
    arguments = {"args": list(args), "kwargs": dict(kwargs)}
    try:
        _check_json(arguments)
    except RecursionError as error:
        raise JobError(f"job {name}: its arguments are nested too deeply") from error
    except TypeError as error:
        raise JobError(f"job {name}: its arguments must be JSON values, and {error} is not one") from error
    return _message(None if key is None else check_key(key), {"job": name} | arguments | _choice(in_doubt))


def _choice(in_doubt: InDoubt | None) -> dict[str, str]:
    return {} if in_doubt is None else {"in_doubt": in_doubt.value}


def _check_json(value: object) -> None:
    """Raise `TypeError` for what the worker would get as something else: a date, bytes, NaN, a number as a name."""
    match value:
        case None | bool() | int() | str():
            return
        case float() if math.isfinite(value):
            return
        case list() | tuple():
            for item in value:
                _check_json(item)
        case dict():
            for name, item in value.items():
                if not isinstance(name, str):
                    raise TypeError(f"{type(name).__name__} as a name")
                _check_json(item)
        case _:
            raise TypeError(str(value) if isinstance(value, float) else type(value).__name__)


def _message(key: str | None, payload: dict[str, Any]) -> tuple[Message[None], str]:
    message_id = str(uuid.uuid4())
    used = key if key is not None else message_id
    message: Message[None] = Message(
        queue_name=QUEUE,
        actor_name=ACTOR,
        args=(),
        kwargs={"key": used} | payload,
        options={},
        message_id=message_id,
    )
    return message, used


def read_job(payload: Mapping[str, Any], message_id: str) -> tuple[str, Job, Email | None]:
    """The key, the job, and its email if it has one; `JobError`, `InvalidKey` or `EmailError` if it is malformed."""
    try:
        job = msgspec.convert(dict(payload), Job)
    except (msgspec.ValidationError, TypeError) as error:
        raise JobError(f"the message is malformed: {error}") from error
    email, key = (None, job.key) if job.email is None else take_explicit(Email.from_dict(job.email), job.key)
    return check_key(key if key is not None else message_id), job, email
