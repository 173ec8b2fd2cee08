"""Redis and Valkey servers: how to reach one by URL, what its answers mean, and what its settings mean for a job.

    redis://user:password@host:port/db          one server; rediss:// by TLS (?ssl_ca_certs=FILE for a CA of one's own)
    redis+sentinel://host,host:port/SERVICE/db  the primary that those sentinels agree on; rediss+sentinel:// by TLS
    redis+cluster://host:port                   a cluster, found by one of its nodes; rediss+cluster:// by TLS

It needs Valkey, or a Redis from 6 on. No client repeats a command by itself: a fetch whose answer was lost, repeated,
would strand what the first one took.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.connection import parse_url
from redis.exceptions import RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from idem.errors import BrokerError, BrokerUnavailable, SettingsError
from idem.privacy import redact

Client = redis.Redis | RedisCluster

#: What redis-py raises; the second is outside of its own tree.
FAILURES = (redis.RedisError, RedisClusterException)

_MALFORMED: Final = (
    "IDEM_BROKER_URL is malformed: write redis://user:<password>@host:port/db, "
    "redis+sentinel://host:port,host:port/SERVICE/db or redis+cluster://host:port, with %-escapes for the signs /?#@"
)
#: redis-py takes database 0 for whatever is not a number.
_DATABASE = re.compile(r"(/[0-9]{0,9})?")
_SERVICE = re.compile(r"/(?P<service>[\w.-]+)(?P<database>/[0-9]{0,9})?")
_SENTINEL_PORT = 26379
_SOCKET_SECONDS = 10.0
#: A sentinel that does not answer is passed over; the next one is asked.
_SENTINEL_SECONDS = 2.0


class Link:
    """The way to a server: its client, made when it is first used."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The client, shared by all threads. Of a cluster, making it asks a node: it may fail as any command may."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def nodes(self) -> Sequence[redis.Redis]:
        """The server; of a cluster all nodes, since a replica of today is the primary after a failover."""
        client = self.client
        if isinstance(client, RedisCluster):
            return [client.get_redis_connection(node) for node in client.get_nodes()]
        return [client]

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._client = self._client, None
        if isinstance(client, RedisCluster):
            # What a cluster's client leaves open when it is closed.
            for node in client.get_nodes():
                client.get_redis_connection(node).connection_pool.disconnect()
        if client is not None:
            client.close()


def connect(url: str) -> Link:
    """The way to what a URL names; nothing is connected yet.

    Raises `SettingsError` for a malformed URL. What redis-py says of it is not passed on: it may hold the password.
    """
    scheme, _, rest = url.partition("://")
    base, _, kind = scheme.partition("+")
    try:
        return Link(_CONNECTORS[kind](_split(_SCHEMES[base], rest)))
    except (ValueError, TypeError, KeyError):
        raise SettingsError(_MALFORMED) from None


def _split(scheme: str, rest: str) -> SplitResult:
    """The URL in parts. Some versions of Python take no list of hosts that has an IPv6 address behind its first one."""
    authority = rest[: min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))]
    if "," not in authority:
        return urlsplit(f"{scheme}://{rest}")
    return urlsplit(f"{scheme}://localhost{rest[len(authority) :]}")._replace(netloc=authority)


def client_options() -> dict[str, Any]:
    """How every client of ours connects."""
    return {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": _SOCKET_SECONDS,
        "socket_connect_timeout": _SOCKET_SECONDS,
        "health_check_interval": 30,
    }


def _one(parts: SplitResult) -> Callable[[], Client]:
    if not _DATABASE.fullmatch(parts.path) or not parts.netloc:
        raise ValueError
    _check_options(parts)
    return lambda: redis.Redis.from_url(parts.geturl(), **client_options())


def _cluster(parts: SplitResult) -> Callable[[], Client]:
    if parts.path not in {"", "/", "/0"} or not parts.netloc:
        raise ValueError
    _check_options(parts)
    return lambda: RedisCluster.from_url(parts.geturl(), **client_options())


def _sentinel(parts: SplitResult) -> Callable[[], Client]:
    user, at, hosts = parts.netloc.rpartition("@")
    path = _SERVICE.fullmatch(parts.path)
    if path is None:
        raise ValueError
    sentinels = [_address(host) for host in hosts.split(",")]
    # The rest of it reads like the URL of one server.
    plain = parts._replace(netloc=f"{user}{at}localhost", path=path["database"] or "")
    options: dict[str, Any] = {**parse_url(plain.geturl())}
    own = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    for name in ("host", "connection_class"):
        options.pop(name, None)
    _check_options(plain._replace(query=""), **options)
    if parts.scheme == "rediss":
        options["ssl"] = True
    secure = {name: value for name, value in options.items() if name.startswith("ssl")}
    asking = client_options() | {"socket_timeout": _SENTINEL_SECONDS, "socket_connect_timeout": _SENTINEL_SECONDS}

    def find() -> redis.Redis:
        sentinel = Sentinel(sentinels, sentinel_kwargs=asking | own | secure, **client_options(), **options)
        primary: redis.Redis = sentinel.master_for(path["service"])
        return primary

    return find


