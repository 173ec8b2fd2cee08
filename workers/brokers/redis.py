"""dramatiq's Redis broker, with the places mended where it can lose a job or forget one.

Kept from dramatiq: the engine, the key names, acknowledgement, and the heartbeats by which the jobs of a killed worker
go to another one. Replaced: a retry, a delay and a burial are one atomic move each (`queue.lua`); delayed jobs wait in
Redis and not in a worker's memory; maintenance comes by the clock and not by chance, and keeps the dead letters; after
a lost connection a worker takes back what Redis had handed it without its knowing; and nothing is acknowledged of which
the actor did not say so. What comes off the wire is not trusted: neither its form nor options that dramatiq would obey.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from typing import Any, cast
from urllib.parse import urlsplit

import redis
from dramatiq import Message
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.brokers.redis import RedisBroker as StockBroker
from dramatiq.errors import ConnectionClosed, DecodeError
from dramatiq.middleware import CurrentMessage
from redis.backoff import NoBackoff
from redis.retry import Retry as RedisRetry

from idem.errors import BrokerError, BrokerUnavailable, SettingsError
from workers.brokers.base import Acknowledge, Backlog, Bury, Retry, dispose, disposition_of
from workers.brokers.messages import InHand, decode

_ID = "redis_message_id"

_PERSISTENCE = {
    True: "append-only file: what was enqueued survives a restart; with appendfsync always, a power cut too",
    False: "no append-only file: a restart of the server loses jobs that were enqueued; set 'appendonly yes' on it",
}
#: redis-py takes database 0 for whatever is not a number.
_DATABASE = re.compile(r"(/[0-9]{0,9})?")
_MALFORMED = "IDEM_BROKER_URL is malformed: write redis://host:port/db"
_SOCKET_SECONDS = 10.0


class RedisBroker(StockBroker):
    """Jobs in a Redis or Valkey server."""

    def __init__(self, client: redis.Redis, *, namespace: str, visibility_seconds: float) -> None:
        super().__init__(  # type: ignore[no-untyped-call]  # dramatiq types this class by its docstring
            client=client,
            middleware=[CurrentMessage()],
            namespace=f"idem:{namespace}",
            # Its maintenance drops old dead letters, and looks through all keys of the server; `maintain` is ours.
            maintenance_chance=0,
        )
        script = resources.files("workers.brokers").joinpath("queue.lua").read_text(encoding="utf-8")
        self._move = client.register_script(script)
        self._visibility_ms = int(visibility_seconds * 1000)
        self._maintained_at = 0.0
        self._maintenance_seconds = max(0.1, visibility_seconds / 10)
        #: Ids that this process's threads have in hand, each until its disposition was carried out.
        self.in_hand: set[str] = set()
        self.in_hand_lock = threading.Lock()

    @property
    def consumer_class(self) -> Any:
        """What dramatiq's worker reads this broker through."""
        return _Consumer

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue; delayed jobs are part of it, so there is no delay queue to consume beside it."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Return once Redis has the message; `BrokerUnavailable` when that is not known."""
        with _unavailable():
            if delay is None:
                # An id of its own: a second copy of a message must not share the place of the first.
                copy = message.copy(options={_ID: str(uuid.uuid4())})
                self.move("enqueue", copy.queue_name, copy.options[_ID], copy.encode())
            else:
                copy = message.copy(options={_ID: message.message_id})
                self.move("delay", copy.queue_name, copy.options[_ID], copy.encode(), _now_ms() + delay)
            return copy

    def backlog(self) -> Backlog:
        """How many messages there are, by one atomic reading."""
        with _unavailable():
            counts = [self.move("backlog", queue) for queue in sorted(self.queues)]
        ready, held, delayed, dead = (sum(column) for column in zip(*counts, strict=True))
        # A second copy of an id counts as ready until a fetch has dropped it, although its message has gone.
        return Backlog(ready=ready, delayed=delayed, in_flight=max(0, held - ready), dead=dead)

    def check(self) -> Sequence[str]:
        """See `JobBroker.check`: whether the server may evict jobs, and what its persistence means for them."""
        with _unavailable():
            info: dict[str, Any] = self.client.info()
        if info.get("maxmemory") and info.get("maxmemory_policy") != "noeviction":
            raise BrokerError(
                f"the broker may evict jobs (maxmemory-policy {info['maxmemory_policy']}): "
                "set 'maxmemory-policy noeviction' on the server of IDEM_BROKER_URL"
            )
        return (_PERSISTENCE[bool(info.get("aof_enabled"))],)

    def is_empty(self) -> bool:
        """See `JobBroker.is_empty`: one atomic reading is enough."""
        return self.backlog().pending == 0

    def create(self) -> Sequence[str]:
        """See `JobBroker.create`: a Redis queue needs nothing."""
        return ()

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def move(self, command: str, queue_name: str, *args: str | bytes | float) -> Any:
        """Run one command of `queue.lua`."""
        return self._move(keys=[self.namespace], args=[command, _now_ms(), queue_name, self.broker_id, *args])

    def maintain(self, queue_name: str) -> None:
        """Give the jobs of dead workers back to the queue, when it is time to look."""
        if time.monotonic() - self._maintained_at >= self._maintenance_seconds:
            self.move("maintain", queue_name, _now_ms() - self._visibility_ms, *sorted(self.queues))
            self._maintained_at = time.monotonic()

    def requeue_unknown(self, queue_name: str) -> None:
        """Give back what Redis handed to this worker without its knowing: the answer to the fetch was lost."""
        with self.in_hand_lock:
            in_hand = set(self.in_hand)
        held = {_text(item) for item in self.move("held", queue_name)}
        if held - in_hand:
            self.do_requeue(queue_name, *(held - in_hand))


