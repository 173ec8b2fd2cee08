"""Amazon SES: the request that boto3 makes and we send, and what each of its answers proves."""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import boto3  # type: ignore[import-untyped]
import httpx
import pytest
from botocore.config import Config  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from idem.clock import Deadline, SystemClock
from idem.email import Email
from idem.errors import MissingExtra, SettingsError, UnsupportedEmail
from idem.mime import from_bytes
from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.providers import reading
from idem.providers.http import Answer, HttpClient, NoAnswer, Phase
from idem.providers.ses import CONTRACT, KEY_TAG, SesProvider, connect, parameters
from tests import services
from tests.fakes import make_email

KEY = "k" * 43
FULL: dict[str, Any] = {
    "from": "The Shöp <shop@example.com>",
    "to": ["Ann <ann@example.com>", "bo@bücher.example"],
    "cc": ["cc@example.com"],
    "bcc": ["hidden@example.com"],
    "reply_to": ["help@example.com"],
    "html": "<p>Hi</p>",
    "tags": ["receipt"],
    "metadata": {"order": "42"},
}
RAW: dict[str, Any] = FULL | {
    "headers": {"X-Campaign": "autumn"},
    "attachments": [{"filename": "a.pdf", "content": "aGVsbG8=", "content_type": "application/pdf"}],
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that are worth nothing, and no others."""
    for name, value in services.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")


class OneAnswer(HttpClient):
    """Answers every exchange alike, and keeps what it was asked."""

    def __init__(self, found: Answer | NoAnswer) -> None:
        super().__init__()
        self._found = found
        self.asked: list[tuple[str, Mapping[str, str], bytes]] = []

    def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: Deadline) -> Answer | NoAnswer:  # noqa: ARG002 - the same answer at any time
        self.asked.append((url, headers, body))
        return self._found


def send(email: Email, found: Answer | NoAnswer, endpoint: str | None = None) -> tuple[OneAnswer, Outcome]:
    """One attempt, by a client of its own."""
    http = OneAnswer(found)
    return http, SesProvider(endpoint, http).send(email, KEY, Deadline.after(SystemClock(), 5))


@pytest.fixture(scope="module")
def ready() -> SesProvider:
    """An adapter that has made its client, which takes longer than a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**services.CREDENTIALS, "AWS_REGION": "eu-west-1"}.items():
            patch.setenv(name, value)
        provider = SesProvider()
        provider.prepare()
        provider.signed(parameters(make_email(), KEY))
    return provider


def answer(ready: SesProvider, found: Answer | NoAnswer) -> tuple[OneAnswer, Outcome]:
    """One attempt, by the client that all tests share."""
    ready._http = http = OneAnswer(found)
    return http, ready.send(make_email(), KEY, Deadline.after(SystemClock(), 5))


# What is sent.


def test_a_simple_message() -> None:
    assert parameters(make_email("Grüße", **FULL), KEY) == {
        "FromEmailAddress": "=?utf-8?b?VGhlIFNow7Zw?= <shop@example.com>",
        "Destination": {
            "ToAddresses": ["Ann <ann@example.com>", "bo@xn--bcher-kva.example"],
            "CcAddresses": ["cc@example.com"],
            "BccAddresses": ["hidden@example.com"],
        },
        "ReplyToAddresses": ["help@example.com"],
        "EmailTags": [
            {"Name": "idem_key", "Value": KEY},
            {"Name": "order", "Value": "42"},
            {"Name": "tag", "Value": "receipt"},
        ],
        "Content": {
            "Simple": {
                "Subject": {"Data": "Grüße", "Charset": "UTF-8"},
                "Body": {
                    "Text": {"Data": "Hi", "Charset": "UTF-8"},
                    "Html": {"Data": "<p>Hi</p>", "Charset": "UTF-8"},
                },
            }
        },
    }


def test_a_raw_message() -> None:
    """For what a simple one has no place for; who gets it is said beside it, Bcc too."""
    call = parameters(make_email("Grüße", **RAW), KEY)
    data = call["Content"]["Raw"]["Data"]
    email = Email.from_dict(make_email("Grüße", **RAW).as_dict() | {"bcc": [], "tags": [], "metadata": {}})
    assert from_bytes(data) == Email.from_dict(
        email.as_dict() | {"to": ["Ann <ann@example.com>", "bo@xn--bcher-kva.example"]}
    )
    assert b"hidden" not in data
    assert data.isascii()
    assert call["Destination"]["BccAddresses"] == ["hidden@example.com"]
    assert "ReplyToAddresses" not in call
    assert {"Name": KEY_TAG, "Value": KEY} in call["EmailTags"]


