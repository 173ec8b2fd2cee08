"""How the sandbox misbehaves on the wire: connections that close, hang, or end in the middle of an answer.

No ASGI message can say "close this connection and send nothing": an application that returns without an answer, or
raises, gets a 500 from the server. So the protocol class that uvicorn creates for each connection is extended, and
hands itself to the application in the scope's `state`, from where the responses below reach the transport. The h11
implementation is used because it is the pure Python one that uvicorn always has.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState


class Wire(H11Protocol):
    """One connection, which can be told to misbehave."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, "wire": self}, _loop)
        self._gone = asyncio.Event()
        self._hanging = False
        self._stopping = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake up whoever waits for the end of this connection."""
        super().connection_lost(exc)
        self._gone.set()

    def shutdown(self) -> None:
        """Stop with the server; a hanging request ends without an answer, as it would for a machine that goes down."""
        self._stopping = True
        if self._hanging:
            self.transport.abort()
        else:
            super().shutdown()

    @property
    def gone(self) -> bool:
        """Whether the connection is closed, by either side."""
        return self._gone.is_set()

    async def close(self) -> None:
        """Close the connection once everything written has left, and wait until it is closed."""
        # Only then does uvicorn see a client that has gone, rather than an application that forgot to answer.
        self.transport.close()
        await self._gone.wait()

    async def stop_short(self, status: int) -> None:
        """Begin an answer, and close the connection in its first header."""
        self.transport.write(b"HTTP/1.1 %d \r\ncontent-" % status)
        await self.close()

    async def hang(self) -> None:
        """Say nothing until the client gives up, or the server stops."""
        if self._stopping:
            await self.close()
        self._hanging = True
        await self._gone.wait()


def wire_of(scope: Scope) -> Wire:
    """The connection that a request came in on."""
    wire: Wire | None = scope.get("state", {}).get("wire")
    if wire is None:
        raise RuntimeError("faults on the wire need the sandbox's own server: workers.sandbox.app.serve or running")
    return wire


class Dropped(Response):
    """No answer: the connection closes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Close it."""
        await wire_of(scope).close()


class Hanging(Response):
    """No answer: the connection stays open."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Wait for the other side to give up."""
        await wire_of(scope).hang()


class Truncated(Response):
    """An answer of which the head and half of the body are sent, or half of a head without a body; then it is over."""

    def __init__(self, whole: Response) -> None:
        super().__init__(whole.body, whole.status_code)
        self.raw_headers = whole.raw_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Announce the whole length, and send half of it."""
        if not self.body:
            await wire_of(scope).stop_short(self.status_code)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        half = bytes(self.body[: len(self.body) // 2])
        await send({"type": "http.response.body", "body": half, "more_body": True})
        await wire_of(scope).close()
