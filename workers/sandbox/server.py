"""The sandbox's server: quiet, and gone within a second or two of being told to stop, whatever hangs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from workers.sandbox.wire import Wire

_GRACE_SECONDS = 1


class Beside(Protocol):
    """What runs in the same event loop, from before the first request to after the last."""

    async def start(self) -> None:
        """Begin to answer."""
        ...

    async def stop(self) -> None:
        """End, whatever hangs."""
        ...


class Server(uvicorn.Server):
    """Serves one application on one socket; sets `stopping` when it is told to stop, calls `ready` once it runs."""

    def __init__(
        self, app: ASGIApp, stopping: asyncio.Event, ready: Callable[[int], None], beside: Beside | None = None
    ) -> None:
        config = uvicorn.Config(
            app,
            http=Wire,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        super().__init__(config)
        self._stopping = stopping
        self._ready = ready
        self._beside = beside

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say on which port."""
        if self._beside is not None:
            await self._beside.start()
        await super().startup(sockets)
        for listener in sockets or []:
            self._ready(listener.getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what waits before the requests are waited for."""
        self._stopping.set()
        if self._beside is not None:
            await self._beside.stop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Stop, and return: uvicorn would raise the signal again, and being told to stop is not a failure."""
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. Raises `OSError` when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Not `socket.create_server`: asyncio turns Nagle's algorithm off only for sockets that name TCP as their protocol,
    # and with it on, every answer waits 40 ms for the client's delayed acknowledgement of its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def run(
    app: ASGIApp,
    stopping: asyncio.Event,
    listener: socket.socket,
    ready: Callable[[int], None],
    beside: Beside | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; to be called in the main thread."""
    with listener:
        Server(app, stopping, ready, beside).run(sockets=[listener])


@contextlib.contextmanager
def run_in_thread(
    app: ASGIApp, stopping: asyncio.Event, listener: socket.socket, beside: Beside | None = None
) -> Iterator[int]:
    """Serve from a thread for as long as the context lasts; gives the port."""
    port = listener.getsockname()[1]
    started = threading.Event()
    server = Server(app, stopping, lambda _port: started.set(), beside)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="idem-sandbox", daemon=True)
    with listener:
        thread.start()
        started.wait()
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join()
