"""The message on the wire: a job by name with its arguments, emails that are ready, or a key that the ledger knows.

    {"key": "welcome-42", "email": {"from": ..., "to": [...], "subject": ..., "text": ...}}
    {"key": "order-1234", "job": "order_confirmation", "args": ["1234"], "kwargs": {}}
    {"key": "order-1234", "resume": true}
    {"key": "news-42/1-100", "emails": [{...}, ...]}
    {"group": [{"key": "news-42/1", "email": {...}}, ...]}

All but the third may say what is to happen if the email is in doubt: `"in_doubt": "hold"`, `"resend"` or `"drop"`, and
until when the first attempt must begin: `"expires": 1785542400` (Unix seconds); after that, the job ends as expired.
The same object is welcome from anyone (DESIGN section 7). It is read strictly: nothing in it is dropped in silence.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from dramatiq import Message

from idem.bulk import MAX_BYTES, Bulk, Group, Part, Ready, decode
from idem.email import Email
from idem.errors import JobError
from idem.keys import check_key, is_range, take_explicit
from idem.protocol import InDoubt, Intent, Record
from idem.send import Resume, intent_of

QUEUE = "default"
ACTOR = "idem"


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One email of a group, with its key."""

    key: str
    email: dict[str, Any]


class _Called(msgspec.Struct):
    """What a job is called with, as a record keeps it."""

    args: list[Any] = []
    kwargs: dict[str, Any] = {}


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
    expires: float | None = None

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
        if self.resume and (self.in_doubt is not None or self.expires is not None):
            raise ValueError("resume goes with a key, and with nothing else")


# Made for what making it does: msgspec learns about the type now, and not in two threads at once (see stores.codec).
_JOB_DECODER = msgspec.json.Decoder(Job)
_CALLED_DECODER = msgspec.json.Decoder(_Called)


@dataclass(frozen=True, slots=True)
class Call:
    """A message that names a job."""

    key: str
    job: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    in_doubt: InDoubt | None = None
    expires_at: float | None = None


Asked = Part | Resume | Call


def part_message(part: Part) -> Message[None]:
    """A message that carries one email, or several."""
    match part:
        case Ready(key=key, email=email):
            return _message({"key": check_key(key), "email": email.as_dict()} | _choice(part.in_doubt, part.expires_at))
        case Bulk(key=key, emails=emails):
            payload = {"key": check_key(key), "emails": [email.as_dict() for email in emails]}
            return _message(payload | _choice(part.in_doubt, part.expires_at))
        case Group(emails=members):
            group = [{"key": check_key(each.key), "email": each.email.as_dict()} for each in members]
            return _message({"group": group} | _choice(members[0].in_doubt, members[0].expires_at))


def email_message(
    email: Email, key: str | None, in_doubt: InDoubt | None = None, expires_at: float | None = None
) -> tuple[Message[None], str]:
    """A message that carries `email`, and its key: the argument, else the email's header, else the message's id."""
    email, explicit = take_explicit(email, key)
    return _named(explicit, {"email": email.as_dict()} | _choice(in_doubt, expires_at))


def read_choice(in_doubt: str | None) -> InDoubt | None:
    """What a caller says is to become of an email in doubt. Raises `JobError`."""
    try:
        return None if in_doubt is None else InDoubt(in_doubt)
    except ValueError:
        raise JobError(f"in_doubt is {in_doubt!r}: it must be one of {', '.join(InDoubt)}") from None


def resume_message(key: str) -> Message[None]:
    """A message that names a key whose email the ledger holds."""
    return _message({"key": key, "resume": True})


def record_message(record: Record) -> Message[None]:
    """A message for a record that has lost its own, and that holds what it takes (`Record.resumable`)."""
    if record.job is not None and record.body is None:
        called = _CALLED_DECODER.decode(record.call or "{}")
        return job_message(
            record.job, called.args, called.kwargs, record.key, record.in_doubt, expires_at=record.expires_at
        )[0]
    emails = decode(record.body or b"[]")
    if record.job is None and len(emails) > 1:
        # The whole range and not its key alone, as a worker may have to split it.
        return part_message(Bulk(record.key, emails, record.in_doubt, record.expires_at))
    return resume_message(record.key)


