"""From an answer on the wire to an outcome, by the provider's contract and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.privacy import redact
from idem.providers.base import Contract, Meaning
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
    said = " ".join(filter(None, (code, message))) or "no message"
    detail = redact(f"HTTP {answer.status}: {said}{_blamed(body)}")
    wait = retry_after(contract, answer, body)
    meaning = contract.meaning(answer.status, code, message)
    if meaning is Meaning.ACCEPTED:
        return _accepted(contract, answer, body, detail)
    if meaning is Meaning.KNOWN:
        return Accepted(first_text(contract.reply.message_id, answer, body), replayed=True)
    if meaning in _GROUNDS:
        return Rejected(detail, _GROUNDS[meaning])
    # A request that is running is about one key; whoever else names a time is, like 429 (RFC 6585), about all requests.
    asked = wait is not None and meaning is not Meaning.IN_PROGRESS
    limited = asked or answer.status == HTTPStatus.TOO_MANY_REQUESTS
    if meaning in {Meaning.CREDENTIALS, Meaning.NOT_NOW}:
        return NotSent(detail, wait, credentials=meaning is Meaning.CREDENTIALS, limited=limited)
    return Unknown(detail, wait, limited=limited)


def _accepted(contract: Contract, answer: Answer, body: Mapping[str, Any], detail: str) -> Outcome:
    """A success names the email; one that does not may be a proxy's page."""
    message_id = first_text(contract.reply.message_id, answer, body)
    if not message_id or len(message_id) > _MAX_MESSAGE_ID:
        return Unknown(f"{detail} without an id")
    return Accepted(message_id, replayed=is_replay(contract, answer))


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
