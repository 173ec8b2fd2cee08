"""Brevo: the bytes that are sent under its key, what its answers prove, and what its events show."""

from __future__ import annotations

import json
import uuid
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem.clock import Deadline, SystemClock
from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.keys import provider_key
from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.policy import Policy
from idem.providers.api import HttpProvider
from idem.providers.base import CannotTell, Found, Missing, Sighting
from idem.providers.brevo import API, CONTRACT, connect, encode, key_of
from idem.providers.http import Answer, NoAnswer, Phase
from idem.providers.reading import outcome
from tests.answers import Answers, answer
from tests.fakes import make_email

FULL: dict[str, Any] = {
    "from": "The Shop <shop@example.com>",
    "to": ["Ann <ann@example.com>", '"Smith, Bo" <bo@example.com>'],
    "cc": ["cc@example.com"],
    "bcc": ["Zoë <bcc@example.com>"],
    "reply_to": ["Help <help@example.com>"],
    "subject": "Grüße 🙂",
    "text": "Hi",
    "html": "<p>Hi</p>",
    "headers": {"X-Campaign": "autumn"},
    "tags": ["receipt", "b"],
    "metadata": {"order": "42", "a": "1"},
    "attachments": [{"filename": "a.PDF", "content": "aGVsbG8=", "content_type": "application/pdf"}],
}


def say(status: int, code: str, message: str = "no") -> Outcome:
    return outcome(CONTRACT, answer(status, {"code": code, "message": message}))


def find(found: Answer | NoAnswer) -> tuple[Sighting, str]:
    http = Answers(found)
    seen = HttpProvider(API, "t", CONTRACT.base_url, http).find("key-1", 1_000.0, Deadline.after(SystemClock(), 1))
    return seen, unquote(http.asked[0][0])


def event(tag: object, message_id: object = "<m1>") -> dict[str, object]:
    return {"event": "requests", "email": "ann@example.com", "messageId": message_id, "tag": tag}


def test_every_part_has_its_name() -> None:
    assert json.loads(encode(Email.from_dict(FULL), "key-1").data) == {
        "sender": {"name": "The Shop", "email": "shop@example.com"},
        "to": [{"name": "Ann", "email": "ann@example.com"}, {"name": "Smith, Bo", "email": "bo@example.com"}],
        "cc": [{"email": "cc@example.com"}],
        "bcc": [{"name": "Zoë", "email": "bcc@example.com"}],
        "replyTo": {"name": "Help", "email": "help@example.com"},
        "subject": "Grüße 🙂",
        "textContent": "Hi",
        "htmlContent": "<p>Hi</p>",
        "headers": {
            "X-Campaign": "autumn",
            "X-Mailin-custom": '{"a":"1","order":"42"}',
            "idempotencyKey": key_of("key-1"),
        },
        "tags": ["receipt", "b", "key-1"],
        "attachment": [{"name": "a.PDF", "content": "aGVsbG8="}],
    }


def test_the_bytes_never_change() -> None:
    """The key among them: another one for the same email would be a second email."""
    assert encode(make_email(), "key-1").data == (
        b'{"headers":{"idempotencyKey":"be297454-6978-4373-9e6d-6da85c4be9f3"},"sender":{"email":"shop@example.com"},'
        b'"subject":"Hello","tags":["key-1"],"textContent":"Hi","to":[{"email":"ann@example.com"}]}'
    )


@given(st.text(min_size=1, max_size=50))
def test_the_key_is_a_uuid_of_its_own_for_each_email(name: str) -> None:
    derived = provider_key("default", name, 0)
    key = key_of(derived)

    assert str(uuid.UUID(key)) == key
    assert uuid.UUID(key).version == 4
    assert CONTRACT.key is not None
    assert CONTRACT.key.admits(key)
    assert key != key_of(provider_key("default", name, 1))


def test_its_short_window_leaves_room_to_send_again() -> None:
    policy = Policy(window_seconds=CONTRACT.window_seconds)

    assert policy.margin_seconds < 900.0
    assert policy.window_open(1_000.0, 1_000.0 + 700.0)
    assert not policy.window_open(1_000.0, 1_000.0 + 800.0)


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"subject": ""}, "subject"),
        ({"text": ""}, "text"),
        ({"html": ""}, "html"),
        ({"reply_to": ["a@b.c", "d@e.f"]}, "reply_to"),
        ({"to": [f"u{number}@example.com" for number in range(100)]}, "to"),
        ({"headers": {"idempotencyKey": "x"}}, "headers.idempotencyKey"),
        ({"headers": {"References": "<x@y>"}}, "headers.References"),
        ({"headers": {"X-Mailin-Custom": "x"}}, "headers.X-Mailin-Custom"),
        ({"headers": {"X-A": "é"}}, "headers.X-A"),
        ({"metadata": {"a": "é"}}, "metadata"),
        ({"from": '"Zoë, Shop" <a@b.c>'}, "from"),
        ({"to": ['"Zoë, Ann" <a@b.c>']}, "to"),
        ({"reply_to": ['"Zoë, Ann" <a@b.c>']}, "reply_to"),
        ({"attachments": [{"filename": "a.exe", "content": ""}]}, "attachments.filename"),
        ({"attachments": [{"filename": "pdf", "content": "", "content_type": "text/plain"}]}, "attachments.filename"),
        ({"attachments": [{"filename": "a.pdf", "content": "", "content_type": "a/b"}]}, "attachments.content_type"),
        ({"attachments": [{"filename": "a.png", "content": "", "content_id": "a"}]}, "attachments.content_id"),
    ],
)
def test_what_has_no_place_is_refused(parts: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedEmail) as caught:
        connect("t", CONTRACT.base_url).check(make_email(**parts))
    assert caught.value.field == field


