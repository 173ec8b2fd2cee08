"""SMTP in the sandbox, spoken by hand: one server for every provider that takes messages so.

Who logs in decides which: `lettermint` and `resend`, whose relays honour a key in a header of the message, or anybody
else. Decided here, as nobody documents it: a key with another message is refused for good (554), one whose first
message is being processed for now (451), and two messages are the same when their Date and Message-ID alone differ, as
every client makes new ones.

Faults strike at the end of the message, those of credentials, permissions and rates at MAIL. After an acceptance no
server may say that the action failed (RFC 5321, 4.2.1), so `accept_then_500` is a 421, the end of the connection.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from idem.errors import EmailError
from idem.providers import lettermint_smtp, resend_smtp
from idem.providers import smtp as plain_smtp
from idem.providers.base import Contract
from workers.sandbox.acceptance import Request, message_key
from workers.sandbox.bodies import digest_of
from workers.sandbox.dialect import Dialect, Refused, Reply, Taken
from workers.sandbox.exchange import MAX_BODY_BYTES, Exchange
from workers.sandbox.faults import Draw, Fault, Kind, Target
from workers.sandbox.log import Seen
from workers.sandbox.mime import bare, read_message

_MAX_LINE: Final = 1024 * 1024
_STOP_SECONDS: Final = 1.0
_PATH = re.compile(r"(?:FROM|TO):\s*<([^<>]*)>(?:\s+(.*))?", re.IGNORECASE)
_CLOSING: Final = 421

#: What is refused before a message is looked at.
AT_MAIL: Final = frozenset({Kind.UNAUTHORIZED, Kind.FORBIDDEN, Kind.RATE_LIMITED, Kind.UNAVAILABLE})

#: A status of HTTP, which is how faults are called, as a reply with its enhanced code (RFC 3463).
_REFUSALS: Final = {
    400: (554, "5.6.0 Message refused"),
    401: (530, "5.7.0 Authentication required"),
    402: (452, "4.3.1 Out of credit"),
    403: (550, "5.7.1 Not allowed"),
    408: (451, "4.4.2 Timed out"),
    413: (552, "5.3.4 Message too big"),
    422: (554, "5.6.0 Message refused"),
    429: (451, "4.7.1 Too many messages, slow down"),
    502: (_CLOSING, "4.4.1 No connection to the queue, closing"),
    503: (_CLOSING, "4.3.2 Not accepting messages, closing"),
}
_FAILED: Final = (451, "4.3.0 Internal error")
_MISMATCH: Final = {
    "lettermint_smtp": "5.6.0 This idempotency key has already been used on a request with a different payload.",
    "resend_smtp": "5.6.0 invalid_idempotent_request: this idempotency key was used with a different payload.",
}


def _dialect(contract: Contract) -> Dialect:
    """A provider that has no HTTP here; its answers are replies, whose text is the body."""
    mismatch = _MISMATCH.get(contract.name)
    keyed = contract.key is not None
    return Dialect(
        contract=contract,
        endpoints={},
        account=lambda _headers: None,
        refusal=lambda status, _message: Reply(*_REFUSALS.get(status, _FAILED)),
        invalid_key=Reply(554, "5.6.0 The idempotency key is too long or empty.") if keyed else None,
        mismatch=None if mismatch is None else lambda _headers: Reply(554, mismatch),
        in_progress=Reply(451, "4.3.0 A message with this idempotency key is being processed.") if keyed else None,
    )


SMTP: Final = _dialect(plain_smtp.CONTRACT)
#: By the user name that logs in.
RELAYS: Final = {"lettermint": _dialect(lettermint_smtp.CONTRACT), "resend": _dialect(resend_smtp.CONTRACT)}
DIALECTS: Final = (SMTP, *RELAYS.values())


Command = Callable[[str], Awaitable[None]]


class SmtpServer:
    """Listens on one socket, in the event loop that starts it."""

    def __init__(self, exchange: Exchange, listener: socket.socket) -> None:
        self._exchange = exchange
        self._listener = listener
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self) -> None:
        """Begin to answer."""
        self._server = await asyncio.start_server(self._serve, sock=self._listener, limit=_MAX_LINE)

    async def stop(self) -> None:
        """End, whatever hangs."""
        if self._server is not None:
            self._server.close()
        for writer in self._open.values():
            writer.transport.abort()
        if self._open:
            await asyncio.wait(self._open, timeout=_STOP_SECONDS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            # A client that is gone, and one that sends a line without end.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ValueError):
                await _Session(self._exchange, reader, writer).run()
        finally:
            del self._open[task]
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class _Closed(Exception):
    """Raised to end a session."""


class _Session:
    """One connection: who logged in, and the transaction under way."""

    def __init__(self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._exchange = exchange
        self._reader = reader
        self._writer = writer
        self._dialect = SMTP
        self._account = ""
        self._reset()

    def _reset(self) -> None:
        self._sender: str | None = None
        self._recipients: list[str] = []
        self._draw = Draw()
        self._seen: Seen | None = None

    async def run(self) -> None:
        """Serve until either side has had enough."""
        await self._say(220, "idem sandbox ESMTP")
        with contextlib.suppress(_Closed):
            while True:
                line = (await self._reader.readuntil(b"\r\n")).decode("utf-8", "replace").strip()
                verb, _, rest = line.partition(" ")
                command = self._commands().get(verb.upper())
                if command is None:
                    await self._say(502, "5.5.2 Command not recognized")
                else:
                    await command(rest.strip())

    def _commands(self) -> Mapping[str, Command]:
        return {
            "EHLO": self._ehlo, "HELO": self._helo, "AUTH": self._auth, "MAIL": self._mail, "RCPT": self._rcpt,
            "DATA": self._data, "RSET": self._rset, "NOOP": self._noop, "QUIT": self._quit,
        }  # fmt: skip

    async def _ehlo(self, _name: str) -> None:
        self._reset()
        features = ("idem sandbox", f"SIZE {MAX_BODY_BYTES}", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")
        self._writer.write("".join(f"250-{feature}\r\n" for feature in features).encode())
        await self._say(250, "AUTH PLAIN LOGIN")

    async def _helo(self, _name: str) -> None:
        self._reset()
        await self._say(250, "idem sandbox")

    async def _noop(self, _rest: str) -> None:
        await self._say(250, "2.0.0 Ok")

    async def _rset(self, _rest: str) -> None:
        self._reset()
        await self._say(250, "2.0.0 Ok")

    async def _quit(self, _rest: str) -> None:
        await self._say(221, "2.0.0 Bye")
        raise _Closed

    async def _auth(self, rest: str) -> None:
        mechanism, _, initial = rest.partition(" ")
        try:
            if mechanism.upper() == "PLAIN":
                _, user, password = ((initial and _decoded(initial)) or await self._asked("")).split("\0")
            elif mechanism.upper() == "LOGIN":
                user = (initial and _decoded(initial)) or await self._asked("Username:")
                password = await self._asked("Password:")
            else:
                await self._say(504, "5.5.4 Unrecognized authentication type")
                return
        except ValueError:
            await self._say(501, "5.5.2 Cannot decode")
            return
        if not (user and password):
            await self._say(535, "5.7.8 Authentication credentials invalid")
            return
        self._dialect, self._account = RELAYS.get(user, SMTP), f"{user}:{password}"
        await self._say(235, "2.7.0 Authentication successful")

    async def _asked(self, prompt: str) -> str:
        await self._say(334, base64.b64encode(prompt.encode()).decode())
        return _decoded((await self._reader.readuntil(b"\r\n")).decode("latin-1").strip())

    async def _mail(self, rest: str) -> None:
        sender = _PATH.fullmatch(rest)
        if sender is None or not rest.upper().startswith("FROM:"):
            await self._say(501, "5.5.4 Syntax: MAIL FROM:<address>")
            return
        if self._dialect.contract.needs_token and not self._account:
            await self._say(530, "5.7.0 Authentication required")
            return
        self._reset()
        self._seen = self._exchange.arrive(self._dialect, "SMTP", "/", None)
        self._draw = self._exchange.draw(self._dialect, Target.SEND, self._seen)
        if self._draw.fault is not None and self._draw.fault.kind in AT_MAIL:
            await self._answer(_worded(self._draw.fault, self._dialect))
            self._reset()
            return
        self._sender = sender[1]
        await self._say(250, "2.1.0 Ok")

    async def _rcpt(self, rest: str) -> None:
        recipient = _PATH.fullmatch(rest)
        if self._sender is None:
            await self._say(503, "5.5.1 MAIL first")
        elif recipient is None or not _is_address(recipient[1]):
            await self._say(553, "5.1.3 Not an address")
        else:
            self._recipients.append(recipient[1])
            await self._say(250, "2.1.5 Ok")

    async def _data(self, _rest: str) -> None:
        if not self._recipients:
            await self._say(503, "5.5.1 RCPT first")
            return
        await self._say(354, "End data with <CR><LF>.<CR><LF>")
        content = await self._content()
        if content is None:
            await self._answer(Reply(552, "5.3.4 Message too big"))
        else:
            await self._decide(self._request(content))
        self._reset()

    async def _content(self) -> bytes | None:
        """Up to the dot on a line of its own; None when it is more than anybody would take."""
        content, size = bytearray(), 0
        while (line := await self._reader.readuntil(b"\r\n")) != b".\r\n":
            size += len(line)
            if size <= MAX_BODY_BYTES:
                content += line.removeprefix(b".")
        return bytes(content) if size <= MAX_BODY_BYTES else None

    def _request(self, content: bytes) -> Request:
        message = read_message(content, self._sender or "", self._recipients)
        return Request(
            account=self._account,
            key=message_key(self._dialect.contract, message.mail.headers),
            digest=digest_of(message.content),
            items=(message.mail,),
            answer=_queued,
        )

    async def _decide(self, request: Request) -> None:
        fault, ending = self._draw.fault, _worded(self._draw.fault, self._dialect)
        acceptance, seen = self._exchange.acceptance, self._seen
        assert seen is not None
        seen.key = request.key
        await self._pause(self._draw.late_seconds)
        with acceptance.running(self._dialect, request) as alone:
            if not alone and (fault is None or fault.kind.accepts):
                await self._end(fault, ending or self._dialect.in_progress)
                return
            await self._pause(self._draw.delay_seconds)
            if fault is not None and not fault.kind.accepts:
                await self._end(fault, ending)
                return
            verdict = acceptance.take(self._dialect, request)
            seen.replayed, seen.id = verdict.replayed, next(iter(verdict.ids), None)
        await self._end(fault, ending or verdict.reply)

    async def _end(self, fault: Fault | None, reply: Reply | None) -> None:
        """The reply, or what a fault on the wire leaves of it."""
        kind = None if fault is None else fault.kind.ending
        if kind == "hang":
            while await self._reader.read(_MAX_LINE):
                pass
            raise _Closed
        if kind == "drop" or reply is None:
            raise _Closed
        if kind == "truncate":
            self._writer.write(f"{reply.status} {reply.body}"[:10].encode())
            raise _Closed
        await self._answer(reply)

    async def _answer(self, reply: Reply | None) -> None:
        assert reply is not None
        if self._seen is not None:
            self._seen.status = reply.status
        await self._say(reply.status, str(reply.body))
        if reply.status == _CLOSING:
            raise _Closed

    async def _pause(self, seconds: float) -> None:
        if not await self._exchange.pause(seconds):
            raise _Closed

    async def _say(self, status: int, text: str) -> None:
        self._writer.write(f"{status} {text}\r\n".encode())
        await self._writer.drain()


def _decoded(text: str) -> str:
    return base64.b64decode(text, validate=True).decode()


def _is_address(text: str) -> bool:
    try:
        return bool(bare(text))
    except EmailError:
        return False


def _queued(taken: Sequence[Taken | Refused]) -> Reply:
    ids = [one.id for one in taken if isinstance(one, Taken)]
    return Reply(250, f"2.0.0 Ok: queued as {ids[0]}")


def _worded(fault: Fault | None, dialect: Dialect) -> Reply | None:
    return None if fault is None else reply_to(fault.kind, dialect)


def reply_to(kind: Kind, dialect: Dialect) -> Reply | None:
    """The provider's words for a fault that is a reply; it is to MAIL for those of `AT_MAIL`, else to the message."""
    if kind is Kind.IN_PROGRESS:
        return dialect.in_progress
    if kind is Kind.CONFLICT:
        return dialect.mismatch({}) if dialect.mismatch is not None else None
    if kind is Kind.ACCEPT_THEN_500:
        return dialect.refusal(502, "")
    return dialect.refusal(int(kind), "") if kind.isdecimal() else None
