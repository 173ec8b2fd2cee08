"""Resend's API in the sandbox: what it takes, what it refuses, and its official SDK against it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import resend
from resend.exceptions import ResendError, ValidationError
from resend.http_client_requests import RequestsClient

EMAIL: dict[str, Any] = {"from": "shop@example.com", "to": "ann@example.com", "subject": "Hello", "text": "Hi"}
FULL = {
    **EMAIL,
    "from": "The Shop <shop@example.com>",
    "to": ["Ann <ann@example.com>", "bo@example.com"],
    "cc": "cc@example.com",
    "bcc": ["bcc@example.com"],
    "reply_to": "Help <help@example.com>",
    "html": "<p>Hi</p>",
    "headers": {"X-Campaign": "autumn"},
    "tags": [{"name": "order", "value": "42"}],
    "attachments": [{"filename": "a.pdf", "content": "aGVsbG8=", "content_type": "application/pdf"}],
}


def post(client: httpx.Client, path: str, body: Any, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(f"/resend{path}", json=body, headers={"Authorization": "Bearer re_test"} | named)


def test_a_full_email_can_be_looked_up(client: httpx.Client) -> None:
    """Every part of an email is in the inbox."""
    answer = post(client, "/emails", FULL)
    assert answer.status_code == 200
    shown = client.get(f"/api/accepted/{answer.json()['id']}").json()
    assert (
        shown.items()
        >= {
            "from": "The Shop <shop@example.com>",
            "to": ["ann@example.com", "bo@example.com"],
            "cc": ["cc@example.com"],
            "bcc": ["bcc@example.com"],
            "reply_to": ["Help <help@example.com>"],
            "headers": {"X-Campaign": "autumn"},
            "tags": ["order=42"],
            "attachments": [{"filename": "a.pdf", "content_type": "application/pdf", "size": 5}],
        }.items()
    )


@pytest.mark.parametrize(
    ("changes", "status", "name", "message"),
    [
        ({"from": None}, 422, "missing_required_field", "Missing `from` field."),
        ({"to": []}, 422, "missing_required_field", "Missing `to` field."),
        ({"text": None}, 422, "missing_required_field", "Missing `html` field."),
        ({"to": "nobody"}, 422, "validation_error", "Invalid `to` field."),
        ({"to": [f"a{i}@b.c" for i in range(51)]}, 422, "validation_error", "Invalid `to` field. It must have at most"),
        ({"tags": [{"name": "a b", "value": "c"}]}, 422, "validation_error", "Invalid `tags` field."),
        ({"attachments": [{}]}, 422, "validation_error", "Invalid `attachments` field."),
        ({"from": "a@unverified.test"}, 403, "validation_error", "The unverified.test domain is not verified."),
    ],
)
def test_invalid_emails(client: httpx.Client, changes: dict[str, Any], status: int, name: str, message: str) -> None:
    """The documented name and the words for it, and nothing accepted."""
    answer = post(client, "/emails", EMAIL | changes)
    assert (answer.status_code, answer.json()["statusCode"], answer.json()["name"]) == (status, status, name)
    assert answer.json()["message"].startswith(message)
    assert client.get("/api/accepted").json() == []


@pytest.mark.parametrize("key", ["", "a" * 257])
def test_keys_that_are_refused(client: httpx.Client, key: str) -> None:
    """400 by name."""
    answer = post(client, "/emails", EMAIL, idempotency_key=key)
    assert (answer.status_code, answer.json()["name"]) == (400, "invalid_idempotency_key")
    assert post(client, "/emails", EMAIL, idempotency_key="a" * 256).status_code == 200


def test_without_a_token(client: httpx.Client) -> None:
    """401 by name."""
    answer = client.post("/resend/emails", json=EMAIL)
    assert (answer.status_code, answer.json()["name"]) == (401, "missing_api_key")


@pytest.mark.parametrize(
    ("fault", "name"), [("429", "rate_limit_exceeded"), ("500", "application_error"), ("503", "internal_server_error")]
)
def test_faults_have_documented_names(client: httpx.Client, fault: str, name: str) -> None:
    client.post("/api/faults", json={"fault": fault, "times": 1})
    assert post(client, "/emails", EMAIL).json()["name"] == name


def test_a_strict_batch_is_refused_for_one(client: httpx.Client) -> None:
    """The default: with the first email's error, and nothing accepted."""
    answer = post(client, "/emails/batch", [EMAIL, EMAIL | {"to": None}])
    assert (answer.status_code, answer.json()["name"]) == (422, "missing_required_field")
    assert client.get("/api/accepted").json() == []


