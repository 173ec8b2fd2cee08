"""Mailgun: the form that is sent, what its answers prove, and what its events show."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem.clock import Deadline, SystemClock
from idem.email import Attachment, Email
from idem.errors import SettingsError, UnsupportedEmail
from idem.outcome import Accepted, Ground, NotSent, Rejected, Unknown
from idem.providers.api import HttpProvider
from idem.providers.base import CannotTell, Found, Missing, Sighting
from idem.providers.http import Answer, NoAnswer, Phase
from idem.providers.mailgun import API, CONTRACT, connect, encode
from idem.providers.reading import outcome
from tests.answers import Answers, answer
from tests.fakes import make_email
from workers import wiring
from workers.sandbox.bodies import Form, Upload, read_form
from workers.settings import Settings

BASE = "https://api.mailgun.net/v3/shop.example"

FULL: dict[str, Any] = {
    "from": "The Shop <shop@example.com>",
    "to": ["Ann <ann@example.com>", '"Smith, Bo" <bo@example.com>'],
    "cc": ["cc@example.com"],
    "bcc": ["bcc@example.com"],
    "reply_to": ["help@example.com", "h2@example.com"],
    "subject": "Grüße 🙂",
    "text": "Hi\r\n--\nme",
    "html": "<p>Hi</p>",
    "headers": {"X-B": "é", "X-A": "1"},
    "tags": ["receipt", "b"],
    "metadata": {"order": "42", 'a "b" é': ""},
    "attachments": [
        {"filename": 'ü "1".pdf', "content": "AP8NCi0t", "content_type": "application/pdf"},
        {"filename": "logo.png", "content": "aGk=", "content_type": "image/png", "content_id": "logo.png"},
    ],
}


def form(email: Email, key: str = "key-1") -> Form:
    content = encode(email, key)
    return read_form({"content-type": content.type}, content.data)


def find(*answers: Answer | NoAnswer, since: float = 10_000.9) -> tuple[Sighting, list[str]]:
    http = Answers(*answers)
    seen = HttpProvider(API, "t", BASE, http).find("key-1", since, Deadline.after(SystemClock(), 1))
    return seen, [url for url, _, _ in http.asked]


def event(variables: object, **more: object) -> dict[str, object]:
    headers = {"message-id": "1@shop.example"}
    return {"event": "accepted", "user-variables": variables, "message": {"headers": headers}, **more}


def page(*events: object, following: object = f"{BASE}/events/W3siY") -> Answer:
    return answer(200, {"items": events, "paging": {"next": following, "previous": f"{BASE}/events/Lkawm"}})


EMPTY = page()


def test_every_part_has_its_name() -> None:
    assert form(Email.from_dict(FULL)) == {
        "from": [FULL["from"]],
        "to": FULL["to"],
        "cc": FULL["cc"],
        "bcc": FULL["bcc"],
        "subject": [FULL["subject"]],
        "text": [FULL["text"]],
        "html": [FULL["html"]],
        "h:Reply-To": ["help@example.com, h2@example.com"],
        "h:X-A": ["1"],
        "h:X-B": ["é"],
        "o:tag": ["receipt", "b"],
        "v:order": ["42"],
        "v:a %22b%22 é": [""],
        "v:idem_key": ["key-1"],
        "attachment": [Upload("ü %221%22.pdf", "application/pdf", b"\x00\xff\r\n--")],
        "inline": [Upload("logo.png", "image/png", b"hi")],
    }


def test_the_bytes_never_change() -> None:
    """The boundary among them: it comes from the parts."""
    content = encode(
        make_email(attachments=[{"filename": "a.txt", "content": "aGk=", "content_type": "text/plain"}]), "key-1"
    )
    boundary = content.type.removeprefix("multipart/form-data; boundary=")

    assert boundary == "47bf8afc95f8d4b28d07359cc390ba7a8901d31bc8655295"
    head = "Content-Disposition: form-data;"
    assert content.data.decode().split(boundary) == [
        "--",
        f'\r\n{head} name="from"\r\n\r\nshop@example.com\r\n--',
        f'\r\n{head} name="to"\r\n\r\nann@example.com\r\n--',
        f'\r\n{head} name="subject"\r\n\r\nHello\r\n--',
        f'\r\n{head} name="text"\r\n\r\nHi\r\n--',
        f'\r\n{head} name="v:idem_key"\r\n\r\nkey-1\r\n--',
        f'\r\n{head} name="attachment"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\nhi\r\n--',
        "--\r\n",
    ]


def test_equal_emails_have_equal_bytes_and_others_other_boundaries() -> None:
    turned = {**{name: FULL[name] for name in reversed(FULL)}, "headers": dict(reversed(FULL["headers"].items()))}
    first, again = encode(Email.from_dict(FULL), "key-1"), encode(Email.from_dict(turned), "key-1")

    assert first == again
    assert encode(Email.from_dict({**FULL, "text": "Ho"}), "key-1").type != first.type
    assert encode(Email.from_dict(FULL), "key-2").type != first.type


@given(
    content=st.binary(max_size=200), text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50)
)
def test_no_content_breaks_the_form(content: bytes, text: str) -> None:
    email = Email(
        from_="a@b.c", to="d@e.f", subject="x", text=text, attachments=[Attachment(filename="a", content=content)]
    )
    read = form(email)

    assert read["text"] == [text]
    assert read["attachment"] == [Upload("a", "application/octet-stream", content)]


def test_one_request_with_the_key_and_the_domain() -> None:
    http = Answers(answer(200, {"id": "<1@shop.example>", "message": "Queued. Thank you."}))
    provider = HttpProvider(API, "secret", BASE, http)

    assert provider.send(make_email(), "key-1", Deadline.after(SystemClock(), 1)) == Accepted("<1@shop.example>")
    ((url, headers, _),) = http.asked
    assert url == f"{BASE}/messages"
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"api:secret").decode()
    assert headers["Content-Type"] == encode(make_email(), "key-1").type


def test_the_domain_must_be_given() -> None:
    settings = Settings.load({"IDEM_PROVIDER": "mailgun", "IDEM_MAILGUN_TOKEN": "t"})
    with pytest.raises(SettingsError, match=r"IDEM_MAILGUN_BASE_URL is not set: .*/v3/\{domain\}"):
        wiring.build_provider(settings)


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"tags": ["a", "b", "c", "d"]}, "tags"),
        ({"tags": ["é"]}, "tags"),
        ({"metadata": {"idem_key": "x"}}, "metadata"),
        ({"headers": {"X-Mailgun-Variables": "{}"}}, "headers.X-Mailgun-Variables"),
        ({"metadata": {f"n{number}": "x" * 999 for number in range(16)}}, "headers"),
        ({"attachments": [{"filename": "a.png", "content": "", "content_id": "b"}]}, "attachments.content_id"),
    ],
)
def test_what_has_no_place_is_refused(parts: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedEmail) as caught:
        connect("t", BASE).check(make_email(**parts))
    assert caught.value.field == field


def test_a_full_email_is_taken() -> None:
    connect("t", BASE).check(Email.from_dict(FULL))


def test_the_outcome_table() -> None:
    assert outcome(CONTRACT, answer(200, b"Mailgun Magnificent API")) == Unknown(
        "HTTP 200: no message without an id"
    )  # what a wrong path is answered
    bad = outcome(CONTRACT, answer(400, {"message": "to parameter is not a valid address. please check documentation"}))
    assert isinstance(bad, Rejected)
    assert bad.ground is Ground.PAYLOAD
    for status, body in ((401, b"Forbidden"), (403, b"Forbidden"), (403, {"message": "Invalid API key"})):
        refused = outcome(CONTRACT, answer(status, body))
        assert isinstance(refused, NotSent)
        assert refused.credentials
    sandboxed = outcome(CONTRACT, answer(403, {"message": "Sandbox subdomains are for test purposes only."}))
    assert isinstance(sandboxed, Rejected)
    assert sandboxed.ground is Ground.GATE
    assert outcome(CONTRACT, answer(429, {"message": "slow"}, retry_after="9")) == NotSent(
        "HTTP 429: slow", 9.0, limited=True
    )
    assert isinstance(outcome(CONTRACT, answer(404, {"message": "Domain not found: shop.example"})), NotSent)
    assert isinstance(outcome(CONTRACT, answer(413, {"message": "too large"})), Rejected)


@pytest.mark.parametrize("status", [402, 408, 500, 502, 503, 504])
def test_what_proves_nothing(status: int) -> None:
    """A customer found in the logs that emails answered with a 5xx had been sent (`CONTRACT.sources`)."""
    assert isinstance(outcome(CONTRACT, answer(status, {"message": "Internal Server Error"})), Unknown)


# The look-up.


def test_found_by_the_variable_itself_with_the_id_of_the_send() -> None:
    seen, asked = find(page(event({"idem_key": "key-10"}), event({"idem_key": "key-1"})))

    assert seen == Found("<1@shop.example>")
    assert asked == [f"{BASE}/events?event=accepted&begin=9700&ascending=yes&limit=100"]


def test_found_on_the_second_page() -> None:
    seen, asked = find(page(event({})), page(event({"idem_key": "key-1"})))

    assert seen == Found("<1@shop.example>")
    assert asked[1:] == [f"{BASE}/events/W3siY"]


def test_found_without_an_id() -> None:
    assert find(page({"user-variables": {"idem_key": "key-1"}}))[0] == Found(None)


def test_missing_only_after_an_empty_page() -> None:
    foreign = page(event({"idem_key": "key-10"}), event({}), event(None), event("key-1"), {"event": "accepted"})

    assert find(EMPTY)[0] == Missing()
    assert find(foreign, EMPTY)[0] == Missing()
    assert find(foreign, answer(500))[0] == CannotTell("the look-up was answered with HTTP 500")


@pytest.mark.parametrize(
    "following",
    [
        None,
        "",
        7,
        "https://evil.example/events/x",
        f"{BASE}.evil.example/x",
        "http://api.mailgun.net/v3/shop.example/x",
    ],
)
def test_a_next_page_elsewhere_gets_no_credentials(following: object) -> None:
    seen, asked = find(page(event({}), following=following))

    assert isinstance(seen, CannotTell)
    assert len(asked) == 1


def test_a_look_up_without_an_end_ends() -> None:
    assert isinstance(find(page(event({})))[0], CannotTell)


@pytest.mark.parametrize(
    "found",
    [
        answer(200, {"items": []}),
        answer(200, {"items": {}}),
        answer(200, {"items": ["x"]}),
        answer(200, b""),
        answer(401, b"Forbidden"),
        answer(404, {"message": "Domain not found"}),
        answer(429, {"message": "slow"}),
        answer(500, {"items": []}),
        NoAnswer(Phase.RESPONDING, "the response is longer than 1,048,576 bytes"),
    ],
)
def test_anything_else_tells_nothing(found: Answer | NoAnswer) -> None:
    assert isinstance(find(found)[0], CannotTell)
