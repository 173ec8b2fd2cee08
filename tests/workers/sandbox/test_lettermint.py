"""Lettermint's API in the sandbox: what it takes, what it refuses, and its official SDK against it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import lettermint
import pytest

from workers.sandbox.lettermint import DIALECT

EMAIL: dict[str, Any] = {"from": "shop@example.com", "to": ["ann@example.com"], "subject": "Hello", "text": "Hi"}
FULL = {
    **EMAIL,
    "from": "The Shop <shop@example.com>",
    "to": ["Ann <ann@example.com>", "bo@example.com", '"Smith, C" <c@example.com>'],
    "cc": ["cc@example.com"],
    "bcc": ["bcc@example.com"],
    "reply_to": ["Help <help@example.com>"],
    "html": "<p>Hi</p>",
    "headers": {"X-Campaign": "autumn"},
    "metadata": {"order": "42"},
    "tag": "receipt",
    "tags": [{"name": "shop", "value": "nl-1"}],
    "attachments": [{"filename": "a.pdf", "content": "aGVsbG8=", "content_type": "application/pdf"}],
    "settings": {"track_opens": False},
    "route": "outgoing",
}


def send(client: httpx.Client, email: object) -> httpx.Response:
    return client.post("/lettermint/v1/send", json=email)


def test_a_full_email_can_be_looked_up(client: httpx.Client) -> None:
    """Every part of an email is in the inbox; the log has bare addresses."""
    answer = send(client, FULL)
    assert answer.status_code == 202
    (entry,) = client.get("/api/accepted").json()
    assert entry.keys() == {"provider", "id", "key", "to", "subject", "digest", "at"}
    assert entry["to"] == ["ann@example.com", "bo@example.com", "c@example.com"]
    assert client.get(f"/api/accepted/{entry['id']}").json() == {
        **entry,
        "from": "The Shop <shop@example.com>",
        "cc": ["cc@example.com"],
        "bcc": ["bcc@example.com"],
        "reply_to": ["Help <help@example.com>"],
        "text": "Hi",
        "html": "<p>Hi</p>",
        "headers": {"X-Campaign": "autumn"},
        "metadata": {"order": "42"},
        "tags": ["receipt", "shop=nl-1"],
        "attachments": [{"filename": "a.pdf", "content_type": "application/pdf", "size": 5}],
    }


@pytest.mark.parametrize(
    ("changes", "errors"),
    [
        ({"from": None}, {"from": ["The from field is required."]}),
        ({"from": "nobody"}, {"from": ["The from field must be a valid email address."]}),
        ({"from": "a@b.c, d@e.f"}, {"from": ["The from field must be a valid email address."]}),
        ({"from": ["a@b.c"]}, {"from": ["The from field must be a string."]}),
        ({"to": None}, {"to": ["The to field is required."]}),
        ({"to": []}, {"to": ["The to field is required."]}),
        ({"to": "ann@example.com"}, {"to": ["The to field must be an array."]}),
        ({"to": ["a@b.c", "x", 7]}, {f"to.{i}": [f"The to.{i} field must be a valid email address."] for i in (1, 2)}),
        ({"to": ["a@b.c\r\nBcc: x@y.z"]}, {"to.0": ["The to.0 field must be a valid email address."]}),
        ({"cc": ["<>"]}, {"cc.0": ["The cc.0 field must be a valid email address."]}),
        ({"subject": " "}, {"subject": ["The subject field is required."]}),
        ({"subject": 5}, {"subject": ["The subject field must be a string."]}),
        ({"text": 1}, {"text": ["The text field must be a string."]}),
        ({"headers": ["X: y"]}, {"headers": ["The headers field must be an object."]}),
        ({"metadata": {"n": 1}}, {"metadata.n": ["The metadata.n field must be a string."]}),
        ({"tags": [{"name": "a b", "value": "x"}]}, {"tags.0": ["The tags.0 field format is invalid."]}),
        ({"tags": ["x"]}, {"tags.0": ["The tags.0 field format is invalid."]}),
        (
            {"tag": "t", "tags": [{"name": f"n{i}", "value": "x"} for i in range(20)]},
            {"tags": ["The tags field must not have more than 20 items, the tag included."]},
        ),
        *(
            (
                {"attachments": [bad]},
                {"attachments.0": ["The attachments.0 field must have a filename and base64 content."]},
            )
            for bad in ("x", {"filename": "a"}, {"filename": "a", "content": "*"})
        ),
    ],
)
def test_invalid_emails(client: httpx.Client, changes: dict[str, Any], errors: dict[str, list[str]]) -> None:
    """422 with the message and the errors of each field, and nothing accepted."""
    answer = send(client, {**EMAIL, **changes})
    assert answer.status_code == 422
    assert answer.json()["errors"] == errors
    first, more = next(iter(errors.values()))[0], len(errors) - 1
    assert answer.json()["message"] == first + (f" (and {more} more error)" if more else "")
    assert client.get("/api/accepted").json() == []


@pytest.mark.parametrize("changes", [{"headers": []}, {"metadata": None}, {"cc": None}, {"text": None, "html": "<p>"}])
def test_absent_in_other_words(client: httpx.Client, changes: dict[str, Any]) -> None:
    """Null and empty are absent, and HTML alone is a body."""
    assert send(client, {**EMAIL, **changes}).status_code == 202


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"a": NaN}', b"[" * 5000 + b"]" * 5000])
def test_what_is_no_json_object(client: httpx.Client, body: bytes) -> None:
    """400 with a message."""
    answer = client.post("/lettermint/v1/send", content=body)
    assert answer.status_code == 400
    assert answer.json().keys() == {"message"}


@pytest.mark.parametrize("token", [None, b"", b"two words", b"tab\ttab", b"caf\xe9"])
def test_malformed_tokens(client: httpx.Client, token: bytes | None) -> None:
    """401 with a message, before anything else is looked at."""
    headers = {} if token is None else {b"x-lettermint-token": token}
    answer = httpx.post(client.base_url.join("/lettermint/v1/send"), content=b"{", headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"message": "Unauthenticated."})
    assert client.get("/api/requests").json()[-1]["status"] == 401


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    """They are answered in Lettermint's shape."""
    for path in ("/lettermint/v1/nothing", "/lettermint/send", "/lettermint/v1/send/all", "/lettermint/"):
        answer = client.post(path, json=EMAIL)
        assert (answer.status_code, answer.json()) == (404, {"message": "Not Found"})
    answer = client.get("/lettermint/v1/send")
    assert (answer.status_code, answer.json()) == (405, {"message": "Method Not Allowed"})
    assert answer.headers["allow"] == "POST"
    assert [seen["path"] for seen in client.get("/api/requests").json()][-1] == "/lettermint/v1/send"


