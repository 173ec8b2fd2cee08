"""SendGrid: the bytes that are sent, what its answers prove, and what its activity shows."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

import pytest

from idem.clock import Deadline, SystemClock
from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.outcome import Accepted, Ground, NotSent, Rejected, Unknown
from idem.providers.api import HttpProvider
from idem.providers.base import CannotTell, Found, Missing, Sighting
from idem.providers.http import Answer, NoAnswer, Phase
from idem.providers.reading import outcome
from idem.providers.sendgrid import API, CONTRACT, connect, encode
from tests.answers import Answers, answer
from tests.fakes import make_email

FULL: dict[str, Any] = {
    "from": '"The Shop, Inc." <shop@example.com>',
    "to": ["Ann <ann@example.com>", '"Smith, \\"B\\"" <bo@example.com>'],
    "cc": ["cc@example.com"],
    "bcc": ["bcc@example.com"],
    "reply_to": ["Help <help@example.com>", "h2@example.com"],
    "subject": "Grüße 🙂",
    "text": "Hi",
    "html": "<p>Hi</p>",
    "headers": {"X-Campaign": "autumn"},
    "tags": ["receipt", "b"],
    "metadata": {"order": "42"},
    "attachments": [
        {"filename": "a.pdf", "content": "aGVsbG8=", "content_type": "application/pdf"},
        {"filename": "logo.png", "content": "aGk=", "content_type": "image/png", "content_id": "logo"},
    ],
}


def find(
    *answers: Answer | NoAnswer, key: str = "key-1", base_url: str = CONTRACT.base_url
) -> tuple[Sighting, list[str]]:
    http = Answers(*answers)
    provider = connect("t", base_url)
    provider._http = http
    seen = provider.find(key, 1_000.0, Deadline.after(SystemClock(), 1))
    return seen, [unquote(url) for url, _, _ in http.asked]


def listing(*ids: object) -> Answer:
    return answer(200, {"messages": [{"msg_id": one, "to_email": "ann@example.com"} for one in ids]})


def shown(arguments: object, msg_id: object = "x1.recvd-1.0") -> Answer:
    return answer(200, {"msg_id": msg_id, "unique_args": arguments, "events": []})


def test_every_part_has_its_name() -> None:
    assert json.loads(encode(Email.from_dict(FULL), "key-1").data) == {
        "personalizations": [
            {
                "to": [
                    {"email": "ann@example.com", "name": "Ann"},
                    {"email": "bo@example.com", "name": '"Smith, \\"B\\""'},
                ],
                "cc": [{"email": "cc@example.com"}],
                "bcc": [{"email": "bcc@example.com"}],
            }
        ],
        "from": {"email": "shop@example.com", "name": "The Shop, Inc."},
        "reply_to_list": [{"email": "help@example.com", "name": "Help"}, {"email": "h2@example.com"}],
        "subject": "Grüße 🙂",
        "content": [{"type": "text/plain", "value": "Hi"}, {"type": "text/html", "value": "<p>Hi</p>"}],
        "headers": {"X-Campaign": "autumn"},
        "categories": ["receipt", "b"],
        "custom_args": {"order": "42", "idem_key": "key-1"},
        "attachments": [
            {"filename": "a.pdf", "content": "aGVsbG8=", "type": "application/pdf", "disposition": "attachment"},
            {
                "filename": "logo.png",
                "content": "aGk=",
                "type": "image/png",
                "disposition": "inline",
                "content_id": "logo",
            },
        ],
    }


def test_the_bytes_never_change() -> None:
    assert encode(make_email(metadata={"b": "2", "a": "é"}), "key-1").data == (
        '{"content":[{"type":"text/plain","value":"Hi"}],"custom_args":{"a":"é","b":"2","idem_key":"key-1"},'
        '"from":{"email":"shop@example.com"},"personalizations":[{"to":[{"email":"ann@example.com"}]}],'
        '"subject":"Hello"}'.encode()
    )


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"subject": ""}, "subject"),
        ({"text": ""}, "text"),
        ({"html": ""}, "html"),
        ({"headers": {"X-SG-EID": "1"}}, "headers.X-SG-EID"),
        ({"cc": ["Ann@example.com"]}, "to"),
        ({"tags": ["a", "a"]}, "tags"),
        ({"tags": [str(number) for number in range(11)]}, "tags"),
        ({"metadata": {"idem_key": "x"}}, "metadata"),
        ({"metadata": {f"n{number}": "x" * 999 for number in range(10)}}, "metadata"),
    ],
)
def test_what_has_no_place_is_refused(parts: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedEmail) as caught:
        connect("t", CONTRACT.base_url).check(make_email(**parts))
    assert caught.value.field == field


def test_a_full_email_is_taken() -> None:
    connect("t", CONTRACT.base_url).check(Email.from_dict(FULL))


def test_one_request_and_an_empty_answer() -> None:
    http = Answers(answer(202, b"", x_message_id="x1"))
    provider = HttpProvider(API, "secret", CONTRACT.base_url, http)

    assert provider.send(make_email(), "key-1", Deadline.after(SystemClock(), 1)) == Accepted("x1")
    ((url, headers, _),) = http.asked
    assert url == "https://api.sendgrid.com/v3/mail/send"
    assert headers["Authorization"] == "Bearer secret"


def errors(message: str) -> dict[str, Any]:
    return {"errors": [{"message": message, "field": None, "help": None}]}


def test_the_outcome_table() -> None:
    assert outcome(CONTRACT, answer(202)) == Unknown("HTTP 202: no message without an id")
    bad = outcome(CONTRACT, answer(400, errors("The subject is required.")))
    assert bad == Rejected("HTTP 400: The subject is required.", Ground.PAYLOAD)
    assert isinstance(outcome(CONTRACT, answer(413, errors("too large"))), Rejected)
    wrong = outcome(CONTRACT, answer(401, errors("The provided authorization grant is invalid, expired, or revoked")))
    assert isinstance(wrong, NotSent)
    assert wrong.credentials
    sender = outcome(CONTRACT, answer(403, errors("The from address does not match a verified Sender Identity.")))
    assert isinstance(sender, Rejected)
    assert sender.ground is Ground.GATE
    residency = outcome(CONTRACT, answer(451, errors("Unavailable due to data residency restrictions")))
    assert isinstance(residency, Rejected)
    for words in ("You are temporarily blocked from sending emails", "Too many bad requests. Temporary block"):
        assert isinstance(outcome(CONTRACT, answer(403, errors(words))), NotSent)
    assert isinstance(outcome(CONTRACT, answer(429, errors("too many requests"))), NotSent)
    for status in (408, 409, 500, 502, 503, 504):
        assert isinstance(outcome(CONTRACT, answer(status, errors("error"))), Unknown)


# The look-up.


@pytest.mark.parametrize("arguments", ['{"order":"42","idem_key":"key-1"}', {"idem_key": "key-1"}])
def test_found_once_the_message_itself_shows_the_key(arguments: object) -> None:
    seen, asked = find(listing("x1.recvd-1.0", "x1.recvd-1.1"), shown(arguments))

    assert seen == Found("x1.recvd-1.0")
    assert asked == [
        "https://api.sendgrid.com/v3/messages?limit=10&query=(unique_args['idem_key']=\"key-1\")",
        "https://api.sendgrid.com/v3/messages/x1.recvd-1.0",
    ]


def test_missing_only_when_no_message_is_shown() -> None:
    assert find(listing())[0] == Missing()


def test_an_empty_answer_for_the_eu_proves_nothing() -> None:
    """No activity is recorded for its subusers; what is shown all the same counts."""
    base_url = "https://api.eu.sendgrid.com/v3"

    assert isinstance(find(listing(), base_url=base_url)[0], CannotTell)
    seen, _ = find(listing("x1.0"), shown({"idem_key": "key-1"}, "x1.0"), base_url=base_url)
    assert seen == Found("x1.0")


@pytest.mark.parametrize(
    "answers",
    [
        [listing("x1"), shown({"idem_key": "key-10"})],
        [listing("x1"), shown("not JSON")],
        [listing("x1"), shown(None)],
        [listing("x1"), shown({"idem_key": "key-1"}, 7)],
        [listing("x1"), answer(404, errors("resource not found"))],
        [listing("x1"), NoAnswer(Phase.WRITTEN, "no answer")],
        [listing(None)],
        [answer(200, {})],
        [answer(200, b"")],
        [answer(200, {"messages": {}})],
        [answer(403, errors("access forbidden"))],  # the add-on, or the key's scope, is missing
        [answer(404, errors("not found"))],
        [answer(400, errors("invalid query"))],
        [answer(429, errors("too many requests"))],
        [answer(500)],
        [NoAnswer(Phase.NOT_CONNECTED, "no connection")],
    ],
)
def test_anything_else_tells_nothing(answers: list[Answer | NoAnswer]) -> None:
    assert isinstance(find(*answers)[0], CannotTell)


def test_an_id_cannot_lead_elsewhere() -> None:
    """What an answer names is a part of the path, whatever it holds."""
    _, asked = find(listing("../../evil?x=1"), answer(404))
    http = Answers(listing("../../evil?x=1"), answer(404))
    HttpProvider(API, "t", CONTRACT.base_url, http).find("key-1", 0.0, Deadline.after(SystemClock(), 1))

    assert len(asked) == 2
    assert http.asked[1][0] == "https://api.sendgrid.com/v3/messages/..%2F..%2Fevil%3Fx%3D1"
