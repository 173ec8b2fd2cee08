"""Nuntly: the bytes that are sent, what it cannot express, and what each of its answers proves."""

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
from idem.providers.nuntly import API, CONTRACT, connect, encode, read_bulk
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
    "tags": ["receipt", "autumn"],
    "metadata": {"order": "42"},
    "attachments": [{"filename": "a.pdf", "content": "aGVsbG8=", "content_type": "application/pdf"}],
}
REPLAYED = {"idempotent_replayed": "true"}


def error(status: int, code: str, title: str = "") -> dict[str, Any]:
    return {"error": {"status": status, "code": code, "title": title}}


def test_the_payload_has_every_part_under_its_name() -> None:
    sent = json.loads(encode(Email.from_dict(FULL), "k").data)
    same = {name: value for name, value in FULL.items() if name not in {"reply_to", "tags", "metadata", "attachments"}}
    assert sent == same | {
        "replyTo": FULL["reply_to"],
        "tags": [
            {"name": "order", "value": "42"},
            {"name": "tag", "value": "receipt"},
            {"name": "tag", "value": "autumn"},
        ],
        "attachments": [{"filename": "a.pdf", "content": "aGVsbG8=", "contentType": "application/pdf"}],
    }


def test_the_bytes_never_change() -> None:
    """Spelt out: a release that encodes differently would turn the replays of its predecessor into conflicts."""
    assert encode(make_email(tags=["a"], metadata={"z": "2", "b": "1"}, reply_to=["r@example.com"]), "k").data == (
        b'{"from":"shop@example.com","replyTo":["r@example.com"],"subject":"Hello",'
        b'"tags":[{"name":"b","value":"1"},{"name":"z","value":"2"},{"name":"tag","value":"a"}],"text":"Hi",'
        b'"to":["ann@example.com"]}'
    )


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"attachments": [{"filename": "a", "content": "", "content_id": "logo"}]}, "attachments.content_id"),
        ({"tags": ["a"], "metadata": {"tag": "b"}}, "metadata.tag"),
        ({"subject": ""}, "subject"),
    ],
)
def test_what_it_cannot_express_is_refused(parts: dict[str, object], field: str) -> None:
    with pytest.raises(UnsupportedEmail) as caught:
        connect("t", CONTRACT.base_url).check(Email.from_dict(make_email().as_dict() | parts))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("status", "body", "headers", "expected"),
    [
        (201, {"data": {"id": "em_1", "status": "queued"}}, {}, Accepted("em_1")),
        (201, {"data": {"id": "em_1", "status": "queued"}}, REPLAYED, Accepted("em_1", replayed=True)),
        (201, {"data": {"id": "em_1"}}, {"idempotent_replayed": "false"}, Accepted("em_1")),
        (200, {"data": {}}, {}, Unknown),
        (200, {"data": []}, {}, Unknown),
        (409, error(409, "idempotency_key_payload_mismatch"), {}, Ground.CONFLICT),
        (409, error(409, "idempotency_key_in_progress"), {}, Unknown),
        (409, error(409, "something_new"), {}, Unknown),
        (409, b"", {}, Unknown),
        (400, error(400, "idempotency_key_invalid"), {}, Ground.PAYLOAD),
        (400, error(400, "validation_error"), {}, Ground.PAYLOAD),
        (422, error(422, "invalid"), REPLAYED, Rejected("HTTP 422: invalid", replayed=True)),
        (403, error(403, "forbidden", "The domain is not verified"), {}, Ground.GATE),
        (401, error(401, "unauthorized"), {}, NotSent("HTTP 401: unauthorized", credentials=True, burnt=True)),
        (429, error(429, "wait"), {"retry_after": "7"}, NotSent("HTTP 429: wait", 7.0, burnt=True, limited=True)),
        (429, error(429, "quota"), REPLAYED, NotSent("HTTP 429: quota", burnt=True, replayed=True)),
        (402, error(402, "quota"), REPLAYED, NotSent("HTTP 402: quota", burnt=True, replayed=True)),
        (500, error(500, "internal"), {}, Unknown),
        (500, error(500, "internal"), REPLAYED, Unknown),
    ],
)
def test_the_outcome_table(status: int, body: object, headers: dict[str, str], expected: Expected) -> None:
    """A refusal stays under its key, whatever its status; one that is marked says that nothing was ever accepted."""
    assert answers.is_as(answers.say(CONTRACT, status, body, **headers), expected)


def bulk(*emails: object) -> dict[str, Any]:
    return {"data": {"id": "blk_1", "emails": list(emails)}}


def test_a_bulk_request_is_one_effect_under_one_key() -> None:
    http = OneAnswer(
        answer(201, bulk({"id": "em_1", "status": "queued"}, {"status": "rejected", "error": "no domain"}))
    )
    provider = HttpProvider(API, "ntly_secret", CONTRACT.base_url, http)
    emails = [make_email(tags=["a"]), make_email("Second")]
    expected = Batched(Accepted("blk_1"), (Accepted("em_1"), Rejected("rejected: no domain")))
    assert provider.send_all(emails, "the-key", answers.soon()) == expected
    ((url, headers, body),) = http.asked
    assert url == "https://api.nuntly.com/emails/bulk"
    assert (headers["Idempotency-Key"], headers["Authorization"]) == ("the-key", "Bearer ntly_secret")
    assert json.loads(body) == {"emails": [json.loads(encode(email, "k").data) for email in emails]}


@pytest.mark.parametrize(
    ("found", "whole", "each"),
    [
        (
            answer(201, bulk({"id": "e1", "status": "queued"}, {"id": "e2", "status": "queued"}), **REPLAYED),
            Accepted("blk_1", replayed=True),
            (Accepted("e1", replayed=True), Accepted("e2", replayed=True)),
        ),
        (
            answer(201, bulk({"status": "rejected", "detail": "x@y.z?"}, {"id": "e", "status": "rejected"})),
            Accepted("blk_1"),
            (Rejected("rejected: <address>"), Rejected("rejected: no reason given")),
        ),
        (answer(201, bulk({"id": "e1", "status": "queued"})), Unknown, ()),
        (answer(201, bulk({"id": "e1", "status": "queued"}, {"status": "queued"})), Unknown, ()),
        (answer(201, bulk({"id": "e1", "status": "queued"}, 7)), Unknown, ()),
        (answer(201, {"data": {"id": "blk_1"}}), Unknown, ()),
        (answer(200, b"<html>"), Unknown, ()),
        (answer(409, error(409, "idempotency_key_payload_mismatch")), Ground.CONFLICT, ()),
        (answer(409, error(409, "idempotency_key_in_progress")), Unknown, ()),
        (answer(400, error(400, "validation_error")), Ground.PAYLOAD, ()),
        (answer(429, b""), NotSent, ()),
        (answer(500, b""), Unknown, ()),
        (NoAnswer(Phase.WRITTEN, "why"), Unknown("why"), ()),
        (NoAnswer(Phase.NOT_CONNECTED, "why"), NotSent("why"), ()),
    ],
)
def test_what_a_bulk_answer_proves(found: Answer | NoAnswer, whole: Expected, each: tuple[Outcome, ...]) -> None:
    batched = read_bulk(found, 2)
    assert answers.is_as(batched.whole, whole)
    assert batched.each == each


@given(st.integers(100, 599), st.binary(max_size=200), st.integers(1, 4))
def test_no_bulk_answer_is_taken_for_more_than_it_says(status: int, body: bytes, count: int) -> None:
    batched = read_bulk(Answer(status, {}, body), count)
    assert not isinstance(batched.whole, Accepted)
    assert batched.each == ()