_SCHEMES: Final = {"redis": "redis", "rediss": "rediss"}
_CONNECTORS: Final[Mapping[str, Callable[[SplitResult], Callable[[], Client]]]] = {
    "": _one,
    "cluster": _cluster,
    "sentinel": _sentinel,
}


def _address(host: str) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError
    return parts.hostname, parts.port or _SENTINEL_PORT


def _check_options(parts: SplitResult, **options: Any) -> None:
    """Options that nobody knows are found out when a connection is made, which does not connect it yet."""
    with redis.Redis.from_url(parts.geturl(), **options) as client:
        client.connection_pool.make_connection()


_UNTRUSTED: Final = (
    "has a certificate that is not to be trusted: name its CA in IDEM_BROKER_URL (?ssl_ca_certs=FILE), and the host "
    "that it is for"
)
_LOCKED: Final = "wants a password: write redis://user:<password>@host:port/db in IDEM_BROKER_URL"
_PERMIT: Final = "permit it, and the keys {idem:*, to the user of IDEM_BROKER_URL (README, 'The queue')"

#: Older ones wait for whole seconds only (BLPOP), and do not know HELLO, which newer versions of redis-py begin with.
_OLDEST_REDIS: Final = 6
_OLD: Final = f"is a Redis before {_OLDEST_REDIS}: upgrade it, or name another one in IDEM_BROKER_URL"

#: What a server means, by words of its answer or by redis-py's name for it, which drops the answer's first word.
_MEANINGS: Final[Sequence[tuple[str, type[BrokerError], str]]] = [
    ("Authentication required", BrokerError, _LOCKED),
    ("already authenticated", BrokerError, _LOCKED),
    ("AuthenticationError", BrokerError, "does not let us in: check user and password in IDEM_BROKER_URL"),
    ("NoPermissionError", BrokerError, f"does not permit a command or a key: {_PERMIT}"),
    ("ACL failure", BrokerError, f"does not permit a command or a key: {_PERMIT}"),
    ("MovedError", BrokerError, "is one node of a cluster: write redis+cluster://host:port in IDEM_BROKER_URL"),
    ("Cluster mode is not enabled", BrokerError, "is no cluster: write redis://host:port/db in IDEM_BROKER_URL"),
    ("unknown command `HELLO`", BrokerError, _OLD),
    ("WRONGTYPE", BrokerError, "is not alone: another program writes to the keys {idem:*"),
    ("ReadOnlyError", BrokerUnavailable, "is a read-only replica: name the primary, or wait for the failover"),
    ("is now a slave", BrokerUnavailable, "has become a replica: the next attempt looks for the new primary"),
    ("UNBLOCKED", BrokerUnavailable, "has become a replica: the next attempt looks for the new primary"),
    ("NOREPLICAS", BrokerUnavailable, "has too few replicas, and takes no writes: see to its replicas"),
    ("OutOfMemoryError", BrokerUnavailable, "is out of memory, and takes no new jobs: raise its maxmemory"),
    ("BusyLoadingError", BrokerUnavailable, "is still loading its data: wait"),
    ("MISCONF", BrokerUnavailable, "cannot save to its disk, and takes no writes: make room there, see its log"),
    ("CERTIFICATE_VERIFY_FAILED", BrokerUnavailable, _UNTRUSTED),
    ("ClusterDownError", BrokerUnavailable, "lacks a part of its cluster: see CLUSTER INFO"),
    ("MasterNotFoundError", BrokerUnavailable, "has no primary that its sentinels know of: see SENTINEL MASTERS"),
]


def translate(error: BaseException) -> BrokerError:
    """What a server's answer means, in one line that says what to do."""
    # A cluster's client says only that it could not connect; why, it says below.
    while isinstance(error.__cause__, redis.RedisError):
        error = error.__cause__
    said = redact(str(error))
    for words, kind, meaning in _MEANINGS:
        if words in f"{type(error).__name__}: {said}":
            return kind(f"the broker {meaning} ({said})")
    return BrokerUnavailable(f"the broker does not answer ({said}): see that the server of IDEM_BROKER_URL runs")


