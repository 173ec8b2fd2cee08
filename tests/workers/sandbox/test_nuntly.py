"""Nuntly's API in the sandbox: what it takes and what it refuses; its guide's examples are in tests/seeds."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

EMAIL: dict[str, Any] = {"from": "shop@example.com", "to": "ann@example.com", "subject": "Hello", "text": "Hi"}
FULL = {
    **EMAIL,
    "from": "The Shop <shop@example.com>",
    "to": ["Ann <ann@example.com>", "bo@example.com"],
    "cc": "cc@example.com",
    "bcc": ["bcc@example.com"],
    "replyTo": "Help <help@example.com>",
    "html": "<p>Hi</p>",
    "headers": {"X-Campaign": "autumn"},
    "tags": [{"name": "category", "value": "transactional, ü"}],
    "attachments": [{"filename": "a.pdf", "content": "aGVsbG8=", "contentType": "application/pdf"}],
}


def post(client: httpx.Client, path: str, body: Any) -> httpx.Response:
    return client.post(f"/nuntly{path}", json=body, headers={"Authorization": "Bearer ntly_test"})


def test_a_full_email_can_be_looked_up(client: httpx.Client) -> None:
    """Every part of an email is in the inbox."""
    answer = post(client, "/emails", FULL)
    assert answer.status_code == 201
    assert answer.json()["data"]["id"].startswith("em_")
    shown = client.get(f"/api/accepted/{answer.json()['data']['id']}").json()
    assert (
        shown.items()
        >= {
            "from": "The Shop <shop@example.com>",
            "to": ["ann@example.com", "bo@example.com"],
            "cc": ["cc@example.com"],
            "bcc": ["bcc@example.com"],
            "reply_to": ["Help <help@example.com>"],
            "headers": {"X-Campaign": "autumn"},
            "tags": ["category=transactional, ü"],
            "attachments": [{"filename": "a.pdf", "content_type": "application/pdf", "size": 5}],
        }.items()
    )


@pytest.mark.parametrize(
    ("body", "status", "title"),
    [
        (EMAIL | {"from": None}, 400, "from is required"),
        (EMAIL | {"to": "nobody"}, 400, "to.0 must be a valid email address"),
        (EMAIL | {"tags": [{"name": "", "value": "x"}]}, 400, "tags.0 format is invalid"),
        (EMAIL | {"from": "a@unverified.test"}, 403, "The domain is not verified"),
        ([], 400, "from is required"),
    ],
)
def test_invalid_emails(client: httpx.Client, body: Any, status: int, title: str) -> None:
    """The error in its documented shape, and nothing accepted."""
    answer = post(client, "/emails", body)
    assert answer.status_code == status
    assert answer.json()["error"].items() >= {"status": status, "title": title}.items()
    assert client.get("/api/accepted").json() == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"emails": []},
        {"emails": [EMAIL] * 21},
        {"emails": [7]},
        {"emails": [EMAIL], "fallback": []},
        {"emails": [EMAIL, EMAIL | {"to": None}]},
        {"emails": [FULL]},
    ],
)
def test_what_is_no_bulk_request(client: httpx.Client, body: Any) -> None:
    """It is refused as a whole, and nothing is accepted."""
    answer = post(client, "/emails/bulk", body)
    assert answer.status_code == 400
    assert client.get("/api/accepted").json() == []


def test_what_an_email_says_itself_beats_the_fallback(client: httpx.Client) -> None:
    body = {"fallback": EMAIL, "emails": [{}, {"subject": "Other"}, {"from": "a@unverified.test"}]}
    answer = post(client, "/emails/bulk", body)
    accepted = client.get("/api/accepted").json()
    assert [entry["subject"] for entry in accepted] == ["Hello", "Other"]
    assert answer.json()["data"]["emails"] == [
        {"id": accepted[0]["id"], "status": "queued"},
        {"id": accepted[1]["id"], "status": "queued"},
        {"status": "rejected", "error": "The domain is not verified"},
    ]


def test_without_a_token(client: httpx.Client) -> None:
    answer = client.post("/nuntly/emails", json=EMAIL)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
