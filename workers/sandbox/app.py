"""The sandbox as an application: the providers' APIs under their names, its own interface under `/api`, and the inbox.

    GET    /                   the inbox page
    GET    /api/accepted       the log of acceptances, in order; ?provider=NAME, ?after=N skips the first N
    GET    /api/accepted/ID    one acceptance, with its email in full
    DELETE /api/accepted       clear that log; the providers remember their keys all the same
    GET    /api/requests       every request to a provider, from its arrival
    GET    /api/faults         the active faults, with what is left of their times
    POST   /api/faults         order a fault
    DELETE /api/faults         behave well
    GET    /api/clock          the providers' time, and by how much it was advanced
    POST   /api/clock          {"advance": SECONDS}: keys expire, look-ups catch up
    GET    /api/webhooks       the active orders of events, with what is left of their times
    POST   /api/webhooks       order the events of accepted emails to be told to a URL
    DELETE /api/webhooks       tell no more
    GET    /api/events         every event that was posted, and how it was answered
    GET    /api/state          the counts, for a page that asks every second

Errors of its own interface are `{"message": ...}`; those of a provider are worded as the provider does.
"""

from __future__ import annotations

import contextlib
import functools
import random
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from idem.clock import Clock, SystemClock
from workers.sandbox import server
from workers.sandbox.clock import SandboxClock
from workers.sandbox.dialect import Dialect
from workers.sandbox.events import BadOrder, Events, parse_webhook
from workers.sandbox.exchange import Exchange, TooLarge, as_json, read_body
from workers.sandbox.faults import BadFault, Faults, parse_fault
from workers.sandbox.inbox import load_inbox
from workers.sandbox.log import timestamp
from workers.sandbox.registry import DIALECTS
from workers.sandbox.smtp import SmtpServer

_MAX_ORDER_BYTES = 64 * 1024
_MAX_ADVANCE_SECONDS = 10 * 366 * 86_400
_METHODS = ["DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT"]


