"""A store in Redis or Valkey, one server or a cluster: for any number of machines.

A record is one hash. One script (`redis_swap.lua`) compares it, writes it, and keeps the lists and the counts: one
round trip, whatever it comes to. The keys of a namespace are spread over `_SHARDS` hash tags, so that a record, the
lists it is on and the counts are in one slot, and change in one step on a cluster too.

What was answered is as durable as the server makes it: `RedisStore.durability` says how durable that is, and refuses a
server that forgets. It needs Valkey, or a Redis from 6 on; before Redis 7, a server cannot say beforehand which command
it does not permit, and `check` finds that out only where it uses one.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import math
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from itertools import islice
from typing import Any, Final, cast
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.connection import parse_url
from redis.exceptions import AskError, ClusterDownError, NoPermissionError, NoScriptError, RedisClusterException
from redis.retry import Retry

from idem.errors import LedgerError, LedgerUnavailable, LedgerUnusable, SettingsError
from idem.privacy import redact
from idem.protocol import ENDED, Record, State
from idem.stores.base import VANISHED, asked_among
from idem.stores.codec import decode_record, encode_record

Client = redis.Redis | RedisCluster

RETENTION_SECONDS: Final = 90 * 86_400.0

#: Part of every key: another number is another ledger. Enough to load the nodes of a cluster alike.
_SHARDS = 256
#: Into how many instants a retention is divided at which records expire.
_STEPS = 90
_SOCKET_SECONDS = 10.0
_ONE_NODE = "is one node of a cluster: write redis+cluster:// (or rediss+cluster://)"
#: Newer versions of redis-py begin with HELLO, which older servers do not know.
_OLDEST_REDIS = 6
_OLD = f"is a Redis before {_OLDEST_REDIS}: upgrade it, or name another one in IDEM_LEDGER_URL"
_FORBIDDEN = "does not permit a command: permit it on the keys idem-ledger:* (ACL SETUSER)"
#: Records read in one round trip; each may have a frozen body.
_BATCH = 100

#: States that no list is kept of, so that an email that was sent costs no entry; they are found by looking at all.
_UNLISTED: Final = frozenset({State.SENT, State.SPLIT})

#: States whose records expire. Safe, because no message of that age is taken for new without a live record, however
#: long it stayed in the queue or among the dead letters (`Policy.forgets`), nobody holds a claim on an ended record,
#: and a swap that finds its record gone is refused, not taken for a new key. What is in doubt waits for a person, and
#: what has not ended for a worker: neither ever expires.
_EXPIRING: Final = ENDED - {State.IN_DOUBT}


class Sync(StrEnum):
    """When the server's append-only file reaches the disk, from the safest to the least safe."""

    ALWAYS = "always"
    EVERYSEC = "everysec"
    SYSTEM = "no"
    NONE = "none"


_STATEMENTS: Final[Mapping[Sync, str]] = {
    Sync.ALWAYS: "append-only file, synced at every write: what was answered survives a crash of the server",
    Sync.EVERYSEC: (
        "append-only file, synced every second: a crash of the server's machine can take back about 2 s of writes; "
        "an email sent in them is sent again, and only a provider that still knows its key recognises it"
    ),
    Sync.SYSTEM: (
        "append-only file, synced when the system likes: a crash of the server's machine can take back some 30 s of "
        "writes; an email sent in them is sent again, and only a provider that still knows its key recognises it"
    ),
    Sync.NONE: (
        "no append-only file: a restart of the server forgets keys; an email whose key was forgotten is sent again, "
        "and only a provider that still knows the key recognises it"
    ),
}


@dataclass(frozen=True, slots=True)
class Durability:
    """How far an answered write can be relied on; of a cluster's nodes, the weakest speaks for all."""

    sync: Sync
    replicas: int

    @property
    def statement(self) -> str:
        """What a crash of the server can take back, in a sentence."""
        return _STATEMENTS[self.sync]

    @property
    def replicas_statement(self) -> str:
        """What the replicas are good for, in a sentence."""
        if not self.replicas:
            return "no replica: while this server is down, nothing is sent"
        return (
            f"{self.replicas} replica{'s' * (self.replicas > 1)}: they take over when a server is lost, but are told "
            "of a write only after it was answered, so that a failover can take back the last ones"
        )


