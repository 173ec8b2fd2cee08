"""GetMailer: the bytes that are sent, what it cannot express, and what each of its answers proves."""

from __future__ import annotations

import json

import pytest

from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.outcome import Accepted, Ground, NotSent, Unknown
from idem.providers.api import HttpProvider
from idem.providers.getmailer import API, CONTRACT, connect, encode
from tests import answers
from tests.answers import Expected, OneAnswer, answer
from tests.fakes import make_email

FULL = {
    "from": "The Shop <shop@example.com>",
    "to": ["Ann <ann@example.com>", "bo@example.com"],
    "cc": ["cc@example.com"],
    "bcc": ["bcc@example.com"],
    "subject": "Grüße 🙂",
    "text": "Hi",
    "html": "<p>Hi</p>",
    "headers": {"X-Campaign": "autumn"},
    "tags": ["receipt", "autumn"],
}


def test_the_payload_has_every_part_under_its_name() -> None:
    email = Email.from_dict({**FULL, "reply_to": ["help@example.com"]})
    assert json.loads(encode(email, "k").data) == {**FULL, "replyTo": "help@example.com"}


def test_the_bytes_never_change() -> None:
    """Spelt out: a release that encodes differently would turn the replays of its predecessor into conflicts."""
    assert encode(make_email(tags=["b", "a"], reply_to=["r@example.com"]), "k").data == (
        b'{"from":"shop@example.com","replyTo":"r@example.com","subject":"Hello","tags":["b","a"],"text":"Hi",'
        b'"to":["ann@example.com"]}'
    )


def test_one_request_with_the_key_and_the_token() -> None:
    http = OneAnswer(answer(200, {"id": "e1", "status": "sent"}))
    provider = HttpProvider(API, "gm_secret", CONTRACT.base_url, http)
    assert provider.send(make_email(), "the-key", answers.soon()) == Accepted("e1")
    ((url, headers, _),) = http.asked
    assert url == "https://getmailer.co/api/emails"
    assert (headers["Idempotency-Key"], headers["Authorization"]) == ("the-key", "Bearer gm_secret")


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"tags": [f"t{i}" for i in range(11)]}, "tags"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"reply_to": ["a@example.com", "b@example.com"]}, "reply_to"),
        ({"attachments": [{"filename": "a", "content": ""}]}, "attachments"),
        ({"subject": ""}, "subject"),
    ],
)
def test_what_it_cannot_express_is_refused(parts: dict[str, object], field: str) -> None:
    with pytest.raises(UnsupportedEmail) as caught:
        connect("t", CONTRACT.base_url).check(Email.from_dict(make_email().as_dict() | parts))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, {"id": "e1", "status": "sent"}, Accepted("e1")),
        (201, {"data": {"id": "e1"}}, Accepted("e1")),
        (200, {"email": {"id": "e1"}, "suppressed": []}, Accepted("e1")),
        (200, {"suppressed": ["ann@example.com"]}, Unknown),
        (200, b"<html>", Unknown),
        (409, {"error": "Idempotency key already used with a different request body"}, Ground.CONFLICT),
        (409, b"", Ground.CONFLICT),
        (409, {"error": "A request with this key is in progress"}, Unknown),
        (400, {"error": "Invalid idempotency key"}, Ground.PAYLOAD),
        (422, {"error": "to is required"}, Ground.PAYLOAD),
        (401, {"error": "Unauthorized"}, NotSent("HTTP 401: Unauthorized", credentials=True, burnt=True)),
        (403, {"error": "Domain not verified"}, Ground.GATE),
        (402, {"error": "Quota"}, NotSent("HTTP 402: Quota", burnt=True)),
        (
            429,
            {"error": "Rate limit", "retryAfter": 45},
            NotSent("HTTP 429: Rate limit", 45.0, burnt=True, limited=True),
        ),
        (429, {"error": "Rate limit", "retryAfter": "soon"}, NotSent("HTTP 429: Rate limit", burnt=True, limited=True)),
        (500, {"error": "Internal"}, Unknown),
        (503, b"", Unknown),
    ],
)
def test_the_outcome_table(status: int, body: object, expected: Expected) -> None:
    assert answers.is_as(answers.say(CONTRACT, status, body), expected)
