"""Postmark, SendGrid, Mailgun and Brevo in the sandbox, asked by their adapters: sent, shown, and found again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from idem.clock import Deadline, SystemClock
from idem.email import Email
from idem.outcome import Accepted, NotSent, Unknown
from idem.providers import brevo, mailgun, postmark, sendgrid
from idem.providers.api import HttpProvider
from idem.providers.base import CannotTell, Found, Memory, Missing
from idem.providers.http import HttpClient
from tests.fakes import make_email
from workers.sandbox.app import build_app

_BASES = {
    "postmark": "/postmark",
    "sendgrid": "/sendgrid/v3",
    "mailgun": "/mailgun/v3/shop.example",
    "brevo": "/brevo/v3",
}
_MODULES = {"postmark": postmark, "sendgrid": sendgrid, "mailgun": mailgun, "brevo": brevo}

#: What all four have a place for.
FULL: dict[str, Any] = {
    "from": '"The Shop, Inc." <shop@example.com>',
    "to": ['"Smith, Ann" <ann@example.com>', "bo@example.com"],
    "cc": ["Cleo <cc@example.com>"],
    "bcc": ["bcc@example.com"],
    "reply_to": ["Help <help@example.com>"],
    "subject": "Grüße 🙂",
    "text": "Hi\r\n",
    "html": "<p>Hi é</p>",
    "headers": {"X-Campaign": "autumn"},
    "tags": ["receipt"],
    "metadata": {"order": "42"},
    "attachments": [{"filename": 'ü "1".pdf', "content": "aGVsbG8=", "content_type": "application/pdf"}],
}


class Sandbox:
    """A running sandbox, one provider in it, and its adapter."""

    def __init__(self, name: str, url: str, http: HttpClient) -> None:
        self.name, self.url, self.http = name, url, http
        self.contract = _MODULES[name].CONTRACT
        self.adapter = self.connect("a-token")

    def connect(self, token: str) -> HttpProvider:
        return HttpProvider(_MODULES[self.name].API, token, self.url + _BASES[self.name], self.http)

    def send(self, email: Email, key: str = "key-1") -> object:
        return self.adapter.send(email, key, Deadline.after(SystemClock(), 20))

    def find(self, key: str = "key-1") -> object:
        return self.adapter.find(key, time.time() - 60, Deadline.after(SystemClock(), 20))

    def advance(self, seconds: float) -> None:
        assert httpx.post(f"{self.url}/api/clock", json={"advance": seconds}).is_success

    def wait_for_the_lag(self) -> None:
        assert self.contract.lookup is not None
        self.advance(self.contract.lookup.lag_seconds + 1)

    def accepted(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/api/accepted").json()
        return found

    def fault(self, kind: str, **more: object) -> None:
        order = {"provider": self.name, "fault": kind, "times": 1, **more}
        assert httpx.post(f"{self.url}/api/faults", json=order).status_code == 201


@pytest.fixture(scope="module")
def http() -> Iterator[HttpClient]:
    client = HttpClient()
    yield client
    client._connection()[1].close()


@pytest.fixture
def url(stage: tuple[Any, httpx.Client]) -> str:
    """A sandbox that has seen nothing yet."""
    stage[0].app = build_app(seed=1)
    return str(stage[1].base_url).rstrip("/")


@pytest.fixture(params=_MODULES)
def sandbox(request: pytest.FixtureRequest, url: str, http: HttpClient) -> Sandbox:
    return Sandbox(request.param, url, http)


def test_every_part_of_an_email_arrives(sandbox: Sandbox) -> None:
    email = Email.from_dict(FULL)
    sandbox.adapter.check(email)
    sent = sandbox.send(email)

    assert isinstance(sent, Accepted)
    (entry,) = sandbox.accepted()
    assert entry["id"] == sent.message_id
    shown = httpx.get(f"{sandbox.url}/api/accepted/{httpx.URL(entry['id'])}").json()
    assert shown["from"] in {FULL["from"], "The Shop, Inc. <shop@example.com>"}
    assert shown["to"] == ["ann@example.com", "bo@example.com"]
    assert shown["cc"] == FULL["cc"]
    assert shown["bcc"] == FULL["bcc"]
    assert shown["reply_to"] == FULL["reply_to"]
    assert (shown["subject"], shown["text"], shown["html"]) == (FULL["subject"], FULL["text"], FULL["html"])
    assert shown["headers"] == FULL["headers"]
    carried = {"tags": ["receipt", "key-1"]} if sandbox.name == "brevo" else {"tags": ["receipt"]}
    assert shown["tags"] == carried["tags"]
    assert shown["metadata"] == {"order": "42"} | ({} if sandbox.name == "brevo" else {"idem_key": "key-1"})
    (file,) = shown["attachments"]
    assert file["filename"].replace("%22", '"') == 'ü "1".pdf'
    assert file["size"] == 5
    assert file["content_type"] in {"application/pdf", None}


def test_the_same_again_is_a_second_email_or_refused(sandbox: Sandbox) -> None:
    first = sandbox.send(make_email())
    second = sandbox.send(make_email())

    assert isinstance(first, Accepted)
    if sandbox.contract.memory is Memory.REFUSES:
        assert second == Accepted(None, replayed=True)
        assert len(sandbox.accepted()) == 1
    else:
        assert isinstance(second, Accepted)
        assert not second.replayed
        assert len(sandbox.accepted()) == 2


def test_found_once_the_provider_shows_it(sandbox: Sandbox) -> None:
    """Not before its lag: until then it is missing, which is why two answers are asked for."""
    sent = sandbox.send(make_email())
    assert sandbox.find() == Missing()
    sandbox.wait_for_the_lag()
    found = sandbox.find()

    assert isinstance(sent, Accepted)
    assert isinstance(found, Found)
    assert found.message_id is not None
    assert found.message_id.startswith(str(sent.message_id))


def test_missing_whatever_else_was_sent(sandbox: Sandbox) -> None:
    sandbox.send(make_email(), "key-2")
    sandbox.send(make_email("Other"), "key-1-and-more")
    sandbox.wait_for_the_lag()

    assert sandbox.find() == Missing()


def test_an_answer_that_was_lost_is_found(sandbox: Sandbox) -> None:
    for number, kind in enumerate(("accept_then_drop", "accept_then_500")):
        sandbox.fault(kind)
        assert isinstance(sandbox.send(make_email(), f"lost-{number}"), Unknown)
    sandbox.wait_for_the_lag()

    assert isinstance(sandbox.find("lost-0"), Found)
    assert isinstance(sandbox.find("lost-1"), Found)
    assert len(sandbox.accepted()) == 2


@pytest.mark.parametrize("kind", ["401", "403", "404", "429", "500", "503", "drop"])
def test_a_look_up_that_fails_tells_nothing(sandbox: Sandbox, kind: str) -> None:
    """SendGrid's without the add-on among them: a refusal to look is not an answer."""
    sandbox.send(make_email())
    sandbox.wait_for_the_lag()
    sandbox.fault(kind, on="lookup")

    assert isinstance(sandbox.find(), CannotTell)


