"""SMTP and the relays that take keys: the message that is sent, and what each reply proves."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from idem.clock import Deadline, SystemClock
from idem.email import Email
from idem.errors import SettingsError, UnsupportedEmail
from idem.mime import from_bytes
from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.providers import lettermint_smtp, resend_smtp, smtp
from idem.providers.base import Contract
from idem.providers.relay import SmtpProvider, outcome, server_of
from idem.providers.submission import Envelope, NoReply, Reply, Security, Server, Stage, Submitter
from tests.fakes import make_email

KEY = "k" * 43
CONTRACTS = [smtp.CONTRACT, lettermint_smtp.CONTRACT, resend_smtp.CONTRACT]


class OneReply(Submitter):
    """Answers every submission alike, and keeps what it was given."""

    def __init__(self, found: Reply | NoReply) -> None:
        super().__init__(Server("unused", 1, Security.CLEAR))
        self._found = found
        self.asked: list[Envelope] = []

    def submit(self, envelope: Envelope, deadline: Deadline) -> Reply | NoReply:  # noqa: ARG002 - the same at any time
        self.asked.append(envelope)
        return self._found


def sent(email: Email, contract: Contract = smtp.CONTRACT, text: str = "ok") -> tuple[Envelope, Outcome]:
    submitter = OneReply(Reply(Stage.END, 250, text))
    found = SmtpProvider(contract, submitter).send(email, KEY, Deadline.after(SystemClock(), 5))
    (envelope,) = submitter.asked
    return envelope, found


def parsed(envelope: Envelope) -> EmailMessage:
    return message_from_bytes(envelope.content, EmailMessage, policy=policy.default)


def provider(contract: Contract) -> SmtpProvider:
    return SmtpProvider(contract, OneReply(Reply(Stage.END, 250, "ok")))


# What is sent.

FULL: dict[str, Any] = {
    "to": ["Ann <ann@example.com>", "bo@example.com"],
    "cc": ["cc@example.com"],
    "bcc": ["hidden@example.com", "ann@example.com"],
    "reply_to": ["help@example.com"],
    "html": "<p>Hi</p>",
    "headers": {"X-Campaign": "autumn"},
    "attachments": [{"filename": "a.pdf", "content": "aGVsbG8=", "content_type": "application/pdf"}],
}


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_the_message_reads_back_as_the_email(contract: Contract) -> None:
    email = make_email("Grüße", **FULL)
    envelope, _ = sent(email, contract)
    read = from_bytes(envelope.content)
    if contract.key is not None:
        assert read.headers[contract.key.name] == KEY
        read = read.without_header(contract.key.name)
    assert read == Email.from_dict(email.as_dict() | {"bcc": []})


def test_who_gets_it() -> None:
    """Each recipient once; Bcc in the envelope, and in no header."""
    envelope, _ = sent(make_email(**FULL))
    assert envelope.sender == "shop@example.com"
    assert envelope.recipients == ("ann@example.com", "bo@example.com", "cc@example.com", "hidden@example.com")
    assert b"hidden@" not in envelope.content


def test_every_message_has_an_id_and_a_date() -> None:
    message = parsed(sent(make_email())[0])
    assert message["Message-ID"] == f"<{KEY}@example.com>"
    assert datetime.now(UTC) - parsedate_to_datetime(message["Date"]) < timedelta(minutes=5)


def test_an_email_may_bring_its_id() -> None:
    envelope, found = sent(make_email(headers={"message-id": "<mine@example.com>"}))
    assert parsed(envelope).get_all("Message-ID") == ["<mine@example.com>"]
    assert found == Accepted("mine@example.com")


@pytest.mark.parametrize("contract", [lettermint_smtp.CONTRACT, resend_smtp.CONTRACT], ids=lambda one: one.name)
def test_a_relay_with_keys_gets_the_same_bytes_each_time(contract: Contract) -> None:
    """Whatever of a message it compares: no clock and no chance is in it."""
    email = make_email(**FULL)
    first, _ = sent(email, contract)
    second, _ = sent(Email.from_canonical(email.canonical()), contract)
    assert first == second
    assert parsed(first)["Date"] is None
    assert b"\r\nIdempotency-Key: " + KEY.encode() in first.content or b"Resend-Idempotency-Key: " in first.content


def test_the_bytes_never_change() -> None:
    """Spelt out: a release that writes differently would turn the replays of its predecessor into conflicts."""
    envelope, _ = sent(make_email(), lettermint_smtp.CONTRACT)
    assert envelope.content == (
        b"Message-ID: <" + KEY.encode() + b"@example.com>\r\nIdempotency-Key: " + KEY.encode() + b"\r\n"
        b"From: shop@example.com\r\nTo: ann@example.com\r\nSubject: Hello\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: 7bit\r\n\r\nHi'
    )


def test_domains_are_written_in_ascii() -> None:
    envelope, _ = sent(make_email(to=["Jürgen <a@bücher.example>"], bcc=["b@ΕΛ.example"]))
    assert envelope.recipients == ("a@xn--bcher-kva.example", "b@xn--qxam.example")
    assert envelope.content.isascii()


def test_a_name_before_the_at_stays_as_it_is() -> None:
    envelope, _ = sent(make_email(to=["jürgen@example.com"]))
    assert envelope.recipients == ("jürgen@example.com",)
    assert "To: jürgen@example.com".encode() in envelope.content


# What is refused before anything is sent.


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"tags": ["a"]}, "tags"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"to": [f"a{n}@example.com" for n in range(101)]}, "to"),
        ({"to": ["a@straße.example"]}, "to"),
        ({"cc": ["a@\uff45xample.com"]}, "cc"),
        ({"from": "a@xn--ü.example"}, "from"),
    ],
)
def test_what_has_no_place_in_a_message(contract: Contract, parts: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedEmail) as caught:
        provider(contract).check(make_email(**parts))
    assert caught.value.field == field


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_the_header_of_the_key_is_taken(contract: Contract) -> None:
    provider(contract).check(make_email(headers={"X-Other": "1"}))
    if contract.key is not None:
        with pytest.raises(UnsupportedEmail, match="where the key goes"):
            provider(contract).check(make_email(headers={contract.key.name.lower(): "1"}))


# What replies prove.

_MISMATCH = "5.6.0 This idempotency key has already been used on a request with a different payload."


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
@pytest.mark.parametrize(
    ("stage", "status", "expected"),
    [
        (Stage.END, 250, Accepted("our@id")),
        (Stage.END, 251, Accepted("our@id")),
        (Stage.END, 451, NotSent("SMTP 451 to end of data: words")),
        (Stage.END, 554, Ground.PAYLOAD),
        (Stage.END, 530, NotSent("SMTP 530 to end of data: words", credentials=True)),
        # Not about the message, but about the connection; and what is no reply to it at all.
        *((Stage.END, status, Unknown) for status in (421, 354, 220 - 100, -1, 0, 999)),
        (Stage.MAIL, 550, Ground.GATE),
        (Stage.MAIL, 530, NotSent("SMTP 530 to MAIL: words", credentials=True)),
        (Stage.RCPT, 550, Ground.GATE),
        (Stage.RCPT, 452, NotSent("SMTP 452 to RCPT: words")),
        (Stage.DATA, 554, Ground.GATE),
        (Stage.AUTH, 535, NotSent("SMTP 535 to AUTH: words", credentials=True)),
        (Stage.AUTH, 500, NotSent("SMTP 500 to AUTH: words", credentials=True)),
        (Stage.AUTH, 454, NotSent("SMTP 454 to AUTH: words")),
        *(
            (stage, status, NotSent(f"SMTP {status} to {stage}: words"))
            for stage in (Stage.GREETING, Stage.EHLO, Stage.STARTTLS)
            for status in (-1, 250, 421, 502, 554)
        ),
        *((stage, 421, NotSent(f"SMTP 421 to {stage}: words")) for stage in (Stage.MAIL, Stage.RCPT, Stage.DATA)),
        *((stage, -1, NotSent(f"SMTP -1 to {stage}: words")) for stage in (Stage.MAIL, Stage.RCPT, Stage.DATA)),
    ],
)
def test_the_outcome_table(
    contract: Contract, stage: Stage, status: int, expected: Outcome | type[Outcome] | Ground
) -> None:
    found = outcome(contract, Reply(stage, status, "words"), "our@id")
    if isinstance(expected, Ground):
        assert isinstance(found, Rejected)
        assert found.ground is expected
    elif isinstance(expected, type):
        assert isinstance(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("stage", Stage)
def test_no_reply_is_what_the_stage_says(stage: Stage) -> None:
    found = outcome(smtp.CONTRACT, NoReply(stage, "why"), "our@id")
    assert found == (Unknown("why") if stage is Stage.END else NotSent("why"))


@pytest.mark.parametrize("contract", [lettermint_smtp.CONTRACT, resend_smtp.CONTRACT], ids=lambda one: one.name)
@pytest.mark.parametrize("status", [451, 554])
def test_a_key_with_another_message(contract: Contract, status: int) -> None:
    found = outcome(contract, Reply(Stage.END, status, _MISMATCH), "our@id")
    assert isinstance(found, Rejected)
    assert found.ground is Ground.CONFLICT


@pytest.mark.parametrize(
    ("text", "message_id"),
    [
        ("2.0.0 Ok: queued as 4F1A2B3C", "4F1A2B3C"),
        ("OK id=1sT2uV-000000-AB", "1sT2uV-000000-AB"),
        ("Ok 0102018f-aaaa-bbbb-000000", "0102018f-aaaa-bbbb-000000"),
        ("Ok: queued as <abc.def@relay.example>", "abc.def@relay.example"),
        ("2.0.0 Message accepted for delivery", f"{KEY}@example.com"),
        ("Ok", f"{KEY}@example.com"),
        ("", f"{KEY}@example.com"),
    ],
)
def test_the_name_of_what_was_accepted(text: str, message_id: str) -> None:
    """The server's, where it gives one in a way that is common; else that of the message."""
    assert sent(make_email(), text=text)[1] == Accepted(message_id)


