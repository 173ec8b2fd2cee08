"""The one HTTP exchange that every provider's adapter makes: one request, one deadline, and how far it got.

No retries, no redirects, no proxies from the environment. The deadline is a total: it is looked at before every single
socket operation, the first write included, so a pause of this process ends as "not written" and an answer that drips
in byte by byte ends too. What separates `NotSent` from `Unknown` is the wire phase, measured at the socket.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import IntEnum
from typing import Any

import httpcore2
import msgspec

from idem.clock import Deadline
from idem.outcome import NotSent, Unknown
from idem.providers.sockets import open_socket

_MAX_RESPONSE_BYTES = 1024 * 1024
_KEEPALIVE_SECONDS = 5.0
_DAY_SECONDS = 86_400.0


class Phase(IntEnum):
    """How far an exchange got."""

    NOT_CONNECTED = 0
    NOT_WRITTEN = 1
    """Connected, and not one byte of the request has left."""
    WRITING = 2
    """Some of the request has left; how much the other side has cannot be known."""
    WRITTEN = 3
    """All of the request has left."""
    RESPONDING = 4
    """The response has begun."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None when it is anything else, as a proxy's error page is."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def json_object(self) -> dict[str, Any]:
        """The body as a JSON object; empty when it is anything else."""
        decoded = self.json()
        return decoded if isinstance(decoded, dict) else {}

    def retry_after(self) -> float | None:
        """`Retry-After` in seconds, from a number or an HTTP date, at most a day; None without it and for junk."""
        value = self.headers.get("retry-after", "").strip()
        if not value:
            return None
        if value.isdecimal():
            return min(float(value), _DAY_SECONDS)
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        now = datetime.now(UTC) if at.tzinfo else datetime.now(UTC).replace(tzinfo=None)
        return min(max(0.0, (at - now).total_seconds()), _DAY_SECONDS)


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """No complete response came; `phase` says how far the exchange got."""

    phase: Phase
    detail: str

    def outcome(self) -> NotSent | Unknown:
        """Nothing left this machine, or it is not known what became of it."""
        if self.phase <= Phase.NOT_WRITTEN:
            return NotSent(self.detail)
        return Unknown(self.detail)


class HttpClient:
    """Exchanges with one provider. Safe to share between threads: each has a connection of its own."""

    def __init__(self, ssl_context: ssl.SSLContext | None = None) -> None:
        self._ssl_context = ssl_context
        self._local = threading.local()

    def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: Deadline) -> Answer | NoAnswer:
        """Make one request, the whole of it before `deadline`. Returns, whatever the network does."""
        return self._exchange("POST", url, headers, body, deadline)

    def get(self, url: str, headers: Mapping[str, str], deadline: Deadline) -> Answer | NoAnswer:
        """Ask for something, the same way."""
        return self._exchange("GET", url, headers, None, deadline)

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, deadline: Deadline
    ) -> Answer | NoAnswer:
        wire, pool = self._connection()
        wire.begin(deadline)
        try:
            with pool.stream(method, url, headers=list(headers.items()), content=body) as response:
                content = _read_limited(response)
        except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            return NoAnswer(wire.phase, _describe(error, wire.phase))
        except BaseException:
            # From outside, at any instant (a time limit, a shutdown): the pool may go on counting a request that is no
            # more, and then the next one would wait for ever.
            del self._local.connection
            raise
        if content is None:
            return NoAnswer(wire.phase, f"the response is longer than {_MAX_RESPONSE_BYTES:,} bytes")
        if wire.phase is not Phase.RESPONDING:
            # Nothing was read: these bytes came with an earlier answer, and speak for no request of ours.
            pool.close()
            del self._local.connection
            return NoAnswer(wire.phase, "the answer was there before the request")
        return Answer(response.status, _decoded(response.headers), content)

    def _connection(self) -> tuple[_Wire, httpcore2.ConnectionPool]:
        if not hasattr(self._local, "connection"):
            wire = _Wire()
            pool = httpcore2.ConnectionPool(
                ssl_context=self._ssl_context,
                max_connections=1,
                keepalive_expiry=_KEEPALIVE_SECONDS,
                retries=0,
                network_backend=_Backend(wire),
            )
            self._local.connection = (wire, pool)
        connection: tuple[_Wire, httpcore2.ConnectionPool] = self._local.connection
        return connection


