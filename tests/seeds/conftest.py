"""The vendors' own pages as tests: our adapters, and the requests as the pages print them, against the sandbox."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from idem.email import Email
from idem.outcome import Outcome
from idem.providers.api import Api, HttpProvider
from tests.answers import BriefClient, soon
from workers.sandbox.app import build_app
from workers.sandbox.server import listen, run_in_thread


@dataclass(frozen=True, slots=True)
class Play:
    """One provider, played by a sandbox of its own."""

    api: Api
    app: Starlette
    url: str
    client: httpx.Client
    http: BriefClient

    @property
    def base_url(self) -> str:
        """Where the sandbox has this provider."""
        return f"{self.url}/{self.api.contract.name}{httpx.URL(self.api.contract.base_url).path.rstrip('/')}"

    def adapter(self, account: str = "any-token") -> HttpProvider:
        """Ours."""
        return HttpProvider(self.api, account, self.base_url, self.http)

    def send(self, email: Email, key: str, account: str = "any-token") -> Outcome:
        """One attempt by our adapter."""
        return self.adapter(account).send(email, key, soon())

    def post(self, path: str, body: Any, key: str | bytes | None = None) -> httpx.Response:
        """A request as a page prints it."""
        headers = {b"Authorization": b"Bearer any-token", b"x-lettermint-token": b"any-token"}
        if key is not None:
            headers[b"Idempotency-Key"] = key if isinstance(key, bytes) else key.encode()
        return self.client.post(self.base_url + path, json=body, headers=headers)

    def fault(self, fault: str, **options: Any) -> None:
        """Let something go wrong, once."""
        order = {"fault": fault, "times": 1, **options}
        self.client.post(f"{self.url}/api/faults", json=order).raise_for_status()

    def accepted(self) -> list[Any]:
        """The log of acceptances."""
        entries: list[Any] = self.client.get(f"{self.url}/api/accepted").json()
        return entries

    def requests(self) -> list[Any]:
        """The log of requests."""
        seen: list[Any] = self.client.get(f"{self.url}/api/requests").json()
        return seen

    def advance(self, seconds: float) -> None:
        """Let that much time pass at the provider."""
        self.app.state.sandbox.clock.advance(seconds)


class Stage:
    """An application whose place others take: starting a server for each test would be most of the time."""

    def __init__(self) -> None:
        self.app = build_app(seed=1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@pytest.fixture(scope="session")
def stage() -> Iterator[tuple[Stage, str, httpx.Client, BriefClient]]:
    """One server, and clients of it."""
    stage = Stage()
    with (
        run_in_thread(stage, asyncio.Event(), listen("127.0.0.1", 0)) as port,
        httpx.Client(timeout=10) as client,
    ):
        yield stage, f"http://127.0.0.1:{port}", client, BriefClient()


@pytest.fixture
def play(request: pytest.FixtureRequest, stage: tuple[Stage, str, httpx.Client, BriefClient]) -> Play:
    """The provider that the module names as `PROVIDER`, of a sandbox that has seen nothing yet."""
    stage[0].app = build_app(seed=1)
    return Play(importlib.import_module(f"idem.providers.{request.module.PROVIDER}").API, stage[0].app, *stage[1:])