class _Consumer(Consumer):
    """One queue, as dramatiq's worker reads it. Whatever Redis raises is a lost connection to the worker."""

    def __init__(self, broker: RedisBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._prefetch = prefetch
        self._max_pause_seconds = timeout / 1000
        self._pause_seconds = 0.0
        self._fetched: list[tuple[str, bytes]] = []
        with _connection_closed():
            broker.requeue_unknown(queue_name)

    def __next__(self) -> MessageProxy | None:
        """The next message, or None after a pause when there is none."""
        with _connection_closed():
            self._broker.maintain(self._queue_name)
            if not self._fetched:
                self._fetch()
            while self._fetched:
                self._pause_seconds = 0.0
                message = self._hand_over(*self._fetched.pop(0))
                if message is not None:
                    return message
        # Sleeping a little longer each time: an idle worker is no burden, a busy one does not wait.
        self._pause_seconds = min(self._max_pause_seconds, max(0.005, self._pause_seconds * 2))
        time.sleep(self._pause_seconds)
        return None

    def ack(self, message: MessageProxy) -> None:
        """Do with the message what was said of it; the worker calls this when it is through, whatever happened."""
        message_id = message.options[_ID]
        with _connection_closed():
            match disposition_of(message):
                case Acknowledge():
                    self._broker.do_ack(self._queue_name, message_id)
                case Retry(delay_seconds=delay):
                    at = _now_ms() + max(0, int(delay * 1000))
                    again = message.copy(options={"tries": message.options.get("tries", 0) + 1})
                    self._broker.move("retry", self._queue_name, message_id, again.encode(), at)
                case Bury(reason=reason):
                    buried = message.copy(options={"reason": reason})
                    self._broker.move("bury", self._queue_name, message_id, buried.encode())
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
                self._broker.do_requeue(self._queue_name, *ids)
            self._let_go(ids)

    def close(self) -> None:
        """Give back what was fetched and not handed over."""
        fetched, self._fetched = self._fetched, []
        if fetched:
            with _connection_closed():
                self._broker.do_requeue(self._queue_name, *(message_id for message_id, _ in fetched))

    def _fetch(self) -> None:
        # Asked even when there is no room: the question is the heartbeat by which others know that we live.
        room = max(0, self._prefetch - len(self._broker.in_hand))
        flat = cast("list[bytes]", self._broker.move("fetch", self._queue_name, room))
        self._fetched = [(_text(flat[index]), flat[index + 1]) for index in range(0, len(flat), 2)]

    def _hand_over(self, message_id: str, data: bytes) -> MessageProxy | None:
        try:
            message = decode(data, self._queue_name, {_ID: message_id})
        except DecodeError:
            self._bury_undecodable(message_id, data)
            return None
        with self._broker.in_hand_lock:
            self._broker.in_hand.add(message_id)
        return InHand(message)

    def _bury_undecodable(self, message_id: str, data: bytes) -> None:
        """What cannot be decoded is kept as it came, among the dead letters."""
        self._broker.logger.error("message %s cannot be decoded; it is kept among the dead letters", message_id)
        self._broker.move("bury", self._queue_name, message_id, data)

    def _let_go(self, message_ids: Iterable[str]) -> None:
        with self._broker.in_hand_lock:
            self._broker.in_hand.difference_update(message_ids)


def connect(url: str) -> redis.Redis:
    """A client for `redis://` or `rediss://`; it never repeats a command by itself, and has not connected yet.

    Raises `SettingsError` for a malformed URL. What redis-py says of it is not passed on: it may hold the password.
    """
    try:
        database = urlsplit(url).path
        client = redis.Redis.from_url(url, retry=no_retry(), **client_options())
        # Options that nobody knows are found out when a connection is made, which does not connect it yet.
        client.connection_pool.make_connection()
    except (ValueError, TypeError):
        raise SettingsError(_MALFORMED) from None
    if not _DATABASE.fullmatch(database):
        raise SettingsError(_MALFORMED)
    return client


def client_options() -> dict[str, Any]:
    """How every client of ours connects."""
    return {"socket_timeout": _SOCKET_SECONDS, "socket_connect_timeout": _SOCKET_SECONDS, "health_check_interval": 30}


def no_retry() -> RedisRetry:
    """redis-py repeats a failed command three times by default; repeating a fetch strands what the first one took."""
    return RedisRetry(NoBackoff(), 0)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise BrokerUnavailable(
            f"the broker does not answer ({error}): see that the server of IDEM_BROKER_URL runs"
        ) from error


@contextlib.contextmanager
def _connection_closed() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, BrokerError) as error:
        raise ConnectionClosed(error) from error
