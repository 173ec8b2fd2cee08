"""The receiver, as an ASGI application: `POST /<source>`, answered 2xx only once every job of the event is enqueued.

200  the events are noted and their jobs enqueued, or nobody waits for them; a second delivery is answered the same
4xx  it is not genuine, not complete, or not ours: nothing was done
503  the broker or the ledger does not answer, or the sender cannot be checked now: it is to try again
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dramatiq import Message
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from idem.clock import Clock
from idem.errors import BrokerError, IdemError, LedgerError
from workers.webhooks.declared import Declared
from workers.webhooks.delivery import Delivery, Refused
from workers.webhooks.event import Event
from workers.webhooks.happened import told
from workers.webhooks.signatures import Tolerance
from workers.webhooks.sources import Source

_log = logging.getLogger("idem.webhooks")

#: Senders wait for 5 s (Shopify) to 30 s; who takes longer to post holds a connection for nothing.
_READ_SECONDS: Final = 10.0
_RETRY_AFTER: Final = {"Retry-After": "10"}


class Receiver:
    """Verifies deliveries and enqueues what was declared for them. Shares nothing with another receiver."""

    def __init__(  # noqa: PLR0913 - each is one thing that a deployment or a test decides
        self,
        sources: Mapping[str, Source],
        declared: Declared,
        enqueue: Callable[[Message[None]], Any],
        *,
        hear: Callable[[Event], bool] = lambda _event: False,
        clock: Clock,
        tolerance_seconds: float,
        most_bytes: int,
    ) -> None:
        self._sources = sources
        self._declared = declared
        self._enqueue = enqueue
        self._hear = hear
        self._clock = clock
        self._tolerance_seconds = tolerance_seconds
        self._most_bytes = most_bytes
        #: What became of deliveries, by source and in a word each.
        self.counts: Counter[tuple[str, str]] = Counter()

    async def receive(self, request: Request) -> Response:
        """`POST /<source>`."""
        name = request.path_params["source"]
        source = self._sources.get(name)
        if source is None:
            self.counts["?", "refused"] += 1
            return _answer(404, "no such source here")
        try:
            body = await _read(request, self._most_bytes)
            now = Tolerance(self._clock.now(), self._tolerance_seconds)
            delivery = Delivery.of(request.scope["headers"], body)
            waits = source.scheme.waits
            events = await run_in_threadpool(source.open, delivery, now) if waits else source.open(delivery, now)
            return await self._take(name, events)
        except Refused as refused:
            self.counts[name, "refused"] += 1
            _log.info("a delivery to /%s is refused: %s", name, refused.reason)
            return _answer(refused.status, refused.reason)

    async def _take(self, name: str, events: Sequence[Event]) -> Response:
        try:
            taken = [(event, self._declared.messages(event)) for event in events]
            if any(messages or told(event) is not None for event, messages in taken):
                # The clients of broker and store block until the server has synced.
                counts = await run_in_threadpool(self._take_all, taken)
            else:
                counts = Counter({"ignored": max(1, len(taken))})
        except (BrokerError, LedgerError) as error:
            self.counts[name, "put off"] += 1
            _log.error("an event of %s is put off: %s", name, error)
            return Response("try again\n", 503, _RETRY_AFTER)
        except IdemError as error:
            raise Refused(422, f"the event cannot be enqueued: {error}") from error
        self.counts.update({(name, became): times for became, times in counts.items()})
        return Response(status_code=200)

    def _take_all(self, taken: Sequence[tuple[Event, list[Message[None]]]]) -> Counter[str]:
        """One after the other: where one fails the sender posts again, and the keys take care of those before it."""
        counts: Counter[str] = Counter()
        for event, messages in taken:
            heard = self._hear(event)
            for message in messages:
                self._enqueue(message)
            counts["enqueued" if messages else "heard" if heard else "ignored"] += 1
        return counts


def build_app(receiver: Receiver) -> Starlette:
    """The application; `app.state.receiver` has the counts."""
    app = Starlette(routes=[Route("/{source}", receiver.receive, methods=["POST"])])
    app.router.redirect_slashes = False
    app.state.receiver = receiver
    return app


async def _read(request: Request, most_bytes: int) -> bytes:
    """The raw body, or `Refused` as soon as it is known to be too much."""
    announced = request.headers.get("content-length", "0")
    if announced.isascii() and announced.isdigit() and (len(announced) > 12 or int(announced) > most_bytes):  # noqa: PLR2004 - digits, before `int` reads them
        raise Refused(413, f"a body has at most {most_bytes} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(_READ_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise Refused(413, f"a body has at most {most_bytes} bytes")
    except (TimeoutError, ClientDisconnect):
        raise Refused(408, "the body did not come") from None
    return bytes(body)


def _answer(status: int, reason: str) -> Response:
    return Response(f"{reason}\n", status, media_type="text/plain")