class _Wire:
    """The exchange that one thread has under way: its deadline, and the phase that it has reached."""

    def __init__(self) -> None:
        self.phase = Phase.NOT_CONNECTED
        self._deadline: Deadline | None = None
        self._broken = False

    def begin(self, deadline: Deadline) -> None:
        self.phase, self._deadline, self._broken = Phase.NOT_CONNECTED, deadline, False

    def left(self, late: type[httpcore2.TimeoutException]) -> float:
        """Seconds left; raises `late` when there are none."""
        seconds = self._deadline.left() if self._deadline is not None else 0.0
        if seconds <= 0:
            raise late("the deadline has passed")
        return seconds

    def connected(self) -> None:
        self.phase = max(self.phase, Phase.NOT_WRITTEN)

    def writing(self) -> None:
        self.phase = max(self.phase, Phase.WRITING)

    def broken(self) -> None:
        self._broken = True

    def reading(self) -> None:
        """The client reads once it has written everything, or once a write has failed."""
        if self.phase is Phase.WRITING and not self._broken:
            self.phase = Phase.WRITTEN

    def responding(self) -> None:
        self.phase = Phase.RESPONDING


class _Backend(httpcore2.NetworkBackend):
    """Opens connections that report to a wire."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the wire's deadline rules
        local_address: str | None = None,  # noqa: ARG002 - never asked for
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - never asked for
    ) -> httpcore2.NetworkStream:
        try:
            connection = open_socket(host, port, lambda: self._wire.left(httpcore2.ConnectTimeout))
            return _Stream(connection, self._wire)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(str(error)) from error
        except (OSError, UnicodeError) as error:  # the latter for a host name that no resolver takes
            raise httpcore2.ConnectError(str(error)) from error


class _Stream(httpcore2.NetworkStream):
    """A socket whose every operation looks at the deadline first and notes the phase."""

    def __init__(self, connection: socket.socket, wire: _Wire) -> None:
        self._socket = connection
        self._wire = wire

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - the wire's deadline rules
    ) -> httpcore2.NetworkStream:
        try:
            self._socket.settimeout(self._wire.left(httpcore2.ConnectTimeout))
            return _Stream(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname), self._wire)
        except TimeoutError as error:
            self.close()
            raise httpcore2.ConnectTimeout(str(error)) from error
        except OSError as error:
            self.close()
            raise httpcore2.ConnectError(str(error)) from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - the wire's deadline rules
        self._wire.connected()
        rest = memoryview(buffer)
        try:
            while rest:
                self._socket.settimeout(self._wire.left(httpcore2.WriteTimeout))
                # Before the call: of what a failing send had handed over, nothing can be known.
                self._wire.writing()
                rest = rest[self._socket.send(rest) :]
        except TimeoutError as error:
            self._wire.broken()
            raise httpcore2.WriteTimeout(str(error)) from error
        except OSError as error:
            self._wire.broken()
            raise httpcore2.WriteError(str(error)) from error

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the wire's deadline rules
        self._wire.reading()
        try:
            self._socket.settimeout(self._wire.left(httpcore2.ReadTimeout))
            data = self._socket.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore2.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore2.ReadError(str(error)) from error
        if data:
            self._wire.responding()
        return data

    def close(self) -> None:
        self._socket.close()

    def __del__(self) -> None:
        # A connection belongs to one thread and ends with it; nobody else could close it.
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return _is_readable(self._socket)
        return self._socket if info == "socket" else None


def _is_readable(connection: socket.socket) -> bool:
    """Whether an idle connection has something to say: the other side closed it, so it must not be used again."""
    if connection.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _read_limited(response: httpcore2.Response) -> bytes | None:
    content = bytearray()
    for chunk in response.iter_stream():
        content += chunk
        if len(content) > _MAX_RESPONSE_BYTES:
            return None
    return bytes(content)


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


_REACHED = {
    Phase.NOT_CONNECTED: "no connection to the provider",
    Phase.NOT_WRITTEN: "the request was not written",
    Phase.WRITING: "the connection broke while the request was written",
    Phase.WRITTEN: "no answer to the request",
    Phase.RESPONDING: "the answer was cut short",
}


def _describe(error: Exception, phase: Phase) -> str:
    return f"{_REACHED[phase]} ({type(error).__name__})"