def test_the_contract_is_the_adapters(client: httpx.Client) -> None:
    """The sandbox listens where the adapter's contract says, below its own name."""
    path = httpx.URL(DIALECT.contract.base_url).path + "/send"
    assert client.post(f"/{DIALECT.contract.name}{path}", json=EMAIL).status_code == 202


def test_the_official_sdk(client: httpx.Client) -> None:
    """The SDK works unchanged: the same key and body replay, another body is its ConflictError."""
    email: Any = {**EMAIL, "attachments": [{"filename": "a.bin", "content": b"\x00\x01"}]}
    with lettermint.Lettermint(sending_token="lm_sdk", base_url=f"{client.base_url}/lettermint/v1") as sdk:
        first = sdk.emails.send(email, idempotency_key="order-1")
        assert sdk.emails.send(email, idempotency_key="order-1") == first
        assert first["status"] == "pending"
        with pytest.raises(lettermint.ConflictError, match="different payload"):
            sdk.emails.send(email | {"subject": "Other"}, idempotency_key="order-1")
        with pytest.raises(lettermint.ValidationError) as invalid:
            sdk.emails.send(email | {"to": ["nobody"]})
        assert invalid.value.errors == {"to.0": ["The to.0 field must be a valid email address."]}
    (entry,) = client.get("/api/accepted").json()
    assert (entry["id"], entry["key"]) == (first["message_id"], "order-1")


def test_the_official_sdk_and_faults(client: httpx.Client) -> None:
    """What the SDK makes of the faults: a resend under the same key is the proof of what happened."""
    email: Any = EMAIL
    expected = {
        "accept_then_drop": lettermint.APIConnectionError,
        "accept_then_truncate": lettermint.APIConnectionError,
        "accept_then_500": lettermint.ServerError,
        "accept_then_hang": lettermint.APITimeoutError,
        "in_progress": lettermint.ConflictError,
        "401": lettermint.AuthenticationError,
        "429": lettermint.RateLimitError,
    }
    with lettermint.Lettermint(sending_token="lm_sdk", base_url=f"{client.base_url}/lettermint/v1") as sdk:
        for fault, error in expected.items():
            order = {"provider": "lettermint", "fault": fault, "times": 1, "retry_after": 3}
            assert client.post("/api/faults", content=json.dumps(order)).status_code == 201
            with pytest.raises(error) as raised:
                sdk.emails.send(email, idempotency_key=fault, timeout=0.5 if fault == "accept_then_hang" else 10)
            if isinstance(raised.value, lettermint.RateLimitError):
                assert raised.value.retry_after == 3
            sdk.emails.send(email, idempotency_key=fault)
    assert [entry["key"] for entry in client.get("/api/accepted").json()] == list(expected)


