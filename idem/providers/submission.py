"""The one SMTP exchange: a connection, one message, one deadline, and the stage at which it ended.

What separates `NotSent` from `Unknown` is the final dot. A server may not deliver what it has not seen the end of: one
whose connection breaks "MUST cancel any pending transaction" (RFC 5321, 4.1.1.10), and the end, a dot on a line of its
own, leaves this machine in a write of its own, when all that comes before it is out. From that write on, until the
reply to it is complete, the message may have been accepted.

The standard library speaks the protocol; here it is driven command by command, each within what is left of the time.
"""

from __future__ import annotations

import contextlib
import smtplib
import socket
import ssl
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Any, Final, NoReturn

from idem.clock import Deadline
from idem.providers.sockets import open_socket

_READ_BYTES: Final = 4096
_MAX_REPLY_BYTES: Final = 64 * 1024
_GOODBYE_SECONDS: Final = 1.0

_READY, _AUTHENTICATED, _DONE, _GO_ON = 220, 235, 250, 354
_NOT_IMPLEMENTED, _NO_SUCH_ADDRESS_FORM = 502, 553
_PERMANENT: Final = 500


class Stage(StrEnum):
    """What a reply is to, or what was going on when none came; in the order of a session."""

    CONNECTION = "connection"
    GREETING = "greeting"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    CONTENT = "content"
    """The message is being written; its end has not begun to leave."""
    END = "end of data"
    """The final dot may have left."""


class Security(Enum):
    """How a connection is protected. The clear is for this machine only."""

    TLS = auto()
    STARTTLS = auto()
    CLEAR = auto()


@dataclass(frozen=True, slots=True)
class Server:
    """Where messages are submitted, and as whom; no user, no login."""

    host: str
    port: int
    security: Security
    user: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message and who it is from and for: bare addresses. Its line ends are made CRLF."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply that ended the exchange, and what it was to; -1 for one that has no status."""

    stage: Stage
    status: int
    text: str


@dataclass(frozen=True, slots=True)
class NoReply:
    """The connection ended, or the time did, before the exchange was over."""

    stage: Stage
    detail: str


class Submitter:
    """Submits messages to one server, each over a connection of its own. Safe to share between threads."""

    def __init__(self, server: Server, ssl_context: ssl.SSLContext | None = None) -> None:
        self._server = server
        self._ssl_context = ssl_context
        if ssl_context is None and server.security is not Security.CLEAR:
            self._ssl_context = ssl.create_default_context()

    def submit(self, envelope: Envelope, deadline: Deadline) -> Reply | NoReply:
        """Make one attempt, the whole of it before `deadline`. Returns, whatever the server does."""
        # Called by the sender's domain: the one name here that is sure to be real, and that tells nothing new.
        session = _Session(self._server, self._ssl_context, deadline, envelope.sender.rpartition("@")[2])
        try:
            content = _stuffed(envelope.content)
            _open(session, self._server)
            return _deliver(session, envelope, content)
        except _Over as over:
            return over.reply
        except OSError as error:  # what smtplib raises is one too
            return NoReply(session.stage, f"the connection ended, at: {session.stage} ({_name(error)})")
        except UnicodeError:  # a host name that no resolver takes
            return NoReply(session.stage, "the server's name is not one")
        finally:
            session.leave()


def _name(error: BaseException) -> str:
    """The error that smtplib wrapped, or this one."""
    inner = error.__context__ if isinstance(error, smtplib.SMTPServerDisconnected) else None
    return type(inner or error).__name__


class _Over(Exception):
    """Raised when a reply ends the exchange."""

    def __init__(self, stage: Stage, status: int, text: str) -> None:
        super().__init__(stage, status)
        self.reply = Reply(stage, status, text)


class _Session(smtplib.SMTP):
    """One connection, of which every operation has what is left of the time, and which knows its stage."""

    def __init__(self, server: Server, ssl_context: ssl.SSLContext | None, deadline: Deadline, own_name: str) -> None:
        # Without a name for this end, one would be looked up in the network.
        super().__init__(local_hostname=own_name)
        self.stage = Stage.CONNECTION
        self._server = server
        self._ssl_context = ssl_context
        self._deadline = deadline

    def left(self) -> float:
        """Seconds left; raises `TimeoutError` when there are none."""
        seconds = self._deadline.left()
        if seconds <= 0:
            raise TimeoutError
        return seconds

    def secure(self) -> None:
        """Put the connection under TLS; what was said before is forgotten, as RFC 3207 has it."""
        assert self.sock is not None
        assert self._ssl_context is not None
        self.sock.settimeout(self.left())
        self.sock = self._ssl_context.wrap_socket(self.sock, server_hostname=self._server.host)
        self.file = None

    def send(self, s: Any) -> None:
        """Write all of it in what is left; the time that `sendall` takes is that of the whole (Python 3.5)."""
        if self.sock is not None:
            self.sock.settimeout(self.left())
        super().send(s)

    def getreply(self) -> tuple[int, bytes]:
        """Read one reply."""
        if self.file is None and self.sock is not None:
            self.file = _Lines(self.sock, self)
        return super().getreply()

    def spoke(self) -> bool:
        """Whether the server has said something that nothing of ours asked for, or is gone."""
        assert self.sock is not None
        if isinstance(self.file, _Lines) and self.file.rest:
            return True
        self.sock.settimeout(0)
        try:
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        return True

    def leave(self) -> None:
        """Close the connection, with a QUIT where one is understood; nobody waits for its reply."""
        with contextlib.suppress(OSError):
            if self.sock is not None and self.stage is not Stage.CONTENT:
                self.sock.settimeout(max(0.001, min(_GOODBYE_SECONDS, self._deadline.left())))
                self.sock.sendall(b"QUIT\r\n")
        with contextlib.suppress(OSError):
            self.close()

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:  # noqa: ARG002 - the deadline rules
        connection = open_socket(host, port, self.left)
        self.stage = Stage.GREETING
        if self._server.security is not Security.TLS:
            return connection
        assert self._ssl_context is not None
        try:
            connection.settimeout(self.left())
            return self._ssl_context.wrap_socket(connection, server_hostname=host)
        except BaseException:
            connection.close()
            raise


