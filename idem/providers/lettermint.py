"""Lettermint: `POST /v1/send` under an `Idempotency-Key`."""

from __future__ import annotations

from datetime import date
from typing import Any, Final

from idem.email import Email
from idem.providers.api import Api, Content, HttpProvider, as_json
from idem.providers.base import USUAL, Contract, Key, Limits, Meaning, Memory, Place, Reply, Row

CONTRACT: Final = Contract(
    name="lettermint",
    title="Lettermint",
    sources=("https://lettermint.co/docs/platform/emails/idempotency",),
    checked=date(2026, 11, 22),
    base_url="https://api.lettermint.co/v1",
    memory=Memory.REPLAYS,
    key=Key(place=Place.HEADER, name="Idempotency-Key", window_seconds=86_400.0),
    table=(
        Row({409, 422}, Meaning.CONFLICT, words=r"idempotency.*different|different.*(payload|body)"),
        # Documented for the items of a batch; a single send that is still running has nothing else to say.
        Row({409}, Meaning.IN_PROGRESS),
        *USUAL,
    ),
    reply=Reply(message_id=("message_id",)),
    limits=Limits(tags=1, empty_subject=False),
    contradictions=(
        "another body under a key: one page gives 422, a later one and the SDK 3.2.0 give 409; the words decide",
    ),
)


def encode(email: Email, _provider_key: str) -> Content:
    """The request body; all of an `Email` has a place in it."""
    parts: dict[str, Any] = email.as_dict()
    tags = parts.pop("tags", None)
    if tags:
        parts["tag"] = tags[0]
    return as_json(parts)


API: Final = Api(
    contract=CONTRACT,
    path="/send",
    authorize=lambda token: {"x-lettermint-token": token},
    encode=encode,
)


def connect(token: str, base_url: str) -> HttpProvider:
    """The adapter, for a project's token."""
    return HttpProvider(API, token, base_url)
