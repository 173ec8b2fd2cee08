"""The rules of idempotency keys: Lettermint's, and those that the shared machinery keeps for the providers to come."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from idem.providers.base import Keeps, Key, Memory, Place
from idem.providers.lettermint import CONTRACT
from workers.sandbox.app import build_app, running
from workers.sandbox.dialect import Call, Dialect, Endpoint, Mail, Refused, Reply, Taken

EMAIL = {"from": "shop@example.com", "to": ["ann@example.com"], "subject": "Hello", "text": "Hi"}
DAY = 86_400.0


class HandClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def now(self) -> float:
        return self.time

    def boot(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def send(client: httpx.Client, key: str | None, token: str = "lm_test", **changes: Any) -> httpx.Response:  # noqa: S107 - not a password
    headers = {"x-lettermint-token": token} | ({"Idempotency-Key": key} if key is not None else {})
    return client.post("/lettermint/v1/send", json={**EMAIL, **changes}, headers=headers)


def accepted(client: httpx.Client) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = client.get("/api/accepted").json()
    return entries


def test_same_key_same_body_replays(client: httpx.Client) -> None:
    """The same answer, the same id, and no second email."""
    first, second = send(client, "key-1"), send(client, "key-1")
    assert first.status_code == second.status_code == 202
    assert first.json() == second.json()
    assert first.json().keys() == {"message_id", "status"}
    assert first.json()["status"] == "pending"
    assert [entry["id"] for entry in accepted(client)] == [first.json()["message_id"]]
    assert [seen["replayed"] for seen in client.get("/api/requests").json()] == [False, True]


def test_the_body_is_compared_as_json(client: httpx.Client) -> None:
    """White space, the order of names and escapes are not part of the body; the order of recipients is."""
    headers = {"Idempotency-Key": "key-1"}
    one = '{"from": "a@b.c", "to": ["x@y.z", "\\u0078@y.z"], "subject": "\\u00e9", "text": "t"}'
    two = '{ "text":"t","subject":"é", "to":["x@y.z","x@y.z"],"from":"a@b.c" }'
    answers = [client.post("/lettermint/v1/send", content=body, headers=headers) for body in (one, two)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert len(accepted(client)) == 1
    three = one.replace('"t"', '"u"')
    assert client.post("/lettermint/v1/send", content=three, headers=headers).status_code == 422


def test_same_key_other_body_is_refused(client: httpx.Client) -> None:
    """422 with the documented words, nothing accepted, and the first body still replays."""
    first = send(client, "key-1")
    other = send(client, "key-1", subject="Other")
    assert other.status_code == 422
    assert other.json() == {
        "message": "This idempotency key has already been used on a request with a different payload. "
        "Retrying this request requires changing the idempotency key or payload."
    }
    assert send(client, "key-1").json() == first.json()
    assert len(accepted(client)) == 1


def test_without_a_key_every_request_is_an_email(client: httpx.Client) -> None:
    """No key, no memory."""
    assert len({send(client, None).json()["message_id"] for _ in range(3)}) == 3
    assert [entry["key"] for entry in accepted(client)] == [None] * 3


def test_keys_are_case_sensitive_and_of_one_token(client: httpx.Client) -> None:
    """Another case is another key, and another token has keys of its own."""
    for key, token in [("key-1", "one"), ("KEY-1", "one"), ("key-1", "two")]:
        assert send(client, key, token).status_code == 202
    assert len(accepted(client)) == 3
    assert send(client, "key-1", "one", subject="Other").status_code == 422


def test_invalid_requests_are_not_remembered(client: httpx.Client) -> None:
    """A refused body leaves its key free for the corrected one."""
    assert send(client, "key-1", to=[]).status_code == 422
    assert send(client, "key-1").status_code == 202
    assert len(accepted(client)) == 1


@pytest.mark.parametrize(("key", "status"), [("", 422), ("k", 202), ("k" * 255, 202), ("k" * 256, 422)])
def test_key_length(client: httpx.Client, key: str, status: int) -> None:
    """Keys have 1 to 255 characters."""
    answer = send(client, key)
    assert answer.status_code == status
    assert len(accepted(client)) == (status == 202)


def test_clearing_the_log_does_not_clear_the_memory(client: httpx.Client) -> None:
    """The provider still knows a key after the log was cleared."""
    first = send(client, "key-1")
    assert client.delete("/api/accepted").status_code == 204
    assert accepted(client) == []
    assert send(client, "key-1").json() == first.json()
    assert accepted(client) == []


def test_one_acceptance_for_many_at_once(client: httpx.Client) -> None:
    """However many send the same key at the same time, one email is accepted."""
    together = threading.Barrier(16)
    ids: list[str] = []

    def work() -> None:
        together.wait()
        ids.extend(send(client, f"key-{index}").json()["message_id"] for index in range(10))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 160
    assert len(set(ids)) == len(accepted(client)) == 10


def test_the_window() -> None:
    """A key is remembered for 24 hours from its first answer, replays or not; then it is new."""
    clock = HandClock()
    with running(build_app(clock)) as url, httpx.Client(base_url=url) as client:
        first = send(client, "key-1")
        clock.sleep(DAY - 1)
        assert send(client, "key-1").json() == first.json()
        assert send(client, "key-1", subject="Other").status_code == 422
        clock.sleep(1)
        second = send(client, "key-1", subject="Other")
        assert second.status_code == 202
        assert second.json() != first.json()
        assert [entry["at"] for entry in accepted(client)] == [
            "2027-01-15T08:00:00.000000+00:00",
            "2027-01-16T08:00:00.000000+00:00",
        ]


def read_bulk(call: Call) -> list[Mail | Refused] | Reply:
    """Read an invented bulk request: a list of recipients, of which some are refused."""
    if not isinstance(call.parsed, list) or not call.parsed:
        return Reply(400, {"error": "empty"})
    return [Mail(sender="a@b.c", to=(to,), subject="Bulk") if "@" in to else Refused(f"{to}?") for to in call.parsed]


def answer_bulk(results: Sequence[Taken | Refused]) -> Reply:
    return Reply(200, {"ids": [one.id if isinstance(one, Taken) else one.why for one in results]})


STRICT = Dialect(
    contract=replace(
        CONTRACT,
        name="strict",
        key=Key(
            place=Place.HEADER,
            name="X-Key",
            window_seconds=60.0,
            shortest=8,
            keeps=frozenset({Keeps.REFUSALS}),
            replay_marker=("Idempotent-Replayed", "true"),
        ),
    ),
    endpoints={"/bulk": Endpoint(read_bulk, answer_bulk)},
    account=lambda headers: headers.get("authorization"),
    refusal=lambda status, message: Reply(status, {"error": message}),
    invalid_key=Reply(400, {"error": "idempotency_key_invalid"}),
    mismatch=lambda _: Reply(409, {"error": "idempotency_key_payload_mismatch"}),
    in_progress=Reply(409, {"error": "idempotency_key_in_progress"}),
)
KEYLESS = replace(STRICT, contract=replace(STRICT.contract, name="keyless", memory=Memory.NONE, key=None))


@pytest.fixture(scope="module")
def strict() -> Iterator[httpx.Client]:
    """A sandbox of two invented providers whose rules differ from Lettermint's."""
    with (
        running(build_app(dialects=[STRICT, KEYLESS])) as url,
        httpx.Client(base_url=url, headers={"authorization": "x"}) as client,
    ):
        yield client