def test_no_address_gets_into_a_detail() -> None:
    text = "1 of 2 recipients refused; the first: <ann@example.com>: unknown\nBo.Smith+x@mail.example.org too"
    found = outcome(smtp.CONTRACT, Reply(Stage.RCPT, 550, text), "our@id")
    assert isinstance(found, Rejected)
    assert not re.search(r"ann|smith", found.detail.lower())
    assert "1 of 2 recipients refused" in found.detail
    assert found.detail.isprintable()


# Settings.


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example.com", ("mail.example.com", 587, Security.STARTTLS)),
        ("smtp://mail.example.com:2525/", ("mail.example.com", 2525, Security.STARTTLS)),
        ("smtps://mail.example.com", ("mail.example.com", 465, Security.TLS)),
        ("smtp://localhost:1025", ("localhost", 1025, Security.CLEAR)),
        ("smtp://127.8.9.1:1025", ("127.8.9.1", 1025, Security.CLEAR)),
        ("smtp://[::1]:1025", ("::1", 1025, Security.CLEAR)),
        ("smtps://localhost", ("localhost", 465, Security.TLS)),
        ("smtp://localhost.example.com", ("localhost.example.com", 587, Security.STARTTLS)),
        ("smtp://10.0.0.1", ("10.0.0.1", 587, Security.STARTTLS)),
    ],
)
def test_only_this_machine_is_spoken_to_in_the_clear(url: str, expected: tuple[str, int, Security]) -> None:
    server = server_of(url, "", "")
    assert (server.host, server.port, server.security) == expected


@pytest.mark.parametrize("url", ["https://mail.example.com", "smtp://", "smtp://mail.example.com/path"])
def test_a_url_that_is_not_of_a_mail_server(url: str) -> None:
    with pytest.raises(SettingsError, match=r"smtp://host:587"):
        server_of(url, "", "")


@pytest.mark.parametrize("token", ["ann", ":s3cret", "ann-s3cret"])
def test_a_token_that_is_not_user_and_password(token: str) -> None:
    with pytest.raises(SettingsError, match="IDEM_SMTP_TOKEN") as caught:
        smtp.connect(token, "smtp://localhost")
    assert token not in str(caught.value)


def test_a_password_may_hold_colons() -> None:
    server = smtp.connect("ann:a:b", "smtp://localhost")._submitter._server
    assert (server.user, server.password) == ("ann", "a:b")


def test_the_contracts() -> None:
    assert [(one.name, one.memory, one.window_seconds) for one in CONTRACTS] == [
        ("smtp", "none", None),
        ("lettermint_smtp", "replays", 86_400.0),
        ("resend_smtp", "replays", 86_400.0),
    ]
