"""Events that the sandbox posts: signed as each provider signs, verified by its SDK or by its page's recipe."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import httpx
import lettermint
import pytest

from workers.sandbox.dialect import Mail
from workers.sandbox.webhooks import SCHEMES, Event, Posting

EMAIL = {
    "from": "shop@example.com",
    "to": ["ann@example.com", "bo@example.com"],
    "subject": "Hello",
    "text": "Hi",
    "metadata": {"idem_key": "derived"},
    "tags": [{"name": "idem_key", "value": "derived"}],
}
SECRET = "whsec_" + base64.b64encode(b"a secret of twenty-four!").decode()
Told = tuple[dict[str, str], bytes]


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[str, Queue[Told]]]:
    """A URL, and what is posted to it."""
    told: Queue[Told] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told.put(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/hook", told
        server.shutdown()
        thread.join()


def posted(provider: str, event: Event, secret: str = SECRET) -> tuple[Mapping[str, str], bytes, Any]:
    mail = Mail(
        sender="shop@example.com",
        to=("ann@example.com",),
        subject="Hello",
        tags=("receipt", "idem_key=derived"),
        metadata={"idem_key": "derived"},
        headers={"X-Key": "derived"},
    )
    scheme = SCHEMES[provider]
    posting = Posting(
        event=event,
        name=scheme.names[event],
        id="evt_1",
        message_id="<id-1>",
        recipient="ann@example.com",
        mail=mail,
        at=1_800_000_000.25,
        secret=secret,
    )
    headers, body = scheme.write(posting)
    return {name.lower(): value for name, value in headers.items()}, body, json.loads(body)


def digest(secret: bytes, content: bytes) -> str:
    return hmac.new(secret, content, hashlib.sha256).hexdigest()


def test_what_was_accepted_is_told(client: httpx.Client, receiver: tuple[str, Queue[Told]]) -> None:
    """Every event of every recipient in order, and again where copies are ordered; the SDK verifies the signature."""
    url, told = receiver
    order = {
        "provider": "lettermint",
        "url": url,
        "secret": SECRET,
        "events": ["accepted", "delivered"],
        "times": 1,
        "copies": 2,
        "delay_ms": 1,
    }
    answer = client.post("/api/webhooks", json=order)
    assert answer.status_code == 201
    assert answer.json() == {name: value for name, value in order.items() if name != "secret"}
    sent = client.post("/lettermint/v1/send", json=EMAIL).json()["message_id"]
    events = [
        lettermint.Webhook(SECRET).verify(body, headers) for headers, body in (told.get(timeout=10) for _ in range(8))
    ]
    assert [event["event"] for event in events] == ["message.created"] * 4 + ["message.delivered"] * 4
    assert [event["data"]["recipient"] for event in events[:4]] == ["ann@example.com"] * 2 + ["bo@example.com"] * 2
    assert {event["data"]["message_id"] for event in events} == {sent}
    assert events[0]["data"]["metadata"] == {"idem_key": "derived"}
    assert events[0]["data"]["tags"] == [{"name": "idem_key", "value": "derived"}]
    assert events[0] == events[1]
    assert len({event["id"] for event in events}) == 4
    assert client.get("/api/webhooks").json() == []


def test_the_orders_and_the_events_are_listed(client: httpx.Client, receiver: tuple[str, Queue[Told]]) -> None:
    """Until they are cleared; an order without an end keeps on, and an event that nobody answers has no status."""
    url, told = receiver
    for to in (url, "http://127.0.0.1:1/"):
        client.post("/api/webhooks", json={"provider": "lettermint", "url": to})
    client.post("/lettermint/v1/send", json=EMAIL | {"to": ["ann@example.com"]})
    told.get(timeout=10)
    assert [order["times"] for order in client.get("/api/webhooks").json()] == [None, None]
    assert client.delete("/api/webhooks").status_code == 204
    assert client.get("/api/webhooks").json() == []
    for _ in range(500):
        events = client.get("/api/events").json()
        if {event["status"] for event in events} == {None, 204}:
            break
    assert {event["status"] for event in events} == {None, 204}
    assert {(event["event"], event["recipient"]) for event in events} == {("message.delivered", "ann@example.com")}


@pytest.mark.parametrize("event", Event)
def test_lettermint(event: Event) -> None:
    """The secret is used as it is, `whsec_` included; the delivery header is the signed instant."""
    headers, body, _ = posted("lettermint", event)
    assert headers["x-lettermint-signature"] == ("t=1800000000,v1=" + digest(SECRET.encode(), b"1800000000." + body))
    assert headers["x-lettermint-delivery"] == "1800000000"


def test_getmailer() -> None:
    """Over the body alone."""
    headers, body, event = posted("getmailer", Event.BOUNCED)
    assert headers["x-getmailer-signature"] == "sha256=" + digest(SECRET.encode(), body)
    assert (event["id"], event["type"], event["data"]["tags"][1]) == ("evt_1", "email.bounced", "idem_key=derived")


def test_nuntly() -> None:
    """The rest of the secret after `whsec_`, as text; seconds in the signature, milliseconds in the other header."""
    headers, body, event = posted("nuntly", Event.COMPLAINED)
    key = SECRET.removeprefix("whsec_").encode()
    assert headers["webhook-signature"] == "t=1800000000,v0=" + digest(key, b"1800000000." + body)
    assert headers["webhook-timestamp"] == "1800000000250"
    assert (event["type"], event["data"]["headers"]) == ("email.complained", {"X-Key": "derived"})


def test_resend() -> None:
    """Svix: the rest of the secret after `whsec_`, from base64; id, instant and body are covered."""
    headers, body, event = posted("resend", Event.DELIVERED)
    digested = hmac.new(b"a secret of twenty-four!", b"evt_1.1800000000." + body, hashlib.sha256).digest()
    assert headers["svix-signature"] == "v1," + base64.b64encode(digested).decode()
    assert (headers["svix-id"], headers["svix-timestamp"]) == ("evt_1", "1800000000")
    assert (event["type"], event["data"]["email_id"]) == ("email.delivered", "<id-1>")


def test_postmark() -> None:
    """Basic authentication, and a record for each kind of event."""
    headers, _, event = posted("postmark", Event.DELIVERED, "user:password")
    assert headers["authorization"] == "Basic dXNlcjpwYXNzd29yZA=="
    assert event.items() >= {"RecordType": "Delivery", "Recipient": "ann@example.com", "MessageID": "<id-1>"}.items()
    assert event["Metadata"] == {"idem_key": "derived"}
    bounced = posted("postmark", Event.BOUNCED)[2]
    assert bounced.items() >= {"RecordType": "Bounce", "Email": "ann@example.com", "Type": "HardBounce"}.items()
    assert posted("postmark", Event.COMPLAINED)[2]["Type"] == "SpamComplaint"


def test_sendgrid() -> None:
    """A list, unsigned where no key is given, with the custom arguments among the fields."""
    headers, _, (event,) = posted("sendgrid", Event.BOUNCED, "")
    assert headers == {"content-type": "application/json"}
    assert event.items() >= {"event": "bounce", "idem_key": "derived", "email": "ann@example.com"}.items()


def test_mailgun() -> None:
    """The signature is in the body, and says nothing of the rest of it."""
    _, _, event = posted("mailgun", Event.BOUNCED)
    signature = event["signature"]
    assert signature["signature"] == digest(SECRET.encode(), (signature["timestamp"] + signature["token"]).encode())
    assert len(signature["token"]) == 50
    data = event["event-data"]
    assert (data["event"], data["severity"], data["message"]["headers"]["message-id"]) == (
        "failed",
        "permanent",
        "id-1",
    )
    assert data["user-variables"] == {"idem_key": "derived"}


def test_brevo() -> None:
    """A token, where one is set; the tags bring the key back."""
    headers, _, event = posted("brevo", Event.ACCEPTED)
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert (event["event"], event["tags"]) == ("request", ["receipt", "idem_key=derived"])


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([], "an order of events is a JSON object"),
        ({"url": "http://x/"}, "provider is missing"),
        ({"provider": "lettermint"}, "url is missing"),
        ({"provider": "nobody", "url": "http://x/"}, "no events of provider 'nobody'; known: "),
        ({"provider": 1, "url": "http://x/"}, "no events of provider 1"),
        ({"provider": "lettermint", "url": "ftp://x/"}, "url must be an http or https URL"),
        ({"provider": "lettermint", "url": 5}, "url must be a text"),
        ({"provider": "lettermint", "url": "http://x:y/"}, "url must be an http or https URL"),
        ({"provider": "lettermint", "url": "http://x/", "events": ["opened"]}, "events is a list of accepted, "),
        ({"provider": "lettermint", "url": "http://x/", "events": []}, "events is a list of accepted, "),
        ({"provider": "lettermint", "url": "http://x/", "times": 0}, "times is 0: it must be a whole number"),
        ({"provider": "lettermint", "url": "http://x/", "delay_ms": -1}, "delay_ms is -1: it must be a number"),
        ({"provider": "ses", "url": "http://x/", "secret": "x"}, "the secret is the Base64 of a private key of RSA"),
        (
            {"provider": "sendgrid", "url": "http://x/", "secret": "x"},
            "the secret is the Base64 of a private key of EC",
        ),
        ({"provider": "lettermint", "url": "http://x/", "often": 1}, "unknown field 'often'; known: provider, url"),
    ],
)
def test_orders_that_cannot_be(client: httpx.Client, order: object, message: str) -> None:
    """They are refused with one message that says why."""
    answer = client.post("/api/webhooks", json=order)
    assert answer.status_code == 422
    assert message in answer.json()["message"]
    assert client.get("/api/webhooks").json() == []