class RedisStore:
    """Records in a Redis or Valkey server or cluster; `connect` is called at the first use, and must not retry.

    Records that have ended, but for those in doubt, expire after `retention_seconds` (None: never); by the server's
    clock, and up to a ninetieth of it later.
    """

    def __init__(
        self,
        connect: Callable[[], Client],
        namespace: str = "default",
        *,
        retention_seconds: float | None = RETENTION_SECONDS,
    ) -> None:
        self._connect = connect
        # Of a quoted namespace, nothing can be taken for another part of a key.
        self._prefix = f"idem-ledger:{{{quote(namespace, safe='')}/"
        self._retention_ms = None if retention_seconds is None else max(1, int(retention_seconds * 1000))
        self._swap, self._drop = _Script("redis_swap.lua"), _Script("redis_drop.lua")
        self._swap_cell = _Script("redis_cell.lua")
        self._lock = threading.Lock()
        self._open: Client | None = None

    def create(self) -> Sequence[str]:
        """See `Store.create`; there is nothing to make. A server that will not do is refused, another is described."""
        return self.check()

    def read(self, key: str) -> Record | None:
        """See `Store.read`."""
        [record] = self._read([key])
        return record

    def swap(self, old: Record | None, new: Record) -> Record | None:
        """See `Store.swap`. One round trip."""
        shard = _shard(new.key)
        lists = [self._name(shard, "in", (old or new).state), self._name(shard, "in", new.state)]
        keys = [self._name(shard, "record", new.key), self._name(shard, "counts"), *lists]
        fence = ("", "", "") if old is None else (old.claim_id, old.version, old.state.value)
        values = (new.claim_id, new.version, new.state.value, repr(new.updated_at), int(new.state not in _UNLISTED))
        body = () if new.body is None else (new.body,)
        args = (new.key, *fence, *values, *self._expiry(new.state, shard), encode_record(new), *body)
        with _translated():
            answer = self._swap.run(self._client(), keys, args)
        if answer is None:
            return None
        if not answer:
            raise LedgerUnusable(VANISHED)
        return _decode(*answer)

    def list(self, state: State, limit: int) -> Iterator[Record]:
        """Records in that state, the one longest unchanged first; a page of them is read when its turn comes.

        A list changes in one step with its records: what is in the state when the first one is taken, and stays, is
        found; what has left it by its turn is left out. Of what is sent or split no list is kept: to find the oldest of
        them, all records of the namespace are looked at. Entries that expired records have left behind are dropped on
        the way.
        """
        return islice(self._in_state(state, limit), limit)

    def asked(self, limit: int) -> Iterator[Record]:
        """See `Store.asked`."""
        return asked_among(self.list, limit)

    def count(self) -> Mapping[State, int]:
        """How many records there are in each state: all states are counted, and each change with its write.

        Records that expire are counted until then, by this machine's clock. One that somebody deletes by hand stays
        counted.
        """
        with _translated(), self._client().pipeline(transaction=False) as pipeline:
            for shard in range(_SHARDS):
                pipeline.hgetall(self._name(shard, "counts"))
            shards = cast("list[dict[bytes, bytes]]", pipeline.execute())
        now = time.time() * 1000
        counts: Counter[State] = Counter()
        for name, number in (item for shard in shards for item in shard.items()):
            state, _, expires_at = name.decode().partition(":")
            if not expires_at or int(expires_at) > now:
                counts[_state(state)] += int(number)
        return {state: counts[state] for state in State}

    def read_cell(self, name: str) -> bytes | None:
        """See `Cells.read_cell`."""
        with _translated():
            (value,) = cast("list[bytes | None]", self._client().hmget(self._cell(name), ["value"]))
        return value

    def swap_cell(self, name: str, old: bytes | None, new: bytes, *, keep_seconds: float | None = None) -> bytes | None:
        """See `PassingCells.swap_cell`. One round trip."""
        keep_ms = "" if keep_seconds is None else math.ceil(keep_seconds * 1000)
        args = (old or b"", new, keep_ms)
        with _translated():
            return cast("bytes | None", self._swap_cell.run(self._client(), [self._cell(name)], args))

    def close(self) -> None:
        """See `Store.close`."""
        with self._lock:
            client, self._open = self._open, None
        if client is not None:
            # What a cluster's client leaves open when it is closed, too.
            for server in _nodes(client):
                server.connection_pool.disconnect()
            client.close()

    def check(self) -> Sequence[str]:
        """See `Store.check`: how durable the ledger is, and what its replicas are good for."""
        durability = self.durability()
        return durability.statement, durability.replicas_statement

    def durability(self, *, accept_volatile: bool = False) -> Durability:
        """Say how durable the ledger is. Writes nothing.

        Raises `LedgerUnusable`, with what to do, for a server that may evict records, that is a read-only replica, that
        does not permit a command that the store needs, or, unless `accept_volatile`, that has no append-only file: a
        ledger that forgets a key sends its email again, to a provider that need not recognise it.
        """
        with _translated():
            client = self._client()
            servers = [_inspect(node, self._name(0, "counts")) for node in _nodes(client)]
        if servers[0].clustered and not isinstance(client, RedisCluster):
            raise LedgerUnusable(f"the Redis ledger {_ONE_NODE}")
        primaries = [server for server in servers if server.primary]
        if not primaries:
            raise LedgerUnusable("the Redis ledger is a read-only replica: name the primary in IDEM_LEDGER_URL")
        weakest = max((server.sync for server in servers), key=list(Sync).index)
        if weakest is Sync.NONE and not accept_volatile:
            raise LedgerUnusable(
                "the Redis ledger has no append-only file, and would send again what a restart makes it forget: "
                "set 'appendonly yes' on the server, and better 'appendfsync always' with it"
            )
        return Durability(weakest, min(server.replicas for server in primaries))

    def _client(self) -> Client:
        with self._lock:
            if self._open is None:
                self._open = self._connect()
            return self._open

    def _name(self, shard: int, *parts: str) -> str:
        return f"{self._prefix}{shard}}}:{':'.join(parts)}"

    def _cell(self, name: str) -> str:
        """A hash tag of its own, which no shard has: a number is a shard."""
        return f"{self._prefix}cell/{quote(name, safe='')}}}:cell"

    def _expiry(self, state: State, shard: int) -> tuple[int | str, ...]:
        """Retention, and step and offset of the instants at which this shard's records expire: not with all others'."""
        if self._retention_ms is None or state not in _EXPIRING:
            return ("", "", "")
        step = max(1, self._retention_ms // _STEPS)
        return (self._retention_ms, step, step * shard // _SHARDS)

    def _read(self, keys: Sequence[str]) -> Sequence[Record | None]:
        """The records of those keys, in one round trip for each node."""
        with _translated(), self._client().pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hmget(self._name(_shard(key), "record", key), "state", "record", "body")
            answers = cast("list[list[bytes | None]]", pipeline.execute())
        return [None if answer == [None] * 3 else _decode(*answer) for answer in answers]

    def _in_state(self, state: State, limit: int) -> Iterator[Record]:
        """All that is to be listed, each record once, and perhaps more."""
        given: set[str] = set()
        while True:
            keys = self._scan(state, limit) if state in _UNLISTED else self._listed(state, limit)
            waiting, dropped = [key for key in keys if key not in given], 0
            for start in range(0, len(waiting), _BATCH):
                page = waiting[start : start + _BATCH]
                found = [record for record in self._read(page) if record is not None and record.state is state]
                stale = set(page).difference(record.key for record in found)
                dropped += sum(self._drop_entry(state, key) for key in stale)
                given.update(record.key for record in found)
                yield from found
            # Again only if entries were in the way of others; a record that has just moved on left its list itself.
            if not dropped:
                return

    def _listed(self, state: State, limit: int) -> Sequence[str]:
        """The keys of the list of a state, the one longest unchanged first."""
        with _translated(), self._client().pipeline(transaction=False) as pipeline:
            for shard in range(_SHARDS):
                pipeline.zrange(self._name(shard, "in", state), 0, limit - 1, withscores=True)
            shards = cast("list[list[tuple[bytes, float]]]", pipeline.execute())
        entries = ((score, key) for shard in shards for key, score in shard)
        return [key.decode() for _, key in heapq.nsmallest(limit, entries)]

    def _scan(self, state: State, limit: int) -> Sequence[str]:
        """The keys of all records in a state, by looking at every record of the namespace."""
        oldest: list[tuple[float, str]] = []
        for keys in self._pages():
            found = (record for record in self._read(keys) if record is not None and record.state is state)
            # A set, because a scan may come upon a key twice.
            page = {(record.updated_at, record.key) for record in found}
            oldest = heapq.nsmallest(limit, page.union(oldest))
        # Also twice if it changed meanwhile.
        return [*dict.fromkeys(key for _, key in oldest)]

    def _pages(self) -> Iterator[Sequence[str]]:
        with _translated():
            names = self._client().scan_iter(match=f"{self._prefix}*}}:record:*", count=1000)
            while page := [name.decode().partition("}:record:")[2] for name in islice(names, _BATCH)]:
                yield page

    def _drop_entry(self, state: State, key: str) -> int:
        names = [self._name(_shard(key), "record", key), self._name(_shard(key), "in", state)]
        with _translated():
            return cast("int", self._drop.run(self._client(), names, (key, state.value)))


def connector(url: str) -> Callable[[], Client]:
    """What connects to `redis://`, `rediss://` or `unix://`, or to the cluster of a node at `redis+cluster://`.

    Raises `SettingsError` at once for what is no such URL. The client never retries; of a cluster, it follows the
    redirections: a node that redirects has done nothing.
    """
    scheme, _, rest = url.partition("://")
    clustered = bool(rest) and scheme in {"redis+cluster", "rediss+cluster"}
    plain = f"{scheme.removesuffix('+cluster')}://{rest}" if clustered else url
    try:
        parse_url(plain)
    except ValueError:
        # Not from the error: it may show a part of the password.
        raise SettingsError(
            "IDEM_LEDGER_URL names no ledger: write redis://user:<password>@host:port/db (for a cluster, redis+cluster://"
            "user:<password>@host:port), with %-escapes for the signs /?#@ in a password"
        ) from None
    options: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": _SOCKET_SECONDS,
        "socket_connect_timeout": _SOCKET_SECONDS,
        "health_check_interval": 30,
    }
    if clustered:
        return lambda: RedisCluster.from_url(plain, **options)
    return lambda: redis.Redis.from_url(plain, **options)


class _Script:
    """A script, known to the server by its digest."""

    def __init__(self, name: str) -> None:
        self._text = resources.files("idem.stores").joinpath(name).read_text(encoding="utf-8")
        self._digest = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: Client, keys: Sequence[str] = (), args: Sequence[str | bytes | int] = ()) -> Any:
        """Run it; with its text only where the server does not know it, which it says before it does anything."""
        try:
            return client.evalsha(self._digest, len(keys), *keys, *args)
        except NoScriptError:
            return client.eval(self._text, len(keys), *keys, *args)


