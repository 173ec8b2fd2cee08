"""SMTP in the sandbox: the standard library's client and our adapters, unchanged, against every relay that it plays."""

from __future__ import annotations

import smtplib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any

import httpx
import pytest

from idem.clock import Deadline, SystemClock
from idem.outcome import Accepted, Ground, NotSent, Outcome, Rejected, Unknown
from idem.providers import lettermint_smtp, resend_smtp, smtp
from idem.providers.relay import SmtpProvider
from tests.fakes import FakeClock, make_email
from workers.sandbox.app import build_app, running
from workers.sandbox.server import listen

KEY = "123e4567-e89b-12d3-a456-426614174000"
MISMATCH = "already been used on a request with a different payload"


@dataclass
class Place:
    """A sandbox: its own interface, its clock, and where it speaks SMTP."""

    http: httpx.Client
    clock: FakeClock
    port: int

    @property
    def accepted(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.http.get("/api/accepted").json()
        return found

    @property
    def requests(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.http.get("/api/requests").json()
        return found

    def order(self, fault: str, **more: object) -> None:
        self.http.post("/api/faults", json={"fault": fault, "times": 1, **more}).raise_for_status()

    def client(self, user: str = "lettermint", password: str = "lm_test") -> smtplib.SMTP:  # noqa: S107 - no secret
        client = smtplib.SMTP("127.0.0.1", self.port, local_hostname="localhost", timeout=10)
        client.login(user, password)
        return client

    def provider(self, name: str) -> SmtpProvider:
        url = f"smtp://127.0.0.1:{self.port}"
        connected: dict[str, SmtpProvider] = {
            "smtp": smtp.connect("ann:secret", url),
            "lettermint_smtp": lettermint_smtp.connect("token", url),
            "resend_smtp": resend_smtp.connect("token", url),
        }
        return connected[name]

    def send(self, name: str, key: str = KEY, subject: str = "Hello", seconds: float = 5.0) -> Outcome:
        return self.provider(name).send(make_email(subject), key, Deadline.after(SystemClock(), seconds))


@pytest.fixture
def place() -> Iterator[Place]:
    clock = FakeClock()
    listener = listen("127.0.0.1", 0)
    with running(build_app(clock, seed=1), smtp=listener) as url, httpx.Client(base_url=url, timeout=10) as http:
        yield Place(http, clock, listener.getsockname()[1])


def message(**headers: str) -> EmailMessage:
    """The example of Lettermint's page, as a client writes it: with a new id and date each time."""
    written = EmailMessage()
    written["From"] = "sender@yourdomain.com"
    written["To"] = "recipient@example.com"
    written["Subject"] = "Test Email"
    written["Date"] = formatdate()
    written["Message-ID"] = make_msgid(domain="yourdomain.com")
    for name, value in headers.items():
        written[name.replace("_", "-")] = value
    written.set_content("Hello! This is a test email.")
    written.add_alternative("<h1>Hello!</h1><p>This is a test email.</p>", subtype="html")
    return written


# The standard library's client.


def test_an_email_in_the_log(place: Place) -> None:
    with place.client("ann", "secret") as client:
        client.send_message(message(Bcc="hidden@example.com", X_Campaign="autumn"))
    (entry,) = place.accepted
    assert (entry["provider"], entry["to"], entry["subject"]) == ("smtp", ["recipient@example.com"], "Test Email")
    whole = place.http.get(f"/api/accepted/{entry['id']}").json()
    assert whole["from"] == "sender@yourdomain.com"
    assert whole["bcc"] == ["hidden@example.com"]
    assert whole["headers"] == {"X-Campaign": "autumn"}
    assert whole["text"].strip() == "Hello! This is a test email."
    assert "<h1>Hello!</h1>" in whole["html"]


def test_the_example_of_lettermints_page(place: Place) -> None:
    """The header is simply added to the message: the same again is not sent again, another one is an error."""
    for _ in range(2):
        with place.client() as client:
            client.send_message(message(Idempotency_Key=KEY))
    (entry,) = place.accepted
    assert (entry["provider"], entry["key"]) == ("lettermint_smtp", KEY)
    assert [(seen["replayed"], seen["id"]) for seen in place.requests] == [(False, entry["id"]), (True, entry["id"])]
    other = message(Idempotency_Key=KEY)
    other.replace_header("Subject", "Another")
    with place.client() as client, pytest.raises(smtplib.SMTPDataError, match=MISMATCH):
        client.send_message(other)
    with place.client() as client:
        client.send_message(message(Idempotency_Key="another-key"))
    assert len(place.accepted) == 2


def test_keys_are_kept_for_a_day_and_for_each_account(place: Place) -> None:
    def send(password: str) -> int:
        with place.client(password=password) as client:
            client.send_message(message(Idempotency_Key=KEY))
        return len(place.accepted)

    assert [send("lm_a"), send("lm_b"), send("lm_a")] == [1, 2, 2]
    place.clock.sleep(86_399)
    assert send("lm_a") == 2
    place.clock.sleep(1)
    assert send("lm_a") == 3


def test_other_servers_know_no_keys(place: Place) -> None:
    for _ in range(2):
        with place.client("ann", "secret") as client:
            client.send_message(message(Idempotency_Key=KEY))
    assert [entry["key"] for entry in place.accepted] == [None, None]


def test_several_messages_in_one_session(place: Place) -> None:
    with place.client("ann", "secret") as client:
        for number in range(3):
            client.sendmail("a@example.com", ["b@example.com"], f"Subject: {number}\r\n\r\n.\r\n..a\r\n")
    assert [entry["subject"] for entry in place.accepted] == ["0", "1", "2"]
    text = place.http.get(f"/api/accepted/{place.accepted[0]['id']}").json()["text"]
    assert text.replace("\r\n", "\n").endswith(".\n..a\n")


def test_a_message_that_is_not_quite_one(place: Place) -> None:
    with place.client("ann", "secret") as client:
        client.sendmail("a@example.com", ["b@example.com"], b"no header at all \xff\r\n")
    assert place.accepted[0]["to"] == ["b@example.com"]


@pytest.mark.parametrize(
    ("commands", "status"),
    [
        (["EHLO a", "RCPT TO:<a@example.com>"], 503),
        (["EHLO a", "MAIL FROM:<a@example.com>", "DATA"], 503),
        (["EHLO a", "MAIL FROM: nobody"], 501),
        (["EHLO a", "MAIL TO:<a@example.com>"], 501),
        (["EHLO a", "MAIL FROM:<a@example.com> SIZE=10", "RCPT TO:<nobody>"], 553),
        (["EHLO a", "MAIL FROM:<a@example.com>", "RSET", "RCPT TO:<a@example.com>"], 503),
        (["HELO a", "NOOP"], 250),
        (["EXPN list"], 502),
        ([""], 502),
        (["AUTH CRAM-MD5"], 504),
        (["AUTH PLAIN !"], 501),
        (["AUTH PLAIN AGFubgA="], 535),
        (["AUTH PLAIN AGxldHRlcm1pbnQAbG1fdGVzdA==", "MAIL FROM:<a@example.com>"], 250),
        (["AUTH LOGIN bGV0dGVybWludA==", "bG1fdGVzdA==", "MAIL FROM:<a@example.com>"], 250),
        (["QUIT"], 221),
    ],
)
def test_the_last_reply(place: Place, commands: list[str], status: int) -> None:
    with socket.create_connection(("127.0.0.1", place.port), timeout=10) as connection:
        lines = connection.makefile("rb")
        line = lines.readline()
        for command in commands:
            connection.sendall(command.encode() + b"\r\n")
            while (line := lines.readline())[3:4] == b"-":
                pass
    assert int(line[:3]) == status


def test_a_client_that_leaves_in_the_middle(place: Place) -> None:
    """A message without its end is none (RFC 5321, 4.1.1.10)."""
    with socket.create_connection(("127.0.0.1", place.port), timeout=10) as connection:
        connection.sendall(
            b"EHLO a\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\nSubject: x\r\n\r\nHi\r\n."
        )
        while connection.recv(1000).find(b"354") < 0:
            pass
    with place.client("ann", "secret") as client:
        client.noop()
    assert place.accepted == []


# Our adapters, under every fault.

LATER, NEVER, DOUBT = NotSent, Rejected, Unknown


@pytest.mark.parametrize(
    ("fault", "expected", "accepted"),
    [
        ("accept_then_drop", DOUBT, 1),
        ("accept_then_500", DOUBT, 1),
        ("accept_then_hang", DOUBT, 1),
        ("accept_then_truncate", DOUBT, 1),
        ("drop", DOUBT, 0),
        ("hang", DOUBT, 0),
        ("502", DOUBT, 0),
        ("500", LATER, 0),
        ("503", LATER, 0),
        ("429", LATER, 0),
        ("402", LATER, 0),
        ("401", LATER, 0),
        ("403", NEVER, 0),
        ("400", NEVER, 0),
        ("413", NEVER, 0),
        ("422", NEVER, 0),
    ],
)
def test_a_fault_and_the_way_back(place: Place, fault: str, expected: type[Outcome], accepted: int) -> None:
    """What the adapter says holds in the log; and a relay with keys takes the email once, however it went before.

    Spelt out once; `tests/contracts/test_providers.py` has it for every provider.
    """
    place.order(fault)
    found = place.send("lettermint_smtp", seconds=0.5 if fault.endswith("hang") else 5.0)
    assert type(found) is expected
    assert len(place.accepted) == accepted
    assert place.requests[0]["fault"] == fault
    again = place.send("lettermint_smtp")
    assert isinstance(again, Accepted)
    assert [entry["id"] for entry in place.accepted] == [again.message_id]


@pytest.mark.parametrize("name", ["lettermint_smtp", "resend_smtp"])
def test_a_key_with_another_message(place: Place, name: str) -> None:
    assert isinstance(place.send(name), Accepted)
    found = place.send(name, subject="Another")
    assert isinstance(found, Rejected)
    assert found.ground is Ground.CONFLICT
    place.order("conflict")
    found = place.send(name, key="another-key")
    assert isinstance(found, Rejected)
    assert found.ground is Ground.CONFLICT
    assert len(place.accepted) == 1


def test_a_key_in_use(place: Place) -> None:
    """While the first message is processed, the same again is refused for now."""
    place.order("delay", delay_ms=60_000)
    threading.Thread(target=lambda: place.send("lettermint_smtp", seconds=0.3)).start()
    while not any(seen["key"] for seen in place.requests):
        pass
    found = place.send("lettermint_smtp")
    assert isinstance(found, Unknown)
    assert "being processed" in found.detail
    assert place.accepted == []


def test_a_delay(place: Place) -> None:
    place.order("delay", delay_ms=10)
    place.order("late", delay_ms=10)
    assert isinstance(place.send("smtp"), Accepted)


def test_the_page_and_its_numbers(place: Place) -> None:
    place.send("lettermint_smtp")
    place.send("lettermint_smtp")
    state = place.http.get("/api/state").json()
    assert (state["accepted"], state["requests"], state["replays"]) == (1, 2, 1)


def test_it_stops_whatever_hangs() -> None:
    listener = listen("127.0.0.1", 0)
    with running(build_app(seed=1), smtp=listener) as url:
        httpx.post(f"{url}/api/faults", json={"fault": "hang"}).raise_for_status()
        provider = smtp.connect("", f"smtp://127.0.0.1:{listener.getsockname()[1]}")
        found: list[Outcome] = []
        thread = threading.Thread(
            target=lambda: found.append(provider.send(make_email(), KEY, Deadline.after(SystemClock(), 60)))
        )
        thread.start()
        while not httpx.get(f"{url}/api/requests").json():
            pass
    thread.join()
    assert len(found) == 1
    assert not isinstance(found[0], Accepted)