def test_a_permissive_batch_takes_the_others(client: httpx.Client) -> None:
    """The ids of those that were created in their order, and the errors by index."""
    emails = [EMAIL, EMAIL | {"to": None}, FULL, EMAIL | {"subject": "Third"}]
    answer = post(client, "/emails/batch", emails, x_batch_validation="permissive", idempotency_key="k")
    again = post(client, "/emails/batch", emails, x_batch_validation="permissive", idempotency_key="k")
    assert answer.json() == again.json()
    accepted = client.get("/api/accepted").json()
    assert [one["id"] for one in answer.json()["data"]] == [entry["id"] for entry in accepted]
    assert [error["index"] for error in answer.json()["errors"]] == [1, 2]
    assert [entry["subject"] for entry in accepted] == ["Hello", "Third"]


@pytest.mark.parametrize("body", [{}, [], [EMAIL] * 101])
def test_what_is_no_batch(client: httpx.Client, body: Any) -> None:
    assert post(client, "/emails/batch", body).status_code == 422


@pytest.fixture
def sdk(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK keeps its settings in its module."""
    monkeypatch.setattr(resend, "api_url", f"{str(client.base_url).rstrip('/')}/resend")
    monkeypatch.setattr(resend, "api_key", "re_test")
    monkeypatch.setattr(resend, "default_http_client", RequestsClient(timeout=10))


def _send(email: Any, options: Any = None) -> Any:
    return resend.Emails.send(email, options)


@pytest.mark.usefixtures("sdk")
def test_the_official_sdk(client: httpx.Client) -> None:
    """It works unchanged: the same key and body replay, another body and an invalid email are its errors."""
    other, invalid = EMAIL | {"subject": "Other"}, EMAIL | {"to": ["nobody"]}
    first = _send(EMAIL, {"idempotency_key": "order-1"})
    assert _send(EMAIL, {"idempotency_key": "order-1"})["id"] == first["id"]
    with pytest.raises(ResendError, match="different request payload") as conflict:
        _send(other, {"idempotency_key": "order-1"})
    assert (conflict.value.code, conflict.value.error_type) == (409, "invalid_idempotent_request")
    with pytest.raises(ValidationError, match="Invalid `to` field"):
        _send(invalid)
    (entry,) = client.get("/api/accepted").json()
    assert (entry["id"], entry["key"]) == (first["id"], "order-1")


@pytest.mark.usefixtures("sdk")
def test_the_official_sdk_and_a_batch(client: httpx.Client) -> None:
    """Both ways of validating, and one key for all of it."""
    emails: Any = [EMAIL, EMAIL | {"to": "nobody"}]
    with pytest.raises(ValidationError):
        resend.Batch.send(emails)
    sent = resend.Batch.send(emails, {"batch_validation": "permissive", "idempotency_key": "news-1"})
    again = resend.Batch.send(emails, {"batch_validation": "permissive", "idempotency_key": "news-1"})
    assert (sent["data"], sent["errors"]) == (again["data"], again["errors"])
    assert [error["index"] for error in sent["errors"]] == [1]
    assert [entry["id"] for entry in client.get("/api/accepted").json()] == [one["id"] for one in sent["data"]]


@pytest.mark.usefixtures("sdk")
def test_the_official_sdk_and_a_request_that_is_running(client: httpx.Client) -> None:
    client.post("/api/faults", json={"fault": "in_progress", "times": 1})
    with pytest.raises(ResendError) as running:
        _send(EMAIL, {"idempotency_key": "order-1"})
    assert running.value.error_type == "concurrent_idempotent_requests"
