"""The one HTTP exchange, on real sockets: how far it is said to have got, and that it is made once and ends in time."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem.clock import Deadline, SystemClock
from idem.outcome import NotSent, Unknown
from idem.providers.http import Answer, HttpClient, NoAnswer, Phase

CLOCK = SystemClock()
BODY = b'{"subject":"Hello"}'
OK = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nX-Thing: a\r\n\r\n{}"


class Server:
    """Listens on a port of its own; the n-th connection meets the n-th script, the last one from then on."""

    def __init__(self, *scripts: Callable[[Server, socket.socket], None], tls: ssl.SSLContext | None = None) -> None:
        self._scripts = scripts
        self._tls = tls
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.connections = 0
        self.requests: list[bytes] = []
        self.bytes_seen = 0
        self.stopped = threading.Event()

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1/send"
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                script = self._scripts[min(self.connections, len(self._scripts) - 1)]
                self.connections += 1
                self._open.append(connection)
                self._start(self._serve, script, connection)

    def _serve(self, script: Callable[[Server, socket.socket], None], connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            script(self, connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def read_request(self, connection: socket.socket) -> bool:
        """One request to its end; false when the client closed instead."""
        data = bytearray()
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65_536)
            self.bytes_seen += len(piece)
            if not piece:
                return False
            data += piece
        head, _, body = bytes(data).partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length:
            piece = connection.recv(65_536)
            self.bytes_seen += len(piece)
            if not piece:
                return False
            body += piece
        self.requests.append(head + b"\r\n\r\n" + body)
        return True


Script = Callable[[Server, socket.socket], None]


def answer(*pieces: bytes, every: float = 0.0) -> Script:
    """Read one request, write the pieces, close."""

    def script(server: Server, connection: socket.socket) -> None:
        if server.read_request(connection):
            for piece in pieces:
                connection.sendall(piece)
                if server.stopped.wait(every):
                    return

    return script


def keep_answering(server: Server, connection: socket.socket) -> None:
    while server.read_request(connection):
        connection.sendall(OK)


def answer_once_then_nothing(server: Server, connection: socket.socket) -> None:
    """Keep the connection until the second request has come, then close without a word."""
    server.read_request(connection)
    connection.sendall(OK)
    server.read_request(connection)


def say_nothing(server: Server, connection: socket.socket) -> None:
    server.read_request(connection)
    server.stopped.wait()


def hold(server: Server, _connection: socket.socket) -> None:
    server.stopped.wait()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def reset_at_once(_server: Server, connection: socket.socket) -> None:
    # Once a byte has come: before that, the client may not even have noticed that it was connected.
    connection.recv(1, socket.MSG_PEEK)
    reset(connection)


def reset_after_the_request(server: Server, connection: socket.socket) -> None:
    server.read_request(connection)
    reset(connection)


def read_slowly(server: Server, connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
    while not server.stopped.wait(0.02) and connection.recv(512):
        pass


def read_some_then_reset(_server: Server, connection: socket.socket) -> None:
    connection.recv(1_000)
    time.sleep(0.05)
    reset(connection)


@pytest.fixture
def client() -> Iterator[HttpClient]:
    client = HttpClient()
    yield client
    close(client)


def close(client: HttpClient) -> None:
    """Close this thread's connection; a process that ends does it for the client."""
    client._connection()[1].close()


def post(
    client: HttpClient, url: str, *, seconds: float = 5.0, body: bytes = BODY, deadline: Deadline | None = None
) -> Answer | NoAnswer:
    headers = {"Content-Type": "application/json", "Idempotency-Key": "k"}
    return client.post(url, headers, body, deadline or Deadline.after(CLOCK, seconds))


# Answers.


def test_an_answer_comes_back_whole(client: HttpClient) -> None:
    with Server(keep_answering) as server:
        found = post(client, server.url)
    assert found == Answer(202, {"content-length": "2", "x-thing": "a"}, b"{}")
    (request,) = server.requests
    assert request.startswith(b"POST /v1/send HTTP/1.1\r\n")
    assert request.endswith(b"\r\n\r\n" + BODY)
    assert b"idempotency-key: k" in request.lower()
    assert b"transfer-encoding" not in request.lower(), "the length is known, so a server can tell a cut body"


