"""GetMailer's API in the sandbox: what it takes and what it refuses; its page's examples are in tests/seeds."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

EMAIL: dict[str, Any] = {"from": "shop@example.com", "to": "ann@example.com", "subject": "Hello", "text": "Hi"}
FULL = {
    **EMAIL,
    "to": ["ann@example.com", "bo@example.com"],
    "cc": ["cc@example.com"],
    "bcc": ["bcc@example.com"],
    "replyTo": "help@example.com",
    "html": "<p>Hi</p>",
    "headers": {"X-Campaign": "autumn"},
    "tags": ["welcome", "onboarding"],
}


def post(client: httpx.Client, body: Any) -> httpx.Response:
    return client.post("/getmailer/api/emails", json=body, headers={"Authorization": "Bearer gm_test"})


def test_a_full_email_can_be_looked_up(client: httpx.Client) -> None:
    """Every part of an email is in the inbox, and the answer is the email."""
    answer = post(client, FULL)
    assert (answer.status_code, answer.json()["tags"]) == (200, ["welcome", "onboarding"])
    shown = client.get(f"/api/accepted/{answer.json()['id']}").json()
    assert (
        shown.items()
        >= {
            "to": ["ann@example.com", "bo@example.com"],
            "cc": ["cc@example.com"],
            "bcc": ["bcc@example.com"],
            "reply_to": ["help@example.com"],
            "headers": {"X-Campaign": "autumn"},
            "tags": ["welcome", "onboarding"],
        }.items()
    )


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (EMAIL | {"from": None}, 400, "from is required"),
        (EMAIL | {"text": None}, 400, "html or text is required"),
        (EMAIL | {"replyTo": ["a@b.c"]}, 400, "replyTo must be a string"),
        (EMAIL | {"tags": ["t"] * 11}, 400, "tags must be at most 10 strings"),
        (EMAIL | {"from": "a@unverified.test"}, 403, "Domain not verified"),
        ([], 400, "The request body must be a JSON object"),
    ],
)
def test_invalid_emails(client: httpx.Client, body: Any, status: int, message: str) -> None:
    answer = post(client, body)
    assert (answer.status_code, answer.json()) == (status, {"error": message})
    assert client.get("/api/accepted").json() == []


def test_without_a_token(client: httpx.Client) -> None:
    assert client.post("/getmailer/api/emails", json=EMAIL).status_code == 401


def test_there_is_no_answer_for_a_request_that_is_running(client: httpx.Client) -> None:
    """Nothing documents one, so a fault that orders it does not strike."""
    client.post("/api/faults", json={"fault": "in_progress", "times": 1})
    assert post(client, EMAIL).status_code == 200