@pytest.mark.parametrize("kind", ["401", "429"])
def test_what_was_not_sent(sandbox: Sandbox, kind: str) -> None:
    sandbox.fault(kind, retry_after=7)
    found = sandbox.send(make_email())

    assert isinstance(found, NotSent)
    assert found.retry_after == 7
    assert found.credentials is (kind == "401")
    assert sandbox.accepted() == []


def test_a_wrong_key_is_told_so(sandbox: Sandbox) -> None:
    found = sandbox.connect("" if sandbox.name == "mailgun" else "a key").send(
        make_email(), "key-1", Deadline.after(SystemClock(), 20)
    )

    assert isinstance(found, NotSent)
    assert found.credentials


def test_mailguns_events_are_followed_over_pages(url: str, http: HttpClient) -> None:
    """One event for each recipient, 100 on a page, and what is looked for on the last one."""
    sandbox = Sandbox("mailgun", url, http)
    for key in ("key-a", "key-b"):
        sandbox.send(make_email(to=[f"user{number}@example.com" for number in range(110)]), key)
    sandbox.send(make_email())
    sandbox.wait_for_the_lag()
    found, missing = sandbox.find(), sandbox.find("key-3")
    asked = [seen["path"] for seen in httpx.get(f"{url}/api/requests").json() if seen["method"] == "GET"]

    assert isinstance(found, Found)
    assert missing == Missing()
    assert len(asked) == 3 + 4  # an empty page is the last one


def test_brevos_key_is_forgotten_after_its_window(url: str, http: HttpClient) -> None:
    sandbox = Sandbox("brevo", url, http)
    sandbox.send(make_email())
    sandbox.advance(870)
    again = sandbox.send(make_email("Another"))
    sandbox.advance(31)
    later = sandbox.send(make_email())

    assert again == Accepted(None, replayed=True)
    assert isinstance(later, Accepted)
    assert not later.replayed


