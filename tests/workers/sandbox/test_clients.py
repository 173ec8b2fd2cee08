"""The providers' own clients against the sandbox, unchanged: only the address of the API is another one."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import mailgun.client
import postmark.sync
import pytest
from brevo import Brevo
from brevo.core.api_error import ApiError
from brevo.errors import BadRequestError
from brevo.transactional_emails import (
    SendTransacEmailRequestAttachmentItem,
    SendTransacEmailRequestSender,
    SendTransacEmailRequestToItem,
)
from postmark.exceptions import InvalidAPIKeyException, ValidationException
from python_http_client.exceptions import BadRequestsError, UnauthorizedError
from sendgrid import SendGridAPIClient
from sendgrid.helpers.mail import Attachment, Category, CustomArg, Mail

from idem.providers import brevo as brevo_adapter
from idem.providers import postmark as postmark_adapter

_KEY = "0cb9ebd5-27d2-45d6-b42b-3e0ad1d8a2c5"


@pytest.fixture
def url(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")


def advance(client: httpx.Client, seconds: float) -> None:
    assert client.post("/api/clock", json={"advance": seconds}).is_success


def accepted(client: httpx.Client) -> dict[str, object]:
    """The one email that was accepted, in full."""
    (entry,) = client.get("/api/accepted").json()
    found: dict[str, object] = client.get(f"/api/accepted/{httpx.URL(entry['id'])}").json()
    return found


@pytest.fixture
def server_client(url: str) -> Iterator[Any]:
    """Postmark's client; it makes its managers when they are asked for, which no type says."""
    with postmark.sync.ServerClient("a-token", retries=0, base_url=f"{url}/postmark") as server:
        yield server


def test_postmarks_client_sends_and_searches(client: httpx.Client, server_client: Any) -> None:
    sent = server_client.outbound.send(
        {
            "sender": "Shop <shop@example.com>",
            "to": "Ann <ann@example.com>",
            "subject": "Hello",
            "text_body": "Hi",
            "tag": "receipt",
            "metadata": {"order": "42"},
            "headers": [{"name": "X-A", "value": "1"}],
        }
    )
    assert sent.success
    mail = accepted(client)
    assert (mail["id"], mail["tags"], mail["metadata"]) == (sent.message_id, ["receipt"], {"order": "42"})
    assert mail["headers"] == {"X-A": "1"}
    assert server_client.outbound.list(metadata={"order": "42"}).total == 0
    assert postmark_adapter.CONTRACT.lookup is not None
    advance(client, postmark_adapter.CONTRACT.lookup.lag_seconds)
    (found,) = server_client.outbound.list(metadata={"order": "42"}).items
    assert (found.message_id, found.metadata) == (sent.message_id, {"order": "42"})
    assert server_client.outbound.list(metadata={"order": "43"}).total == 0


def test_postmarks_client_knows_its_errors(client: httpx.Client, server_client: Any) -> None:
    empty = {"sender": "shop@example.com", "to": "ann@example.com", "subject": "x"}
    with pytest.raises(ValidationException, match="Provide either email TextBody or HtmlBody") as refused:
        server_client.outbound.send(empty)
    assert (refused.value.error_code, refused.value.http_status) == (300, 422)
    order = {"provider": "postmark", "fault": "401", "times": 1}
    assert client.post("/api/faults", json=order).is_success
    with pytest.raises(InvalidAPIKeyException):
        server_client.outbound.send({**empty, "text_body": "Hi"})


def test_sendgrids_client_sends_and_asks_for_activity(client: httpx.Client, url: str) -> None:
    mail = Mail(
        from_email=("shop@example.com", "Shop"),
        to_emails=["ann@example.com", ("bo@example.com", "Bo")],
        subject="Hello",
        plain_text_content="Hi",
        html_content="<p>Hi</p>",
    )
    mail.add_category(Category("receipt"))
    mail.add_custom_arg(CustomArg("order", "42"))
    mail.add_attachment(Attachment(base64.b64encode(b"hello").decode(), "a.pdf", "application/pdf"))
    sender: Any = SendGridAPIClient("SG.a-key", host=f"{url}/sendgrid")
    sent = sender.send(mail)

    assert sent.status_code == 202
    assert sent.body == b""
    seen = accepted(client)
    assert seen["id"] == sent.headers["X-Message-Id"]
    assert (seen["to"], seen["tags"]) == (["ann@example.com", "bo@example.com"], ["receipt"])
    assert seen["metadata"] == {"order": "42"}
    advance(client, 3_600)
    found = sender.client.messages.get(query_params={"limit": 10, "query": "(unique_args['order']=\"42\")"})
    assert len(found.to_dict["messages"]) == 2
    one = sender.client.messages._(found.to_dict["messages"][0]["msg_id"]).get()
    assert one.to_dict["unique_args"] == '{"order":"42"}'