@pytest.mark.parametrize(
    ("pieces", "body"),
    [
        ((b"HTTP/1.1 202 A\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",), b"{}"),
        ((b"HTTP/1.1 202 A\r\nConnection: close\r\n\r\n{}",), b"{}"),
        ((b"HTTP/1.0 202 A\r\n\r\n{}",), b"{}"),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), b""),
        ((b"HTTP/1.1 102 Processing\r\n\r\n", OK), b"{}"),
        (tuple(OK[at : at + 1] for at in range(len(OK))), b"{}"),
    ],
)
def test_every_form_of_answer_is_read(client: HttpClient, pieces: tuple[bytes, ...], body: bytes) -> None:
    with Server(answer(*pieces)) as server:
        found = post(client, server.url)
    assert isinstance(found, Answer)
    assert found.status in {202, 204}
    assert found.body == body
    assert len(server.requests) == 1


def test_a_redirect_is_an_answer_and_is_not_followed(client: HttpClient) -> None:
    with Server(keep_answering) as other:
        location = f"HTTP/1.1 307 T\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n".encode()
        with Server(answer(location)) as server:
            found = post(client, server.url)
    assert isinstance(found, Answer)
    assert found.status == 307
    assert other.connections == 0


def test_proxies_of_the_environment_are_not_used(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(keep_answering) as proxy, Server(keep_answering) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert isinstance(post(client, server.url), Answer)
    assert (proxy.connections, server.connections) == (0, 1)


def test_a_large_body_arrives_whole(client: HttpClient) -> None:
    body = bytes(range(256)) * 16_384
    with Server(keep_answering) as server:
        assert isinstance(post(client, server.url, body=body), Answer)
    assert server.requests[0].endswith(body)


def test_an_answer_may_have_a_megabyte(client: HttpClient) -> None:
    limit = 1024 * 1024
    for size, kind in ((limit, Answer), (limit + 1, NoAnswer)):
        with Server(answer(b"HTTP/1.1 202 A\r\nContent-Length: %d\r\n\r\n" % size, b"x" * size)) as server:
            found = post(client, server.url)
            assert isinstance(found, kind)
            if isinstance(found, NoAnswer):
                assert found.phase is Phase.RESPONDING
                assert isinstance(found.outcome(), Unknown)


def test_an_answer_without_end_is_cut_off(client: HttpClient) -> None:
    def endless(server: Server, connection: socket.socket) -> None:
        server.read_request(connection)
        connection.sendall(b"HTTP/1.1 202 A\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")

    with Server(endless) as server:
        found = post(client, server.url)
    assert isinstance(found, NoAnswer)
    assert "longer" in found.detail


# No answer: the phase decides between "not sent" and "unknown".


@pytest.mark.parametrize(
    ("script", "phases"),
    [
        (reset_at_once, {Phase.WRITING, Phase.WRITTEN}),
        (reset_after_the_request, {Phase.WRITTEN}),
        (answer(), {Phase.WRITTEN}),
        (say_nothing, {Phase.WRITTEN}),
        (answer(b"HTTP/1.1 202 Acc"), {Phase.RESPONDING}),
        (answer(b"H"), {Phase.RESPONDING}),
        (answer(b"HTTP/1.1 202 A\r\nContent-Length: 100\r\n\r\n{"), {Phase.RESPONDING}),
        (answer(b"HTTP/1.1 202 A\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n{"), {Phase.RESPONDING}),
        (answer(b"HTTP/1.1 202 A\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"), {Phase.RESPONDING}),
        (answer(b"HTTP/1.1 202 A\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"), {Phase.RESPONDING}),
        (answer(b"SSH-2.0-OpenSSH_9.6\r\n"), {Phase.RESPONDING}),
        (answer(b"HTTP/1.1 202 A\r\nX: " + b"x" * 300_000), {Phase.RESPONDING}),
        (answer(b"HTTP/1.1 100 Continue\r\n\r\n"), {Phase.RESPONDING}),
        (answer(*[bytes([byte]) for byte in OK * 9], every=0.05), {Phase.RESPONDING}),
    ],
    ids=[
        "reset at once",
        "reset after the request",
        "closed without a word",
        "silence",
        "status cut",
        "one byte",
        "body cut",
        "chunk cut",
        "last chunk missing",
        "two lengths",
        "another protocol",
        "endless header",
        "only interim",
        "dripping",
    ],
)
def test_once_bytes_have_left_it_is_unknown(client: HttpClient, script: Script, phases: set[Phase]) -> None:
    """And there was one request, made once; in the end the deadline ends it."""
    began = time.monotonic()
    with Server(script) as server:
        found = post(client, server.url, seconds=0.5)
        assert time.monotonic() - began < 1.5
        assert server.connections == 1
    assert isinstance(found, NoAnswer), found
    assert found.phase in phases
    assert isinstance(found.outcome(), Unknown)
    assert len(server.requests) == (0 if script is reset_at_once else 1)


@pytest.mark.parametrize("script", [read_slowly, hold], ids=["a dripping reader", "no reader"])
def test_the_deadline_ends_a_write_too(client: HttpClient, script: Script) -> None:
    began = time.monotonic()
    with Server(script) as server:
        found = post(client, server.url, seconds=0.4, body=b"x" * 30_000_000)
        assert 0.3 < time.monotonic() - began < 1.5
    assert isinstance(found, NoAnswer)
    assert found.phase is Phase.WRITING
    assert isinstance(found.outcome(), Unknown)


def test_a_reset_in_the_middle_of_the_body_is_unknown(client: HttpClient) -> None:
    """Some of it has left, so the phase stays "writing", although the client looks for an early answer afterwards."""
    with Server(read_some_then_reset) as server:
        found = post(client, server.url, body=b"x" * 30_000_000)
    assert isinstance(found, NoAnswer)
    assert found.phase is Phase.WRITING
    assert isinstance(found.outcome(), Unknown)
    assert server.connections == 1


def _assert_nothing_left(found: Answer | NoAnswer, phase: Phase) -> None:
    assert isinstance(found, NoAnswer), found
    assert found.phase is phase
    assert isinstance(found.outcome(), NotSent)


def test_a_refused_connection(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is tried once: to try again is the ledger's decision, never the client's."""
    look_up, looked_up = socket.getaddrinfo, list[object]()

    def count(*arguments: Any, **options: Any) -> Any:
        looked_up.append(arguments)
        return look_up(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", count)
    with Server(hold) as server:
        url = server.url
    _assert_nothing_left(post(client, url), Phase.NOT_CONNECTED)
    assert len(looked_up) == 1


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "-"])
def test_a_host_name_that_nobody_can_resolve(client: HttpClient, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real names are not looked up in a test; those that fail before a look-up do so by themselves."""
    look_up = socket.getaddrinfo

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "-":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(name, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    _assert_nothing_left(post(client, f"http://{host}/v1/send"), Phase.NOT_CONNECTED)


@contextlib.contextmanager
def unreachable() -> Iterator[int]:
    """A port whose queue of connections is full: the next one is neither taken nor refused."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(64):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0.1)
            try:
                waiting.connect(listener.getsockname())
            except TimeoutError:
                break
        else:
            pytest.skip("this system takes connections beyond the backlog")
        yield listener.getsockname()[1]


def test_a_connection_that_is_not_taken(client: HttpClient) -> None:
    with unreachable() as port:
        began = time.monotonic()
        _assert_nothing_left(post(client, f"http://127.0.0.1:{port}/", seconds=0.3), Phase.NOT_CONNECTED)
        assert 0.2 < time.monotonic() - began < 1


def test_several_addresses_share_the_deadline(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead address leaves time for the next; and all dead ones together take no longer than the deadline."""
    with unreachable() as dead, Server(keep_answering) as server:
        ports: list[int] = []

        def look_up(*_: Any, **__: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        ports[:] = [dead, dead, dead]
        began = time.monotonic()
        _assert_nothing_left(post(client, "http://provider.example/", seconds=0.3), Phase.NOT_CONNECTED)
        assert time.monotonic() - began < 0.8
        ports[:] = [dead, server.port]
        assert isinstance(post(client, "http://provider.example/", seconds=0.6), Answer)
        ports[:] = []
        _assert_nothing_left(post(client, "http://other.example/", seconds=0.3), Phase.NOT_CONNECTED)


def test_tls_with_somebody_who_does_not_speak_it(client: HttpClient) -> None:
    def greet(server: Server, connection: socket.socket) -> None:
        connection.sendall(b"220 ready\r\n")
        server.stopped.wait(0.2)

    with Server(greet) as server:
        url = server.url.replace("http:", "https:")
        _assert_nothing_left(post(client, url, seconds=2), Phase.NOT_CONNECTED)


def test_a_tls_handshake_that_hangs(client: HttpClient) -> None:
    with Server(hold) as server:
        began = time.monotonic()
        url = server.url.replace("http:", "https:")
        _assert_nothing_left(post(client, url, seconds=0.3), Phase.NOT_CONNECTED)
        assert time.monotonic() - began < 1


def _tls(certificate: tuple[Path, Path]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate[1], certificate[0])
    return server, ssl.create_default_context(cafile=str(certificate[1]))


def test_an_exchange_over_tls(certificate: tuple[Path, Path]) -> None:
    theirs, ours = _tls(certificate)
    client = HttpClient(ours)
    with Server(keep_answering, tls=theirs) as server:
        for _ in range(3):
            assert isinstance(post(client, server.url), Answer)
        close(client)
    assert len(server.requests) == 3


def test_a_certificate_that_nobody_vouches_for(client: HttpClient, certificate: tuple[Path, Path]) -> None:
    with Server(keep_answering, tls=_tls(certificate)[0]) as server:
        _assert_nothing_left(post(client, server.url), Phase.NOT_CONNECTED)
    assert server.requests == []


@pytest.mark.parametrize(
    ("script", "phase"),
    [
        (reset_after_the_request, Phase.WRITTEN),
        (answer(), Phase.WRITTEN),
        (say_nothing, Phase.WRITTEN),
        (answer(b"HTTP/1.1 202 A\r\nContent-Length: 100\r\n\r\n{"), Phase.RESPONDING),
    ],
    ids=["reset", "closed", "silence", "body cut"],
)
def test_the_same_over_tls(certificate: tuple[Path, Path], script: Script, phase: Phase) -> None:
    """What TLS itself says (an end without notice, a ticket) is not mistaken for an answer."""
    theirs, ours = _tls(certificate)
    client = HttpClient(ours)
    with Server(script, tls=theirs) as server:
        found = post(client, server.url, seconds=0.5)
        close(client)
    assert isinstance(found, NoAnswer)
    assert found.phase is phase
    assert len(server.requests) == 1


# Connections that are used again.


def test_a_connection_is_used_again(client: HttpClient) -> None:
    with Server(keep_answering) as server:
        for _ in range(5):
            assert isinstance(post(client, server.url), Answer)
        assert server.connections == 1
    assert len(server.requests) == 5


def test_a_connection_that_the_server_closed_in_between_is_not_used(client: HttpClient) -> None:
    """Two requests, two connections, no "unknown" for nothing."""
    with Server(answer(OK), keep_answering) as server:
        assert isinstance(post(client, server.url), Answer)
        time.sleep(0.1)
        assert isinstance(post(client, server.url), Answer)
        assert server.connections == 2
    assert len(server.requests) == 2


def test_a_connection_that_the_server_closes_on_the_next_request_is_unknown(client: HttpClient) -> None:
    """The race that no look at the socket can win: the second request was read, so it is not made again in silence."""
    with Server(answer_once_then_nothing, keep_answering) as server:
        assert isinstance(post(client, server.url), Answer)
        found = post(client, server.url)
        assert isinstance(found, NoAnswer)
        assert found.phase is Phase.WRITTEN
        assert (server.connections, len(server.requests)) == (1, 2)
        assert isinstance(post(client, server.url), Answer), "the next exchange is not affected"


@pytest.mark.parametrize("first", [say_nothing, answer(b"HTTP/1.1 202 A\r\nContent-Length: 9\r\n\r\n{"), reset_at_once])
def test_after_a_failure_the_next_exchange_has_a_connection_of_its_own(client: HttpClient, first: Script) -> None:
    """A late answer to the first request must never be read as the answer to the second."""
    with Server(first, keep_answering) as server:
        assert isinstance(post(client, server.url, seconds=0.3), NoAnswer)
        assert isinstance(post(client, server.url), Answer)
        assert server.connections == 2


@pytest.mark.parametrize("together", [True, False])
def test_bytes_that_nobody_asked_for_are_not_the_next_answer(client: HttpClient, together: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A server or a proxy that writes two answers to one request does not settle the next email."""
    unasked = OK.replace(b"2\r\n", b"7\r\n").replace(b"{}", b'{"x":1}')

    def answer_twice(server: Server, connection: socket.socket) -> None:
        server.read_request(connection)
        if together:
            connection.sendall(OK + unasked)
        else:
            connection.sendall(OK)
            time.sleep(0.05)
            connection.sendall(unasked)
        server.stopped.wait()

    with Server(answer_twice, keep_answering) as server:
        first = post(client, server.url)
        time.sleep(0.15)
        second = post(client, server.url, seconds=1)
        third = post(client, server.url, seconds=1)
        assert isinstance(first, Answer)
        assert isinstance(second, NoAnswer) == together, "read together with the first, it cannot be told in time"
        assert isinstance(second.outcome() if isinstance(second, NoAnswer) else Unknown(""), Unknown)
        assert isinstance(third, Answer)
        assert third.body == b"{}"
        assert server.connections == 2


def test_two_threads_have_two_connections() -> None:
    client, together = HttpClient(), threading.Barrier(2)

    def exchange(url: str) -> list[Answer | NoAnswer]:
        together.wait(10)
        found = [post(client, url) for _ in range(5)]
        together.wait(10)
        close(client)
        return found

    with Server(keep_answering) as server, ThreadPoolExecutor(2) as pool:
        found = [one for many in pool.map(exchange, [server.url] * 2) for one in many]
        assert server.connections == 2
    assert len(server.requests) == 10
    assert all(isinstance(one, Answer) for one in found)


# The deadline, before and between the socket's operations.


class JumpingClock:
    """Tells the time like the system, until it has been asked so often; then an hour has passed."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def now(self) -> float:
        self.looks -= 1
        return CLOCK.now() + (3_600 if self.looks < 0 else 0)

    def boot(self) -> float:
        return CLOCK.boot()

    def sleep(self, seconds: float) -> None:
        CLOCK.sleep(seconds)


@pytest.mark.parametrize("seconds", [0.0, -5.0])
def test_a_deadline_that_is_over_connects_to_nobody(client: HttpClient, seconds: float) -> None:
    with Server(keep_answering) as server:
        _assert_nothing_left(post(client, server.url, seconds=seconds), Phase.NOT_CONNECTED)
        assert server.connections == 0


@pytest.mark.parametrize("warm", [True, False], ids=["on a connection in use", "on a new connection"])
def test_a_pause_before_the_first_byte_sends_nothing(client: HttpClient, warm: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A worker that was suspended there does not write: its claim may be somebody else's by now."""
    with Server(keep_answering) as server:
        if warm:
            post(client, server.url)
        before = server.bytes_seen
        # Looks: one sets the deadline, one allows the connection where there is none yet, the next is the write's.
        deadline = Deadline.after(JumpingClock(1 if warm else 2), 10)
        found = post(client, server.url, deadline=deadline)
        _assert_nothing_left(found, Phase.NOT_WRITTEN)
        time.sleep(0.05)
        assert server.bytes_seen == before
        assert server.connections == 1
    assert len(server.requests) == warm


def test_a_pause_between_two_writes_is_unknown(client: HttpClient) -> None:
    with Server(keep_answering) as server:
        found = post(client, server.url, deadline=Deadline.after(JumpingClock(3), 10))
    assert isinstance(found, NoAnswer)
    assert found.phase is Phase.WRITING
    assert server.requests == []


def test_a_pause_after_the_request_is_unknown(client: HttpClient) -> None:
    """The answer may be there to be read; by then the claim is over, and a replay will bring it again."""
    with Server(keep_answering) as server:
        found = post(client, server.url, deadline=Deadline.after(JumpingClock(4), 10))
        assert isinstance(found, NoAnswer)
        assert found.phase is Phase.WRITTEN


# Interrupts from outside: dramatiq raises its time limit and its shutdown in the thread, between any two lines.


class Interrupt(BaseException):
    """Raised in the middle of an exchange."""


def _raise_at(line: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that raises at the n-th line which the client or its library executes."""
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        name = frame.f_code.co_filename
        if "httpcore2" not in name and not name.endswith("idem/providers/http.py"):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Interrupt
        return trace

    return trace


@pytest.mark.timeout(60)
def test_an_interrupt_anywhere_leaves_a_client_that_works() -> None:
    """It left a request behind in the library's pool, for which the next one waited, past its deadline, for ever."""
    traced, interrupted = sys.gettrace(), 0
    # What an interrupt cuts off between two lines is closed by the collector, which says so.
    with Server(keep_answering) as server, warnings.catch_warnings(action="ignore", category=ResourceWarning):
        for line in range(1, 2_000, 5):
            client = HttpClient()
            post(client, server.url)
            sys.settrace(_raise_at(line))
            try:
                post(client, server.url)
            except Interrupt:
                interrupted += 1
            else:
                break
            finally:
                sys.settrace(traced)
            assert isinstance(post(client, server.url), Answer)
            close(client)
        close(client)
        del client
        gc.collect()
    assert 50 < interrupted < 350, "some in every part of the exchange, and then it was over"


# What an answer says.


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("999999999", 86_400.0),
        ("9" * 400, 86_400.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Fri, 31 Dec 2999 23:59:59 GMT", 86_400.0),
        ("Fri, 31 Dec 2999 23:59:59 -0000", 86_400.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("\u00b2", None),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999", None),
        ("Mon, 01 Jan 99999999999999 00:00:00 GMT", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert Answer(429, {"retry-after": value}, b"").retry_after() == seconds


def test_retry_after_a_date_in_the_near_future() -> None:
    at = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    found = Answer(429, {"retry-after": at}, b"").retry_after()
    assert found is not None
    assert 95 < found <= 100
    assert Answer(429, {}, b"").retry_after() is None


@given(
    st.text(st.characters(max_codepoint=255), max_size=60) | st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ .{0,9}")
)
def test_no_retry_after_at_all_is_an_error(value: str) -> None:
    found = Answer(429, {"retry-after": value}, b"").retry_after()
    assert found is None or 0 <= found <= 86_400


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b"[1]", {}),
        (b"null", {}),
        (b"", {}),
        (b"<html>", {}),
        (b'{"a": "\xff"}', {}),
        (b'{"a": "\\ud800"}', {}),
        (b'{"a":' * 100_000, {}),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_body_is_an_object_or_nothing(body: bytes, found: dict[str, Any]) -> None:
    assert Answer(200, {}, body).json_object() == found


@given(st.binary(max_size=100))
def test_no_body_at_all_is_an_error(body: bytes) -> None:
    assert isinstance(Answer(200, {}, body).json_object(), dict)
