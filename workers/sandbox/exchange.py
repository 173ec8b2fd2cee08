"""One request to a provider: find its endpoint, let a fault strike, decide, and answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from workers.sandbox.acceptance import Acceptance, Request, header_key, request_of
from workers.sandbox.bodies import BadBody
from workers.sandbox.clock import SandboxClock
from workers.sandbox.dialect import Call, Dialect, Endpoint, Reply, Search, Shown
from workers.sandbox.faults import Draw, Fault, Faults, Kind, Target
from workers.sandbox.log import AcceptedLog, Seen, timestamp
from workers.sandbox.wire import Dropped, Hanging, Truncated, wire_of

#: Largest request body that is read: an email with large attachments, and room to spare.
MAX_BODY_BYTES = 30 * 1024 * 1024
_TOO_LARGE = "The request body is larger than 30 MiB."

Served = TypeVar("Served", Endpoint, Search)


class TooLarge(Exception):
    """Raised when a request body is larger than what is read of it."""


class Exchange:
    """Plays the providers; what happens in it is in its two logs."""

    def __init__(self, clock: SandboxClock, faults: Faults) -> None:
        self.accepted = AcceptedLog()
        self.requests: list[Seen] = []
        self.stopping = asyncio.Event()
        self.acceptance = Acceptance(clock, self.accepted)
        self._clock = clock
        self._faults = faults

    async def serve(self, dialect: Dialect, http: HttpRequest) -> Response:
        """Any request below a provider's name."""
        seen = self.arrive(dialect, http.method, http.scope["path"], header_key(dialect.contract, http.headers))
        try:
            response = await self._route(dialect, http, "/" + http.path_params["path"], seen)
        except TooLarge:
            response = answered(dialect.refusal(413, _TOO_LARGE))
        except ClientDisconnect:
            return Dropped()
        if not isinstance(response, Dropped | Hanging) and not wire_of(http.scope).gone:
            seen.status = response.status_code
        return response

    def arrive(self, dialect: Dialect, method: str, path: str, key: str | None) -> Seen:
        """Note a request."""
        at = timestamp(self._clock.now())
        seen = Seen(at=at, provider=dialect.contract.name, method=method, path=path, key=key)
        self.requests.append(seen)
        return seen

    async def _route(self, dialect: Dialect, http: HttpRequest, path: str, seen: Seen) -> Response:
        endpoints, searches = _at(dialect.endpoints, path), _at(dialect.searches, path)
        for endpoint, parts in endpoints:
            if endpoint.method == http.method:
                return await self._send(dialect, endpoint, http, parts, seen)
        for search, parts in searches:
            if search.method == http.method:
                return await self._search(dialect, search, http, parts, seen)
        methods = ", ".join(sorted({one.method for one, _ in endpoints} | {one.method for one, _ in searches}))
        if methods:
            return answered(replace(dialect.refusal(405, HTTPStatus(405).phrase), headers={"Allow": methods}))
        return answered(dialect.refusal(404, HTTPStatus(404).phrase))

    async def _send(
        self, dialect: Dialect, endpoint: Endpoint, http: HttpRequest, parts: Mapping[str, str], seen: Seen
    ) -> Response:
        body = await read_body(http, MAX_BODY_BYTES)
        draw = self.draw(dialect, Target.SEND, seen)
        call = _call(dialect, endpoint, http, parts, body)
        ending = _ending(draw.fault, dialect, http.headers)
        if isinstance(call, Reply):
            return _misbehave(draw.fault, ending or call) if await self.pause(draw.seconds) else Dropped()
        request = request_of(dialect, endpoint, call, body)
        seen.key = request.key
        # A client that leaves during a pause changes nothing: its request has arrived, and may be accepted late.
        if not await self.pause(draw.late_seconds):
            return Dropped()
        with self.acceptance.running(dialect, request) as alone:
            if not alone and (draw.fault is None or draw.fault.kind.accepts):
                return _misbehave(draw.fault, ending or dialect.in_progress)
            if not await self.pause(draw.delay_seconds):
                return Dropped()
            return self._decide(dialect, request, draw.fault, ending, seen)

    def _decide(
        self, dialect: Dialect, request: Request, fault: Fault | None, ending: Reply | None, seen: Seen
    ) -> Response:
        """Process the request, unless the fault has it that nothing is."""
        if fault is not None and not fault.kind.accepts:
            if ending is not None and fault.kind.isdecimal():
                self.acceptance.fail(dialect, request, ending)
            return _misbehave(fault, ending)
        verdict = self.acceptance.take(dialect, request, ending)
        seen.replayed, seen.id = verdict.replayed, next(iter(verdict.ids), None)
        return _misbehave(fault, ending or verdict.reply)

    async def _search(
        self, dialect: Dialect, search: Search, http: HttpRequest, parts: Mapping[str, str], seen: Seen
    ) -> Response:
        body = await read_body(http, MAX_BODY_BYTES)
        draw = self.draw(dialect, Target.LOOKUP, seen)
        if not await self.pause(draw.seconds):
            return Dropped()
        call, ending = _call(dialect, search, http, parts, body), _ending(draw.fault, dialect, http.headers)
        if isinstance(call, Reply):
            return _misbehave(draw.fault, ending or call)
        missing = draw.fault is not None and draw.fault.kind is Kind.MISSING
        return _misbehave(draw.fault, ending or search.answer(call, () if missing else self._shown(dialect)))

    def _shown(self, dialect: Dialect) -> list[Shown]:
        lookup, now = dialect.contract.lookup, self._clock.now()
        horizon, lag = (now, 0.0) if lookup is None else (lookup.horizon_seconds, lookup.lag_seconds)
        return list(self.accepted.shown(dialect.contract.name, now - horizon, now - lag))

    def draw(self, dialect: Dialect, target: Target, seen: Seen) -> Draw:
        """Throw the dice for one request."""
        worded = {Kind.IN_PROGRESS: dialect.in_progress, Kind.CONFLICT: dialect.mismatch}
        cannot = {kind for kind, words in worded.items() if words is None}
        draw = self._faults.draw(dialect.contract.name, target, cannot)
        seen.fault = draw.name
        return draw

    async def pause(self, seconds: float) -> bool:
        """Wait; False when the server stops meanwhile."""
        if seconds:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), seconds)
        return not self.stopping.is_set()


