"""From an answer on the wire to an outcome, by the provider's contract and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

import msgspec

from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.privacy import redact
from idem.providers.base import Batched, CannotTell, Contract, Keeps, Meaning
from idem.providers.http import Answer, NoAnswer

_DAY_SECONDS: Final = 86_400.0
_MAX_MESSAGE_ID = 998

_GROUNDS: Final = {
    Meaning.CONFLICT: Ground.CONFLICT,
    Meaning.INVALID: Ground.PAYLOAD,
    Meaning.FORBIDDEN: Ground.GATE,
}


def outcome(contract: Contract, answer: Answer | NoAnswer) -> Outcome:
    """What the exchange proves; whatever is not documented proves nothing."""
    if isinstance(answer, NoAnswer):
        return answer.outcome()
    body = answer.json_object()
    code, message = error_of(contract, answer, body)
    row = contract.row(answer.status, code, message)
    meaning = row.meaning
    if meaning is Meaning.KNOWN:
        return Accepted(first_text(contract.reply.message_id, answer, body), replayed=True)
    if meaning is Meaning.ACCEPTED and (message_id := _message_id(contract, answer, body)):
        return Accepted(message_id, replayed=is_replay(contract, answer))
    said = " ".join(filter(None, (code, message))) or "no message"
    detail = redact(f"HTTP {answer.status}: {said}{_blamed(body)}")
    if meaning is Meaning.ACCEPTED:
        return Unknown(f"{detail} without an id")
    wait = retry_after(contract, answer, body)
    wait = row.pause_seconds if wait is None else wait
    # Asked of everybody: a 429 (RFC 6585), or an answer that names a time.
    limited = wait is not None or answer.status == HTTPStatus.TOO_MANY_REQUESTS
    return unaccepted(contract, meaning, detail, wait, limited=limited, replayed=is_replay(contract, answer))


def unaccepted(  # noqa: PLR0913 - all that an answer can say
    contract: Contract,
    meaning: Meaning,
    detail: str,
    wait: float | None = None,
    *,
    limited: bool = False,
    replayed: bool = False,
) -> Rejected | NotSent | Unknown:
    """The outcome of an answer that does not say that the email was accepted."""
    if meaning in _GROUNDS:
        return Rejected(detail, _GROUNDS[meaning], replayed=replayed)
    # A request that is running is about one key, and a replayed answer about the past.
    limited = limited and meaning is not Meaning.IN_PROGRESS and not replayed
    if meaning not in {Meaning.CREDENTIALS, Meaning.NOT_NOW}:
        return Unknown(detail, wait, limited=limited)
    kept = contract.key is not None and Keeps.REFUSALS in contract.key.keeps
    credentials = meaning is Meaning.CREDENTIALS
    return NotSent(detail, wait, credentials=credentials, burnt=kept, replayed=replayed, limited=limited)


def _message_id(contract: Contract, answer: Answer, body: Mapping[str, Any]) -> str | None:
    """A success names the email; one that does not may be a proxy's page."""
    message_id = first_text(contract.reply.message_id, answer, body)
    return message_id if message_id and len(message_id) <= _MAX_MESSAGE_ID else None


def batched(
    contract: Contract, answer: Answer | NoAnswer, each: Callable[[bytes], tuple[Accepted | Rejected, ...] | None]
) -> Batched:
    """What the exchange proves of a request with many emails.

    `each` reads the emails from the body of an accepted one; None, or a body that msgspec cannot decode for it, is one
    that does not say what became of each.
    """
    if isinstance(answer, NoAnswer) or not is_accepted(contract, answer):
        return Batched(outcome(contract, answer))
    try:
        found = each(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = None
    if found is None:
        return Batched(Unknown(f"HTTP {answer.status}: the answer does not say what became of each email"))
    replayed = is_replay(contract, answer)
    whole = Accepted(first_text(contract.reply.message_id, answer, answer.json_object()), replayed)
    return Batched(whole, tuple(replace(one, replayed=replayed) if isinstance(one, Accepted) else one for one in found))


def is_accepted(contract: Contract, answer: Answer) -> bool:
    """Whether the request was accepted, whatever became of the emails in it."""
    code, message = error_of(contract, answer, answer.json_object())
    return contract.meaning(answer.status, code, message) is Meaning.ACCEPTED


def is_replay(contract: Contract, answer: Answer) -> bool:
    """Whether the provider marked the answer as that of an earlier request."""
    marker = contract.key.replay_marker if contract.key is not None else None
    return marker is not None and answer.headers.get(marker[0].lower(), "").lower() == marker[1].lower()


def error_of(contract: Contract, answer: Answer, body: Mapping[str, Any]) -> tuple[str, str]:
    """The code (a number in some APIs) and the message of an error, each empty where there is none."""
    found = (_at(path, answer, body) for path in contract.reply.code)
    code = next((str(value) for value in found if isinstance(value, str | int) and not isinstance(value, bool)), "")
    return code, first_text(contract.reply.message, answer, body) or ""


def retry_after(contract: Contract, answer: Answer, body: Mapping[str, Any]) -> float | None:
    """The pause that the provider asks for, in seconds, at most a day."""
    said = answer.retry_after()
    if said is not None:
        return said
    for path in contract.reply.retry_after:
        value = _at(path, answer, body)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return min(float(value), _DAY_SECONDS)
    return None


def _blamed(body: Mapping[str, Any]) -> str:
    """The fields that a validation error names, as many APIs do."""
    errors = body.get("errors")
    return f" ({', '.join(map(str, errors))})" if isinstance(errors, dict) and errors else ""


def first_text(paths: tuple[str, ...], answer: Answer, body: Mapping[str, Any]) -> str | None:
    """The first of these places that holds a text."""
    found = (_at(path, answer, body) for path in paths)
    return next((value for value in found if isinstance(value, str) and value), None)


def listed(answer: Answer | NoAnswer, name: str) -> list[dict[str, Any]] | CannotTell:
    """The objects that a look-up's answer lists under this name; only what is documented counts as an answer."""
    if isinstance(answer, NoAnswer):
        return CannotTell(answer.detail)
    found = answer.json_object().get(name)
    if answer.status != HTTPStatus.OK:
        return CannotTell(f"the look-up was answered with HTTP {answer.status}")
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        return CannotTell(f"the look-up's answer has no list of {name}")
    return found


def json_within(text: str) -> object:
    """JSON that an answer holds as a text; None for anything else."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _at(path: str, answer: Answer, body: Mapping[str, Any]) -> object:
    if path.startswith("header:"):
        return answer.headers.get(path.removeprefix("header:").lower())
    value: object = body
    for name in path.split("."):
        if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, dict):
            value = value.get(name)
        else:
            return None
    return value
