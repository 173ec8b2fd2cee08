"""Events on order: what was accepted is told to a URL, as the provider would tell it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import httpcore2

from workers.sandbox.bodies import digest_of
from workers.sandbox.clock import SandboxClock
from workers.sandbox.dialect import Mail
from workers.sandbox.log import Accepted, timestamp
from workers.sandbox.webhooks import SCHEMES, Event, Posting

_TIMEOUT_SECONDS = 10.0
_MAX_DELAY_MS = 86_400_000


class BadOrder(ValueError):
    """Raised for an order of events that cannot be; the message says what was wrong with it."""


@dataclass(slots=True, kw_only=True)
class Webhook:
    """One order: tell `url` these events of the next `times` emails that `provider` accepts (None: of all).

    Each event of each recipient is posted `copies` times, under one id, `delay_ms` after the acceptance.
    """

    provider: str
    url: str
    secret: str = ""
    events: tuple[Event, ...] = (Event.DELIVERED,)
    times: int | None = None
    copies: int = 1
    delay_ms: float = 0.0

    def order(self) -> dict[str, Any]:
        """The order as JSON, without its secret."""
        fields = asdict(self)
        del fields["secret"]
        return fields


@dataclass(slots=True, kw_only=True)
class Posted:
    """One event that was posted; `status` is that of the answer, None without one."""

    at: str
    provider: str
    event: str
    id: str
    message_id: str
    recipient: str
    status: int | None = None


class Events:
    """The active orders, and what came of them."""

    def __init__(self, clock: SandboxClock) -> None:
        self.posted: list[Posted] = []
        self._clock = clock
        self._active: list[Webhook] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def post(self, webhook: Webhook) -> None:
        """Add one; to be called where the server runs."""
        self._loop = asyncio.get_running_loop()
        self._active.append(webhook)

    def clear(self) -> None:
        """Tell nothing more of what is accepted from now on."""
        self._active.clear()

    def active(self) -> list[dict[str, Any]]:
        """The orders that are not used up."""
        return [webhook.order() for webhook in self._active]

    def accepted(self, entry: Accepted, mail: Mail) -> None:
        """Carry out every order about this email; may be called from any thread."""
        for webhook in [one for one in self._active if one.provider == entry.provider]:
            if webhook.times is not None:
                webhook.times -= 1
                self._active = [one for one in self._active if one.times != 0]
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._start, webhook, entry, mail)

    def _start(self, webhook: Webhook, entry: Accepted, mail: Mail) -> None:
        task = asyncio.create_task(self._tell(webhook, entry, mail))
        # The loop holds a task by a weak reference only.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, webhook: Webhook, entry: Accepted, mail: Mail) -> None:
        await asyncio.sleep(webhook.delay_ms / 1000)
        scheme = SCHEMES[webhook.provider]
        async with httpcore2.AsyncConnectionPool() as pool:
            for event in webhook.events:
                for recipient in entry.to:
                    posting = Posting(
                        event=event,
                        name=scheme.names[event],
                        id=_id_of(entry, event, recipient),
                        message_id=entry.id,
                        recipient=recipient,
                        mail=mail,
                        at=self._clock.now(),
                        secret=webhook.secret,
                    )
                    headers, body = scheme.write(posting)
                    for _ in range(webhook.copies):
                        await self._post(pool, webhook, posting, headers, body)

    async def _post(
        self,
        pool: httpcore2.AsyncConnectionPool,
        webhook: Webhook,
        posting: Posting,
        headers: Mapping[str, str],
        body: bytes,
    ) -> None:
        posted = Posted(
            at=timestamp(self._clock.now()),
            provider=webhook.provider,
            event=posting.name,
            id=posting.id,
            message_id=posting.message_id,
            recipient=posting.recipient,
        )
        self.posted.append(posted)
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), _TIMEOUT_SECONDS)
        try:
            answer = await pool.request(
                "POST", webhook.url, headers=list(headers.items()), content=body, extensions={"timeout": timeout}
            )
        except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
            return
        posted.status = answer.status


def _id_of(entry: Accepted, event: Event, recipient: str) -> str:
    """The same for the same event, however often it is told."""
    return "evt_" + digest_of([entry.provider, entry.id, event, recipient])[:32]


def parse_webhook(order: object, providers: Mapping[str, object]) -> Webhook:
    """Read one order as `POST /api/webhooks` takes it, or raise `BadOrder`."""
    if not isinstance(order, dict):
        raise BadOrder("an order of events is a JSON object")
    if unknown := sorted(set(order) - _FIELDS.keys()):
        raise BadOrder(f"unknown field {unknown[0]!r}; known: {', '.join(_FIELDS)}")
    for name in ("provider", "url"):
        if name not in order:
            raise BadOrder(f"{name} is missing")
    known = sorted(SCHEMES.keys() & providers.keys())
    if order["provider"] not in known:
        raise BadOrder(f"no events of provider {order['provider']!r}; known: {', '.join(known)}")
    fields: dict[str, Any] = {name: _FIELDS[name](name, value) for name, value in order.items()}
    webhook = Webhook(**fields)
    scheme = SCHEMES[webhook.provider]
    if silent := [event for event in webhook.events if event not in scheme.names]:
        raise BadOrder(f"{webhook.provider} does not tell that an email was {silent[0]}")
    _try(webhook)
    return webhook


def _try(webhook: Webhook) -> None:
    """Sign something: a secret that cannot be used is told now."""
    scheme, mail = SCHEMES[webhook.provider], Mail(sender="", to=(), subject="")
    event = webhook.events[0]
    posting = Posting(
        event=event,
        name=scheme.names[event],
        id="",
        message_id="",
        recipient="",
        mail=mail,
        at=0,
        secret=webhook.secret,
    )
    try:
        scheme.write(posting)
    except ValueError as error:
        raise BadOrder(str(error)) from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadOrder(f"{name} must be a text")
    return value


def _url(name: str, value: Any) -> str:
    url = _text(name, value)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise BadOrder(f"{name} must be an http or https URL")
    return url


def _events(name: str, value: Any) -> tuple[Event, ...]:
    try:
        events = tuple(Event(event) for event in value)
    except (TypeError, ValueError):
        events = ()
    if not events:
        raise BadOrder(f"{name} is a list of {', '.join(Event)}")
    return events


def _count(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise BadOrder(f"{name} is {value!r}: it must be a whole number of at least 1")
    return value


def _times(name: str, value: Any) -> int | None:
    return None if value is None else _count(name, value)


def _delay(name: str, value: Any) -> float:
    if type(value) not in {int, float} or not 0 <= value <= _MAX_DELAY_MS:
        raise BadOrder(f"{name} is {value!r}: it must be a number from 0 to {_MAX_DELAY_MS}")
    return float(value)


_FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "provider": _text,
    "url": _url,
    "secret": _text,
    "events": _events,
    "times": _times,
    "copies": _count,
    "delay_ms": _delay,
}
