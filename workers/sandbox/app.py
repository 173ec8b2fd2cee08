"""The sandbox as an application: the providers' APIs under their names, its own interface under `/api`, and the inbox.

    GET    /                   the inbox page
    GET    /api/accepted       the log of acceptances, in order; ?provider=NAME, ?after=N skips the first N
    GET    /api/accepted/ID    one acceptance, with its email in full
    DELETE /api/accepted       clear that log; the providers remember their keys all the same
    GET    /api/requests       every request to a provider, from its arrival
    GET    /api/faults         the active faults, with what is left of their times
    POST   /api/faults         order a fault
    DELETE /api/faults         behave well
    GET    /api/state          the counts, for a page that asks every second

Errors of its own interface are `{"message": ...}`; those of a provider are worded as the provider does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from http import HTTPStatus

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from idem.clock import Clock, SystemClock
from workers.sandbox import server
from workers.sandbox.acceptance import Acceptance, key_of
from workers.sandbox.dialect import Dialect, Endpoint, Reply
from workers.sandbox.faults import BadFault, Fault, Faults, parse_fault
from workers.sandbox.inbox import load_inbox
from workers.sandbox.log import AcceptedLog, Seen, timestamp
from workers.sandbox.registry import DIALECTS
from workers.sandbox.wire import Dropped, Hanging, Truncated, wire_of

#: Largest request body that is read: an email with large attachments, and room to spare.
MAX_BODY_BYTES = 30 * 1024 * 1024
_TOO_LARGE = "The request body is larger than 30 MiB."
_MAX_ORDER_BYTES = 64 * 1024
_METHODS = ["DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT"]


class TooLarge(Exception):
    """Raised when a request body is larger than what is read of it."""


class Sandbox:
    """Everything that one sandbox knows; two in one process share nothing."""

    def __init__(self, clock: Clock, dice: random.Random, dialects: Iterable[Dialect]) -> None:
        self.dialects = {dialect.contract.name: dialect for dialect in dialects}
        self.accepted = AcceptedLog()
        self.requests: list[Seen] = []
        self.faults = Faults(dice)
        self.stopping = asyncio.Event()
        self._clock = clock
        self._acceptance = Acceptance(clock, self.accepted)

    async def provider(self, dialect: Dialect, request: Request) -> Response:
        """Any request below a provider's name."""
        seen = self._arrive(request, dialect)
        path = "/" + request.path_params["path"]
        try:
            response = await self._exchange(request, dialect, path, seen)
        except TooLarge:
            response = _answer(dialect.refusal(413, _TOO_LARGE))
        except ClientDisconnect:
            return Dropped()
        if not isinstance(response, Dropped | Hanging) and not wire_of(request.scope).gone:
            seen.status = response.status_code
        return response

    def _arrive(self, request: Request, dialect: Dialect) -> Seen:
        seen = Seen(
            at=timestamp(self._clock.now()),
            provider=dialect.contract.name,
            method=request.method,
            path=request.scope["path"],
            key=key_of(dialect, request.headers),
        )
        self.requests.append(seen)
        return seen

    async def _exchange(self, request: Request, dialect: Dialect, path: str, seen: Seen) -> Response:
        endpoint = dialect.endpoints.get(path)
        if endpoint is None:
            return _answer(dialect.refusal(404, HTTPStatus(404).phrase))
        if request.method != "POST":
            return _answer(replace(dialect.refusal(405, HTTPStatus(405).phrase), headers={"Allow": "POST"}))
        body = await _read_body(request, MAX_BODY_BYTES)
        return await self._send(request, dialect, endpoint, body, seen)

    async def _send(self, request: Request, dialect: Dialect, endpoint: Endpoint, body: bytes, seen: Seen) -> Response:
        draw = self.faults.draw(dialect.contract.name)
        seen.fault = draw.name
        # A client that leaves during the pause changes nothing: its request has arrived, and may be accepted late.
        if not await self._pause(draw.delay_seconds):
            return Dropped()
        if draw.fault and not draw.fault.kind.accepts:
            return _misbehave(draw.fault, dialect)
        verdict = self._acceptance.take(dialect, endpoint, request.headers, body)
        seen.replayed, seen.id = verdict.replayed, next(iter(verdict.ids), None)
        answer = _answer(verdict.reply)
        return _misbehave(draw.fault, dialect, answer) if draw.fault else answer

    async def _pause(self, seconds: float) -> bool:
        """Wait; False when the server stops meanwhile."""
        if seconds:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), seconds)
        return not self.stopping.is_set()

    async def list_accepted(self, request: Request) -> Response:
        """`GET /api/accepted`."""
        after = request.query_params.get("after", "0")
        if not (after.isascii() and after.isdigit()):
            raise HTTPException(422, f"after is {after!r}: it must be a whole number")
        return _json(self.accepted.entries(provider=request.query_params.get("provider"), after=int(after)))

    async def show_accepted(self, request: Request) -> Response:
        """`GET /api/accepted/ID`."""
        found = self.accepted.find(request.path_params["id"])
        if found is None:
            raise HTTPException(404, "no accepted email has this id")
        return _json(found)

    async def clear_accepted(self, _request: Request) -> Response:
        """`DELETE /api/accepted`."""
        self.accepted.clear()
        return Response(status_code=204)

    async def list_requests(self, _request: Request) -> Response:
        """`GET /api/requests`."""
        return _json(self.requests)

    async def list_faults(self, _request: Request) -> Response:
        """`GET /api/faults`."""
        return _json([fault.order() for fault in self.faults.active()])

    async def post_fault(self, request: Request) -> Response:
        """`POST /api/faults`."""
        try:
            order = msgspec.json.decode(await _read_body(request, _MAX_ORDER_BYTES))
            fault = parse_fault(order, self.dialects)
        except (msgspec.MsgspecError, RecursionError):
            raise HTTPException(422, "the body is not valid JSON") from None
        except BadFault as bad:
            raise HTTPException(422, str(bad)) from None
        except TooLarge:
            raise HTTPException(413, "an order has at most 64 KiB") from None
        self.faults.post(fault)
        return _json(fault.order(), 201)

    async def clear_faults(self, _request: Request) -> Response:
        """`DELETE /api/faults`."""
        self.faults.clear()
        return Response(status_code=204)

    async def state(self, _request: Request) -> Response:
        """`GET /api/state`: a few numbers, however long the logs are; `generation` changes when the log is cleared."""
        return _json(
            {
                "generation": self.accepted.generation,
                "accepted": len(self.accepted),
                "requests": len(self.requests),
                "replays": sum(seen.replayed for seen in self.requests),
                "faults": [fault.order() for fault in self.faults.active()],
            }
        )


