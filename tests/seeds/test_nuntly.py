"""Nuntly's guide on idempotency: keys, bulk, errors and what stays of them, replays, concurrent requests."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from idem.email import Email
from idem.keys import provider_key
from idem.outcome import Accepted, Ground, Outcome, Rejected, Unknown
from idem.providers.base import Batched
from tests.answers import soon
from tests.workers.parts import wait_for

if TYPE_CHECKING:
    from tests.seeds.conftest import Play

PROVIDER = "nuntly"

KEY = "550e8400-e29b-41d4-a716-446655440000"
SEND: dict[str, Any] = {
    "from": "ray@info.tomlinson.ai",
    "subject": "Order Confirmation",
    "to": "brian67@gmail.com",
    "html": "<h1>Your order has been confirmed</h1>",
}
EMAIL = Email.from_dict(SEND)
BULK = {
    "fallback": {"from": "ray@info.tomlinson.ai", "subject": "Weekly Newsletter"},
    "emails": [
        {"to": "carlo43@gmail.com", "text": "Hello Carlo!"},
        {"to": "pink42@yahoo.com", "text": "Hello Pinky!"},
    ],
}


def letter(to: str, sender: str = "ray@info.tomlinson.ai") -> Email:
    return Email(from_=sender, to=to, subject="Weekly Newsletter", text="Hello!")


def send_all(play: Play, emails: list[Email], key: str) -> Batched:
    return play.adapter().send_all(emails, key, soon())


def ground(found: Outcome) -> Ground:
    assert isinstance(found, Rejected)
    return found.ground


def test_send_an_email_with_a_key(play: Play) -> None:
    answer = play.post("/emails", SEND, KEY)
    assert answer.status_code == 201
    assert answer.json()["data"]["status"] == "queued"
    assert "idempotent-replayed" not in answer.headers


def test_a_replayed_response_is_marked(play: Play) -> None:
    """Body and status are those of the original, and `Idempotent-Replayed: true` tells it from one."""
    first, again = play.post("/emails", SEND, KEY), play.post("/emails", SEND, KEY)
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["Idempotent-Replayed"] == "true"
    email_id = first.json()["data"]["id"]
    assert play.send(EMAIL, "another-key") == Accepted(play.accepted()[-1]["id"])
    assert play.send(EMAIL, "another-key") == Accepted(play.accepted()[-1]["id"], replayed=True)
    assert [entry["id"] for entry in play.accepted()].count(email_id) == 1
    assert len(play.accepted()) == 2


def test_a_lost_response_is_found_by_the_same_key(play: Play) -> None:
    play.fault("accept_then_drop")
    assert isinstance(play.send(EMAIL, KEY), Unknown)
    assert play.send(EMAIL, KEY) == Accepted(play.accepted()[0]["id"], replayed=True)
    assert len(play.accepted()) == 1


def test_keys_expire_after_24_hours(play: Play) -> None:
    play.send(EMAIL, KEY)
    play.advance(86_401)
    assert play.send(EMAIL, KEY) == Accepted(play.accepted()[1]["id"])


# Bulk.


def test_the_key_is_of_the_whole_bulk_request(play: Play) -> None:
    """With what all have in common in `fallback`, as the guide sends it; the same key returns every status again."""
    first, again = play.post("/emails/bulk", BULK, KEY), play.post("/emails/bulk", BULK, KEY)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["Idempotent-Replayed"] == "true"
    assert [one["status"] for one in first.json()["data"]["emails"]] == ["queued", "queued"]
    assert [(entry["to"], entry["subject"]) for entry in play.accepted()] == [
        (["carlo43@gmail.com"], "Weekly Newsletter"),
        (["pink42@yahoo.com"], "Weekly Newsletter"),
    ]


def test_each_email_of_a_bulk_request_has_its_own_status(play: Play) -> None:
    """One is rejected, the others are not; a replay says the same of each, and sends nothing."""
    emails = [letter("a@example.com"), letter("b@example.com", "ray@unverified.test"), letter("c@example.com")]
    first = send_all(play, emails, KEY)
    ids = [entry["id"] for entry in play.accepted()]
    refused = Rejected("rejected: The domain is not verified")
    assert first.each == (Accepted(ids[0]), refused, Accepted(ids[1]))
    again = send_all(play, emails, KEY)
    assert again.each == (Accepted(ids[0], replayed=True), refused, Accepted(ids[1], replayed=True))
    assert isinstance(again.whole, Accepted)
    assert isinstance(first.whole, Accepted)
    assert again.whole.message_id == first.whole.message_id
    assert len(play.accepted()) == 2


def test_another_bulk_body_under_the_key_is_a_conflict(play: Play) -> None:
    send_all(play, [letter("a@example.com")], KEY)
    found = send_all(play, [letter("b@example.com")], KEY)
    assert ground(found.whole) is Ground.CONFLICT
    assert found.each == ()
    assert len(play.accepted()) == 1


# The format of keys.


@pytest.mark.parametrize("key", ["a" * 8, "a" * 255, "order-12345", "payment-receipt-evt_1/x:y z"])
def test_keys_that_it_takes(play: Play, key: str) -> None:
    assert isinstance(play.send(EMAIL, key), Accepted)


@pytest.mark.parametrize("key", ["", "a" * 7, "a" * 256])
def test_keys_that_it_refuses(play: Play, key: str) -> None:
    answer = play.post("/emails", SEND, key)
    assert answer.status_code == 400
    assert answer.json() == {
        "error": {"status": 400, "code": "idempotency_key_invalid", "title": "Invalid idempotency key"}
    }
    assert play.accepted() == []


def test_a_key_that_is_refused_is_a_rejection(play: Play) -> None:
    assert ground(play.send(EMAIL, "short")) is Ground.PAYLOAD


def test_keys_are_case_sensitive(play: Play) -> None:
    assert play.send(EMAIL, "welcome-Ann") != play.send(EMAIL, "welcome-ann")


def test_any_strategy_gives_a_key_that_it_takes(play: Play) -> None:
    """Its short examples too: what it sees is derived from the key, and always of one length."""
    for key in ("1", "daily-report-2026-11-22", "payment-receipt-evt_1"):
        assert isinstance(play.send(EMAIL, provider_key("shop", key, 1)), Accepted)
        assert isinstance(play.send(EMAIL, provider_key("shop", key, 1)), Accepted)
    assert len(play.accepted()) == 3


# Errors.


def test_a_different_payload_is_a_conflict(play: Play) -> None:
    play.send(EMAIL, KEY)
    answer = play.post("/emails", {**SEND, "to": "other@example.com"}, KEY)
    assert answer.status_code == 409
    assert answer.json() == {
        "error": {
            "status": 409,
            "code": "idempotency_key_payload_mismatch",
            "title": "Idempotency key reused with different payload",
        }
    }
    assert ground(play.send(letter("other@example.com"), KEY)) is Ground.CONFLICT
    assert len(play.accepted()) == 1


def test_of_two_concurrent_requests_the_second_is_told_so(play: Play) -> None:
    """The first is processed; the second proves nothing, and the same key asked later gives the first's answer."""
    found: list[Outcome] = []
    play.fault("delay", delay_ms=1_500)
    first = threading.Thread(target=lambda: found.append(play.send(EMAIL, KEY)))
    first.start()
    wait_for(lambda: play.requests() and play.requests()[0]["fault"])
    answer = play.post("/emails", SEND, KEY)
    second = play.send(EMAIL, KEY)
    first.join()
    assert answer.status_code == 409
    assert answer.json() == {
        "error": {
            "status": 409,
            "code": "idempotency_key_in_progress",
            "title": "Idempotency key is already being processed",
        }
    }
    assert isinstance(second, Unknown)
    assert found == [Accepted(play.accepted()[0]["id"])]
    assert play.send(EMAIL, KEY) == Accepted(play.accepted()[0]["id"], replayed=True)
    assert len(play.accepted()) == 1


def test_client_errors_are_cached(play: Play) -> None:
    """An unverified domain: the same key is refused again, marked as a replay; a new key gets through."""
    refused = {**SEND, "from": "ray@unverified.test"}
    first, again = play.post("/emails", refused, KEY), play.post("/emails", refused, KEY)
    assert (first.status_code, again.status_code, again.json()) == (403, 403, first.json())
    assert again.headers["Idempotent-Replayed"] == "true"
    assert ground(play.send(EMAIL, KEY)) is Ground.CONFLICT
    assert ground(play.send(Email.from_dict(refused), "another-key")) is Ground.GATE
    assert ground(play.send(Email.from_dict(refused), "another-key")) is Ground.GATE
    assert isinstance(play.send(EMAIL, provider_key("shop", "order", 2)), Accepted)


def test_server_errors_are_not_cached(play: Play) -> None:
    """The key is cleared: the same key can be used again, and is accepted."""
    play.fault("500")
    assert isinstance(play.send(EMAIL, KEY), Unknown)
    assert play.send(EMAIL, KEY) == Accepted(play.accepted()[0]["id"])
    assert len(play.accepted()) == 1
