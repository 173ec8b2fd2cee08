"""GetMailer's page on idempotency: key requirements, response behaviour, scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from idem.email import Email
from idem.keys import provider_key
from idem.outcome import Accepted, Ground, NotSent, Rejected

if TYPE_CHECKING:
    from tests.seeds.conftest import Play

PROVIDER = "getmailer"

KEY = "order-confirmation-12345"
SEND: dict[str, Any] = {
    "from": "orders@yourdomain.com",
    "to": "customer@example.com",
    "subject": "Order #12345 Confirmed",
    "html": "<p>Your order has been confirmed!</p>",
}
EMAIL = Email.from_dict(SEND)


def test_the_example(play: Play) -> None:
    answer = play.post("/emails", SEND, KEY)
    assert answer.status_code == 200
    assert answer.json() == {
        "id": play.accepted()[0]["id"],
        "from": "orders@yourdomain.com",
        "to": ["customer@example.com"],
        "subject": "Order #12345 Confirmed",
        "status": "sent",
        "tags": [],
    }


def test_a_retry_with_the_same_key_and_body_gets_the_cached_response(play: Play) -> None:
    first = play.send(EMAIL, KEY)
    assert play.send(EMAIL, KEY) == first == Accepted(play.accepted()[0]["id"])
    assert len(play.accepted()) == 1


def test_the_same_key_with_a_different_body_is_a_409(play: Play) -> None:
    play.send(EMAIL, KEY)
    other = Email.from_dict({**SEND, "subject": "Order #12346 Confirmed"})
    found = play.send(other, KEY)
    assert isinstance(found, Rejected)
    assert found.ground is Ground.CONFLICT
    assert play.requests()[-1]["status"] == 409
    assert len(play.accepted()) == 1


def test_an_expired_key_is_processed_as_a_new_request(play: Play) -> None:
    play.send(EMAIL, KEY)
    play.advance(86_401)
    play.send(EMAIL, KEY)
    assert len(play.accepted()) == 2


def test_keys_are_unique_per_api_key(play: Play) -> None:
    """Two accounts can use the same key: with another account's token, nothing can be replayed."""
    assert play.send(EMAIL, KEY, "gm_one") != play.send(EMAIL, KEY, "gm_two")
    assert len(play.accepted()) == 2


@pytest.mark.parametrize("key", ["a" * 255, "A-b_9", "0"])
def test_keys_that_it_takes(play: Play, key: str) -> None:
    assert isinstance(play.send(EMAIL, key), Accepted)


@pytest.mark.parametrize(
    "key", ["a" * 256, "daily-report:2026-11-22T09:00Z", "a b", "a/b", "a.b", "a@b", "arn:aws:sqs:x", "é".encode(), ""]
)
def test_keys_that_it_refuses(play: Play, key: str | bytes) -> None:
    assert play.post("/emails", SEND, key).status_code == 400
    assert play.accepted() == []


@pytest.mark.parametrize("key", ["daily-report:2026-11-22T09:00Z", "a" * 255, "ü/ .:@#", "order-confirmation-12345"])
def test_our_keys_are_what_it_takes_whatever_the_jobs_key(play: Play, key: str) -> None:
    """Readable keys stay in the ledger; what it sees is derived from them."""
    assert isinstance(play.send(EMAIL, provider_key("shop", key, 1)), Accepted)


def test_keys_are_case_sensitive(play: Play) -> None:
    assert play.send(EMAIL, "welcome-Ann") != play.send(EMAIL, "welcome-ann")


def test_the_pause_of_a_rate_limit_is_in_the_body(play: Play) -> None:
    play.fault("429")
    assert play.send(EMAIL, KEY) == NotSent("HTTP 429: Rate limit exceeded", retry_after=1.0, burnt=True, limited=True)
    assert isinstance(play.send(EMAIL, KEY), Accepted)
