"""The message on the wire: a job by name with its arguments, emails that are ready, or a key that the ledger knows.

    {"key": "welcome-42", "email": {"from": ..., "to": [...], "subject": ..., "text": ...}}
    {"key": "order-1234", "job": "order_confirmation", "args": ["1234"], "kwargs": {}}
    {"key": "order-1234", "resume": true}
    {"key": "news-42/1-100", "emails": [{...}, ...]}
    {"group": [{"key": "news-42/1", "email": {...}}, ...]}

All but the third may say what is to happen if the email is in doubt: `"in_doubt": "hold"`, `"resend"` or `"drop"`. The
same object is welcome from anyone (DESIGN section 7). It is read strictly: nothing in it is dropped in silence.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from dramatiq import Message

from idem.bulk import Bulk, Group, Part, Ready
from idem.email import Email
from idem.errors import JobError
from idem.keys import check_key, is_range, take_explicit
from idem.protocol import InDoubt
from idem.send import Resume

QUEUE = "default"
ACTOR = "idem"


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One email of a group, with its key."""

    key: str
    email: dict[str, Any]


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one queue message asks for. Without `key`, the message's own id is the key."""

    key: str | None = None
    email: dict[str, Any] | None = None
    emails: list[dict[str, Any]] | None = None
    group: list[Item] | None = None
    job: str | None = None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    resume: bool = False
    in_doubt: InDoubt | None = None

    def __post_init__(self) -> None:
        asked = [self.email, self.emails, self.group, self.job, self.resume or None]
        if sum(part is not None for part in asked) != 1:
            raise ValueError("it must hold one of email, emails, group, job, and resume")
        if self.job is None and (self.args or self.kwargs):
            raise ValueError("args and kwargs belong to a job, and it holds none")
        if self.key is None and (self.resume or self.emails is not None):
            raise ValueError("emails, and resume, go with a key")
        if (self.group is not None and self.key is not None) or [] in (self.emails, self.group):
            raise ValueError("a group has a key for each of its emails, and neither it nor emails may be empty")
        if self.resume and self.in_doubt is not None:
            raise ValueError("resume goes with a key, and with nothing else")


# Made for what making it does: msgspec learns about the type now, and not in two threads at once (see stores.codec).
_JOB_DECODER = msgspec.json.Decoder(Job)


@dataclass(frozen=True, slots=True)
class Call:
    """A message that names a job."""

    key: str
    job: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    in_doubt: InDoubt | None = None


Asked = Part | Resume | Call


def part_message(part: Part) -> Message[None]:
    """A message that carries one email, or several."""
    match part:
        case Ready(key=key, email=email, in_doubt=in_doubt):
            return email_message(email, key, in_doubt)[0]
        case Bulk(key=key, emails=emails, in_doubt=in_doubt):
            payload = {"key": check_key(key), "emails": [email.as_dict() for email in emails]}
            return _message(payload | _choice(in_doubt))
        case Group(emails=members):
            group = [{"key": check_key(each.key), "email": each.email.as_dict()} for each in members]
            return _message({"group": group} | _choice(members[0].in_doubt))


def email_message(email: Email, key: str | None, in_doubt: InDoubt | None = None) -> tuple[Message[None], str]:
    """A message that carries `email`, and its key: the argument, else the email's header, else the message's id."""
    email, explicit = take_explicit(email, key)
    return _named(explicit, {"email": email.as_dict()} | _choice(in_doubt))


def resume_message(key: str) -> Message[None]:
    """A message that names a key whose email the ledger holds."""
    return _message({"key": key, "resume": True})


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
    return _named(None if key is None else check_key(key), {"job": name} | arguments | _choice(in_doubt))


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


def _named(key: str | None, payload: dict[str, Any]) -> tuple[Message[None], str]:
    message_id = str(uuid.uuid4())
    used = key if key is not None else message_id
    return _message({"key": used} | payload, message_id), used


def _message(payload: dict[str, Any], message_id: str | None = None) -> Message[None]:
    return Message(
        queue_name=QUEUE,
        actor_name=ACTOR,
        args=(),
        kwargs=payload,
        options={},
        message_id=message_id or str(uuid.uuid4()),
    )


def read_message(payload: Mapping[str, Any], message_id: str) -> Asked:
    """What a message asks for; `JobError`, `InvalidKey` or `EmailError` if it is malformed."""
    try:
        job = msgspec.convert(dict(payload), Job)
    except (msgspec.ValidationError, TypeError) as error:
        raise JobError(f"the message is malformed: {error}") from error
    if job.email is not None:
        email, key = take_explicit(Email.from_dict(job.email), job.key)
        return Ready(check_key(key if key is not None else message_id), email, job.in_doubt)
    if job.group is not None:
        members = ((check_key(item.key), Email.from_dict(item.email)) for item in job.group)
        return Group(tuple(Ready(key, email, job.in_doubt) for key, email in members))
    key = check_key(job.key if job.key is not None else message_id)
    if job.emails is not None:
        return _bulk(key, tuple(Email.from_dict(parts) for parts in job.emails), job.in_doubt)
    return Resume(key) if job.job is None else Call(key, job.job, job.args, job.kwargs, job.in_doubt)


def _bulk(key: str, emails: tuple[Email, ...], in_doubt: InDoubt | None) -> Bulk:
    """The key of a range says where in its bulk it stands: it must be one that we would have made for it."""
    if not is_range(key, len(emails)):
        raise JobError("the message is malformed: emails go under a key such as news-42/1-100, which counts them")
    return Bulk(key, emails, in_doubt)
