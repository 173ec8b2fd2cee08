"""Lettermint: `POST /v1/send` under an `Idempotency-Key`, and `POST /v1/send/batch` with a key for each email."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec

from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.outcome import Accepted, NotSent, Outcome, Rejected, Unknown
from idem.providers.api import HANDLE, Api, Content, EachBatch, HttpProvider, as_json, refuse_handle
from idem.providers.base import (
    USUAL,
    Batch,
    BatchKeys,
    Contract,
    Events,
    Key,
    Limits,
    Meaning,
    Memory,
    Place,
    Reply,
    Row,
)
from idem.providers.http import Answer, NoAnswer
from idem.providers.reading import is_accepted, outcome

#: "Alphanumeric, underscores, hyphens, spaces allowed."
_TAG: Final = re.compile(r"[A-Za-z0-9_ -]+")
_INDEXED: Final = re.compile(r"\d{1,3}\.")

CONTRACT: Final = Contract(
    name="lettermint",
    title="Lettermint",
    sources=(
        "https://lettermint.co/docs/platform/emails/idempotency",
        "https://docs.lettermint.co/platform/emails/idempotency",
        "https://lettermint.co/docs/api-reference/sending/send",
        "https://pypi.org/project/lettermint/3.2.0/",
    ),
    checked=date(2026, 11, 22),
    base_url="https://api.lettermint.co/v1",
    memory=Memory.REPLAYS,
    key=Key(place=Place.HEADER, name="Idempotency-Key", window_seconds=86_400.0),
    table=(
        Row({409, 422}, Meaning.CONFLICT, words=r"idempotency.*different|different.*(payload|body)"),
        # Said of a mismatch and of a request that is still running; without the words of the former, it is the latter.
        Row({409}, Meaning.IN_PROGRESS),
        *USUAL,
    ),
    reply=Reply(message_id=("message_id",), code=("error.code",), message=("message", "error.message")),
    limits=Limits(tags=1, empty_subject=False),
    batch=Batch(path="/send/batch", most=500, keys=BatchKeys.EACH),
    events=Events(
        handle=f"metadata {HANDLE}",
        source="https://lettermint.co/docs/platform/webhooks/events",
        added_to="metadata",
    ),
    contradictions=(
        "another body under a key: one page gives 422, another one and the SDK 3.2.0 give 409; the words decide",
    ),
)


def encode(email: Email, _provider_key: str) -> Content:
    """The request body; all of an `Email` has a place in it."""
    return as_json(_parts(email))


def _parts(email: Email) -> dict[str, Any]:
    parts: dict[str, Any] = email.as_dict()
    tags = parts.pop("tags", None)
    if tags:
        parts["tag"] = tags[0]
    return parts


def check(email: Email) -> None:
    """Refuse a tag that it does not allow, and metadata under our name."""
    refuse_handle(email)
    if not all(_TAG.fullmatch(tag) for tag in email.tags):
        raise UnsupportedEmail("tags", f"may have only letters, digits, spaces, _ and - at {CONTRACT.title}")


def encode_batch(emails: Sequence[tuple[Email, str]]) -> Content:
    """The request body for many, each with its key."""
    return as_json([_parts(email) | {"idempotency_key": provider_key} for email, provider_key in emails])


class _Sent(msgspec.Struct):
    message_id: Annotated[str, msgspec.Meta(min_length=1)]


class _Listed(_Sent):
    index: int


class _Details(msgspec.Struct):
    accepted: list[_Listed]


class _Error(msgspec.Struct):
    details: _Details


class _Refusal(msgspec.Struct):
    error: _Error


_SENT: Final = msgspec.json.Decoder(list[_Sent])
_REFUSAL: Final = msgspec.json.Decoder(_Refusal)
_UNDECODED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_batch(answer: Answer | NoAnswer, count: int) -> tuple[Outcome, ...] | None:
    """What became of each of `count` emails; None where several were refused and the answer accuses none of them.

    They are accepted in order; when one fails, the answer lists those before it, and the others were not reached. A
    batch that is refused as a whole (409 for any of its keys, a validation error that names no email) sent nothing.
    """
    if isinstance(answer, NoAnswer):
        return (answer.outcome(),) * count
    whole = outcome(CONTRACT, answer)
    if is_accepted(CONTRACT, answer):
        return _sent(answer, count) or (Unknown(f"HTTP {answer.status}: not an id for each email"),) * count
    listed = _listed(answer)
    blamed = _blamed(answer, listed)
    if count > 1 and not blamed & set(range(count)) and _is_refusal(answer, whole):
        return None
    accepted = listed or {}
    return tuple(
        Accepted(accepted[index]) if index in accepted else _left(whole, accused=index in blamed or count == 1)
        for index in range(count)
    )


def _is_refusal(answer: Answer, whole: Outcome) -> bool:
    """Whether nothing was sent, for the sake of one: so is a batch with a key that is in use."""
    return isinstance(whole, Rejected) or answer.status == HTTPStatus.CONFLICT


def _sent(answer: Answer, count: int) -> tuple[Outcome, ...] | None:
    try:
        sent = _SENT.decode(answer.body)
    except _UNDECODED:
        return None
    return tuple(Accepted(one.message_id) for one in sent) if len(sent) == count else None


def _listed(answer: Answer) -> dict[int, str] | None:
    """The emails that were accepted before one failed, index to id; None where the answer has no such list."""
    try:
        refusal = _REFUSAL.decode(answer.body)
    except _UNDECODED:
        return None
    return {one.index: one.message_id for one in refusal.error.details.accepted}


def _blamed(answer: Answer, listed: Mapping[int, str] | None) -> set[int]:
    """The emails that failed: the one behind those that are listed, or those that the errors name (`2.to.0`)."""
    errors = answer.json_object().get("errors")
    named = {int(name.partition(".")[0]) for name in errors if _INDEXED.match(name)} if isinstance(errors, dict) else ()
    return {*named, *(() if listed is None else (len(listed),))}


def _left(whole: Outcome, *, accused: bool) -> Outcome:
    """The outcome of an email that is not listed as accepted: what the answer says is said of those it accuses."""
    if isinstance(whole, Rejected) and not accused:
        return NotSent("another email of the batch was refused")
    return whole


API: Final = Api(
    contract=CONTRACT,
    path="/send",
    authorize=lambda token: {"x-lettermint-token": token},
    encode=encode,
    check=check,
    each=EachBatch(encode=encode_batch, read=read_batch),
)


def connect(token: str, base_url: str) -> HttpProvider:
    """The adapter, for a project's token."""
    return HttpProvider(API, token, base_url)
