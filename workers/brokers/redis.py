"""Jobs in a Redis or Valkey server, behind dramatiq's engine.

Dramatiq's own Redis broker can lose a job or forget one in many places; of it, this keeps the names of the keys, and
the heartbeats by which the jobs of a killed worker go to another one. A job is in one place at every instant: each move
is one step of a script on the server (`queue.lua`), by the server's clock. An idle worker blocks until it is woken.
After a lost connection a worker takes back what the server had handed it without its knowing. Nothing is acknowledged
of which the actor did not say so. Dead letters stay until a person decides. What comes off the wire is not trusted:
neither its form nor options that dramatiq would obey.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from typing import Any, cast
from urllib.parse import quote

import dramatiq
import redis
from dramatiq import Message, Middleware
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.errors import ConnectionClosed, DecodeError
from dramatiq.middleware import CurrentMessage

from idem.errors import BrokerError
from idem.privacy import redact
from workers.brokers.base import (
    Acknowledge,
    Backlog,
    Bury,
    DeadLetter,
    Retry,
    dispose,
    disposition_of,
    enqueue_each,
    read_letter,
)
from workers.brokers.messages import InHand, decode
from workers.brokers.servers import FAILURES, Link, durability, forbids, translate, translated

_ID = "redis_message_id"

#: An idle worker looks at the queue this often although nobody woke it: a wake-up may have gone to one that was killed.
_LOOK_SECONDS = 1.0

_PAGE = 100


class RedisBroker(dramatiq.Broker):
    """Jobs in a Redis or Valkey server, a group with sentinels, or a cluster: one node of it has a whole namespace."""

    def __init__(self, link: Link, *, namespace: str, visibility_seconds: float) -> None:
        super().__init__(middleware=[CurrentMessage(), _Stopping()])
        self.link = link
        self.broker_id = str(uuid.uuid4())
        # Of a quoted namespace, nothing can be taken for another part of a key.
        self.namespace = f"{{idem:{quote(namespace, safe='')}}}"
        self._script = _Script()
        self._visibility_ms = int(visibility_seconds * 1000)
        self._maintained_at = 0.0
        self._maintenance_seconds = max(0.1, visibility_seconds / 10)
        self.look_seconds = min(_LOOK_SECONDS, self._maintenance_seconds)
        #: Ids that this process's threads have in hand, each until its disposition was carried out.
        self.in_hand: set[str] = set()
        #: Holds the set together, and tells when something was let go of.
        self.in_hand_changed = threading.Condition()
        #: Nothing is begun any more.
        self.stopping = threading.Event()

    @property
    def consumer_class(self) -> Any:
        """What dramatiq's worker reads this broker through."""
        return _Consumer

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Read a queue, with up to `prefetch` messages in hand; `timeout` (ms) is how long `next` may take."""
        return _Consumer(self, queue_name, prefetch, timeout)

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue; delayed jobs are part of it, so there is no delay queue to consume beside it."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues[queue_name] = None
            self.emit_after("declare_queue", queue_name)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Return once the server has the message; `BrokerUnavailable` when that is not known."""
        with translated():
            if delay is None:
                # An id of its own: a second copy of a message must not share the place of the first.
                copy = message.copy(options={_ID: str(uuid.uuid4())})
                self.move("enqueue", copy.queue_name, copy.options[_ID], copy.encode())
            else:
                copy = message.copy(options={_ID: message.message_id})
                self.move("delay", copy.queue_name, copy.options[_ID], copy.encode(), delay)
            return copy

    def enqueue_many(self, messages: Sequence[Message[Any]]) -> list[BrokerError | None]:
        """See `JobBroker.enqueue_many`."""
        return enqueue_each(self.enqueue, messages)

    def backlog(self) -> Backlog:
        """How many messages there are, by one atomic reading."""
        with translated():
            counts = [self.move("backlog", queue) for queue in sorted(self.queues)]
        ready, held, delayed, dead = (sum(column) for column in zip(*counts, strict=True))
        # A second copy of an id counts as ready until a fetch has dropped it, although its message has gone.
        return Backlog(ready=ready, delayed=delayed, in_flight=max(0, held - ready), dead=dead)

    def dead_letters(self) -> Iterator[DeadLetter]:
        """See `JobBroker.dead_letters`: the one longest buried first."""
        for queue in sorted(self.queues):
            with translated():
                ids = self.move("dead", queue)
            for start in range(0, len(ids), _PAGE):
                with translated():
                    flat = self.move("letters", queue, *ids[start : start + _PAGE])
                for index in range(0, len(flat), 4):
                    letter_id, at, reason, message = flat[index : index + 4]
                    yield read_letter(
                        _text(letter_id), message, reason=_text(reason), buried_at=float(at) / 1000, place=queue
                    )

    def requeue_dead(self, letter: DeadLetter) -> bool:
        """See `JobBroker.requeue_dead`."""
        with translated():
            return bool(self.move("revive", letter.place, letter.id, _untried(letter.payload)))

    def drop_dead(self, letter: DeadLetter) -> bool:
        """See `JobBroker.drop_dead`."""
        with translated():
            return bool(self.move("drop", letter.place, letter.id))

    def check(self) -> Sequence[str]:
        """See `JobBroker.check`: whether the server may evict jobs, and what its persistence means for them."""
        with translated():
            found = durability(self.link.nodes())
            forbidden = [self.move("forbidden", queue) for queue in sorted(self.queues)]
        if any(forbidden):
            raise forbids(_text(next(filter(None, forbidden))))
        return found.statements

    def is_empty(self) -> bool:
        """See `JobBroker.is_empty`: one atomic reading is enough."""
        return self.backlog().pending == 0

    def create(self) -> Sequence[str]:
        """See `JobBroker.create`: a Redis queue needs nothing."""
        return ()

    def close(self) -> None:
        """Close the connections."""
        self.link.close()

    def move(self, command: str, queue_name: str, *args: str | bytes | float) -> Any:
        """Run one command of `queue.lua`."""
        return self._script.run(self.link, self.namespace, command, queue_name, self.broker_id, *map(_wire, args))

    def woken(self, queue_name: str, seconds: float) -> bool:
        """Wait until a job may have come; False when none has within that time."""
        wake = f"{self.namespace}:{queue_name}.wake"
        # Redis takes 0 for ever.
        return self.link.client.blpop([wake], timeout=max(0.001, round(seconds, 3))) is not None

    def maintain(self, queue_name: str) -> None:
        """Give the jobs of dead workers to others, when it is time to look."""
        if time.monotonic() - self._maintained_at >= self._maintenance_seconds:
            self.move("maintain", queue_name, self._visibility_ms, *sorted(self.queues))
            self._maintained_at = time.monotonic()

    def requeue_unknown(self, queue_name: str) -> None:
        """Give back what the server handed to this worker without its knowing: the answer to the fetch was lost."""
        with self.in_hand_changed:
            in_hand = set(self.in_hand)
        held = {_text(item) for item in self.move("held", queue_name)}
        if held - in_hand:
            self.move("requeue", queue_name, *(held - in_hand))