def _post(sandbox: Sandbox, body: object) -> tuple[int, Any]:
    """A request of a JSON API, past its adapter."""
    headers = {"X-Postmark-Server-Token": "t", "Authorization": "Bearer t", "api-key": "t"}
    path = {"postmark": "/email", "sendgrid": "/mail/send", "brevo": "/smtp/email"}[sandbox.name]
    found = httpx.post(sandbox.url + _BASES[sandbox.name] + path, json=body, headers=headers)
    return found.status_code, found.json() if found.content else None


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("postmark", {}, "Invalid 'From' address"),
        ("postmark", {"From": "a@b.c"}, "Zero recipients specified"),
        ("postmark", {"From": "a@b.c", "To": "x"}, "Error parsing 'To'"),
        ("postmark", {"From": "a@b.c", "To": "d@e.f"}, "Provide either email TextBody or HtmlBody or both."),
        ("postmark", {"From": "a@b.c", "To": ", ".join(f"u{n}@e.f" for n in range(51))}, "Maximum of 50 recip"),
        ("postmark", {"From": "a@b.c", "To": "d@e.f", "TextBody": "x", "Metadata": {"a": 1}}, "Invalid metadata"),
        ("postmark", {"From": "a@b.c", "To": "d@e.f", "TextBody": "x", "Metadata": {"a": "", "A": ""}}, "metad"),
        ("postmark", [1], "must be a JSON object"),
        ("sendgrid", {}, "You must have at least one personalization."),
        ("sendgrid", {"personalizations": [{}]}, "The from email does not contain a valid address."),
        ("sendgrid", [], "Bad Request"),
        ("brevo", {}, "sender is missing"),
        ("brevo", {"sender": {"email": "a@b.c"}}, "subject is missing"),
        ("brevo", {"sender": {"email": "a@b.c"}, "subject": "x", "textContent": "x"}, "to is missing"),
    ],
)
def test_refusals_in_their_own_words(url: str, http: HttpClient, name: str, body: object, words: str) -> None:
    found, said = _post(Sandbox(name, url, http), body)

    assert found == (422 if name == "postmark" else 400)
    assert words in json.dumps(said)


_PERSON = {"personalizations": [{"to": [{"email": "a@b.c"}]}], "from": {"email": "a@b.c"}, "subject": "x"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "The content parameter is required."),
        ({"content": [{"type": "text/plain", "value": ""}]}, "at least one character in length"),
        ({"content": [{"type": t, "value": "x"} for t in ("text/html", "text/plain")]}, "text/plain first"),
        ({"headers": {"X-SG-ID": "1"}}, "reserved: x-sg-id"),
        ({"categories": ["a", "a"]}, "must be unique"),
        ({"categories": [str(n) for n in range(11)]}, "more than 10 categories"),
        ({"custom_args": {"a": 1}}, "values are strings"),
        ({"custom_args": {"a": "x" * 10_000}}, "smaller than 10,000 bytes"),
        ({"subject": ""}, "The subject is required"),
        ({"attachments": [{"filename": "a", "content": "?"}]}, "must be base64 encoded"),
        ({"personalizations": [{"to": [{"email": "a@b.c"}], "cc": [{"email": "A@b.c"}]}]}, "only be included once"),
        ({"personalizations": [{"to": [{"email": f"u{n}@b.c"} for n in range(1_001)]}]}, "limit of 1000 total"),
    ],
)
def test_what_sendgrid_refuses(url: str, http: HttpClient, more: dict[str, Any], words: str) -> None:
    content = {} if not more else {"content": [{"type": "text/plain", "value": "x"}]}
    found, said = _post(Sandbox("sendgrid", url, http), {**_PERSON, **content, **more})

    assert found == 400
    assert words in said["errors"][0]["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"to": "d@e.f"}, "from parameter is missing"),
        ({"from": "a@b.c"}, "to parameter is missing"),
        ({"from": "a@b.c", "to": "x"}, "to parameter is not a valid address. please check documentation"),
        ({"from": "a@b.c", "to": "d@e.f"}, "Need at least one of"),
        ({"from": "a@b.c", "to": "d@e.f", "text": "x", "v:a": "x" * 16_000}, "16 KB"),
        ({"from": "a@b.c", "to": "d@e.f", "text": "x", "o:tag": "é"}, "o:tag parameter is invalid"),
    ],
)
def test_what_mailgun_refuses(client: httpx.Client, fields: dict[str, str], words: str) -> None:
    found = client.post("/mailgun/v3/shop.example/messages", data=fields, auth=("api", "key"))

    assert (found.status_code, words in found.json()["message"]) == (400, True)


def test_mailgun_takes_a_form_of_either_kind(client: httpx.Client) -> None:
    fields = {"from": "a@b.c", "to": ["d@e.f", "g@h.i, j@k.l"], "text": "x"}
    plain = client.post("/mailgun/v3/shop.example/messages", data=fields, auth=("api", "key"))
    parts = client.post(
        "/mailgun/v3/shop.example/messages", data=fields, files={"attachment": ("a.txt", b"hi")}, auth=("api", "key")
    )
    neither = client.post("/mailgun/v3/shop.example/messages", json=fields, auth=("api", "key"))

    assert (plain.status_code, parts.status_code, neither.status_code) == (200, 200, 415)
    assert plain.json()["message"] == "Queued. Thank you."
    assert client.get("/api/accepted").json()[0]["to"] == ["d@e.f", "g@h.i", "j@k.l"]


def test_brevo_takes_only_a_uuid_for_a_key(client: httpx.Client) -> None:
    body = {"sender": {"email": "a@b.c"}, "to": [{"email": "d@e.f"}], "subject": "x", "textContent": "x"}
    found = client.post(
        "/brevo/v3/smtp/email", json={**body, "headers": {"idempotencyKey": "x"}}, headers={"api-key": "k"}
    )

    assert (found.status_code, found.json()["code"]) == (400, "invalid_parameter")