def job_message(  # noqa: PLR0913 - what a message about a job holds
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    key: str | None,
    in_doubt: InDoubt | None = None,
    *,
    expires_at: float | None = None,
) -> tuple[Message[None], str]:
    """A message that names a job, and its key. Raises `JobError` when an argument is not JSON."""
    arguments = {"args": list(args), "kwargs": dict(kwargs)}
    check_arguments(name, arguments)
    chosen = _choice(in_doubt, expires_at)
    return _named(None if key is None else check_key(key), {"job": name} | arguments | chosen)


def _choice(in_doubt: InDoubt | None, expires_at: float | None) -> dict[str, Any]:
    chosen = {"in_doubt": None if in_doubt is None else in_doubt.value, "expires": expires_at}
    return {name: value for name, value in chosen.items() if value is not None}


def check_arguments(name: str, arguments: object) -> None:
    """Raise `JobError` unless they are JSON values, which the worker gets as they are."""
    try:
        _check_json(arguments)
    except RecursionError as error:
        raise JobError(f"job {name}: its arguments are nested too deeply") from error
    except TypeError as error:
        raise JobError(f"job {name}: its arguments must be JSON values, and {error} is not one") from error


def _check_json(value: object) -> None:
    """Raise `TypeError` for what the worker would get as something else: a date, bytes, NaN, a number as a name."""
    match value:
        case None | bool() | int():
            return
        case str():
            _check_text(value)
        case float() if math.isfinite(value):
            return
        case list() | tuple():
            for item in value:
                _check_json(item)
        case dict():
            for name, item in value.items():
                if not isinstance(name, str):
                    raise TypeError(f"{type(name).__name__} as a name")
                _check_text(name)
                _check_json(item)
        case _:
            raise TypeError(str(value) if isinstance(value, float) else type(value).__name__)


def _check_text(value: str) -> None:
    """Raise `TypeError` for what no UTF-8 can carry."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise TypeError("text with a lone surrogate") from error


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
        return Ready(check_key(key if key is not None else message_id), email, job.in_doubt, job.expires)
    if job.group is not None:
        members = ((check_key(item.key), Email.from_dict(item.email)) for item in job.group)
        return Group(tuple(Ready(key, email, job.in_doubt, job.expires) for key, email in members))
    key = check_key(job.key if job.key is not None else message_id)
    if job.emails is not None:
        return replace(_bulk(key, tuple(Email.from_dict(parts) for parts in job.emails)), **_chosen(job))
    return Resume(key) if job.job is None else Call(key, job.job, job.args, job.kwargs, **_chosen(job))


def intent_of_message(message: Message[None]) -> Intent:
    """What a message of ours asks for, with all that it takes to make it again: what a durable producer writes down."""
    match read_message(message.kwargs, message.message_id):
        case Ready() | Bulk() as part:
            return intent_of(part)
        case Call(key=key, job=job, args=args, kwargs=kwargs, in_doubt=in_doubt, expires_at=expires_at):
            call = msgspec.json.encode({"args": args, "kwargs": kwargs})
            if len(call) > MAX_BYTES:
                raise JobError(f"job {job}: its arguments are {len(call):,} bytes; durable, they may be {MAX_BYTES:,}")
            return Intent(key, job=job, in_doubt=in_doubt, expires_at=expires_at, call=call.decode())
        case other:
            raise TypeError(f"{type(other).__name__} is not what a producer asks for")


def _chosen(job: Job) -> dict[str, Any]:
    return {"in_doubt": job.in_doubt, "expires_at": job.expires}


def _bulk(key: str, emails: tuple[Email, ...]) -> Bulk:
    """The key of a range says where in its bulk it stands: it must be one that we would have made for it."""
    if not is_range(key, len(emails)):
        raise JobError("the message is malformed: emails go under a key such as news-42/1-100, which counts them")
    return Bulk(key, emails)
