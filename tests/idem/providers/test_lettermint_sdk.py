"""Lettermint by its official SDK: the same bytes and outcomes as by our own adapter, less what the wire would tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import lettermint
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem.clock import Deadline, SystemClock
from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.outcome import Accepted, Ground, NotSent, Outcome, Unknown
from idem.providers.api import HttpProvider
from idem.providers.lettermint import API, encode, encode_batch
from idem.providers.lettermint_sdk import LettermintSdk
from tests.answers import BriefClient, Expected, is_as, soon
from tests.fakes import make_email
from workers.sandbox.app import build_app, running

EMAIL = make_email()
KEY = "a-key"
_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)


class Told:
    """An SDK client that is answered alike every time; `requests` are what it sent."""

    def __init__(self, status: int = 202, body: object = None, **headers: str) -> None:
        self.requests: list[httpx.Request] = []
        content = body if isinstance(body, bytes) else json.dumps(body or {"message_id": "m1"}).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        def answer(request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            return httpx.Response(status, headers=named, content=content)

        client = httpx.Client(transport=httpx.MockTransport(answer))
        self.sdk = LettermintSdk(lettermint.Lettermint(sending_token="lm_test", http_client=client))

    def send(self, email: Email = EMAIL) -> Outcome:
        return self.sdk.send(email, KEY, soon())


@given(
    _TEXT, st.dictionaries(st.from_regex(r"[a-zA-Z]{1,5}", fullmatch=True), _TEXT.filter(str.isprintable), max_size=3)
)
def test_the_bytes_are_those_of_our_adapter(text: str, metadata: dict[str, str]) -> None:
    """Or a repetition by the other would be a conflict."""
    email = make_email(text=text, metadata=metadata, tags=["b"], attachments=[{"filename": "a", "content": "AAE="}])
    told = Told()
    told.send(email)
    (request,) = told.requests
    assert request.content == encode(email, KEY).data
    assert request.headers["Idempotency-Key"] == KEY


def test_so_are_those_of_a_batch() -> None:
    emails = [(make_email(tags=["a"]), "key-1"), (make_email("Grüße"), "key-2")]
    told = Told(202, [{"message_id": "m1"}, {"message_id": "m2"}])
    assert told.sdk.send_each(emails, soon()) == (Accepted("m1"), Accepted("m2"))
    assert told.requests[0].content == encode_batch(emails).data


@pytest.mark.parametrize(
    ("status", "body", "headers", "expected"),
    [
        (202, {"message_id": "m1", "status": "pending"}, {}, Accepted("m1")),
        (202, {"id": "m1"}, {}, Unknown),
        (202, b"", {}, Unknown),
        (200, b"<html>", {}, Unknown),
        (409, {"message": "Idempotency-Key reused with a different body"}, {}, Ground.CONFLICT),
        (409, {"message": "in progress"}, {}, Unknown),
        (422, {"message": "no", "errors": {"from": ["?"]}}, {}, Ground.PAYLOAD),
        (403, {"error": {"code": "X", "message": "no"}}, {}, Ground.GATE),
        (403, b"<html>", {}, Ground.GATE),
        (401, {"message": "Unauthenticated."}, {}, NotSent("HTTP 401: Unauthenticated.", credentials=True)),
        (429, {"message": "Wait"}, {"retry_after": "17"}, NotSent("HTTP 429: Wait", 17.0, limited=True)),
        (503, {"message": "Wait"}, {"retry_after": "17"}, Unknown("HTTP 503: Wait", 17.0, limited=True)),
        (500, b"<html>", {}, Unknown),
        (302, b"", {"location": "https://example.com"}, Unknown),
        (404, {"message": "Not Found"}, {}, NotSent("HTTP 404: Not Found")),
    ],
)
def test_the_outcome_table(status: int, body: object, headers: dict[str, str], expected: Expected) -> None:
    assert is_as(Told(status, body, **headers).send(), expected)


def test_what_was_accepted_before_one_failed_is_accepted() -> None:
    listed = {"details": {"accepted": [{"index": 0, "message_id": "m0"}]}, "code": "X", "message": "no"}
    first, second = Told(403, {"error": listed}).sdk.send_each([(EMAIL, "key-1"), (EMAIL, "key-2")], soon())
    assert first == Accepted("m0")
    assert is_as(second, Ground.GATE)


def test_after_the_deadline_nothing_is_sent() -> None:
    told = Told()
    assert isinstance(told.sdk.send(EMAIL, KEY, Deadline.after(SystemClock(), 0)), NotSent)
    assert told.requests == []


@pytest.mark.parametrize("tags", [["a", "b"], ["a/b"]])
def test_what_has_no_place_is_refused(tags: list[str]) -> None:
    with pytest.raises(UnsupportedEmail):
        Told().sdk.check(make_email(tags=tags))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(build_app(seed=1)) as found:
        yield found


@pytest.fixture
def sdk(url: str) -> Iterator[LettermintSdk]:
    with lettermint.Lettermint(sending_token="any-token", base_url=f"{url}/lettermint/v1") as client:
        yield LettermintSdk(client)


def accepted(url: str, key: str) -> int:
    entries: list[Any] = httpx.get(f"{url}/api/accepted").json()
    return sum(entry["key"] == key for entry in entries)


def test_each_repeats_what_the_other_began(url: str, sdk: LettermintSdk) -> None:
    ours = HttpProvider(API, "any-token", f"{url}/lettermint/v1", BriefClient())
    assert sdk.send(EMAIL, "sdk-first", soon()) == ours.send(EMAIL, "sdk-first", soon())
    assert ours.send(EMAIL, "ours-first", soon()) == sdk.send(EMAIL, "ours-first", soon())
    emails = [(EMAIL, "in-batch")]
    assert sdk.send_each(emails, soon()) == ours.send_each(emails, soon())
    assert [accepted(url, key) for key in ("sdk-first", "ours-first", "in-batch")] == [1, 1, 1]


@pytest.mark.parametrize("fault", ["accept_then_drop", "accept_then_500", "accept_then_truncate", "drop", "500"])
def test_a_lost_answer_is_unknown_until_it_is_repeated(url: str, sdk: LettermintSdk, fault: str) -> None:
    httpx.post(f"{url}/api/faults", json={"fault": fault, "times": 1}).raise_for_status()
    assert isinstance(sdk.send(EMAIL, f"key-{fault}", soon()), Unknown)
    assert isinstance(sdk.send(EMAIL, f"key-{fault}", soon()), Accepted)
    assert accepted(url, f"key-{fault}") == 1


def test_silence_is_unknown(url: str, sdk: LettermintSdk) -> None:
    httpx.post(f"{url}/api/faults", json={"fault": "accept_then_hang", "times": 1}).raise_for_status()
    assert isinstance(sdk.send(EMAIL, "key-silence", Deadline.after(SystemClock(), 0.3)), Unknown)
    assert isinstance(sdk.send(EMAIL, "key-silence", soon()), Accepted)
    assert accepted(url, "key-silence") == 1


def test_a_refused_connection_is_unknown_too() -> None:
    """Our own adapter knows better: it is the price of the SDK, and costs a repetition."""
    with lettermint.Lettermint(sending_token="lm_test", base_url="http://127.0.0.1:1/v1") as client:
        assert isinstance(LettermintSdk(client).send(EMAIL, KEY, soon()), Unknown)


def test_a_client_without_a_sending_token_raises_nothing() -> None:
    with lettermint.Lettermint(team_token="lm_team_x") as client:
        assert isinstance(LettermintSdk(client).send(EMAIL, KEY, soon()), Unknown)