class _Script:
    """`queue.lua`, known to the server by its digest."""

    def __init__(self) -> None:
        self._text = resources.files("workers.brokers").joinpath("queue.lua").read_text(encoding="utf-8")
        self._digest = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    def run(self, link: Link, key: str, *args: str | bytes | float) -> Any:
        """Run it; with its text only where the server does not know it, which it says before it does anything."""
        try:
            return link.client.evalsha(self._digest, 1, key, *args)
        except redis.exceptions.NoScriptError:
            return link.client.eval(self._text, 1, key, *args)


class _Stopping(Middleware):
    """While a worker stops, its consumers go on living, so that others do not take over what is being finished."""

    def before_worker_boot(self, broker: Any, worker: Any) -> None:  # noqa: ARG002 - dramatiq's signature
        """Fetch, as any worker does."""
        broker.stopping.clear()

    def before_worker_shutdown(self, broker: Any, worker: Any) -> None:  # noqa: ARG002 - dramatiq's signature
        """Fetch no more."""
        broker.stopping.set()


class _Consumer(Consumer):
    """One queue, as dramatiq's worker reads it. Whatever the server refuses is a lost connection to the worker."""

    def __init__(self, broker: RedisBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._prefetch = prefetch
        # With so many in hand there is no need to fetch yet: several at once cost what one costs.
        self._enough = prefetch - max(1, prefetch // 4)
        self._patience_seconds = timeout / 1000
        self._look_at = 0.0
        #: When the next delayed message is due, if this worker was told to wait for it; nobody else is.
        self._alarm_at = math.inf
        self._room = 0
        self._fetched: list[tuple[str, bytes]] = []
        with _connection_closed():
            broker.requeue_unknown(queue_name)

    def __next__(self) -> MessageProxy | None:
        """The next message; or None after a while, so that the worker can see whether it should stop."""
        with _connection_closed():
            self._broker.maintain(self._queue_name)
            if not self._fetched and time.monotonic() >= self._look_at:
                self._fetch()
            while self._fetched:
                message = self._hand_over(*self._fetched.pop(0))
                if message is not None:
                    return message
            self._wait()
        return None

    def ack(self, message: MessageProxy) -> None:
        """Do with the message what was said of it; the worker calls this when it is through, whatever happened."""
        message_id = message.options[_ID]
        with _connection_closed():
            match disposition_of(message):
                case Acknowledge():
                    self._broker.move("ack", self._queue_name, message_id)
                case Retry(delay_seconds=delay, tried=tried):
                    again = message.copy(options={"tries": message.options.get("tries", 0) + tried})
                    pause_ms = max(0, int(delay * 1000))
                    self._broker.move("retry", self._queue_name, message_id, again.encode(), pause_ms)
                case Bury(reason=reason):
                    self._broker.move("bury", self._queue_name, message_id, message.encode(), redact(reason))
        self._let_go([message_id])

    def nack(self, message: MessageProxy) -> None:
        """Dramatiq itself refuses a message: it names an actor that is not ours."""
        dispose(message, Bury(f"it names the actor {message.actor_name}, not one of ours"))
        self.ack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Give back messages that were fetched and not begun."""
        ids = [message.options[_ID] for message in messages]
        if ids:
            with _connection_closed():
                self._broker.move("requeue", self._queue_name, *ids)
            self._let_go(ids)

    def close(self) -> None:
        """Give back what was fetched and not handed over, and wake another worker if this one was woken for nothing."""
        fetched, self._fetched = self._fetched, []
        with _connection_closed():
            self._broker.move("requeue", self._queue_name, *(message_id for message_id, _ in fetched))

    def _fetch(self) -> None:
        # Asked even when there is no room: the question is the heartbeat by which others know that we live.
        stopping = self._broker.stopping.is_set()
        self._room = 0 if stopping else max(0, self._prefetch - len(self._broker.in_hand))
        due_ms, *flat = cast("list[Any]", self._broker.move("fetch", self._queue_name, self._room))
        self._fetched = [(_text(flat[index]), flat[index + 1]) for index in range(0, len(flat), 2)]
        now = time.monotonic()
        if due_ms >= 0:
            self._alarm_at = now + due_ms / 1000
        elif self._alarm_at <= now:
            self._alarm_at = math.inf
        # Where there was something, there may be more.
        self._look_at = now if flat else min(now + self._broker.look_seconds, self._alarm_at)

    def _wait(self) -> None:
        """Until there may be something to fetch, and no longer than the worker's patience."""
        seconds = min(self._patience_seconds, self._look_at - time.monotonic())
        if seconds <= 0:
            return
        if self._broker.stopping.is_set():
            time.sleep(seconds)
        elif self._room and self._broker.woken(self._queue_name, seconds):
            self._look_at = 0.0
        elif not self._room and self._has_room(seconds):
            # Not woken by a job, so as not to take the wake-up from a worker that has room.
            self._look_at = 0.0

    def _has_room(self, seconds: float) -> bool:
        with self._broker.in_hand_changed:
            return self._broker.in_hand_changed.wait_for(lambda: len(self._broker.in_hand) <= self._enough, seconds)

    def _hand_over(self, message_id: str, data: bytes) -> MessageProxy | None:
        try:
            message = decode(data, self._queue_name, {_ID: message_id})
        except DecodeError:
            self._bury_undecodable(message_id, data)
            return None
        with self._broker.in_hand_changed:
            self._broker.in_hand.add(message_id)
        return InHand(message)

    def _bury_undecodable(self, message_id: str, data: bytes) -> None:
        """What cannot be decoded is kept as it came, among the dead letters."""
        self._broker.logger.error("message %a cannot be decoded; it is kept among the dead letters", message_id)
        self._broker.move("bury", self._queue_name, message_id, data, "it cannot be decoded")

    def _let_go(self, message_ids: Iterable[str]) -> None:
        with self._broker.in_hand_changed:
            self._broker.in_hand.difference_update(message_ids)
            self._broker.in_hand_changed.notify_all()


def _untried(payload: bytes) -> bytes:
    """The message with its tries forgotten; what cannot be read, as it came."""
    try:
        message: Message[None] = Message.decode(payload)
        options = {name: value for name, value in message.options.items() if name != "tries"}
        return dataclasses.replace(message, options=options).encode()
    except (DecodeError, AttributeError, TypeError):
        return payload


def _text(value: bytes) -> str:
    """A part of somebody's message, which may be any bytes; `_wire` gives the same bytes back."""
    return value.decode(errors="surrogateescape")


def _wire(value: str | bytes | float) -> bytes | float:
    if not isinstance(value, str):
        return value
    try:
        return value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return value.encode(errors="replace")


@contextlib.contextmanager
def _connection_closed() -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        raise ConnectionClosed(translate(error)) from error
    except BrokerError as error:
        raise ConnectionClosed(error) from error