# Batches.


def test_a_batch_is_accepted_in_order(client: httpx.Client) -> None:
    """A repetition gives each email that was accepted its first result, and sends the rest."""
    batch = [{**EMAIL, "subject": f"No. {i}", "idempotency_key": f"key-{i}"} for i in range(3)]
    first = client.post("/lettermint/v1/send/batch", json=batch[:2])
    again = client.post("/lettermint/v1/send/batch", json=batch)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()[:2] == first.json()
    accepted = client.get("/api/accepted").json()
    assert [entry["subject"] for entry in accepted] == ["No. 0", "No. 1", "No. 2"]
    assert [entry["id"] for entry in accepted] == [one["message_id"] for one in again.json()]


def test_another_email_under_a_key_refuses_the_whole_batch(client: httpx.Client) -> None:
    """409, and nothing is sent; the key of a single send is another one."""
    client.post("/lettermint/v1/send", json=EMAIL, headers={"Idempotency-Key": "key-1"})
    client.post("/lettermint/v1/send/batch", json=[{**EMAIL, "idempotency_key": "key-1"}])
    batch = [{**EMAIL, "idempotency_key": "key-0"}, {**EMAIL, "subject": "Other", "idempotency_key": "key-1"}]
    answer = client.post("/lettermint/v1/send/batch", json=batch)
    assert answer.status_code == 409
    assert "different payload" in answer.json()["message"]
    assert len(client.get("/api/accepted").json()) == 2


def test_when_one_fails_those_before_it_are_listed(client: httpx.Client) -> None:
    batch = [EMAIL, EMAIL, {**EMAIL, "from": "a@unverified.test"}, EMAIL]
    answer = client.post("/lettermint/v1/send/batch", json=batch)
    accepted = client.get("/api/accepted").json()
    assert answer.status_code == 403
    assert answer.json()["error"]["details"]["accepted"] == [
        {"index": index, "message_id": entry["id"]} for index, entry in enumerate(accepted)
    ]
    assert len(accepted) == 2


@pytest.mark.parametrize(
    ("batch", "errors"),
    [
        ([EMAIL, {**EMAIL, "to": ["x"]}], ["1.to.0"]),
        ([{**EMAIL, "idempotency_key": "k"}] * 2, ["0.idempotency_key", "1.idempotency_key"]),
        ([7], ["0.from", "0.subject", "0.to"]),
    ],
)
def test_invalid_emails_in_a_batch(client: httpx.Client, batch: list[Any], errors: list[str]) -> None:
    """422 with the errors of each field of each email, and nothing accepted."""
    answer = client.post("/lettermint/v1/send/batch", json=batch)
    assert answer.status_code == 422
    assert list(answer.json()["errors"]) == errors
    assert client.get("/api/accepted").json() == []


@pytest.mark.parametrize("body", [{}, [], [EMAIL] * 501])
def test_what_is_no_batch(client: httpx.Client, body: object) -> None:
    assert client.post("/lettermint/v1/send/batch", json=body).status_code == 422


def test_a_key_in_a_batch_that_is_too_long(client: httpx.Client) -> None:
    answer = client.post("/lettermint/v1/send/batch", json=[{**EMAIL, "idempotency_key": "a" * 256}])
    assert answer.status_code == 422
    assert client.get("/api/accepted").json() == []


def test_the_official_sdk_and_a_batch(client: httpx.Client) -> None:
    """Its messages with a key each, what it makes of a conflict, and where it finds those that were accepted."""
    batch: Any = [{**EMAIL, "idempotency_key": "welcome-1"}, {**EMAIL, "idempotency_key": "welcome-2"}]
    failing: Any = [*batch, {**EMAIL, "from": "a@unverified.test"}]
    other: Any = [{**batch[0], "subject": "Other"}]
    with lettermint.Lettermint(sending_token="lm_sdk", base_url=f"{client.base_url}/lettermint/v1") as sdk:
        with pytest.raises(lettermint.PermissionDeniedError) as denied:
            sdk.emails.send_batch(failing)
        listed = denied.value.details["accepted"]
        results = sdk.emails.send_batch(batch)
        assert [one["message_id"] for one in results] == [one["message_id"] for one in listed]
        with pytest.raises(lettermint.ConflictError, match="different payload"):
            sdk.emails.send_batch(other)
    assert [entry["key"] for entry in client.get("/api/accepted").json()] == ["welcome-1", "welcome-2"]
