"""The stage of the chaos: a broker, a ledger, a sandbox, and one application for each class of provider."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from idem import LedgerUnavailable
from tests import services
from tests.chaos.causes import Incident
from tests.chaos.zygote import Zygote
from tests.ports import free_port
from tests.valkey import DURABLE, Server, wait_for
from tests.workers.webhooks.deliveries import SECRETS
from workers import App, Settings
from workers.settings import environ_without_settings

APPLICATION = "tests.chaos.application:app"
LEASE_SECONDS = 2.0
HTTP_TIMEOUT_SECONDS = 0.8


@dataclass(frozen=True, slots=True)
class Lane:
    """One application with one class of provider.

    `certain`: no email may end in doubt there; `searched`: one may be in doubt until it was looked up.
    """

    name: str
    provider: str
    share: float
    workers: int
    certain: bool = True
    searched: bool = False


LANES = (
    Lane("keyed", "lettermint", 0.5, 3),
    Lane("refusing", "brevo", 0.15, 2),
    Lane("searchable", "postmark", 0.2, 2, searched=True),
    Lane("keyless", "smtp", 0.15, 2, certain=False),
)
#: The lane whose application also has the schedule and the webhooks.
TRIGGERED = LANES[0]

_DURATIONS = {
    "IDEM_HTTP_TIMEOUT_SECONDS": f"{HTTP_TIMEOUT_SECONDS:g}",
    "IDEM_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "IDEM_VISIBILITY_SECONDS": "2.5",
    "IDEM_SHUTDOWN_SECONDS": "5",
    "IDEM_BACKOFF_SECONDS": "0.1",
    "IDEM_RECONCILE_SECONDS": "2",
    "IDEM_SWEEP_SECONDS": "30",
    "IDEM_RATE_PER_SECOND": "100000",
    # Dramatiq's own pause before it connects again, in ms.
    "dramatiq_restart_delay": "100",
}


class LedgerServer(Protocol):
    """What keeps the records, and what can happen to it."""

    environ: dict[str, str]
    #: Whether it can be killed and started again with all that it had acknowledged.
    restarts: bool

    def stall(self) -> None:
        """From now on, whoever asks waits."""
        ...

    def go_on(self) -> None:
        """Answer them."""
        ...

    def restart(self) -> None:
        """SIGKILL, and a new start."""
        ...

    def close(self) -> None:
        """Be gone."""
        ...


class _Valkey:
    restarts = True

    def __init__(self, folder: Path) -> None:
        self._server = Server(folder / "ledger", *DURABLE)
        self._server.start()
        self.environ = {"IDEM_LEDGER_URL": self._server.url}

    def stall(self) -> None:
        self._server.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._server.signal(signal.SIGCONT)

    def restart(self) -> None:
        self._server.kill()
        self._server.start()

    def close(self) -> None:
        self._server.kill()


class _DynamoDb:
    restarts = False

    def __init__(self) -> None:
        self._endpoint = services.dynamodb_local()
        # This process enqueues, and reads the records.
        os.environ.update(services.CREDENTIALS)
        self.environ = services.aws_environ(self._endpoint) | {
            "IDEM_LEDGER_URL": f"dynamodb://{services.REGION}/chaos-{uuid.uuid4().hex}"
        }

    def stall(self) -> None:
        services.send_signal(self._endpoint, signal.SIGSTOP)

    def go_on(self) -> None:
        services.send_signal(self._endpoint, signal.SIGCONT)

    def restart(self) -> None:
        raise NotImplementedError("it keeps its tables in memory")

    def close(self) -> None:
        self.go_on()


class _Sqlite:
    """No server: it stalls for as long as somebody holds the lock of its file."""

    restarts = False

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ledger.db"
        self._holder: sqlite3.Connection | None = None
        self.environ = {"IDEM_LEDGER_URL": f"sqlite:///{self._path}"}

    def stall(self) -> None:
        self._holder = sqlite3.connect(self._path, isolation_level=None, timeout=30)
        self._holder.execute("BEGIN EXCLUSIVE")

    def go_on(self) -> None:
        if self._holder is not None:
            self._holder.close()
            self._holder = None

    def restart(self) -> None:
        raise NotImplementedError("it has no server")

    def close(self) -> None:
        self.go_on()


def _open_ledger(name: str, folder: Path) -> LedgerServer:
    match name:
        case "valkey":
            return _Valkey(folder)
        case "dynamodb":
            return _DynamoDb()
        case _:
            return _Sqlite(folder)


class Sandbox:
    """The provider's side; `accepted` is its log as far as it was read."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.accepted: list[dict[str, Any]] = []

    def read(self) -> int:
        """Read on in the log; how long it is by now."""
        self.accepted += self.call("GET", f"accepted?after={len(self.accepted)}")
        return len(self.accepted)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/{path}", data, method=method)  # noqa: S310 - our own
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - the same
            content = response.read()
        return json.loads(content) if content else None