@pytest.mark.parametrize("parts", [FULL, RAW], ids=["simple", "raw"])
def test_one_request_and_it_is_the_one_that_boto3_makes(parts: dict[str, Any]) -> None:
    """Beside a client that nobody has touched: the same method, address, headers and body."""
    email = make_email("Grüße", **parts)
    seen: list[Any] = []

    def record(request: Any, **_: object) -> None:
        seen.append(request)
        raise ConnectionError

    client = boto3.client("sesv2", region_name="eu-west-1", config=Config(retries={"total_max_attempts": 1}))
    client.meta.events.register_last("before-send.sesv2.SendEmail", record)
    with pytest.raises(ConnectionError):
        client.send_email(**parameters(email, KEY))
    (theirs,) = seen
    http, _ = send(email, Answer(200, {}, b'{"MessageId":"m1"}'))
    ((url, headers, body),) = http.asked
    assert (url, body) == (theirs.url, theirs.body)
    assert url == "https://email.eu-west-1.amazonaws.com/v2/email/outbound-emails"
    assert headers.keys() == theirs.headers.keys()
    assert headers["Content-Type"] == "application/json"
    scope = r"AWS4-HMAC-SHA256 Credential=test/\d{8}/eu-west-1/ses/aws4_request, SignedHeaders=content-type;host;.*"
    assert re.fullmatch(scope, headers["Authorization"])
    assert json.loads(body)["EmailTags"][0] == {"Name": "idem_key", "Value": KEY}


@pytest.mark.parametrize("status", [200, 429, 500, 503])
def test_nothing_is_repeated_and_nothing_goes_around_us(
    ready: SesProvider, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the answer is: one request, and by our own client only."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("botocore sent something")

    monkeypatch.setattr("botocore.httpsession.URLLib3Session.send", refuse)
    http, _ = answer(ready, Answer(status, {}, b'{"message":"x"}'))
    assert len(http.asked) == 1


def test_a_boto3_that_sends_by_itself_is_a_doubt() -> None:
    class Sends:
        def send_email(self, **_: object) -> dict[str, str]:
            return {"MessageId": "m1"}

    provider = SesProvider(None, OneAnswer(NoAnswer(Phase.NOT_CONNECTED, "why")))
    provider._client = Sends()
    assert isinstance(provider.send(make_email(), KEY, Deadline.after(SystemClock(), 5)), Unknown)


def test_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = Answer(200, {}, b'{"MessageId":"m1"}')
    assert (
        send(make_email(), accepted, "http://127.0.0.1:9/ses")[0].asked[0][0].startswith("http://127.0.0.1:9/ses/v2/")
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", "http://127.0.0.1:8")
    assert send(make_email(), accepted)[0].asked[0][0].startswith("http://127.0.0.1:8/v2/")
    assert (
        send(make_email(), accepted, "http://127.0.0.1:9/ses")[0].asked[0][0].startswith("http://127.0.0.1:9/ses/v2/")
    )


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_the_region(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION")
    with pytest.raises(SettingsError, match="AWS_REGION"):
        connect("", "").prepare()
    monkeypatch.setenv(name, "ap-south-1")
    http, _ = send(make_email(), Answer(200, {}, b'{"MessageId":"m1"}'))
    assert http.asked[0][0].startswith("https://email.ap-south-1.amazonaws.com/")


@pytest.mark.parametrize("missing", ["AWS_REGION", "AWS_ACCESS_KEY_ID"])
def test_what_is_missing_is_found_before_anything_is_sent(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(missing)
    if missing == "AWS_ACCESS_KEY_ID":
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    http, found = send(make_email(), Answer(200, {}, b'{"MessageId":"m1"}'))
    assert isinstance(found, NotSent)
    assert found.credentials
    assert http.asked == []


def test_boto3_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    provider = connect("", "")
    provider.check(make_email())
    with pytest.raises(MissingExtra, match=r"idem-workers\[ses\]"):
        provider.prepare()


@pytest.mark.parametrize("phase", Phase)
def test_no_answer_is_what_the_wire_says(ready: SesProvider, phase: Phase) -> None:
    _, found = answer(ready, NoAnswer(phase, "why"))
    assert found == (NotSent("why") if phase <= Phase.NOT_WRITTEN else Unknown("why"))


# What is refused before anything is sent.


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"to": [f"a{n}@example.com" for n in range(51)]}, "to"),
        ({"to": ["jürgen@example.com"]}, "to"),
        ({"from": "jürgen@example.com"}, "from"),
        ({"bcc": ["a@straße.example"]}, "bcc"),
        ({"tags": ["a", "b"]}, "tags"),
        ({"tags": ["a b"]}, "tags"),
        ({"metadata": {"order": "no 42"}}, "metadata.order"),
        ({"metadata": {"order": ""}}, "metadata.order"),
        ({"metadata": {"order.id": "42"}}, "metadata"),
        ({"metadata": {"idem_key": "42"}}, "metadata"),
        ({"metadata": {"tag": "42"}}, "metadata"),
        ({"headers": {"Message-ID": "<a@b>"}}, "headers.Message-ID"),
        ({"headers": {"X-SES-Configuration-Set": "a"}}, "headers.X-SES-Configuration-Set"),
    ],
)
def test_what_amazon_would_refuse_replace_or_remove(parts: dict[str, Any], field: str) -> None:
    provider = connect("", "")
    provider.check(make_email(**RAW))
    with pytest.raises(UnsupportedEmail) as caught:
        provider.check(make_email(**parts))
    assert caught.value.field == field


