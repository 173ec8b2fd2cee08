"""The real parts that tests of workers/ use: a Valkey server, the sandbox, and `idem` itself as a process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from idem.email import Email
from tests.valkey import DURABLE, Server
from workers.app import App

PATIENCE_SECONDS = 30.0


def wait_for(condition: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait for a condition, never for a length of time; gives what made it true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"the condition did not come true within {seconds:g} s")
        time.sleep(0.02)
    return found


class Valkey(Server):
    """A server with a durable append-only file, which can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, *DURABLE)


class Sandbox:
    """A sandbox process, by its HTTP interface."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._before = 0
        self._events_before = 0

    @property
    def base_url(self) -> str:
        return f"{self.url}/lettermint/v1"

    def accepted(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self._call("GET", "accepted")
        return entries

    def recipients(self) -> list[str]:
        return [entry["to"][0] for entry in self.accepted()]

    def requests(self) -> int:
        return len(self._call("GET", "requests"))

    def seen(self) -> list[dict[str, Any]]:
        """The requests since the last `clear`, in order."""
        entries: list[dict[str, Any]] = self._call("GET", "requests")[self._before :]
        return entries

    def requests_open(self) -> int:
        """Those without an answer so far, of which none has lost its client."""
        return sum(seen["status"] is None for seen in self._call("GET", "requests")[self._before :])

    def tell(self, **order: Any) -> None:
        """Have it post events of the emails that it accepts."""
        self._call("POST", "webhooks", order)

    def answers(self) -> list[int]:
        """How events were answered since the last `clear`; those that were not are left out."""
        posted = self._call("GET", "events")[self._events_before :]
        return [event["status"] for event in posted if event["status"]]

    def order(self, fault: str, **options: Any) -> None:
        self._call("POST", "faults", {"provider": "*", "fault": fault, "times": None, **options})

    def mend(self) -> None:
        self._call("DELETE", "faults")

    def clear(self) -> None:
        self.mend()
        self._call("DELETE", "accepted")
        self._call("DELETE", "webhooks")
        self._before = self.requests()
        self._events_before = len(self._call("GET", "events"))

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/{path}", data, method=method)  # noqa: S310 - our own
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - the same
            content = response.read()
        return json.loads(content) if content else None


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def problem(self) -> str:
        """The one line that a command which failed wrote to standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


class RunIdem(Protocol):
    """Runs `idem` to its end."""

    def __call__(self, *args: str | Path, env: Mapping[str, str] | None = None, stdin: str = "") -> Ran: ...


class Running:
    """A command that runs; its output is in a file, as nobody reads a pipe meanwhile."""

    def __init__(self, command: list[str], directory: Path, environ: Mapping[str, str]) -> None:
        self._log = directory / f"{uuid.uuid4().hex}.log"
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=directory, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.terminate()
        return self.wait()

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        status = self.process.wait(seconds)
        assert "Traceback" not in self.log, self.log
        assert "lm_canary" not in self.log
        return status

    def end(self) -> None:
        """Whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
            self.signal(signal.SIGCONT)
        self.process.wait()


class StartIdem(Protocol):
    """Starts `idem` and returns at once."""

    def __call__(self, *args: str | Path, env: Mapping[str, str] | None = None) -> Running: ...


def make_email(number: int = 1, **parts: Any) -> Email:
    """An email to `r<number>@example.com`."""
    whole: dict[str, Any] = {
        "from_": "shop@example.com",
        "to": f"r{number}@example.com",
        "subject": f"S {number}",
        "text": "Hello",
    }
    return Email(**whole | parts)


def children_of(pid: int) -> list[int]:
    """The processes that `pid` has started and that live (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(entry.parent.name))
    return sorted(found)


def alive(pid: int) -> bool:
    """Whether that process runs: a zombie does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def processes_with(text: str) -> list[int]:
    """The live processes whose command line holds a text (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in entry.read_bytes() and alive(int(entry.parent.name)):
                found.append(int(entry.parent.name))
    return sorted(found)


def payloads(app: App) -> list[dict[str, Any]]:
    """What messages of the default queue carry."""
    consumer = app.broker.consume("default", prefetch=100, timeout=10)
    found = []
    while (message := next(consumer)) is not None:
        found.append(message.kwargs)
    return found
