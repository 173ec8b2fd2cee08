"""Amazon SES in the sandbox: boto3, unchanged, and our adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3  # type: ignore[import-untyped]
import httpx
import pytest
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from idem.clock import Deadline, SystemClock
from idem.outcome import Accepted
from idem.providers import ses
from idem.providers.http import HttpClient
from tests import services
from tests.fakes import make_email
from workers.sandbox.app import build_app, running

KEY = "k" * 43
CALL: dict[str, Any] = {
    "FromEmailAddress": "Shop <shop@example.com>",
    "Destination": {"ToAddresses": ["Ann <ann@example.com>"], "BccAddresses": ["hidden@example.com"]},
    "Content": {"Simple": {"Subject": {"Data": "Hello"}, "Body": {"Text": {"Data": "Hi"}}}},
    "EmailTags": [{"Name": "idem_key", "Value": KEY}],
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A sandbox, and credentials that are worth nothing."""
    with pytest.MonkeyPatch.context() as patch, running(build_app(seed=1)) as url:
        for name, value in {**services.CREDENTIALS, "AWS_REGION": "eu-west-1"}.items():
            patch.setenv(name, value)
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    config = Config(retries={"total_max_attempts": 1})
    client = boto3.client("sesv2", region_name="eu-west-1", endpoint_url=f"{url}/ses", config=config)
    yield client
    client.close()


@pytest.fixture
def sandbox(url: str) -> str:
    """The sandbox, without a past."""
    httpx.delete(f"{url}/api/accepted")
    httpx.delete(f"{url}/api/faults")
    return url


def accepted(url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{url}/api/accepted", params={"provider": "ses"}).json()
    return found


def test_a_simple_message(client: Any, sandbox: str) -> None:
    message_id = client.send_email(**CALL)["MessageId"]
    (entry,) = accepted(sandbox)
    assert (entry["id"], entry["to"], entry["subject"]) == (message_id, ["ann@example.com"], "Hello")
    whole = httpx.get(f"{sandbox}/api/accepted/{message_id}").json()
    assert whole["from"] == "Shop <shop@example.com>"
    assert whole["bcc"] == ["hidden@example.com"]
    assert whole["metadata"] == {"idem_key": KEY}


def test_a_raw_message(client: Any, sandbox: str) -> None:
    """The message says what it is, the destination who gets it."""
    data = b"From: shop@example.com\r\nTo: ann@example.com\r\nSubject: Hello\r\nX-A: 1\r\n\r\nHi\r\n"
    message_id = client.send_email(**{**CALL, "Content": {"Raw": {"Data": data}}})["MessageId"]
    whole = httpx.get(f"{sandbox}/api/accepted/{message_id}").json()
    assert (whole["to"], whole["bcc"], whole["headers"]) == (["ann@example.com"], ["hidden@example.com"], {"X-A": "1"})


def test_the_same_again_is_a_second_email(client: Any, sandbox: str) -> None:
    for _ in range(2):
        client.send_email(**CALL)
    assert len(accepted(sandbox)) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"Destination": {}},
        {"Destination": {"ToAddresses": [f"a{n}@example.com" for n in range(51)]}},
        {"Destination": {"ToAddresses": ["jürgen@example.com"]}},
        {"FromEmailAddress": "Jürgen <shop@example.com>"},
        {"FromEmailAddress": "nobody"},
        {"EmailTags": [{"Name": "a b", "Value": "1"}]},
        {"EmailTags": [{"Name": "a", "Value": "1"}, {"Name": "a", "Value": "2"}]},
        {"Content": {"Raw": {"Data": b""}}},
        {"Content": {}},
    ],
)
def test_what_is_refused(client: Any, sandbox: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ClientError) as caught:
        client.send_email(**{**CALL, **changes})
    assert caught.value.response["Error"]["Code"] == "BadRequestException"
    assert accepted(sandbox) == []


@pytest.mark.parametrize("authorization", [None, "Bearer x", "AWS4-HMAC-SHA256 Credential=a, Signature=b"])
def test_a_request_that_is_not_signed(sandbox: str, authorization: str | None) -> None:
    headers = {"x-amz-date": "20261122T000000Z"} | ({} if authorization is None else {"Authorization": authorization})
    answer = httpx.post(f"{sandbox}/ses/v2/email/outbound-emails", json=CALL, headers=headers)
    assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (403, "UnrecognizedClientException")


@pytest.mark.parametrize(
    ("fault", "code"), [("429", "TooManyRequestsException"), ("500", "InternalServiceErrorException")]
)
def test_a_fault_in_amazons_words(client: Any, sandbox: str, fault: str, code: str) -> None:
    httpx.post(f"{sandbox}/api/faults", json={"fault": fault, "provider": "ses"})
    with pytest.raises(ClientError) as caught:
        client.send_email(**CALL)
    assert caught.value.response["Error"]["Code"] == code


@pytest.mark.parametrize(
    "parts",
    [
        {"to": ["Jürgen <a@bücher.example>"], "bcc": ["hidden@example.com"], "metadata": {"order": "42"}},
        {"headers": {"X-A": "1"}, "attachments": [{"filename": "a.txt", "content": "aGk="}]},
    ],
    ids=["simple", "raw"],
)
def test_our_adapter(sandbox: str, parts: dict[str, Any]) -> None:
    http, email = HttpClient(), make_email("Grüße", **parts)
    found = ses.SesProvider(f"{sandbox}/ses", http).send(email, KEY, Deadline.after(SystemClock(), 5))
    http._connection()[1].close()
    assert isinstance(found, Accepted)
    whole = httpx.get(f"{sandbox}/api/accepted/{found.message_id}").json()
    assert whole["subject"] == "Grüße"
    assert whole["metadata"]["idem_key"] == KEY
    assert whole["bcc"] == list(email.bcc)