class Stage:
    """All of it, in one directory; nothing of it outlives `stage`."""

    def __init__(self, folder: Path, ledger: LedgerServer, broker: Server, zygote: Zygote) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.ledger = ledger
        self.broker = broker
        self.zygote = zygote
        self.incidents: list[Incident] = []
        self.receiver_port = free_port()
        http, smtp = free_port(), free_port()
        self.sandbox = Sandbox(http)
        self._places = {
            "IDEM_LETTERMINT_BASE_URL": f"{self.sandbox.url}/lettermint/v1",
            "IDEM_BREVO_BASE_URL": f"{self.sandbox.url}/brevo/v3",
            "IDEM_POSTMARK_BASE_URL": f"{self.sandbox.url}/postmark",
            "IDEM_SMTP_BASE_URL": f"smtp://127.0.0.1:{smtp}",
        }
        arguments = ["sandbox", "--port", str(http), "--smtp-port", str(smtp)]
        zygote.fork(self.logs / "sandbox-{pid}.log", arguments, environ_without_settings())
        wait_for(self._is_open)
        self.apps = {lane: App(Settings.load(self.environ(lane), folder)) for lane in LANES}
        for app in self.apps.values():
            wait_for(lambda: _created(app))  # noqa: B023 - called before the next one

    def environ(self, lane: Lane) -> dict[str, str]:
        """What a process of that lane is told."""
        provider = lane.provider.upper()
        own = {
            "IDEM_NAMESPACE": lane.name,
            "IDEM_PROVIDER": lane.provider,
            "IDEM_BROKER_URL": self.broker.url,
            f"IDEM_{provider}_BASE_URL": self._places[f"IDEM_{provider}_BASE_URL"],
        }
        if lane.provider != "smtp":
            own[f"IDEM_{provider}_TOKEN"] = "chaos"
        if lane is TRIGGERED:
            own["IDEM_STANDARD_WEBHOOK_SECRET"] = SECRETS["standard"]
        return environ_without_settings() | _DURATIONS | self.ledger.environ | own

    def close(self) -> None:
        for app in self.apps.values():
            app.close()

    def _is_open(self) -> bool:
        with contextlib.suppress(OSError):
            self.sandbox.read()
            return True
        return False


def _created(app: App) -> bool:
    """A server of DynamoDB's kind answers late while it starts."""
    with contextlib.suppress(LedgerUnavailable):
        app.ledger.create()
        return True
    return False


@contextlib.contextmanager
def stage(ledger: str) -> Iterator[Stage]:
    """Set it up; its directory goes with it unless `keep` was made there."""
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="idem-chaos-"))
        stack.callback(_remove, folder)
        # Before any thread and any socket of this process.
        zygote = Zygote(environ_without_settings() | {"dramatiq_restart_delay": "100"})
        stack.callback(zygote.close)
        broker = Server(folder / "broker", *DURABLE)
        stack.callback(broker.kill)
        broker.start()
        opened = _open_ledger(ledger, folder)
        stack.callback(opened.close)
        set_up = Stage(folder, opened, broker, zygote)
        stack.callback(set_up.close)
        yield set_up


def keep(folder: Path) -> None:
    """Leave the directory behind, with the logs and the report."""
    (folder / "keep").touch()


def _remove(folder: Path) -> None:
    if not (folder / "keep").exists():
        shutil.rmtree(folder)
