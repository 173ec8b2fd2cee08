"""The sandbox's own interface, and what it does with requests that are too large or never end."""

from __future__ import annotations

import hashlib
import re
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from starlette.testclient import TestClient

from workers.sandbox import log
from workers.sandbox.app import build_app
from workers.sandbox.exchange import MAX_BODY_BYTES

EMAIL = {"from": "shop@example.com", "to": ["ann@example.com"], "subject": "Hello", "text": "Hi"}


def send(client: httpx.Client, key: str) -> str:
    answer = client.post("/lettermint/v1/send", json=EMAIL, headers={"Idempotency-Key": key})
    message_id: str = answer.json()["message_id"]
    return message_id


def test_accepted(client: httpx.Client) -> None:
    """The log is in order, and says when, what, for whom and under which key."""
    ids = [send(client, f"key-{index}") for index in range(3)]
    entries = client.get("/api/accepted").json()
    assert [entry["id"] for entry in entries] == ids
    assert [entry["key"] for entry in entries] == ["key-0", "key-1", "key-2"]
    canonical = b'{"from":"shop@example.com","subject":"Hello","text":"Hi","to":["ann@example.com"]}'
    assert (
        entries[0].items()
        >= {
            "provider": "lettermint",
            "to": ["ann@example.com"],
            "subject": "Hello",
            "digest": hashlib.sha256(canonical).hexdigest(),
        }.items()
    )
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", entry["at"]) for entry in entries)


def test_parts_of_the_log(client: httpx.Client) -> None:
    """`provider` and `after` select from the log; an offset that is no number is refused."""
    for index in range(3):
        send(client, f"key-{index}")
    assert len(client.get("/api/accepted?provider=lettermint").json()) == 3
    assert client.get("/api/accepted?provider=nobody").json() == []
    assert [entry["key"] for entry in client.get("/api/accepted?after=2").json()] == ["key-2"]
    assert client.get("/api/accepted?after=99").json() == []
    for bad in ("-1", "x", "²"):
        assert client.get("/api/accepted", params={"after": bad}).status_code == 422


def test_requests(client: httpx.Client) -> None:
    """Every request to a provider is listed, whatever became of it; those to the sandbox itself are not."""
    message_id = send(client, "key-1")
    send(client, "key-1")
    client.get("/lettermint/nowhere")
    listed = client.get("/api/requests").json()
    assert [seen.pop("at") <= listed[-1].get("at", "9") for seen in listed] == [True] * 3
    common = {"provider": "lettermint", "fault": None}
    sent = {**common, "method": "POST", "path": "/lettermint/v1/send", "key": "key-1", "status": 202, "id": message_id}
    assert listed == [
        {**sent, "replayed": False},
        {**sent, "replayed": True},
        {
            **common,
            "method": "GET",
            "path": "/lettermint/nowhere",
            "key": None,
            "status": 404,
            "id": None,
            "replayed": False,
        },
    ]


def test_state(client: httpx.Client) -> None:
    """The counts, and a generation that changes when the log is cleared."""
    send(client, "key-1")
    send(client, "key-1")
    client.post("/api/faults", json={"fault": "drop"})
    before = client.get("/api/state").json()
    assert (before["accepted"], before["requests"]) == (1, 2)
    assert (before["replays"], [fault["fault"] for fault in before["faults"]]) == (1, ["drop"])
    client.delete("/api/accepted")
    after = client.get("/api/state").json()
    assert after["accepted"] == 0
    assert after["generation"] != before["generation"]


def test_two_sandboxes_share_nothing(client: httpx.Client) -> None:
    """An application holds all of its state."""
    send(client, "key-1")
    with TestClient(build_app()) as other:
        assert other.get("/api/accepted").json() == []
        with pytest.raises(RuntimeError, match="need the sandbox's own server"):
            other.post("/lettermint/v1/send", json=EMAIL)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/nobody/v1/send", 404),
        ("GET", "/api/accepted/none", 404),
        ("GET", "/api/accepted/", 404),
        ("POST", "/api/accepted", 405),
        ("PUT", "/api/faults", 405),
        ("POST", "/", 405),
    ],
)
def test_what_is_not_there(client: httpx.Client, method: str, path: str, status: int) -> None:
    """Every error has a message in JSON."""
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json().keys() == {"message"}


def test_a_body_at_the_limit(client: httpx.Client) -> None:
    """30 MiB are read."""
    body = b'{"text": "' + b"x" * (MAX_BODY_BYTES - 12) + b'"}'
    assert len(body) == MAX_BODY_BYTES
    assert client.post("/lettermint/v1/send", content=body).status_code == 422


def test_a_body_over_the_limit(client: httpx.Client) -> None:
    """A byte more is not, whether the length was announced or not."""

    def chunks() -> Iterator[bytes]:
        for _ in range(31):
            yield b"x" * 1024 * 1024

    for content in (b"x" * (MAX_BODY_BYTES + 1), chunks()):
        answer = client.post("/lettermint/v1/send", content=content)
        assert (answer.status_code, answer.json()) == (413, {"message": "The request body is larger than 30 MiB."})
    assert [seen["status"] for seen in client.get("/api/requests").json()] == [413, 413]
    assert client.post("/api/faults", content=b" " * 100_000).status_code == 413


def test_a_large_body_is_refused_before_it_is_read(client: httpx.Client) -> None:
    """The announced length is enough."""
    with connect(client, b"content-length: 99999999999\r\nexpect: 100-continue") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_leaves_in_the_middle(client: httpx.Client) -> None:
    """A request whose body never comes is listed, without a status; nothing is accepted."""
    with connect(client, b"content-length: 100") as connection:
        connection.sendall(b'{"from": ')
        deadline = time.monotonic() + 5
        while not client.get("/api/requests").json() and time.monotonic() < deadline:
            time.sleep(0.01)
    (seen,) = client.get("/api/requests").json()
    assert (seen["status"], seen["path"]) == (None, "/lettermint/v1/send")
    assert client.get("/api/accepted").json() == []


def connect(client: httpx.Client, header: bytes) -> socket.socket:
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=5)
    connection.sendall(
        b"POST /lettermint/v1/send HTTP/1.1\r\nhost: x\r\nx-lettermint-token: t\r\n" + header + b"\r\n\r\n"
    )
    return connection


def test_the_texts_of_old_emails_go_and_the_log_stays(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are kept up to a limit in all; an email that lost its own says so, and nothing else of it is lost."""
    monkeypatch.setattr(log, "MAX_TEXT", 5)
    ids = [send(client, f"key-{index}") for index in range(4)]
    details = [client.get(f"/api/accepted/{entry_id}").json() for entry_id in ids]
    assert [(detail["text"], detail.get("shortened")) for detail in details] == [(None, True)] * 2 + [("Hi", None)] * 2
    assert [detail["subject"] for detail in details] == ["Hello"] * 4
    assert len(client.get("/api/accepted").json()) == 4
