"""The one SMTP exchange, on real sockets: at which stage it is said to have ended, and that it ends in time."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pytest

from idem.clock import Deadline, SystemClock
from idem.providers.submission import Envelope, NoReply, Reply, Security, Server, Stage, Submitter
from tests.fakes import FakeClock

ENVELOPE = Envelope("shop@example.com", ("ann@example.com", "bo@example.com"), b"Subject: Hello\r\n\r\nHi\r\n")
FEATURES = b"250-here\r\n250-SIZE 1000000\r\n250-STARTTLS\r\n250-SMTPUTF8\r\n250 AUTH PLAIN LOGIN\r\n"

#: More than all buffers on the way hold.
LARGE = (b"x" * 998 + b"\r\n") * 14_000

#: What a server can be told to do in place of a reply.
CLOSE, RESET, HANG = b"close", b"reset", b"hang"

#: A reply, or what to do; one that returns False ends the connection.
Act = bytes | Callable[[socket.socket], bool | None]


@dataclass
class Relay:
    """A mail server that replies by its script, where that says something, and notes what it was told.

    The script is by command (`greeting`, `EHLO`, ..., `end of data`); a list is for one command after another.
    """

    script: Mapping[str, Act | list[bytes]] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    at_once: bool = False
    said: list[str] = field(default_factory=list)
    content: bytes = b""
    connections: int = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._left = {name: list(acts) for name, acts in self.script.items() if isinstance(acts, list)}
        self._ended = threading.Event()
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def server(self, security: Security = Security.CLEAR, user: str = "") -> Server:
        return Server("127.0.0.1", self._listener.getsockname()[1], security, user, "secret" if user else "")

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                connection.settimeout(10)
                with contextlib.suppress(OSError), connection:
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as secured:
            self._speak(self._secured(connection, secured) if self.at_once else connection, secured)

    def _speak(self, connection: socket.socket, secured: contextlib.ExitStack) -> None:
        lines = connection.makefile("rb")
        if not self._act(connection, "greeting", b"220 here\r\n"):
            return
        while line := lines.readline():
            self.said.append(line.decode().rstrip("\r\n"))
            name = line.split(b" ")[0].strip().decode().upper()
            usual = {"EHLO": FEATURES, "DATA": b"354 go on\r\n", "AUTH": b"235 in\r\n", "STARTTLS": b"220 go\r\n"}
            if not self._act(connection, name, usual.get(name, b"250 ok\r\n")):
                return
            if name == "DATA":
                while (line := lines.readline()) not in {b".\r\n", b""}:
                    self.content += line
                self.said += ["."] if line else []
                if not line or not self._act(connection, "end of data", b"250 ok queued as A1B2C3\r\n"):
                    return
            if name == "STARTTLS":
                connection = self._secured(connection, secured)
                lines = connection.makefile("rb")

    def _secured(self, connection: socket.socket, secured: contextlib.ExitStack) -> socket.socket:
        assert self.tls is not None
        return secured.enter_context(self.tls.wrap_socket(connection, server_side=True))

    def _act(self, connection: socket.socket, name: str, usual: bytes) -> bool:
        act: Any = self._left[name].pop(0) if self._left.get(name) else self.script.get(name, usual)
        if isinstance(act, list):
            act = usual
        if callable(act):
            return act(connection) is not False
        if act == HANG:
            self._ended.wait(10)
        elif act == RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif act != CLOSE:
            connection.sendall(act)
            return True
        return False


def submit(  # noqa: PLR0913 - each test sets one or two of them, by name
    relay: Relay,
    envelope: Envelope = ENVELOPE,
    *,
    seconds: float = 5.0,
    ours: ssl.SSLContext | None = None,
    security: Security = Security.CLEAR,
    user: str = "",
) -> Reply | NoReply:
    submitter = Submitter(relay.server(security, user), ours)
    return submitter.submit(envelope, Deadline.after(SystemClock(), seconds))


def test_an_email_that_is_accepted() -> None:
    with Relay() as relay:
        found = submit(relay)
    assert found == Reply(Stage.END, 250, "ok queued as A1B2C3")
    assert relay.said == [
        "ehlo example.com",
        "MAIL FROM:<shop@example.com> SIZE=22",
        "RCPT TO:<ann@example.com>",
        "RCPT TO:<bo@example.com>",
        "DATA",
        ".",
        "QUIT",
    ]
    assert relay.content == ENVELOPE.content
    assert relay.connections == 1


BEFORE_THE_END = {
    "greeting": Stage.GREETING,
    "EHLO": Stage.EHLO,
    "MAIL": Stage.MAIL,
    "RCPT": Stage.RCPT,
    "DATA": Stage.DATA,
}


@pytest.mark.parametrize("how", [CLOSE, RESET, HANG, b"2", b"250", b"250-half\r\n"], ids=repr)
@pytest.mark.parametrize("name", [*BEFORE_THE_END, "end of data"])
def test_a_loss_at_every_stage(name: str, how: bytes) -> None:
    """A server that says nothing, or half of something and no more: only at the end can it have the whole message."""
    acts = how if how in {CLOSE, RESET, HANG} else _then_close(how)
    with Relay({name: acts}) as relay:
        found = submit(relay, seconds=0.3)
    assert isinstance(found, NoReply)
    # A reset may come before the client knows that it is connected.
    early = {Stage.CONNECTION} if name == "greeting" else set()
    assert found.stage in {BEFORE_THE_END.get(name, Stage.END)} | early
    assert ("." in relay.said) is (name == "end of data")
    assert relay.connections == 1


def _then_close(data: bytes) -> Callable[[socket.socket], None]:
    def act(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_RDWR)

    return act


def test_a_loss_inside_the_message() -> None:
    """The server leaves while it is written."""

    def leave(connection: socket.socket) -> bool:
        connection.sendall(b"354 go on\r\n")
        connection.recv(1000)
        return False

    with Relay({"DATA": leave}) as relay:
        found = submit(relay, replace(ENVELOPE, content=LARGE))
    assert isinstance(found, NoReply)
    assert found.stage is Stage.CONTENT


def test_a_message_that_nobody_reads_ends_in_time() -> None:
    def go_on(connection: socket.socket) -> None:
        connection.sendall(b"354 go on\r\n")
        relay._ended.wait(10)

    with Relay({"DATA": go_on}) as relay:
        found = submit(relay, replace(ENVELOPE, content=LARGE), seconds=1.5)
    assert isinstance(found, NoReply)
    assert found.stage is Stage.CONTENT


@pytest.mark.parametrize("said", [b"552 too large\r\n", b"421 going down\r\n", b"250 ok\r\n"], ids=repr)
def test_a_server_that_speaks_before_the_end(said: bytes) -> None:
    """It is no reply to the end of the message, which is not sent then."""
    with Relay({"DATA": b"354 go on\r\n" + said}) as relay:
        found = submit(relay)
    assert isinstance(found, NoReply)
    assert found.stage is Stage.CONTENT
    assert "." not in relay.said


def test_a_pause_before_the_end_costs_nothing_but_time() -> None:
    """The deadline is looked at again right before the final dot: the lease may be over."""
    clock = FakeClock()

    def pause(connection: socket.socket) -> None:
        clock.sleep(1000)
        connection.sendall(b"354 go on\r\n")

    with Relay({"DATA": pause}) as relay:
        found = Submitter(relay.server()).submit(ENVELOPE, Deadline.after(clock, 60))
    assert isinstance(found, NoReply)
    assert found.stage is not Stage.END
    assert "." not in relay.said


def test_no_time_left() -> None:
    with Relay() as relay:
        found = submit(relay, seconds=-1)
    assert isinstance(found, NoReply)
    assert found.stage is Stage.CONNECTION
    assert relay.connections == 0


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for host in ("127.0.0.1", "a..b", "x" * 300):
        submitter = Submitter(Server(host, port, Security.CLEAR))
        found = submitter.submit(ENVELOPE, Deadline.after(SystemClock(), 5))
        assert isinstance(found, NoReply)
        assert found.stage is Stage.CONNECTION


@pytest.mark.parametrize(("name", "stage"), [("EHLO", Stage.EHLO), ("end of data", Stage.END)])
@pytest.mark.parametrize("drip", [b"2", b"250-more\r\n"])
def test_a_reply_that_drips_ends_in_time(name: str, stage: Stage, drip: bytes) -> None:
    """Each read would come back in time; all of them together must."""

    def trickle(connection: socket.socket) -> None:
        while not relay._ended.wait(0.02):
            connection.sendall(drip)

    with Relay({name: trickle}) as relay:
        found = submit(relay, seconds=0.3)
    assert isinstance(found, NoReply)
    assert found.stage is stage


@pytest.mark.parametrize("flood", [b"250-" + b"x" * 9_000 + b"\r\n250 ok\r\n", b"250-more\r\n" * 100_000], ids=len)
def test_a_reply_that_is_too_long_is_none(flood: bytes) -> None:
    with Relay({"end of data": flood}) as relay:
        found = submit(relay)
    assert isinstance(found, NoReply)
    assert found.stage is Stage.END


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("greeting", b"554 go away\r\n", Reply(Stage.GREETING, 554, "go away")),
        ("EHLO", b"502 what\r\n", Reply(Stage.EHLO, 502, "what")),
        ("MAIL", b"550 5.7.1 not you\r\n", Reply(Stage.MAIL, 550, "5.7.1 not you")),
        ("DATA", b"250 ok\r\n", Reply(Stage.DATA, 250, "ok")),
        ("end of data", b"451-later\r\n451 or not\r\n", Reply(Stage.END, 451, "later\nor not")),
        ("end of data", b"HTTP/1.1 200 OK\r\n", Reply(Stage.END, -1, "/1.1 200 OK")),
        ("end of data", b"250 \xff\r\n", Reply(Stage.END, 250, "\ufffd")),
    ],
)
def test_a_reply_is_told_as_it_came(name: str, said: bytes, expected: Reply) -> None:
    with Relay({name: said}) as relay:
        assert submit(relay) == expected


@pytest.mark.parametrize(
    ("replies", "status", "count"),
    [
        ([b"250 ok\r\n", b"550 no such user\r\n"], 550, "1 of 2"),
        ([b"450 later\r\n", b"250 ok\r\n"], 450, "1 of 2"),
        ([b"450 later\r\n", b"550 no such user\r\n"], 550, "2 of 2"),
        ([b"250 ok\r\n", b"452 too many\r\n"], 452, "1 of 2"),
    ],
)
def test_a_recipient_that_is_refused(replies: list[bytes], status: int, count: str) -> None:
    """The message goes to none: half of it, in silence, would be lost to the others."""
    with Relay({"RCPT": replies}) as relay:
        found = submit(relay)
    assert isinstance(found, Reply)
    assert (found.stage, found.status) == (Stage.RCPT, status)
    assert found.text.startswith(f"{count} recipients refused")
    assert "DATA" not in relay.said
    assert relay.said[-2:] == ["RSET", "QUIT"]


def test_a_recipient_may_be_forwarded() -> None:
    with Relay({"RCPT": [b"251 will forward\r\n", b"252 cannot verify\r\n"]}) as relay:
        assert submit(relay) == Reply(Stage.END, 250, "ok queued as A1B2C3")


@pytest.mark.parametrize(
    ("content", "written"),
    [
        (b"a\r\n.\r\nb\r\n", b"a\r\n..\r\nb\r\n"),
        (b".a\r\n..\r\n", b"..a\r\n...\r\n"),
        (b"a", b"a\r\n"),
        (b"a\n.\nb\r.\rc", b"a\r\n..\r\nb\r\n..\r\nc\r\n"),
        (b"a\r\r\n.\n.\r\n", b"a\r\n\r\n..\r\n..\r\n"),
        (b"", b"\r\n"),
    ],
)
def test_nothing_in_a_message_ends_it(content: bytes, written: bytes) -> None:
    """Bare line ends are how one message is smuggled into another: none is sent."""
    with Relay() as relay:
        found = submit(relay, replace(ENVELOPE, content=content))
    assert found == Reply(Stage.END, 250, "ok queued as A1B2C3")
    assert relay.content == written


# Addresses beyond ASCII.


def test_addresses_beyond_ascii() -> None:
    envelope = replace(ENVELOPE, recipients=("jürgen@example.com",), content="To: jürgen\r\n\r\n".encode())
    with Relay() as relay:
        assert submit(relay, envelope) == Reply(Stage.END, 250, "ok queued as A1B2C3")
    assert relay.said[1] == "MAIL FROM:<shop@example.com> SIZE=15 BODY=8BITMIME SMTPUTF8"
    assert relay.said[2] == "RCPT TO:<jürgen@example.com>"
    with Relay({"EHLO": b"250 here\r\n"}) as relay:
        found = submit(relay, envelope)
    assert isinstance(found, Reply)
    assert (found.stage, found.status) == (Stage.MAIL, 553)
    assert relay.said == ["ehlo example.com", "QUIT"]


# Who logs in, and under which protection.


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (FEATURES, "AUTH PLAIN " + base64.b64encode(b"\0ann\0secret").decode()),
        (b"250 AUTH PLAIN\r\n", "AUTH PLAIN " + base64.b64encode(b"\0ann\0secret").decode()),
    ],
)
def test_a_login(features: bytes, said: str) -> None:
    with Relay({"EHLO": FEATURES if features is FEATURES else b"250-here\r\n" + features}) as relay:
        assert submit(relay, user="ann") == Reply(Stage.END, 250, "ok queued as A1B2C3")
    assert said in relay.said


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ({"AUTH": b"535 5.7.8 no\r\n"}, 535),
        ({"AUTH": b"454 4.7.0 later\r\n"}, 454),
        ({"EHLO": b"250 here\r\n"}, 502),
        ({"EHLO": b"250-here\r\n250 AUTH GSSAPI\r\n"}, 502),
    ],
)
def test_a_login_that_fails(script: Mapping[str, Act], status: int) -> None:
    with Relay(script) as relay:
        found = submit(relay, user="ann")
    assert isinstance(found, Reply)
    assert (found.stage, found.status) == (Stage.AUTH, status)
    assert not any(line.startswith("MAIL") for line in relay.said)


def test_a_loss_while_logging_in() -> None:
    with Relay({"AUTH": CLOSE}) as relay:
        found = submit(relay, user="ann")
    assert isinstance(found, NoReply)
    assert found.stage is Stage.AUTH


@pytest.fixture
def contexts(certificate: tuple[Path, Path]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's, which trusts it."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate[1], certificate[0])
    return theirs, ssl.create_default_context(cafile=str(certificate[1]))


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
def test_a_session_under_tls(security: Security, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    theirs, ours = contexts
    with Relay(tls=theirs, at_once=security is Security.TLS) as relay:
        found = submit(relay, ours=ours, security=security, user="ann")
    assert found == Reply(Stage.END, 250, "ok queued as A1B2C3")
    hellos = [line for line in relay.said if line.startswith("ehlo")]
    assert len(hellos) == (2 if security is Security.STARTTLS else 1)


def test_a_loss_after_the_end_under_tls(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    theirs, ours = contexts
    with Relay({"end of data": CLOSE}, tls=theirs) as relay:
        found = submit(relay, ours=ours, security=Security.STARTTLS)
    assert isinstance(found, NoReply)
    assert found.stage is Stage.END


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
def test_a_certificate_that_nobody_vouches_for(
    security: Security, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    with Relay(tls=contexts[0], at_once=security is Security.TLS) as relay:
        found = submit(relay, security=security, user="ann")
    assert isinstance(found, NoReply)
    assert found.stage < Stage.MAIL or found.stage in {Stage.GREETING, Stage.STARTTLS}
    assert not any(line.startswith(("AUTH", "MAIL")) for line in relay.said)


def test_a_server_that_offers_no_tls() -> None:
    """No word of the email, and no password, goes over the network in the clear."""
    with Relay({"EHLO": b"250-here\r\n250 AUTH PLAIN\r\n"}) as relay:
        found = submit(relay, security=Security.STARTTLS, user="ann")
    assert isinstance(found, Reply)
    assert found.stage is Stage.STARTTLS
    assert relay.said == ["ehlo example.com", "QUIT"]


def test_what_was_said_before_tls_is_forgotten(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Replies that somebody on the way slips in ahead of the handshake answer nothing after it."""
    theirs, ours = contexts
    injected = b"220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n250 ok\r\n250 ok\r\n"
    with Relay({"STARTTLS": injected, "MAIL": b"550 not you\r\n"}, tls=theirs) as relay:
        found = submit(relay, ours=ours, security=Security.STARTTLS)
    assert found == Reply(Stage.MAIL, 550, "not you")


def test_a_password_is_in_no_representation() -> None:
    assert "secret" not in repr(Server("h", 1, Security.TLS, "ann", "secret"))


def test_threads_share_a_submitter() -> None:
    found: list[Reply | NoReply] = []
    with Relay() as relay:
        submitter = Submitter(relay.server())
        threads = [
            threading.Thread(target=lambda: found.append(submitter.submit(ENVELOPE, Deadline.after(SystemClock(), 10))))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [Reply(Stage.END, 250, "ok queued as A1B2C3")] * 4
    assert relay.connections == 4