@functools.cache
def _pattern(path: str) -> re.Pattern[str]:
    """`/v3/{domain}/messages`: a name in braces stands for one part."""
    pieces = re.split(r"{(\w+)}", path)
    return re.compile(
        "".join(f"(?P<{piece}>[^/]+)" if index % 2 else re.escape(piece) for index, piece in enumerate(pieces))
    )


def _at(served: Mapping[str, Served], path: str) -> list[tuple[Served, dict[str, str]]]:
    """What is served at this path, with the named parts of it."""
    found = ((one, _pattern(pattern).fullmatch(path)) for pattern, one in served.items())
    return [(one, match.groupdict()) for one, match in found if match is not None]


def _call(
    dialect: Dialect, served: Endpoint | Search, http: HttpRequest, parts: Mapping[str, str], body: bytes
) -> Call | Reply:
    """A request that can be looked at, or the refusal of one that cannot: credentials first, then the body."""
    identify = (served.account if isinstance(served, Search) else None) or dialect.account
    account = identify(http.headers)
    if account is None:
        return dialect.refusal(401, "Unauthenticated.")
    try:
        parsed = served.parse(http.headers, body)
    except BadBody as bad:
        return dialect.refusal(bad.status, str(bad))
    query = {name: http.query_params.getlist(name) for name in http.query_params}
    return Call(account=account, parts=parts, query=query, headers=http.headers, parsed=parsed)


def _misbehave(fault: Fault | None, reply: Reply | None) -> Response:
    """The answer, or what a fault on the wire leaves of it."""
    kind = None if fault is None else fault.kind.ending
    if kind == "hang":
        return Hanging()
    if kind == "drop" or reply is None:
        return Dropped()
    return Truncated(answered(reply)) if kind == "truncate" else answered(reply)


def _ending(fault: Fault | None, dialect: Dialect, headers: Mapping[str, str]) -> Reply | None:
    """The provider's words for a fault that is an answer."""
    if fault is None:
        return None
    if fault.kind is Kind.IN_PROGRESS:
        return dialect.in_progress
    if fault.kind is Kind.CONFLICT:
        return dialect.mismatch(headers) if dialect.mismatch is not None else None
    if not fault.kind.ending.isdecimal():
        return None
    status = int(fault.kind.ending)
    reply = dialect.refusal(status, HTTPStatus(status).phrase)
    if fault.retry_after is None:
        return reply
    return replace(reply, headers={**reply.headers, "Retry-After": f"{fault.retry_after:.15g}"})


def answered(reply: Reply) -> Response:
    """The answer as bytes."""
    if reply.body is None:
        return Response(b"", reply.status, reply.headers)
    if isinstance(reply.body, str):
        return Response(reply.body, reply.status, reply.headers, "text/plain")
    return as_json(reply.body, reply.status, reply.headers)


def as_json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Anything as JSON."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


async def read_body(request: HttpRequest, limit: int) -> bytes:
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
