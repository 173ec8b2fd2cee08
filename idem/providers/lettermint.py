"""Lettermint: `POST /v1/send` under an `Idempotency-Key`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any, Final

import msgspec

from idem.clock import Deadline
from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.privacy import redact
from idem.providers.base import Contract, Memory
from idem.providers.http import Answer, HttpClient, NoAnswer

CONTRACT: Final = Contract(
    name="lettermint",
    title="Lettermint",
    source="https://lettermint.co/docs/platform/emails/idempotency",
    checked=date(2026, 11, 22),
    base_url="https://api.lettermint.co/v1",
    memory=Memory.REPLAYS,
    window_seconds=86_400.0,
    key_header="Idempotency-Key",
)

#: For a key with another body, one page of the documentation gives 422, a later one and the SDK 3.2.0 give 409. Both
#: have other meanings too, plain validation and a request still in progress, so the words decide: all say "different".
_MISMATCH: Final = re.compile(r"idempotency.*different|different.*(payload|body)", re.IGNORECASE | re.DOTALL)

#: Answers that say that nothing was done and that may pass: wrong credentials (401), out of credit (402), a base URL
#: that is not this API's (404, 405), a rate limit (429).
_DID_NOTHING: Final = frozenset({401, 402, 404, 405, 429})
#: Answers about the bytes themselves.
_INVALID: Final = frozenset({400, 413, 415, 422})


class Lettermint:
    """Sends through Lettermint's HTTP API."""

    contract = CONTRACT

    def __init__(self, token: str, base_url: str = CONTRACT.base_url, http: HttpClient | None = None) -> None:
        self._url = base_url.rstrip("/") + "/send"
        self._token = token
        self._http = http or HttpClient()

    def check(self, email: Email) -> None:
        """Lettermint takes one plain tag, and wants a subject; all else in an `Email` has a place there."""
        if not email.subject:
            raise UnsupportedEmail("subject", "is empty, and Lettermint requires one")
        if len(email.tags) > 1:
            raise UnsupportedEmail("tags", f"Lettermint takes one tag, this email has {len(email.tags)}")

    def send(self, email: Email, provider_key: str, deadline: Deadline) -> Outcome:
        """One `POST /send`."""
        headers = {
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": "idem-workers",
            CONTRACT.key_header: provider_key,
            "x-lettermint-token": self._token,
        }
        answer = self._http.post(self._url, headers, payload(email), deadline)
        return answer.outcome() if isinstance(answer, NoAnswer) else outcome(answer)


def payload(email: Email) -> bytes:
    """The request body: the same bytes for the same email, which is what the key is bound to."""
    parts: dict[str, Any] = email.as_dict()
    tags = parts.pop("tags", None)
    if tags:
        parts["tag"] = tags[0]
    return msgspec.json.encode(parts, order="sorted")


def outcome(answer: Answer) -> Outcome:
    """What an answer of Lettermint's proves; whatever is not documented proves nothing."""
    body = answer.json_object()
    detail = f"HTTP {answer.status}: {_message(body)}"
    retry_after = answer.retry_after()
    if 200 <= answer.status < 300:  # noqa: PLR2004 - any 2xx
        message_id = body.get("message_id")
        return (
            Accepted(message_id) if isinstance(message_id, str) and message_id else Unknown(f"{detail} without an id")
        )
    if answer.status in {409, 422} and _MISMATCH.search(_message(body)):
        return Rejected(detail, Ground.CONFLICT)
    if answer.status in _DID_NOTHING:
        return NotSent(detail, retry_after, credentials=answer.status == 401)  # noqa: PLR2004 - Unauthorized
    if answer.status == 403:  # noqa: PLR2004 - Forbidden
        return Rejected(detail, Ground.GATE)
    if answer.status in _INVALID:
        return Rejected(detail)
    return Unknown(detail, retry_after)


def _message(body: Mapping[str, Any]) -> str:
    message = body.get("message")
    errors = body.get("errors")
    named = f" ({', '.join(map(str, errors))})" if isinstance(errors, dict) and errors else ""
    return redact(f"{message if isinstance(message, str) else 'no message'}{named}")
