"""Resend: the bytes that are sent, what it cannot express, and what each of its answers proves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.providers.api import HttpProvider
from idem.providers.base import Batched
from idem.providers.http import Answer, NoAnswer, Phase
from idem.providers.resend import API, CONTRACT, connect, encode, read_batch
from tests import answers
from tests.answers import Expected, OneAnswer, answer
from tests.fakes import make_email

FULL: dict[str, Any] = {
    "from": "The Shop <shop@example.com>",
    "to": ["Ann <ann@example.com>", "bo@example.com"],
    "cc": ["cc@example.com"],
    "bcc": ["bcc@example.com"],
    "reply_to": ["help@example.com", "more@example.com"],
    "subject": "Grüße 🙂",
    "text": "Hi",
    "html": "<p>Hi</p>",
    "headers": {"X-Campaign": "autumn"},
    "tags": ["receipt"],
    "metadata": {"order": "42"},
    "attachments": [
        {"filename": "a.png", "content": "aGVsbG8=", "content_type": "image/png", "content_id": "logo"},
    ],
}


def error(status: int, name: str, message: str = "") -> dict[str, Any]:
    return {"statusCode": status, "name": name, "message": message}


def test_the_payload_has_every_part_under_its_name() -> None:
    sent = json.loads(encode(Email.from_dict(FULL), "k").data)
    assert sent == {name: value for name, value in FULL.items() if name != "metadata"} | {
        "tags": [{"name": "order", "value": "42"}, {"name": "tag", "value": "receipt"}]
    }


def test_the_bytes_never_change() -> None:
    """Spelt out: a release that encodes differently would turn the replays of its predecessor into conflicts."""
    assert encode(make_email(tags=["a"], metadata={"z": "2", "b": "1"}, reply_to=["r@example.com"]), "k").data == (
        b'{"from":"shop@example.com","reply_to":["r@example.com"],"subject":"Hello",'
        b'"tags":[{"name":"b","value":"1"},{"name":"z","value":"2"},{"name":"tag","value":"a"}],"text":"Hi",'
        b'"to":["ann@example.com"]}'
    )


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"tags": ["a", "b"]}, "tags"),
        ({"tags": ["a b"]}, "tags"),
        ({"metadata": {"a b": "c"}}, "metadata.a b"),
        ({"metadata": {"a": ""}}, "metadata.a"),
        ({"metadata": {"a": "x" * 257}}, "metadata.a"),
        ({"metadata": {"tag": "ü"}}, "metadata.tag"),
        ({"tags": ["a"], "metadata": {"tag": "b"}}, "metadata.tag"),
        ({"to": [f"a{i}@example.com" for i in range(51)]}, "to"),
        ({"subject": ""}, "subject"),
    ],
)
def test_what_it_cannot_express_is_refused(parts: dict[str, object], field: str) -> None:
    with pytest.raises(UnsupportedEmail) as caught:
        connect("t", CONTRACT.base_url).check(Email.from_dict(make_email().as_dict() | parts))
    assert caught.value.field == field


def test_fifty_in_to_and_more_in_copy_are_taken() -> None:
    email = make_email(to=[f"a{i}@example.com" for i in range(50)], cc=["c@example.com"], tags=["x" * 128])
    connect("t", CONTRACT.base_url).check(email)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, {"id": "r1"}, Accepted("r1")),
        (200, {"id": ""}, Unknown),
        (200, {"data": {"id": "r1"}}, Unknown),
        (409, error(409, "invalid_idempotent_request"), Ground.CONFLICT),
        (409, error(409, "concurrent_idempotent_requests"), Unknown),
        (409, error(409, "resource_conflict"), Unknown),
        (400, error(400, "invalid_idempotency_key"), Ground.PAYLOAD),
        (400, error(400, "validation_error"), Ground.PAYLOAD),
        (422, error(422, "missing_required_field"), Ground.PAYLOAD),
        (422, error(422, "invalid_attachment"), Ground.PAYLOAD),
        (401, error(401, "missing_api_key"), NotSent("HTTP 401: missing_api_key", credentials=True)),
        (401, error(401, "restricted_api_key"), NotSent("HTTP 401: restricted_api_key", credentials=True)),
        (403, error(403, "invalid_api_key"), NotSent("HTTP 403: invalid_api_key", credentials=True)),
        (403, error(403, "validation_error", "The x.com domain is not verified"), Ground.GATE),
        (429, error(429, "rate_limit_exceeded"), NotSent("HTTP 429: rate_limit_exceeded", limited=True)),
        (429, error(429, "daily_quota_exceeded"), NotSent("HTTP 429: daily_quota_exceeded", 3_600.0, limited=True)),
        (429, error(429, "monthly_quota_exceeded"), NotSent("HTTP 429: monthly_quota_exceeded", 3_600.0, limited=True)),
        (451, error(451, "security_error"), Ground.GATE),
        (451, b"<html>", Unknown),
        (500, error(500, "application_error"), Unknown),
        (500, error(500, "internal_server_error"), Unknown),
    ],
)
def test_the_outcome_table(status: int, body: object, expected: Expected) -> None:
    assert answers.is_as(answers.say(CONTRACT, status, body), expected)


def test_what_a_quota_says_itself_counts() -> None:
    found = answers.say(CONTRACT, 429, error(429, "daily_quota_exceeded"), retry_after="60")
    assert found == NotSent("HTTP 429: daily_quota_exceeded", 60.0, limited=True)


def test_a_batch_is_one_effect_under_one_key() -> None:
    found = answer(200, {"data": [{"id": "r1"}, {"id": "r3"}], "errors": [{"index": 1, "message": "Missing `to`"}]})
    http = OneAnswer(found)
    provider = HttpProvider(API, "re_secret", CONTRACT.base_url, http)
    emails = [make_email(tags=["a"]), make_email("Second"), make_email("Third")]
    expected = Batched(Accepted(), (Accepted("r1"), Rejected("Missing `to`"), Accepted("r3")))
    assert provider.send_all(emails, "the-key", answers.soon()) == expected
    ((url, headers, body),) = http.asked
    assert url == "https://api.resend.com/emails/batch"
    assert (headers["Idempotency-Key"], headers["Authorization"]) == ("the-key", "Bearer re_secret")
    assert headers["x-batch-validation"] == "permissive"
    assert json.loads(body) == [json.loads(encode(email, "k").data) for email in emails]


def test_a_single_email_goes_without_the_header_of_a_batch() -> None:
    http = OneAnswer(answer(200, {"id": "r1"}))
    HttpProvider(API, "t", CONTRACT.base_url, http).send(make_email(), "the-key", answers.soon())
    assert "x-batch-validation" not in http.asked[0][1]


@pytest.mark.parametrize(
    ("found", "whole", "each"),
    [
        (answer(200, {"data": [{"id": "a"}, {"id": "b"}]}), Accepted(), (Accepted("a"), Accepted("b"))),
        (answer(200, {"data": [{"id": "a"}, {"id": "b"}], "errors": []}), Accepted(), (Accepted("a"), Accepted("b"))),
        (answer(200, {"data": [{"id": "a"}, {"id": "b"}], "errors": None}), Accepted(), (Accepted("a"), Accepted("b"))),
        (
            answer(200, {"data": [], "errors": [{"index": 1, "message": "x@y.z"}, {"index": 0, "message": "no"}]}),
            Accepted(),
            (Rejected("no"), Rejected("<address>")),
        ),
        (answer(200, {"data": [{"id": "a"}]}), Unknown, ()),
        (answer(200, {"data": [{"id": "a"}, {"id": ""}]}), Unknown, ()),
        (answer(200, {"data": [{"id": "a"}], "errors": [{"index": 2, "message": "no"}]}), Unknown, ()),
        (answer(200, {"data": [{"id": "a"}], "errors": [{"index": -1, "message": "no"}]}), Unknown, ()),
        (
            answer(200, {"data": [], "errors": [{"index": 0, "message": "a"}, {"index": 0, "message": "b"}]}),
            Unknown,
            (),
        ),
        (answer(200, {"data": [{"id": "a"}, "b"]}), Unknown, ()),
        (answer(200, b"<html>"), Unknown, ()),
        (answer(422, error(422, "validation_error")), Ground.PAYLOAD, ()),
        (answer(409, error(409, "invalid_idempotent_request")), Ground.CONFLICT, ()),
        (answer(409, error(409, "concurrent_idempotent_requests")), Unknown, ()),
        (answer(500, b""), Unknown, ()),
        (NoAnswer(Phase.WRITTEN, "why"), Unknown("why"), ()),
    ],
)
def test_what_a_batch_answer_proves(found: Answer | NoAnswer, whole: Expected, each: tuple[Outcome, ...]) -> None:
    batched = read_batch(found, 2)
    assert answers.is_as(batched.whole, whole)
    assert batched.each == each


@given(st.integers(100, 599), st.binary(max_size=200), st.integers(1, 4))
def test_no_batch_answer_is_taken_for_more_than_it_says(status: int, body: bytes, count: int) -> None:
    batched = read_batch(Answer(status, {}, body), count)
    assert not isinstance(batched.whole, Accepted)
    assert batched.each == ()
