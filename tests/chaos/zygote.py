"""Real processes at the price of a fork, from a process that has imported everything and opened nothing.

`idem worker` spends more than half a second of CPU time on imports, which no two cores have four times a second. So one
process imports once, and each process under test is a fork of it that runs the very entry of the command `idem`, with
an environment, a directory and a log of its own. A fork inherits no thread and no socket: that is checked at each one.
Linux only. Run as a module, this is that process: orders come in on standard input, one JSON object a line.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

from workers.process import start_process

_ROOT = Path(__file__).parent.parent.parent
_LOOK_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1

#: How soon an accepted email can be found, and after how long a message counts as lost beyond two redeliveries. These
#: two are facts about providers and brokers, and no settings; in a run of minutes they must be short too.
LAG_SECONDS = 1.0
LOST_SECONDS = 60.0

_MODULES = (
    *(f"workers.cli.{name}" for name in ("sandbox", "scheduler", "webhooks", "worker")),
    *(f"idem.providers.{name}" for name in ("brevo", "lettermint", "postmark", "smtp")),
    *(f"idem.stores.{name}" for name in ("dynamodb", "redis", "sqlite")),
    "workers.brokers.redis",
    "workers.sandbox.app",
    "workers.webhooks.app",
    "workers.webhooks.server",
)


class Zygote:
    """The process that forks, as its owner sees it; it goes with its owner, and all of its forks go with it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "tests.chaos.zygote"]
        pipe = subprocess.PIPE
        self._process = start_process(command, cwd=_ROOT, env=dict(environ), stdin=pipe, stdout=pipe)
        self._started: SimpleQueue[int] = SimpleQueue()
        self._ended: SimpleQueue[tuple[int, int]] = SimpleQueue()
        self._lock = threading.Lock()
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "the zygote did not start"
        self._reader = threading.Thread(target=self._read, name="zygote", daemon=True)
        self._reader.start()

    def fork(self, log: Path, args: Sequence[str], environ: Mapping[str, str]) -> int:
        """Run `idem ARGS` in the directory of `log`, which takes its output; its pid."""
        order = {"log": str(log), "args": list(args), "environ": dict(environ)}
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            return self._started.get(timeout=60)

    def ended(self) -> list[tuple[int, int]]:
        """The pids that have ended since the last call, each with its exit status, as `Popen.returncode` has it."""
        found = []
        while not self._ended.empty():
            found.append(self._ended.get())
        return found

    def close(self) -> None:
        """End it and all that it started, by SIGKILL."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told: dict[str, int] = json.loads(line)
            if "started" in told:
                self._started.put(told["started"])
            else:
                self._ended.put((told["ended"], told["status"]))


def check_bare() -> None:
    """Raise `RuntimeError` if a fork of this process would inherit a thread or a socket."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"a fork would come out of a process with {threads} threads")
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if (opened := str(fd.readlink())).startswith(("socket:", "anon_inode:")):
                raise RuntimeError(f"a fork would inherit {opened}")


def shorten() -> None:
    """Make short what is no setting: see `LAG_SECONDS`. Sandbox and workers are forks of one process, and agree."""
    from idem import reconcile  # noqa: PLC0415 - imported for its effect on this process alone
    from workers.sandbox.registry import DIALECTS  # noqa: PLC0415 - the same

    reconcile.__dict__["MAX_DELAY_SECONDS"] = LOST_SECONDS
    for dialect in DIALECTS:
        if dialect.contract.lookup is not None:
            object.__setattr__(dialect.contract.lookup, "lag_seconds", LAG_SECONDS)


def main() -> None:
    for module in _MODULES:
        importlib.import_module(module)
    shorten()
    gc.freeze()
    _tell("ready")
    children: set[int] = set()
    pending = b""
    while True:
        if select.select([0], [], [], _LOOK_SECONDS)[0]:
            read = os.read(0, 65_536)
            if not read:
                break
            *lines, pending = (pending + read).split(b"\n")
            for line in lines:
                children.add(_start(json.loads(line)))
        _reap(children)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _tell(what: Any) -> None:
    text = what if isinstance(what, str) else json.dumps(what)
    os.write(1, text.encode() + b"\n")


def _start(order: Mapping[str, Any]) -> int:
    check_bare()
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        _become(parent, **order)
    _tell({"started": pid})
    return pid


def _reap(children: set[int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.remove(pid)
        _tell({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _become(parent: int, log: str, args: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """In the child: the process that `idem ARGS` would be."""
    from workers.cli import run  # noqa: PLC0415 - the owner of a zygote needs no command line

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.chdir(Path(log).parent)
    output = os.open(log.format(pid=os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, onto in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(fd, onto)
    os.closerange(3, max(nothing, output) + 1)
    os.environ.clear()
    os.environ.update(environ)
    sys.exit(run(list(args)))


if __name__ == "__main__":
    main()
