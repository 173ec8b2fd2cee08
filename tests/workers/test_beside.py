"""Awaitable twins: the event loop goes on, whatever the broker or the ledger takes its time for."""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

from idem import BrokerUnavailable, Email, InvalidKey, JobError
from tests import services
from tests.workers.parts import make_email
from workers import App, Settings
from workers.beside import THREADS

Calling = Callable[[App], Awaitable[Any]]


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


def _declare(app: App) -> Any:
    @app.job()
    def welcome(number: int) -> Email:
        return make_email(number)

    return welcome


def _keys(app: App) -> list[str]:
    consumer = app.broker.consume("default", prefetch=1_000, timeout=10)
    found = []
    while (message := next(consumer)) is not None:
        found.append(message.kwargs["key"])
    return found


class _Wire:
    """A server that the event loop itself passes on to: a loop that is blocked gets no answer through it."""

    def __init__(self, host: str, port: int) -> None:
        self._backend = host, port
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0
        self.passed = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, before = await asyncio.open_connection(*self._backend)
        self._writers += [writer, before]
        await asyncio.gather(self._copy(reader, before), self._copy(behind, writer), return_exceptions=True)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            self.passed += 1
            target.write(data)
        target.close()


def _netloc(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@pytest.mark.parametrize("kind", ["redis", "sqs", "durable on redis"])
def test_a_broker_that_answers_only_while_the_loop_goes_on(kind: str, environ: dict[str, str], tmp_path: Path) -> None:
    """Every byte to and from the server goes through the loop that awaits the enqueueing."""
    environ |= {"IDEM_DURABLE": "on"} if kind.startswith("durable") else {}
    prefix = f"b{uuid.uuid4().hex}"
    address = environ["IDEM_BROKER_URL"]
    if kind == "sqs":
        address = services.ministack()
        services.connect("dynamodb", address)
        environ |= {"IDEM_BROKER_URL": f"sqs://{services.REGION}/{prefix}", "IDEM_AWS_ENDPOINT_URL": address}
        made = App(Settings.load(environ, tmp_path))
        made.broker.create()
        made.close()

    async def enqueue() -> list[str]:
        async with _Wire(*_netloc(address)) as wire:
            through = f"127.0.0.1:{wire.port}"
            changed = {"IDEM_AWS_ENDPOINT_URL": f"http://{through}"} if kind == "sqs" else {}
            changed |= {} if kind == "sqs" else {"IDEM_BROKER_URL": f"redis://{through}/0"}
            app = App(Settings.load(environ | changed, tmp_path))
            keys = await asyncio.gather(
                *(app.aenqueue(make_email(number), key=f"e{number}") for number in range(40)),
                _declare(app).asend(1, key="j"),
            )
            keys += await app.aenqueue_bulk([make_email(1), make_email(2)], key="b")
            await asyncio.to_thread(app.close)
            assert wire.passed
            return keys

    assert asyncio.run(enqueue()) == [*(f"e{number}" for number in range(40)), "j", "b/1", "b/2"]


def test_a_ledger_that_answers_only_once_the_loop_has_gone_on(app: App, tmp_path: Path) -> None:
    """Somebody else holds SQLite's write lock, until the loop has turned a hundred times."""
    app.enqueue(make_email(), key="first", durable=True)

    async def enqueue() -> str:
        with ThreadPoolExecutor(1) as own:
            other = own.submit(sqlite3.connect, tmp_path / "ledger.db", isolation_level=None).result()
            own.submit(other.execute, "BEGIN IMMEDIATE").result()
            waiting = asyncio.create_task(app.aenqueue(make_email(), key="k", durable=True))
            for _ in range(100):
                await asyncio.sleep(0)
                assert not waiting.done()
            own.submit(other.execute, "ROLLBACK").result()
            own.submit(other.close).result()
            return await waiting

    assert asyncio.run(enqueue()) == "k"
    assert app.ledger.read("k") is not None


def test_on_the_embedded_broker(environ: dict[str, str], tmp_path: Path) -> None:
    """Its server is started by the first of many who come at once."""
    app = App(Settings.load(environ | {"IDEM_BROKER_URL": f"embedded://{tmp_path}/q"}, tmp_path))

    async def enqueue() -> list[str]:
        return await asyncio.gather(*(app.aenqueue(make_email(), key=f"k{number}") for number in range(20)))

    try:
        assert sorted(asyncio.run(enqueue())) == sorted(_keys(app))
    finally:
        app.close()


def test_all_errors_are_those_of_the_method(app: App) -> None:
    welcome = _declare(app)
    wrong: list[tuple[type[Exception], Calling]] = [
        (InvalidKey, lambda app: app.aenqueue(make_email(), key="")),
        (JobError, lambda app: app.aenqueue(make_email(), delay=-1)),
        (InvalidKey, lambda app: app.aenqueue_bulk([make_email()], key="\n")),
        (JobError, lambda _: welcome.asend(1, 2)),
        (JobError, lambda _: welcome.asend(b"1")),
    ]

    async def call(calling: Calling) -> None:
        await calling(app)

    for error, calling in wrong:
        with pytest.raises(error):
            asyncio.run(call(calling))
    assert _keys(app) == []


def test_a_broker_that_does_not_answer(environ: dict[str, str], tmp_path: Path) -> None:
    app = App(Settings.load(environ | {"IDEM_BROKER_URL": "redis://127.0.0.1:1/0"}, tmp_path))

    async def enqueue() -> None:
        await app.aenqueue(make_email(), key="k")

    with pytest.raises(BrokerUnavailable):
        asyncio.run(enqueue())
    app.close()


def test_the_context_goes_along(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tracing libraries keep there is where the broker is called, each caller's own."""
    request, seen = contextvars.ContextVar[str]("request"), dict[str, str]()
    enqueue = app.broker.enqueue

    def look(message: Any, **options: Any) -> Any:
        seen[message.kwargs["key"]] = request.get()
        return enqueue(message, **options)

    monkeypatch.setattr(app.broker, "enqueue", look)

    async def handle(number: int) -> None:
        request.set(f"r{number}")
        await app.aenqueue(make_email(), key=f"k{number}")

    async def serve() -> None:
        await asyncio.gather(*map(handle, range(20)))

    asyncio.run(serve())
    assert seen == {f"k{number}": f"r{number}" for number in range(20)}


class _Gate:
    """A broker's `enqueue` that begins, and ends when it is told to."""

    def __init__(self, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.open = threading.Semaphore(0), threading.Event()
        self.most = self._inside = 0
        self._lock = threading.Lock()
        enqueue = app.broker.enqueue

        def wait(message: Any, **options: Any) -> Any:
            with self._lock:
                self._inside += 1
                self.most = max(self.most, self._inside)
            self.begun.release()
            assert self.open.wait(30)
            with self._lock:
                self._inside -= 1
            return enqueue(message, **options)

        monkeypatch.setattr(app.broker, "enqueue", wait)

    async def all_begun(self, count: int) -> None:
        for _ in range(count):
            await asyncio.to_thread(self.begun.acquire)


def test_cancelled_it_is_whole_or_nothing_and_the_same_key_again_is_free(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are threads are under way; one more waits for its turn. All awaits are cancelled."""
    gate = _Gate(app, monkeypatch)

    async def enqueue() -> None:
        calls = [asyncio.create_task(app.aenqueue(make_email(), key=f"k{number}")) for number in range(THREADS + 1)]
        await gate.all_begun(THREADS)
        for call in calls:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        gate.open.set()
        await asyncio.to_thread(app.threads.close)

    asyncio.run(enqueue())
    assert sorted(_keys(app)) == sorted(f"k{number}" for number in range(THREADS))


def test_many_awaits_are_a_bounded_number_of_calls(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = _Gate(app, monkeypatch)

    async def enqueue() -> None:
        calls = [asyncio.create_task(app.aenqueue(make_email(), key=f"k{number}")) for number in range(200)]
        await gate.all_begun(THREADS)
        gate.open.set()
        await asyncio.gather(*calls)

    asyncio.run(enqueue())
    assert gate.most == THREADS
    assert len(_keys(app)) == 200


def test_closing_waits_for_what_is_under_way(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = _Gate(app, monkeypatch)

    async def enqueue() -> str:
        call = asyncio.create_task(app.aenqueue(make_email(), key="k"))
        await gate.all_begun(1)
        closing = asyncio.create_task(asyncio.to_thread(app.close))
        gate.open.set()
        await closing
        return await call

    assert asyncio.run(enqueue()) == "k"
    assert _keys(app) == ["k"]


def test_the_parts_are_opened_once(app: App) -> None:
    """By many threads that come first together."""
    barrier = threading.Barrier(8)

    def ask(_: int) -> tuple[object, ...]:
        barrier.wait()
        return app.threads, app.broker, app.ledger

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