def test_sendgrids_client_knows_its_errors(client: httpx.Client, url: str) -> None:
    with pytest.raises(BadRequestsError) as refused:
        SendGridAPIClient("SG.a-key", host=f"{url}/sendgrid").send({"personalizations": []})
    assert refused.value.to_dict["errors"][0]["field"] == "personalizations"
    with pytest.raises(UnauthorizedError):
        SendGridAPIClient("no key", host=f"{url}/sendgrid").send({})
    assert client.get("/api/accepted").json() == []


def test_mailguns_client_sends_and_asks_for_events(client: httpx.Client, url: str) -> None:
    with mailgun.client.Client(auth=("api", "a-key"), api_url=f"{url}/mailgun") as sender:
        sent = sender.messages.create(
            domain="shop.example",
            data={
                "from": "Shop <shop@example.com>",
                "to": ["ann@example.com", "bo@example.com"],
                "subject": "Hello",
                "text": "Hi",
                "o:tag": ["receipt"],
                "v:order": "42",
                "h:Reply-To": "help@example.com",
            },
            files=[("attachment", ("a.txt", b"hello"))],
        )
        assert sent.status_code == 200
        mail = accepted(client)
        assert (mail["id"], mail["to"]) == (sent.json()["id"], ["ann@example.com", "bo@example.com"])
        assert (mail["tags"], mail["metadata"], mail["reply_to"]) == (
            ["receipt"],
            {"order": "42"},
            ["help@example.com"],
        )
        advance(client, 1_800)
        asked = {"event": "accepted", "ascending": "yes", "begin": "0"}
        found = sender.events.get(domain="shop.example", filters=asked).json()["items"]
        assert [event["user-variables"] for event in found] == [{"order": "42"}] * 2
        refused = sender.messages.create(domain="shop.example", data={"from": "shop@example.com", "text": "x"})
        assert (refused.status_code, refused.json()) == (400, {"message": "to parameter is missing"})


def test_brevos_client_sends_once_under_a_key(client: httpx.Client, url: str) -> None:
    with httpx.Client() as http:
        sender = Brevo(api_key="a-key", base_url=f"{url}/brevo/v3", httpx_client=http).transactional_emails

        def send(key: str, name: str = "a.pdf") -> object:
            return sender.send_transac_email(
                sender=SendTransacEmailRequestSender(email="shop@example.com", name="Shop"),
                to=[SendTransacEmailRequestToItem(email="ann@example.com")],
                subject="Hello",
                text_content="Hi",
                headers={"idempotencyKey": key},
                tags=["receipt"],
                attachment=[SendTransacEmailRequestAttachmentItem(name=name, content="aGVsbG8=")],
            ).message_id

        first = send(_KEY)
        with pytest.raises(BadRequestError, match="duplicate_parameter"):
            send(_KEY)
        assert accepted(client)["id"] == first
        with pytest.raises(BadRequestError, match="Unsupported file format exe"):
            send(_KEY.replace("0", "1"), "a.exe")
        assert brevo_adapter.CONTRACT.lookup is not None
        advance(client, brevo_adapter.CONTRACT.lookup.lag_seconds)
        (event,) = sender.get_email_event_report(tags='["receipt"]').events or []
        assert (event.message_id, event.tag, event.event) == (first, "receipt", "requests")
    with httpx.Client() as http, pytest.raises(ApiError, match="Key not found"):
        Brevo(api_key="no key", base_url=f"{url}/brevo/v3", httpx_client=http).transactional_emails.send_transac_email()