def build_app(
    clock: Clock | None = None, *, seed: int | None = None, dialects: Iterable[Dialect] = DIALECTS
) -> Starlette:
    """A sandbox of its own, behind an ASGI application; `app.state.sandbox` is what it knows.

    `clock` decides when a provider forgets a key, `seed` makes the dice of the faults fall the same way each time. Run
    it with `serve` or `running`: the faults that break a connection need their server.
    """
    sandbox = Sandbox(clock or SystemClock(), random.Random(seed), dialects)
    inbox = load_inbox()

    async def show_inbox(_request: Request) -> Response:
        return inbox

    routes = [
        Route("/", show_inbox, methods=["GET"]),
        Route("/api/accepted", sandbox.list_accepted, methods=["GET"]),
        Route("/api/accepted", sandbox.clear_accepted, methods=["DELETE"]),
        Route("/api/accepted/{id}", sandbox.show_accepted, methods=["GET"]),
        Route("/api/requests", sandbox.list_requests, methods=["GET"]),
        Route("/api/faults", sandbox.list_faults, methods=["GET"]),
        Route("/api/faults", sandbox.post_fault, methods=["POST"]),
        Route("/api/faults", sandbox.clear_faults, methods=["DELETE"]),
        Route("/api/state", sandbox.state, methods=["GET"]),
        *(
            Route(f"/{name}/{{path:path}}", functools.partial(sandbox.provider, dialect), methods=_METHODS)
            for name, dialect in sandbox.dialects.items()
        ),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refuse})
    app.router.redirect_slashes = False
    app.state.sandbox = sandbox
    return app


def serve(host: str, port: int, *, ready: Callable[[int], None] | None = None, seed: int | None = None) -> None:
    """Run a sandbox until SIGTERM or SIGINT, in the main thread; then return, even if requests hang.

    Port 0 picks a free one; `ready` is told the port once requests are answered. Raises `OSError` when the address
    cannot be listened on.
    """
    app = build_app(seed=seed)
    server.run(app, app.state.sandbox.stopping, server.listen(host, port), ready or (lambda _port: None))


@contextlib.contextmanager
def running(app: Starlette, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Run what `build_app` made in a thread of this process, for as long as the context lasts; gives its base URL."""
    with server.run_in_thread(app, app.state.sandbox.stopping, server.listen(host, port)) as bound:
        yield f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}"


def _misbehave(fault: Fault, dialect: Dialect, answer: Response | None = None) -> Response:
    """What the client gets instead of `answer`, which is what it would have got if the request was processed."""
    match fault.kind.ending:
        case "drop":
            return Dropped()
        case "hang":
            return Hanging()
        case "truncate" if answer is not None:
            return Truncated(answer)
        case "in_progress":
            return _answer(dialect.in_progress)
        case status:
            refused = _answer(dialect.refusal(int(status), HTTPStatus(int(status)).phrase))
            if fault.retry_after is not None:
                refused.headers["Retry-After"] = f"{fault.retry_after:.15g}"
            return refused


def _answer(reply: Reply) -> Response:
    return _json(reply.body, reply.status, reply.headers)


def _json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


async def _read_body(request: Request, limit: int) -> bytes:
    """The whole body, or `TooLarge` as soon as it is known to be: what was not read is thrown away by the server."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise TooLarge
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge
    return bytes(body)


async def _refuse(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _json({"message": error.detail}, error.status_code, error.headers)