def test_a_full_email_is_taken() -> None:
    connect("t", CONTRACT.base_url).check(Email.from_dict(FULL))
    unspecified = [{"filename": "a.pdf", "content": ""}, {"filename": "a.ics", "content": "", "content_type": "a/b"}]
    connect("t", CONTRACT.base_url).check(make_email(attachments=unspecified[:1]))


def test_one_request_and_the_key_nowhere_but_in_its_body() -> None:
    http = Answers(answer(201, {"messageId": "<m1>"}))
    provider = HttpProvider(API, "secret", CONTRACT.base_url, http)

    assert provider.send(make_email(), "key-1", Deadline.after(SystemClock(), 1)) == Accepted("<m1>")
    ((url, headers, body),) = http.asked
    assert url == "https://api.brevo.com/v3/smtp/email"
    assert headers["api-key"] == "secret"
    assert "idempotency" not in json.dumps(dict(headers)).lower()
    assert key_of("key-1").encode() in body


def test_a_known_key_is_the_acceptance() -> None:
    """As measured by a customer (`CONTRACT.sources`); the code alone could be about anything."""
    known = say(400, "duplicate_parameter", "Email for the idempotency key has already been processed")

    assert known == Accepted(None, replayed=True)
    assert isinstance(say(400, "duplicate_parameter", "tag is given twice"), Unknown)
    assert isinstance(say(400, "duplicate_request"), Unknown)


def test_the_outcome_table() -> None:
    assert outcome(CONTRACT, answer(201, {})) == Unknown("HTTP 201: no message without an id")
    for code in ("invalid_parameter", "missing_parameter", "bad_request"):
        found = say(400, code)
        assert isinstance(found, Rejected)
        assert found.ground is Ground.PAYLOAD
    for status, code in ((403, "permission_denied"), (401, "account_under_validation"), (403, "other")):
        gate = say(status, code)
        assert isinstance(gate, Rejected)
        assert gate.ground is Ground.GATE
    for status in (400, 402, 403):
        assert say(status, "not_enough_credits") == NotSent(
            f"HTTP {status}: not_enough_credits no", 900.0, limited=True
        )
    for status, code in ((401, "unauthorized"), (400, "unauthorized"), (401, "")):
        wrong = say(status, code)
        assert isinstance(wrong, NotSent)
        assert wrong.credentials
    assert isinstance(say(429, "too_many_requests"), NotSent)
    for status in (406, 409, 417, 424, 425, 500, 502, 503):
        assert isinstance(say(status, "duplicate_parameter", "idempotency"), Unknown)


# The look-up.


@pytest.mark.parametrize("tag", ["key-1", '["receipt","key-1"]', ["receipt", "key-1"]])
def test_found_by_the_tag_itself(tag: object) -> None:
    seen, asked = find(answer(200, {"events": [event("key-10", "<m0>"), event(tag)]}))

    assert seen == Found("<m1>")
    assert asked == 'https://api.brevo.com/v3/smtp/statistics/events?tags=["key-1"]'


def test_missing_only_when_no_event_is_shown() -> None:
    assert find(answer(200, {"events": []}))[0] == Missing()


@pytest.mark.parametrize(
    "found",
    [
        answer(200, {"events": [event("key-10")]}),
        answer(200, {"events": [event('["key-10"]')]}),
        answer(200, {"events": [event(None)]}),
        answer(200, {"events": [event("key-1", 7)]}),
        answer(200, {"events": ["key-1"]}),
        answer(200, {}),
        answer(200, b""),
        answer(400, {"code": "invalid_parameter", "message": "no"}),
        answer(401, {"code": "unauthorized", "message": "Key not found"}),
        answer(429, {}),
        answer(500, {"events": []}),
        NoAnswer(Phase.WRITTEN, "no answer"),
    ],
)
def test_anything_else_tells_nothing(found: Answer | NoAnswer) -> None:
    assert isinstance(find(found)[0], CannotTell)