class _Lines:
    """Reads lines from a socket as the buffered file of the standard library would, but within the time."""

    def __init__(self, connection: socket.socket, session: _Session) -> None:
        self._socket = connection
        self._session = session
        self._read = 0
        self.rest = b""

    def readline(self, _limit: int = -1) -> bytes:
        """The next line; raises `OSError` when it is cut short, as half a reply is none."""
        while b"\n" not in self.rest:
            self._socket.settimeout(self._session.left())
            data = self._socket.recv(_READ_BYTES)
            self._read += len(data)
            if not data or self._read > _MAX_REPLY_BYTES:
                raise ConnectionError("the reply is cut short" if not data else "the replies are too long")
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return line + b"\n"

    def close(self) -> None:
        """The socket is the session's to close."""


def _open(session: _Session, server: Server) -> None:
    """Up to where a message can be submitted."""
    _expect(Stage.GREETING, {_READY}, *session.connect(server.host, server.port))
    _say_hello(session)
    if server.security is Security.STARTTLS:
        if not session.has_extn("starttls"):
            _end(Stage.STARTTLS, _NOT_IMPLEMENTED, b"not offered, and nothing is sent in the clear: use smtps://")
        _command(session, Stage.STARTTLS, "STARTTLS", {_READY})
        session.secure()
        _say_hello(session)
    if server.user:
        _log_in(session, server)


def _say_hello(session: _Session) -> None:
    session.stage = Stage.EHLO
    _expect(Stage.EHLO, {_DONE}, *session.ehlo())


def _log_in(session: _Session, server: Server) -> None:
    session.stage = Stage.AUTH
    try:
        session.login(server.user, server.password)
    except smtplib.SMTPServerDisconnected:
        raise
    except smtplib.SMTPResponseException as error:
        said = error.smtp_error
        _end(Stage.AUTH, error.smtp_code, said if isinstance(said, bytes) else said.encode())
    except smtplib.SMTPException:
        _end(Stage.AUTH, _NOT_IMPLEMENTED, b"the server offers no way to log in that is known here")


def _deliver(session: _Session, envelope: Envelope, content: bytes) -> Reply:
    """One transaction: nothing is sent to some of the recipients only."""
    _command(session, Stage.MAIL, f"MAIL FROM:<{envelope.sender}>{_options(session, envelope, content)}", {_DONE})
    _name_recipients(session, envelope.recipients)
    _command(session, Stage.DATA, "DATA", {_GO_ON})
    session.stage = Stage.CONTENT
    session.send(content)
    if session.spoke():
        raise ConnectionError("the server spoke before the end of the message")
    session.left()
    session.stage = Stage.END
    session.send(b".\r\n")
    status, text = session.getreply()
    return Reply(Stage.END, status, _text(text))


def _stuffed(content: bytes) -> bytes:
    """The content as DATA takes it: only CRLF ends a line (a bare one may end the message), and no line is a dot."""
    lines = b"\n" + content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removesuffix(b"\n") + b"\n"
    return lines.replace(b"\n.", b"\n..").replace(b"\n", b"\r\n").removeprefix(b"\r\n")


def _options(session: _Session, envelope: Envelope, content: bytes) -> str:
    """What MAIL announces: the size, so that a message that is too large is refused before it is sent (RFC 1870)."""
    options = f" SIZE={len(content)}" if session.has_extn("size") else ""
    addresses = (envelope.sender, *envelope.recipients)
    if envelope.content.isascii() and all(address.isascii() for address in addresses):
        return options
    if not session.has_extn("smtputf8"):
        _end(Stage.MAIL, _NO_SUCH_ADDRESS_FORM, b"5.6.7 the server takes no addresses beyond ASCII (SMTPUTF8)")
    session.command_encoding = "utf-8"
    return f"{options} BODY=8BITMIME SMTPUTF8"


def _name_recipients(session: _Session, recipients: tuple[str, ...]) -> None:
    """Name every recipient; when one is refused, the message goes to none, and the reply says how many were."""
    session.stage = Stage.RCPT
    refused = []
    for recipient in recipients:
        status, text = session.docmd(f"RCPT TO:<{recipient}>")
        if not _DONE <= status < _DONE + 10:
            refused.append((status, text))
    if not refused:
        return
    with contextlib.suppress(OSError):
        session.docmd("RSET")
    # One that is refused for good decides: to try all of them again would not help.
    status, text = next((reply for reply in refused if reply[0] >= _PERMANENT), refused[0])
    count = f"{len(refused)} of {len(recipients)} recipients refused; the first: "
    _end(Stage.RCPT, status, count.encode() + text)


def _command(session: _Session, stage: Stage, line: str, wanted: set[int]) -> None:
    session.stage = stage
    _expect(stage, wanted, *session.docmd(line))


def _expect(stage: Stage, wanted: set[int], status: int, text: bytes) -> None:
    if status not in wanted:
        _end(stage, status, text)


def _end(stage: Stage, status: int, text: bytes) -> NoReturn:
    raise _Over(stage, status, _text(text))


def _text(text: bytes) -> str:
    return text.decode("utf-8", "replace")