class Sandbox:
    """Everything that one sandbox knows; two in one process share nothing."""

    def __init__(self, clock: Clock, dice: random.Random, dialects: Iterable[Dialect]) -> None:
        self.dialects = {dialect.contract.name: dialect for dialect in dialects}
        self.clock = SandboxClock(clock)
        self.faults = Faults(dice)
        self.exchange = Exchange(self.clock, self.faults)
        self.accepted, self.requests = self.exchange.accepted, self.exchange.requests
        self.stopping = self.exchange.stopping
        self.events = Events(self.clock)
        self.accepted.tell(self.events.accepted)

    async def list_accepted(self, request: Request) -> Response:
        """`GET /api/accepted`."""
        after = request.query_params.get("after", "0")
        if not (after.isascii() and after.isdigit()):
            raise HTTPException(422, f"after is {after!r}: it must be a whole number")
        return as_json(self.accepted.entries(provider=request.query_params.get("provider"), after=int(after)))

    async def show_accepted(self, request: Request) -> Response:
        """`GET /api/accepted/ID`."""
        found = self.accepted.find(request.path_params["id"])
        if found is None:
            raise HTTPException(404, "no accepted email has this id")
        return as_json(found)

    async def clear_accepted(self, _request: Request) -> Response:
        """`DELETE /api/accepted`."""
        self.accepted.clear()
        return Response(status_code=204)

    async def list_requests(self, _request: Request) -> Response:
        """`GET /api/requests`."""
        return as_json(self.requests)

    async def list_faults(self, _request: Request) -> Response:
        """`GET /api/faults`."""
        return as_json([fault.order() for fault in self.faults.active()])

    async def post_fault(self, request: Request) -> Response:
        """`POST /api/faults`."""
        try:
            fault = parse_fault(await _read_order(request), self.dialects)
        except BadFault as bad:
            raise HTTPException(422, str(bad)) from None
        self.faults.post(fault)
        return as_json(fault.order(), 201)

    async def clear_faults(self, _request: Request) -> Response:
        """`DELETE /api/faults`."""
        self.faults.clear()
        return Response(status_code=204)

    async def show_clock(self, _request: Request) -> Response:
        """`GET /api/clock`."""
        return as_json({"now": timestamp(self.clock.now()), "advanced": self.clock.advanced})

    async def advance_clock(self, request: Request) -> Response:
        """`POST /api/clock`."""
        order = await _read_order(request)
        seconds: Any = order.get("advance") if isinstance(order, dict) and len(order) == 1 else None
        if type(seconds) not in {int, float} or not 0 <= seconds <= _MAX_ADVANCE_SECONDS:
            raise HTTPException(422, 'the order is {"advance": SECONDS}, and time only goes forward')
        self.clock.advance(seconds)
        return await self.show_clock(request)

    async def list_webhooks(self, _request: Request) -> Response:
        """`GET /api/webhooks`."""
        return as_json(self.events.active())

    async def post_webhook(self, request: Request) -> Response:
        """`POST /api/webhooks`."""
        try:
            webhook = parse_webhook(await _read_order(request), self.dialects)
        except BadOrder as bad:
            raise HTTPException(422, str(bad)) from None
        self.events.post(webhook)
        return as_json(webhook.order(), 201)

    async def clear_webhooks(self, _request: Request) -> Response:
        """`DELETE /api/webhooks`."""
        self.events.clear()
        return Response(status_code=204)

    async def list_events(self, _request: Request) -> Response:
        """`GET /api/events`."""
        return as_json(self.events.posted)

    async def state(self, _request: Request) -> Response:
        """`GET /api/state`: a few numbers, however long the logs are; `generation` changes when the log is cleared."""
        return as_json(
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
        Route("/api/clock", sandbox.show_clock, methods=["GET"]),
        Route("/api/clock", sandbox.advance_clock, methods=["POST"]),
        Route("/api/webhooks", sandbox.list_webhooks, methods=["GET"]),
        Route("/api/webhooks", sandbox.post_webhook, methods=["POST"]),
        Route("/api/webhooks", sandbox.clear_webhooks, methods=["DELETE"]),
        Route("/api/events", sandbox.list_events, methods=["GET"]),
        Route("/api/state", sandbox.state, methods=["GET"]),
        *(
            Route(f"/{name}/{{path:path}}", functools.partial(sandbox.exchange.serve, dialect), methods=_METHODS)
            for name, dialect in sandbox.dialects.items()
        ),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refuse})
    app.router.redirect_slashes = False
    app.state.sandbox = sandbox
    return app


def serve(
    host: str,
    port: int,
    *,
    smtp_port: int | None = None,
    ready: Callable[[int, int | None], None] | None = None,
    seed: int | None = None,
) -> None:
    """Run a sandbox until SIGTERM or SIGINT, in the main thread; then return, even if requests hang.

    Port 0 picks a free one; `ready` is told the port, and that of SMTP, once requests are answered. Without an
    `smtp_port` there is no SMTP. Raises `OSError` when an address cannot be listened on.
    """
    app = build_app(seed=seed)
    sandbox, listener = app.state.sandbox, server.listen(host, port)
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        smtp = None if smtp_port is None else stack.enter_context(server.listen(host, smtp_port))
        beside = None if smtp is None else SmtpServer(sandbox.exchange, smtp)
        bound = None if smtp is None else smtp.getsockname()[1]
        server.run(app, sandbox.stopping, listener, lambda found: ready(found, bound) if ready else None, beside)


@contextlib.contextmanager
def running(
    app: Starlette, *, host: str = "127.0.0.1", port: int = 0, smtp: socket.socket | None = None
) -> Iterator[str]:
    """Run what `build_app` made in a thread of this process, for as long as the context lasts; gives its base URL.

    With a listening socket (`server.listen`) for `smtp`, it speaks that there.
    """
    sandbox = app.state.sandbox
    beside = None if smtp is None else SmtpServer(sandbox.exchange, smtp)
    with server.run_in_thread(app, sandbox.stopping, server.listen(host, port), beside) as bound:
        yield f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}"


async def _read_order(request: Request) -> Any:
    try:
        return msgspec.json.decode(await read_body(request, _MAX_ORDER_BYTES))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise HTTPException(422, "the body is not valid JSON") from None
    except TooLarge:
        raise HTTPException(413, "an order has at most 64 KiB") from None


async def _refuse(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return as_json({"message": error.detail}, error.status_code, error.headers)