def bulk(client: httpx.Client, key: str, body: object, provider: str = "strict") -> httpx.Response:
    return client.post(f"/{provider}/bulk", json=body, headers={"X-Key": key})


def test_bulk_adds_one_acceptance_for_each_email(strict: httpx.Client) -> None:
    """A bulk request under one key: an acceptance an email, in order, and all of them replayed with the marker."""
    first = bulk(strict, "bulk-key", ["a@x.y", "b@x.y"])
    again = bulk(strict, "bulk-key", ["a@x.y", "b@x.y"])
    assert first.json() == again.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    entries = [entry for entry in accepted(strict) if entry["key"] == "bulk-key"]
    assert [(entry["id"], entry["to"]) for entry in entries] == [
        (first.json()["ids"][0], ["a@x.y"]),
        (first.json()["ids"][1], ["b@x.y"]),
    ]


def test_other_answers_are_the_dialects_own(strict: httpx.Client) -> None:
    """Mismatch, bad keys, bad credentials and unknown paths are answered in the provider's shape."""
    assert bulk(strict, "mismatch-key", ["a@x.y"]).status_code == 200
    mismatch = bulk(strict, "mismatch-key", ["b@x.y"])
    assert (mismatch.status_code, mismatch.json()) == (409, {"error": "idempotency_key_payload_mismatch"})
    assert bulk(strict, "short", ["a@x.y"]).json() == {"error": "idempotency_key_invalid"}
    assert strict.post("/strict/nowhere").json() == {"error": "Not Found"}
    assert httpx.post(strict.base_url.join("/strict/bulk"), json=[]).json() == {"error": "Unauthenticated."}
    strict.post("/api/faults", json={"provider": "strict", "fault": "in_progress", "times": 1})
    assert bulk(strict, "progress-key", ["a@x.y"]).json() == {"error": "idempotency_key_in_progress"}


def test_a_remembered_refusal_burns_the_key(strict: httpx.Client) -> None:
    """Where refusals are remembered, the corrected body needs another key."""
    assert bulk(strict, "burnt-key", []).status_code == 400
    assert bulk(strict, "burnt-key", []).headers["idempotent-replayed"] == "true"
    assert bulk(strict, "burnt-key", ["a@x.y"]).status_code == 409


def test_a_provider_without_keys(strict: httpx.Client) -> None:
    """It ignores the header: the same request again is a second email."""
    ids = [bulk(strict, "ignored-key", ["a@x.y"], "keyless").json()["ids"] for _ in range(2)]
    assert ids[0] != ids[1]
    entries = strict.get("/api/accepted?provider=keyless").json()
    assert [(entry["provider"], entry["key"]) for entry in entries] == [("keyless", None)] * 2