def _shard(key: str) -> int:
    return zlib.crc32(key.encode()) % _SHARDS


def _decode(state: bytes | None, record: bytes | None, body: bytes | None) -> Record:
    if state is not None:
        _state(state.decode(errors="replace"))
    return decode_record(record or b"", body)


def _state(name: str) -> State:
    try:
        return State(name)
    except ValueError as error:
        raise LedgerUnusable(
            f"a record in the ledger is in the state {name!r}, which this program does not know: "
            "upgrade the program before it works on this ledger"
        ) from error


def _nodes(client: Client) -> list[redis.Redis]:
    """The server; of a cluster, all nodes, since a replica of today is the primary after a failover."""
    if isinstance(client, RedisCluster):
        return [client.get_redis_connection(node) for node in client.get_nodes()]
    return [client]


@dataclass(frozen=True, slots=True)
class _Server:
    """What one server says of itself."""

    sync: Sync
    clustered: bool
    primary: bool
    replicas: int


def _inspect(server: redis.Redis, key: str) -> _Server:
    """Look at one server; `LedgerUnusable` when no record may be kept there."""
    info: dict[str, Any] = server.info()
    _check_version(info)
    policy = info["maxmemory_policy"]
    if info["maxmemory"] and policy != "noeviction":
        raise LedgerUnusable(
            f"the Redis ledger may evict records (maxmemory-policy {policy}), and would send their emails again: "
            "set 'maxmemory-policy noeviction' on the server, or name another one"
        )
    forbidden = _Script("redis_permissions.lua").run(server, args=(key,))
    if forbidden is not None:
        raise LedgerUnusable(f"the Redis ledger {_FORBIDDEN} ({forbidden.decode()})")
    sync = _sync(server) if info["aof_enabled"] else Sync.NONE
    return _Server(sync, bool(info.get("cluster_enabled")), info["role"] == "master", info["connected_slaves"])


