"""Postmark: the bytes that are sent, what its answers prove, and what its search shows."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from idem.clock import Deadline, SystemClock
from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.providers.api import HttpProvider
from idem.providers.base import CannotTell, Found, Missing, Sighting
from idem.providers.http import Answer, NoAnswer, Phase
from idem.providers.postmark import API, CONTRACT, connect, encode
from idem.providers.reading import outcome
from tests.answers import Answers, answer
from tests.fakes import make_email

FULL: dict[str, Any] = {
    "from": "The Shop <shop@example.com>",
    "to": ["Ann <ann@example.com>", '"Smith, Bo" <bo@example.com>'],
    "cc": ["cc@example.com"],
    "bcc": ["bcc@example.com", "b2@example.com"],
    "reply_to": ["help@example.com", "h2@example.com"],
    "subject": "Grüße 🙂",
    "text": "Hi",
    "html": "<p>Hi</p>",
    "headers": {"X-B": "2", "X-A": "1"},
    "tags": ["receipt"],
    "metadata": {"order": "42"},
    "attachments": [
        {"filename": "a.pdf", "content": "aGVsbG8=", "content_type": "application/pdf"},
        {"filename": "logo.png", "content": "aGk=", "content_type": "image/png", "content_id": "logo"},
    ],
}


def say(status: int, code: int | None = None, message: str = "no") -> Outcome:
    body = {"Message": message} if code is None else {"ErrorCode": code, "Message": message}
    return outcome(CONTRACT, answer(status, body))


def find(*answers: Answer | NoAnswer, key: str = "key-1") -> tuple[Sighting, Answers]:
    http = Answers(*answers)
    seen = HttpProvider(API, "t", "https://api.example", http).find(key, 1_000.0, Deadline.after(SystemClock(), 1))
    return seen, http


def message(key: str, message_id: object = "m1") -> dict[str, object]:
    return {"MessageID": message_id, "Metadata": {"idem_key": key}, "Tag": "", "Status": "Sent"}


def test_every_part_has_its_name() -> None:
    assert json.loads(encode(Email.from_dict(FULL), "key-1").data) == {
        "From": FULL["from"],
        "To": 'Ann <ann@example.com>, "Smith, Bo" <bo@example.com>',
        "Cc": "cc@example.com",
        "Bcc": "bcc@example.com, b2@example.com",
        "ReplyTo": "help@example.com, h2@example.com",
        "Subject": "Grüße 🙂",
        "TextBody": "Hi",
        "HtmlBody": "<p>Hi</p>",
        "Headers": [{"Name": "X-A", "Value": "1"}, {"Name": "X-B", "Value": "2"}],
        "Tag": "receipt",
        "Metadata": {"order": "42", "idem_key": "key-1"},
        "Attachments": [
            {"Name": "a.pdf", "Content": "aGVsbG8=", "ContentType": "application/pdf"},
            {"Name": "logo.png", "Content": "aGk=", "ContentType": "image/png", "ContentID": "cid:logo"},
        ],
    }


def test_the_bytes_never_change() -> None:
    assert encode(make_email(metadata={"b": "2", "a": "é"}), "key-1").data == (
        '{"From":"shop@example.com","Metadata":{"a":"é","b":"2","idem_key":"key-1"},"Subject":"Hello",'
        '"TextBody":"Hi","To":"ann@example.com"}'.encode()
    )


def test_one_request_with_the_token() -> None:
    http = Answers(answer(200, {"ErrorCode": 0, "Message": "OK", "MessageID": "m1"}))
    sent = HttpProvider(API, "secret", CONTRACT.base_url, http).send(
        make_email(), "key-1", Deadline.after(SystemClock(), 1)
    )

    assert sent == Accepted("m1")
    ((url, headers, _),) = http.asked
    assert url == "https://api.postmarkapp.com/email"
    assert headers["X-Postmark-Server-Token"] == "secret"
    assert headers["Accept"] == headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"tags": ["a", "b"]}, "tags"),
        ({"to": [f"u{number}@example.com" for number in range(51)]}, "to"),
        ({"metadata": {"Idem_Key": "x"}}, "metadata"),
        ({"text": ""}, "text"),
        ({"html": ""}, "html"),
        ({"text": "x" * 10_000_000}, "text"),
        ({"html": "x" * 10_000_000}, "html"),
        (
            {"attachments": [{"filename": "a.bin", "content": base64.b64encode(bytes(7_500_000)).decode()}]},
            "attachments",
        ),
    ],
)
def test_what_has_no_place_is_refused(parts: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedEmail) as caught:
        connect("t", CONTRACT.base_url).check(make_email(**parts))
    assert caught.value.field == field


def test_a_full_email_is_taken() -> None:
    connect("t", CONTRACT.base_url).check(Email.from_dict(FULL))
    connect("t", CONTRACT.base_url).check(make_email(text="x" * 9_999_000))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (answer(200, {"ErrorCode": 0, "Message": "OK", "MessageID": "m1"}), Accepted("m1")),
        (answer(200, {"Message": "Message accepted, but delivery may be delayed.", "MessageID": "m1"}), Accepted("m1")),
        (answer(200, {"ErrorCode": 0, "Message": "OK"}), Unknown("HTTP 200: 0 OK without an id")),
        (answer(200, b"<html>"), Unknown("HTTP 200: no message without an id")),
        (answer(200, {"ErrorCode": 300, "MessageID": "m1"}), Unknown("HTTP 200: 300")),
    ],
)
def test_a_success_has_an_id_and_no_error(found: Answer, expected: Outcome) -> None:
    assert outcome(CONTRACT, found) == expected


@pytest.mark.parametrize(
    ("status", "code", "words", "ground"),
    [
        (422, 300, "Invalid 'To' address: 'x'.", Ground.PAYLOAD),
        (422, 300, "Provide either email TextBody or HtmlBody or both.", Ground.PAYLOAD),
        (422, 402, "Invalid JSON", Ground.PAYLOAD),
        (422, 403, "Incompatible JSON", Ground.PAYLOAD),
        (422, 406, "You tried to send to a recipient that has been marked as inactive.", Ground.PAYLOAD),
        (422, 411, "Forbidden attachment type", Ground.PAYLOAD),
        (413, None, "Payload Too Large", Ground.PAYLOAD),
        (422, 400, "Sender Signature not found", Ground.GATE),
        (422, 401, "Sender signature not confirmed", Ground.GATE),
        (422, 412, "Account is Pending", Ground.GATE),
        (422, 413, "Account May Not Send", Ground.GATE),
    ],
)
def test_what_was_refused(status: int, code: int | None, words: str, ground: Ground) -> None:
    found = say(status, code, words)
    assert isinstance(found, Rejected)
    assert found.ground is ground


def test_what_was_not_sent() -> None:
    token = say(401, 10, "Bad or missing API token")
    assert isinstance(token, NotSent)
    assert token.credentials
    credit = say(422, 405, "Not allowed to send")
    assert credit == NotSent("HTTP 422: 405 Not allowed to send", retry_after=900.0, limited=True)
    assert isinstance(say(429, 429, "Rate Limit Exceeded"), NotSent)
    assert isinstance(say(404, None), NotSent)


@pytest.mark.parametrize(("status", "code"), [(500, None), (500, 0), (503, 100), (502, None), (408, None), (409, 409)])
def test_what_proves_nothing(status: int, code: int | None) -> None:
    """A 500 is a lost message "in most cases", and maintenance may begin behind the acceptance."""
    assert isinstance(say(status, code), Unknown)


# The look-up.


def test_found_by_the_metadata_itself() -> None:
    seen, http = find(answer(200, {"TotalCount": 2, "Messages": [message("key-10", "m0"), message("key-1")]}))

    assert seen == Found("m1")
    assert [url for url, _, _ in http.asked] == [
        "https://api.example/messages/outbound?count=50&offset=0&metadata_idem_key=key-1"
    ]


def test_missing_only_when_nothing_at_all_is_shown() -> None:
    assert find(answer(200, {"TotalCount": 0, "Messages": []}))[0] == Missing()


@pytest.mark.parametrize(
    "found",
    [
        answer(200, {"TotalCount": 1, "Messages": [message("key-10")]}),
        answer(200, {"TotalCount": 1, "Messages": [message("key-1", 7)]}),
        answer(200, {"TotalCount": 1, "Messages": [{"MessageID": "m1"}]}),
        answer(200, {"TotalCount": 1, "Messages": [{"MessageID": "m1", "Metadata": []}]}),
        answer(200, {"TotalCount": 60, "Messages": []}),
        answer(200, {"Messages": []}),
        answer(200, {"TotalCount": 0}),
        answer(200, {"TotalCount": 1, "Messages": ["m1"]}),
        answer(200, b"[]"),
        answer(200, b""),
        answer(401, {"ErrorCode": 10, "Message": "Bad or missing API token"}),
        answer(404, {"TotalCount": 0, "Messages": []}),
        answer(429, {"ErrorCode": 429, "Message": "Rate Limit Exceeded"}),
        answer(500, b""),
        NoAnswer(Phase.WRITTEN, "no answer to the request"),
    ],
)
def test_anything_else_tells_nothing(found: Answer | NoAnswer) -> None:
    assert isinstance(find(found)[0], CannotTell)