def forbids(command: str) -> BrokerError:
    """What to do about a user who may not run a command."""
    return BrokerError(f"the broker does not permit the command '{command}': {_PERMIT}")


@contextmanager
def translated() -> Iterator[None]:
    """Translate what redis-py raises."""
    try:
        yield
    except FAILURES as error:
        raise translate(error) from error


@dataclass(frozen=True, slots=True)
class Durability:
    """What a server, or the weakest of a cluster's nodes, does with what it has answered for."""

    sync: str | None
    """`appendfsync`: always, everysec, no; None without an append-only file."""
    snapshots: bool
    replicas: int
    """How many replicas it has; `required` of them at least `lag_seconds` behind, or it takes no writes."""
    required: int
    lag_seconds: int

    @property
    def statements(self) -> Sequence[str]:
        """What of the jobs survives which accident."""
        return [self._on_disk(), self._elsewhere()]

    def _on_disk(self) -> str:
        match self.sync:
            case "always":
                return "append-only file, synced at every write: no job is lost by a kill of the server or a power cut"
            case "everysec":
                return (
                    "append-only file, synced every second: a restart loses no job; a power cut (or a kill while the "
                    "disk is slow) up to 2 s of them; enqueue those again, or set 'appendfsync always'"
                )
            case "no":
                return (
                    "append-only file, synced when the system likes: a restart loses no job, a power cut some 30 s of "
                    "them; set 'appendfsync always'"
                )
            case _ if self.snapshots:
                return (
                    "snapshots, but no append-only file: a kill of the server loses the jobs since the last snapshot; "
                    "set 'appendonly yes' and 'appendfsync always'"
                )
            case _:
                return (
                    "no append-only file: a restart of the server loses all jobs; "
                    "set 'appendonly yes' and 'appendfsync always'"
                )

    def _elsewhere(self) -> str:
        if not self.replicas:
            return "no replica: the loss of the server's machine loses its jobs"
        many = f"{self.replicas} replica{'s' * (self.replicas > 1)}"
        if not self.required:
            return (
                f"{many}, told of a write after it was answered: a failover can lose the last jobs, without a limit "
                "while a replica is cut off; set 'min-replicas-to-write 1' to bound it"
            )
        return (
            f"{many}, told of a write after it was answered; without {self.required} no more than "
            f"{self.lag_seconds} s behind, it takes no writes: a failover can lose the jobs of {self.lag_seconds} s"
        )


def durability(servers: Sequence[redis.Redis]) -> Durability:
    """Look at each server; `BrokerError` for one that no job may be given to."""
    found = [_inspect(server) for server in servers]
    order = ["always", "everysec", "no", None]
    primaries = [one for one, primary in found if primary]
    if not primaries:
        raise BrokerError("the broker is a read-only replica: name the primary in IDEM_BROKER_URL")
    weakest = max((one for one, _ in found), key=lambda one: (order.index(one.sync), not one.snapshots))
    lonely = min(primaries, key=lambda one: (one.replicas, one.required))
    return Durability(weakest.sync, weakest.snapshots, lonely.replicas, lonely.required, lonely.lag_seconds)


def _inspect(server: redis.Redis) -> tuple[Durability, bool]:
    info: dict[str, Any] = server.info()
    _check_version(info)
    if info.get("maxmemory") and info.get("maxmemory_policy") != "noeviction":
        raise BrokerError(
            f"the broker may evict jobs (maxmemory-policy {info['maxmemory_policy']}): "
            "set 'maxmemory-policy noeviction' on the server of IDEM_BROKER_URL"
        )
    # A server that does not show its settings, as managed ones do not, has the defaults.
    sync = _setting(server, "appendfsync", "everysec") if info.get("aof_enabled") else None
    known = Durability(
        sync,
        bool(_setting(server, "save", "3600 1")),
        int(info.get("connected_slaves", 0)),
        int(_setting(server, "min-replicas-to-write", "0")),
        int(_setting(server, "min-replicas-max-lag", "10")),
    )
    return known, info.get("role") == "master"


def _check_version(info: Mapping[str, Any]) -> None:
    """Refuse a server that says it is too old; Valkey names the Redis that it can stand in for."""
    version = str(info.get("redis_version"))
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) < _OLDEST_REDIS:
        raise BrokerError(f"the broker {_OLD} ({version})")


def _setting(server: redis.Redis, name: str, default: str) -> str:
    try:
        found: Mapping[Any, Any] = server.config_get(name)
    except redis.ResponseError:
        return default
    return str(found.get(name, default))