def _check_version(info: Mapping[str, Any]) -> None:
    """Refuse a server that says it is too old; Valkey names the Redis that it can stand in for."""
    version = str(info.get("redis_version"))
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) < _OLDEST_REDIS:
        raise LedgerUnusable(f"the Redis ledger {_OLD} ({version})")


def _sync(server: redis.Redis) -> Sync:
    """When the append-only file is synced. A server that does not say, as managed ones do not, has the default."""
    try:
        return Sync(cast("dict[str, str]", server.config_get("appendfsync")).get("appendfsync", Sync.EVERYSEC))
    except redis.ResponseError:
        return Sync.EVERYSEC


#: What a server means by its answer, by redis-py's name for it or by its first words.
_MEANINGS: Final[Sequence[tuple[type[Exception] | str, type[LedgerError], str]]] = [
    (redis.AuthenticationError, LedgerUnusable, "does not let us in: check user and password in IDEM_LEDGER_URL"),
    (NoPermissionError, LedgerUnusable, _FORBIDDEN),
    ("ACL failure", LedgerUnusable, _FORBIDDEN),
    (AskError, LedgerUnusable, _ONE_NODE),
    ("unknown command `HELLO`", LedgerUnusable, _OLD),
    ("WRONGTYPE", LedgerUnusable, "is not alone: another program writes to idem-ledger:*"),
    (redis.ReadOnlyError, LedgerUnavailable, "is a read-only replica: name the primary, or wait for the failover"),
    (redis.OutOfMemoryError, LedgerUnavailable, "is out of memory: raise its maxmemory"),
    (redis.BusyLoadingError, LedgerUnavailable, "is still loading its data: wait"),
    (ClusterDownError, LedgerUnavailable, "lacks a part of its cluster: see CLUSTER INFO"),
    ("MISCONF", LedgerUnavailable, "cannot save to its disk, and takes no writes: make room there, see its log"),
]


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Translate what redis-py raises, in one line each."""
    try:
        yield
    except (redis.RedisError, RedisClusterException) as error:
        # A cluster's client says only that it could not connect; why, it says below.
        raise _translate(error.__cause__ if isinstance(error.__cause__, redis.RedisError) else error) from error


def _translate(error: BaseException) -> LedgerError:
    said = redact(str(error))
    for sign, kind, meaning in _MEANINGS:
        if said.startswith(sign) if isinstance(sign, str) else isinstance(error, sign):
            return kind(f"the Redis ledger {meaning} ({said})")
    return LedgerUnavailable(f"the Redis ledger does not answer: {said}")
