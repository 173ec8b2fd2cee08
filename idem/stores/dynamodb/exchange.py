"""One request and its answer over HTTP/1.1, on connections that are kept: what the hot calls need, and no more.

Nothing is ever repeated here, since what was not answered may have been applied. A kept connection that the server has
closed is noticed before the request is written, and one that was idle for long is not trusted at all: what lies between
may have forgotten it without a word. What is left of the danger, a connection that ends while its request is under way,
is an error; the protocol asks again, and recognises its own write.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]  # ships no types

#: Amazon's load balancers, and most NATs, keep a silent connection for longer.
_IDLE_SECONDS: Final = 30.0

_PIECE: Final = 64 * 1024
_HEAD_BYTES: Final = 64 * 1024
#: The largest answer of DynamoDB is 16 MB, before base64.
_CONTENT_BYTES: Final = 32 * 1024 * 1024
_REQUEST_ID: Final = ("x-amzn-requestid", "x-amz-request-id")


@dataclass(frozen=True, slots=True)
class Answer:
    """Headers by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go, and for how long, in seconds, one waits; `tls` None is plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    connect_seconds: float
    answer_seconds: float


@dataclass(frozen=True, slots=True)
class _Kept:
    """An idle connection, since when, and of which process: a child must not write into its parent's."""

    sock: socket.socket
    since: float
    pid: int

    def is_usable(self) -> bool:
        """Nothing has come in since its last answer, be it the end of the connection or bytes nobody asked for."""
        if time.monotonic() - self.since > _IDLE_SECONDS or self.pid != os.getpid():
            return False
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        return not poller.poll(0)


class Exchanger:
    """Requests to one server, from any number of threads; as many connections as there are requests at a time."""

    def __init__(self, server: Server) -> None:
        self._server = server
        # The last one used is the next: in a quiet hour the others age and are not used again. No lock, so that a
        # process that forks cannot leave it locked to its child: both ends of a deque are changed atomically.
        self._idle: deque[_Kept] = deque()
        self._closed = False
        # For whoever forgets to close, the end of the process included.
        weakref.finalize(self, _drain, self._idle)

    def exchange(self, request: bytes) -> Answer:
        """Write the request and read its answer; any exception means that it may have been applied."""
        sock = self._take() or self._connect()
        try:
            deadline = time.monotonic() + self._server.answer_seconds
            sock.settimeout(self._server.answer_seconds)
            sock.sendall(request)
            answer, is_reusable = _read_answer(_Reader(sock, deadline))
        except BaseException:
            sock.close()
            raise
        if is_reusable:
            self._keep(sock)
        else:
            sock.close()
        return answer

    def close(self) -> None:
        """Close what is idle; what is under way closes when it has been answered."""
        self._closed = True
        _drain(self._idle)

    def _take(self) -> socket.socket | None:
        while True:
            try:
                kept = self._idle.pop()
            except IndexError:
                return None
            if kept.is_usable():
                return kept.sock
            kept.sock.close()

    def _keep(self, sock: socket.socket) -> None:
        self._idle.append(_Kept(sock, time.monotonic(), os.getpid()))
        if self._closed:
            _drain(self._idle)

    def _connect(self) -> socket.socket:
        server = self._server
        sock = socket.create_connection((server.host, server.port), server.connect_seconds)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return sock if server.tls is None else server.tls.wrap_socket(sock, server_hostname=server.host)
        except BaseException:
            sock.close()
            raise


def _drain(idle: deque[_Kept]) -> None:
    while True:
        try:
            idle.pop().sock.close()
        except IndexError:
            return


def check_answer(status: int, headers: Mapping[str, str], content: Callable[[], bytes]) -> None:
    """Raise unless the answer is one of AWS, and whole; `headers` are looked up by names in lower case.

    Any text under the status 200 could be a proxy's page, which would pass for a write that was applied, or for a key
    that is absent; a failure needs no such proof. `content` is asked for only with a checksum: S3 streams its own.
    """
    if status == HTTPStatus.OK and not any(name in headers for name in _REQUEST_ID):
        raise ResponseParserError("the answer does not come from AWS: it has no request id")
    checksum = headers.get("x-amz-crc32")
    if checksum is not None and int(checksum) != zlib.crc32(content()):
        raise ResponseParserError("the answer was damaged on its way: its checksum is wrong")


class _Reader:
    """What a socket brings, in the pieces that the caller wants, until the deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._buffer = b""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of what came in."""
        return not self._buffer

    def until(self, mark: bytes) -> bytes:
        """Everything before `mark`, which is taken away as well."""
        while (end := self._buffer.find(mark)) < 0:
            if len(self._buffer) > _HEAD_BYTES:
                raise ResponseParserError("the answer has a head without an end")
            self._buffer += self._receive()
        found, self._buffer = self._buffer[:end], self._buffer[end + len(mark) :]
        return found

    def exactly(self, size: int) -> bytes:
        """The next `size` bytes."""
        if not 0 <= size <= _CONTENT_BYTES:
            raise ResponseParserError("the answer is larger than any of DynamoDB")
        pieces, left = [self._buffer], size - len(self._buffer)
        while left > 0:
            pieces.append(self._receive())
            left -= len(pieces[-1])
        whole = b"".join(pieces)
        self._buffer = whole[size:]
        return whole[:size]

    def _receive(self) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer is not complete in time")
        self._sock.settimeout(left)
        piece = self._sock.recv(_PIECE)
        if not piece:
            raise ConnectionError("the connection ended before the answer did")
        return piece


def _read_answer(reader: _Reader) -> tuple[Answer, bool]:
    """The answer, and whether another request may follow on its connection."""
    first, *lines = reader.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    status = rest[:3]
    if version not in {"HTTP/1.1", "HTTP/1.0"} or not (status.isascii() and status.isdigit()):
        raise ResponseParserError("the answer is not HTTP")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    answer = Answer(int(status), headers, _read_content(reader, headers))
    is_lasting = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    return answer, is_lasting and reader.is_empty


def _read_content(reader: _Reader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return b"".join(_read_chunks(reader))
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        # One that ends with its connection cannot be told from one that was cut off.
        raise ResponseParserError("the answer does not say how long it is")
    return reader.exactly(int(length))


def _read_chunks(reader: _Reader) -> Iterator[bytes]:
    total = 0
    while size := int(reader.until(b"\r\n").partition(b";")[0], 16):
        total += size
        if total > _CONTENT_BYTES:
            raise ResponseParserError("the answer is larger than any of DynamoDB")
        yield reader.exactly(size)
        reader.exactly(len(b"\r\n"))
    while reader.until(b"\r\n"):
        # Trailers, up to the empty line, say nothing that is needed here.
        pass
