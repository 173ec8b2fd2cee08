"""One real server for all tests of the sandbox, and a fresh sandbox behind it for each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from workers.sandbox.app import build_app
from workers.sandbox.server import listen, run_in_thread


class Stage:
    """An application whose place others take: starting a server for each test would be most of the time."""

    def __init__(self) -> None:
        self.app: ASGIApp = build_app()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@pytest.fixture(scope="session")
def stage() -> Iterator[tuple[Stage, httpx.Client]]:
    """The server, and a client of it."""
    stage = Stage()
    with (
        run_in_thread(stage, asyncio.Event(), listen("127.0.0.1", 0)) as port,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=10, headers={"x-lettermint-token": "lm_test"}
        ) as client,
    ):
        yield stage, client


@pytest.fixture
def client(stage: tuple[Stage, httpx.Client]) -> httpx.Client:
    """An HTTP client of a sandbox that has seen nothing yet; its dice fall the same way each time."""
    stage[0].app = build_app(seed=1)
    return stage[1]