# What answers prove.


def say(status: int, body: object = b"", **headers: str) -> Outcome:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return reading.outcome(CONTRACT, Answer(status, named, data))


#: `NotSent`, for what only a person can end and for what may pass.
PERSON, LATER = "a person", "later"


@pytest.mark.parametrize("form", ["{}", "{}:http://internal.amazon.com/coral/com.amazon.coral.service/", "com.a.b#{}"])
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "MessageRejected", Ground.PAYLOAD),
        (400, "BadRequestException", Ground.PAYLOAD),
        (400, "ValidationException", Ground.PAYLOAD),
        (400, "MailFromDomainNotVerifiedException", Ground.GATE),
        (400, "AccountSuspendedException", PERSON),
        (400, "SendingPausedException", LATER),
        (400, "LimitExceededException", LATER),
        (429, "TooManyRequestsException", LATER),
        (400, "ThrottlingException", LATER),
        (400, "Throttling", LATER),
        (503, "ThrottlingException", LATER),
        (404, "NotFoundException", LATER),
        (403, "AccessDeniedException", PERSON),
        (400, "AccessDeniedException", PERSON),
        (403, "UnrecognizedClientException", PERSON),
        (403, "InvalidSignatureException", PERSON),
        (403, "ExpiredTokenException", PERSON),
        (403, "", PERSON),
        (400, "RequestTimeoutException", Unknown),
        (408, "RequestTimeout", Unknown),
        (409, "ConflictException", Unknown),
        (500, "InternalServiceErrorException", Unknown),
        (502, "", Unknown),
        (503, "ServiceUnavailableException", Unknown),
        (504, "", Unknown),
    ],
)
def test_the_outcome_table(form: str, status: int, code: str, expected: Ground | str | type[Outcome]) -> None:
    """Codes in any of AWS's forms."""
    for found in (
        say(status, {"message": "words"}, x_amzn_errortype=form.format(code)),
        say(status, {"message": "words", "__type": form.format(code)}),
    ):
        if isinstance(expected, Ground):
            assert isinstance(found, Rejected)
            assert found.ground is expected
        elif isinstance(expected, str):
            assert isinstance(found, NotSent)
            assert found.credentials is (expected == PERSON)
        else:
            assert isinstance(found, expected)


def test_an_acceptance_names_the_email() -> None:
    assert say(200, {"MessageId": "m1"}) == Accepted("m1")
    assert isinstance(say(200, {}), Unknown)
    assert isinstance(say(200, b"<html>"), Unknown)


def test_a_daily_quota_does_not_pass_in_seconds() -> None:
    found = say(429, {"message": "Daily message quota exceeded."}, x_amzn_errortype="TooManyRequestsException")
    assert isinstance(found, NotSent)
    assert found.retry_after == 3_600.0


@given(st.integers(100, 999), st.binary(max_size=200))
def test_no_answer_outside_the_table_proves_anything(status: int, body: bytes) -> None:
    found = say(status, body)
    assert isinstance(found, Unknown) or status in {400, 401, 402, 403, 404, 405, 413, 415, 422, 429}
    assert not isinstance(found, Accepted)


# A second opinion: moto's SES.


@pytest.fixture(scope="module")
def moto() -> Iterator[tuple[str, Any]]:
    """Its endpoint, and a client that has made the sender known to it."""
    endpoint = services.moto()
    client = boto3.client(
        "sesv2",
        endpoint_url=endpoint,
        region_name="eu-west-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_email_identity(EmailIdentity="shop@example.com")
    yield endpoint, client
    client.close()


@pytest.mark.parametrize("parts", [{**FULL, "bcc": []}, {**RAW, "bcc": []}], ids=["simple", "raw"])
def test_moto_accepts_what_we_send(moto: tuple[str, Any], parts: dict[str, Any]) -> None:
    endpoint, _ = moto
    subject = f"Grüße {uuid.uuid4().hex}"
    provider = connect("", endpoint)
    found = provider.send(make_email(subject, **parts), KEY, Deadline.after(SystemClock(), 10))
    assert isinstance(found, Accepted)
    assert found.message_id
    kept = httpx.get(f"{endpoint}/moto-api/data.json").json()["ses"]
    assert found.message_id in json.dumps(kept)


def test_moto_refuses_a_sender_that_it_does_not_know(moto: tuple[str, Any]) -> None:
    endpoint, _ = moto
    email = make_email(**{"from": f"{uuid.uuid4().hex}@nobody.example"})
    found = connect("", endpoint).send(email, KEY, Deadline.after(SystemClock(), 10))
    assert isinstance(found, Rejected)
