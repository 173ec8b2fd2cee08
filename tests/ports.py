"""Free ports for the servers that the tests start."""

from __future__ import annotations

import fcntl
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

#: Below what Linux (32,768 up) and macOS (49,152 up) give to outgoing connections: a port that the system itself calls
#: free may be taken by any client before the server comes to listen on it.
_RANGE = range(15_000, 32_000)

#: Held until this process ends: a server may be killed and started again on its port.
_reserved: list[IO[bytes]] = []


def free_port() -> int:
    """A port of this machine that no server has, and that no other test process will be given."""
    folder = Path(tempfile.gettempdir()) / "idem-test-ports"
    folder.mkdir(exist_ok=True)
    while True:
        port = random.SystemRandom().choice(_RANGE)
        if _reserve(folder / str(port)) and _is_free(port):
            return port


def _reserve(path: Path) -> bool:
    lock = path.open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return False
    _reserved.append(lock)
    return True


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
