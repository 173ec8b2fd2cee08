"""Lettermint's page on idempotency: its three requests, and what our adapter makes of the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idem.email import Email
from idem.outcome import Accepted, Ground, Rejected

if TYPE_CHECKING:
    from tests.seeds.conftest import Play

PROVIDER = "lettermint"

KEY = "123e4567-e89b-12d3-a456-426614174000"
SEND: dict[str, Any] = {
    "from": "John Doe <john@yourdomain.com>",
    "to": ["recipient@example.com"],
    "subject": "Hello from Lettermint!",
    "text": "Hello! This is a test email.",
}
OTHER = {**SEND, "subject": "This is different!", "text": "Thanks for signing up."}


def test_send_an_email(play: Play) -> None:
    answer = play.post("/send", SEND, KEY)
    assert answer.status_code == 202
    assert play.send(Email.from_dict(SEND), "another-key") == Accepted(play.accepted()[-1]["id"])


def test_retry_with_the_same_key_and_body(play: Play) -> None:
    """202 with the same `message_id`, and no duplicate email; the order of the JSON's names does not matter."""
    first = play.post("/send", SEND, KEY)
    again = play.post("/send", dict(reversed(SEND.items())), KEY)
    assert (again.status_code, again.json()) == (202, first.json())
    assert play.send(Email.from_dict(SEND), KEY) == Accepted(first.json()["message_id"])
    assert len(play.accepted()) == 1


def test_conflict_with_the_same_key_and_a_different_body(play: Play) -> None:
    """422 in the page's words, which are what tells it from a validation error."""
    play.post("/send", SEND, KEY)
    answer = play.post("/send", OTHER, KEY)
    assert answer.status_code == 422
    assert answer.json() == {
        "message": "This idempotency key has already been used on a request with a different payload. "
        "Retrying this request requires changing the idempotency key or payload."
    }
    found = play.send(Email.from_dict(OTHER), KEY)
    assert isinstance(found, Rejected)
    assert found.ground is Ground.CONFLICT
    assert len(play.accepted()) == 1


def test_a_key_is_valid_for_24_hours(play: Play) -> None:
    first = play.send(Email.from_dict(SEND), KEY)
    play.advance(86_399)
    assert play.send(Email.from_dict(SEND), KEY) == first
    play.advance(2)
    assert play.send(Email.from_dict(SEND), KEY) != first
    assert len(play.accepted()) == 2


def test_a_new_key_for_each_unique_email(play: Play) -> None:
    assert play.send(Email.from_dict(SEND), "key-1") != play.send(Email.from_dict(SEND), "key-2")
    assert len(play.accepted()) == 2
