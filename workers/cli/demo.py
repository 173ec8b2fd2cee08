"""`idem demo`: the promise, put to the test on this machine, with no server and no account.

A sandbox that loses answers, fails and hangs; a producer; worker processes that are killed with SIGKILL while they
work. What is printed at the end comes from the sandbox's log of acceptances, not from our own ledger.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import click

from idem.email import Email
from idem.errors import IdemError
from idem.keys import provider_key
from idem.protocol import State
from workers.app import App
from workers.process import idem_command, start_process
from workers.settings import Settings, environ_without_settings

_WORKERS = 3
_THREADS = 4
_LEAST_KILLS = 20
#: One more worker is killed for every so many emails.
_EMAILS_A_KILL = 25
_LOOK_SECONDS = 0.02
_LIMIT_SECONDS = 30.0

#: Every duration of the protocol, short: what takes a minute in production takes two seconds here.
_DURATIONS = {
    "IDEM_HTTP_TIMEOUT_SECONDS": "0.8",
    "IDEM_LEASE_SECONDS": "2",
    "IDEM_VISIBILITY_SECONDS": "2.5",
    "IDEM_SHUTDOWN_SECONDS": "5",
    "IDEM_BACKOFF_SECONDS": "0.1",
}

_FAULTS: tuple[Mapping[str, Any], ...] = (
    {"fault": "delay", "delay_ms": 40},
    {"fault": "accept_then_drop", "rate": 0.06},
    {"fault": "accept_then_500", "rate": 0.04},
    {"fault": "accept_then_hang", "rate": 0.02},
    {"fault": "accept_then_truncate", "rate": 0.02},
    {"fault": "drop", "rate": 0.03},
    {"fault": "503", "rate": 0.03},
    # Each of these stops all workers for its second.
    {"fault": "429", "rate": 0.04, "retry_after": 1, "times": 4},
    {"fault": "hang", "rate": 0.01},
)


@dataclass(frozen=True, slots=True)
class Result:
    """What the sandbox's log says, against what was intended."""

    jobs: int
    accepted: int
    duplicates: int
    lost: int
    in_doubt: int
    kills: int
    replays: int
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether the promise held: the provider replays keys, so nothing may be in doubt either."""
        return self.accepted == self.jobs and not (self.duplicates or self.lost or self.in_doubt)


@click.command("demo")
@click.option("--jobs", type=click.IntRange(1, 1_000_000), default=500, show_default=True, help="How many emails.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def demo_command(jobs: int, *, as_json: bool) -> int:
    """Send emails through faults and kills, and count what arrived. Exit status 1 if the promise was broken."""
    with _Stage(jobs) as stage, _shown(stage, as_json=as_json):
        stage.play()
        result = stage.result()
    if as_json:
        click.echo(json.dumps(asdict(result)))
    else:
        _print(result)
    return 0 if result.kept else 1


@dataclass(frozen=True, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def at_work(self) -> bool:
        """Whether it has sent something: it is told to say so of every email."""
        return self.process.poll() is None and self.log.stat().st_size > 0


class _Stage:
    """Everything that the demo starts, in a directory of its own; all of it is gone afterwards."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.planned_kills = max(_LEAST_KILLS, jobs // _EMAILS_A_KILL)
        self.enqueued = 0
        self.kills = 0
        self.accepted = 0
        self._keys = [f"demo-{number}" for number in range(1, jobs + 1)]
        self._workers: list[_Worker] = []
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # The embedded server may still be writing its last lines when the directory goes.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="idem-demo-", ignore_cleanup_errors=True))
            self._folder = Path(folder)
            stack.callback(self._wait_for_server)
            self._sandbox = stack.enter_context(_sandbox())
            self._environ = _environ(folder, self._sandbox, Settings.load())
            self._app = App(Settings.load(self._environ, self._folder))
            stack.callback(self._app.close)
            self._app.ledger.create()
            stack.callback(self._stop_workers)
            self._exit = stack.pop_all()
        self._started_at = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    def play(self) -> None:
        """Order the faults, then enqueue in portions, and kill a worker in the middle of each."""
        for fault in _FAULTS:
            _call(f"{self._sandbox}/api/faults", "POST", {"provider": "*", "times": None, **fault})
        self._workers = [self._start_worker() for _ in range(_WORKERS)]
        for portion in range(1, self.planned_kills + 1):
            self._enqueue(self.jobs * portion // self.planned_kills)
            self._wait_for(self._is_working)
            self._kill()
        self._wait_for(self._finished)

    def result(self) -> Result:
        """Count in the sandbox's log; the ledger is asked only for what it admits not to know."""
        accepted = [entry["key"] for entry in _call(f"{self._sandbox}/api/accepted")]
        distinct = set(accepted)
        in_doubt = {record.key for record in self._app.ledger.list(State.IN_DOUBT, self.jobs)}
        intended = {provider_key(self._app.settings.namespace, key, 0): key for key in self._keys}
        missing = [key for derived, key in intended.items() if derived not in distinct and key not in in_doubt]
        requests = _call(f"{self._sandbox}/api/requests")
        return Result(
            jobs=self.jobs,
            accepted=len(distinct),
            duplicates=len(accepted) - len(distinct),
            lost=len(missing),
            in_doubt=len(in_doubt),
            kills=self.kills,
            replays=sum(1 for request in requests if request["replayed"]),
            seconds=round(time.monotonic() - self._started_at, 1),
        )

    def _enqueue(self, upto: int) -> None:
        for number in range(self.enqueued + 1, upto + 1):
            self._app.enqueue(_email(number), key=self._keys[number - 1])
            self.enqueued = number

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait, but not for ever: what is missing then is counted as lost."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        while not condition() and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            self.accepted = _call(f"{self._sandbox}/api/state")["accepted"]

    def _is_working(self) -> bool:
        return any(worker.at_work for worker in self._workers)

    def _finished(self) -> bool:
        return self._app.broker.backlog().pending == 0

    def _kill(self) -> None:
        """SIGKILL to the worker that has worked the longest; another one takes its place."""
        victim = next((worker for worker in self._workers if worker.at_work), self._workers[0])
        self._workers.remove(victim)
        victim.process.kill()
        victim.process.wait()
        self.kills += 1
        self._workers.append(self._start_worker())

    def _start_worker(self) -> _Worker:
        log = self._folder / f"worker-{self.kills}-{len(self._workers)}.log"
        with log.open("wb") as output:
            command = idem_command("worker", "--verbose", "--threads", str(_THREADS))
            return _Worker(start_process(command, env=self._environ, stdout=output, stderr=output), log)

    def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.wait()

    def _wait_for_server(self) -> None:
        deadline = time.monotonic() + 5
        while (self._folder / "queue" / "valkey.sock").exists() and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)


@contextlib.contextmanager
def _sandbox() -> Iterator[str]:
    """A sandbox process on a free port; its URL."""
    process = start_process(idem_command("sandbox", "--port", "0"), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode().split()
        if not line:
            raise IdemError("the sandbox did not start")
        yield line[-1].rstrip("/")
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _environ(folder: str, sandbox: str, given: Settings) -> dict[str, str]:
    """The environment of the workers: of the user's own settings, only a ledger that is not the default counts."""
    if given.ledger_url == Settings().ledger_url:
        ledger = {"IDEM_LEDGER_URL": f"sqlite:///{folder}/ledger.db"}
    else:
        ledger = {"IDEM_LEDGER_URL": given.ledger_url, "IDEM_NAMESPACE": f"demo-{uuid.uuid4()}"}
    if given.aws_endpoint_url is not None:
        ledger["IDEM_AWS_ENDPOINT_URL"] = given.aws_endpoint_url
    return (
        environ_without_settings()
        | _DURATIONS
        | ledger
        | {
            "IDEM_BROKER_URL": f"embedded://{folder}/queue",
            "IDEM_LETTERMINT_TOKEN": "lm_demo",
            "IDEM_LETTERMINT_BASE_URL": f"{sandbox}/lettermint/v1",
        }
    )


def _email(number: int) -> Email:
    return Email(
        from_="Demo Shop <orders@example.com>",
        to=f"customer-{number}@example.com",
        subject=f"Your order {number} is confirmed",
        text=f"Thank you for order {number}. This email is sent once, whatever happens on the way.",
    )


def _call(url: str, method: str = "GET", body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - our own sandbox
        return json.load(response)


@contextlib.contextmanager
def _shown(stage: _Stage, *, as_json: bool) -> Iterator[None]:
    """Progress on standard error: bars in a terminal, a line now and then elsewhere, nothing beside JSON."""
    stop = threading.Event()
    if as_json:
        show = None
    elif sys.stderr.isatty():
        show = threading.Thread(target=_show_bars, args=(stage, stop))
    else:
        show = threading.Thread(target=_show_lines, args=(stage, stop))
    if show is not None:
        show.start()
    try:
        yield
    finally:
        stop.set()
        if show is not None:
            show.join()


def _show_lines(stage: _Stage, stop: threading.Event) -> None:
    click.echo(_intention(stage.jobs), err=True)
    while not stop.wait(2.0):
        line = f"  enqueued {stage.enqueued:>6,}   accepted {stage.accepted:>6,}   workers killed {stage.kills:>4,}"
        click.echo(line, err=True)


def _show_bars(stage: _Stage, stop: threading.Event) -> None:
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    console = Console(stderr=True)
    console.print(_intention(stage.jobs))
    columns = (TextColumn("{task.description:<18}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        enqueued = progress.add_task("enqueued", total=stage.jobs)
        accepted = progress.add_task("accepted", total=stage.jobs)
        kills = progress.add_task("workers killed", total=stage.planned_kills)
        while not stop.wait(0.1):
            progress.update(enqueued, completed=stage.enqueued)
            progress.update(accepted, completed=stage.accepted)
            progress.update(kills, completed=stage.kills)


def _intention(jobs: int) -> str:
    return (
        f"{jobs:,} emails go to a sandboxed provider that drops, fails, limits and hangs on one request in four,\n"
        f"through {_WORKERS} worker processes of which one after the other is killed with SIGKILL."
    )


def _print(result: Result) -> None:
    rows = (
        ("jobs enqueued", result.jobs, ""),
        ("accepted", result.accepted, "emails in the provider's own log"),
        ("duplicates", result.duplicates, "accepted more than once"),
        ("lost", result.lost, "neither accepted nor reported as in doubt"),
        ("in doubt", result.in_doubt, "not known; reported, never guessed"),
        ("kills", result.kills, "worker processes ended by SIGKILL"),
        ("replays", result.replays, "repeated requests that the provider recognised by their key"),
    )
    click.echo()
    for name, count, meaning in rows:
        broken = name in {"duplicates", "lost"} and count
        click.echo(f"  {name:<14}", nl=False)
        click.secho(f"{count:>8,}", fg="red" if broken else None, bold=True, nl=False)
        click.echo(f"   {meaning}".rstrip())
    click.echo()
    verdict = "Every email was accepted exactly once" if result.kept else "The promise was BROKEN"
    click.secho(f"  {verdict} ({result.seconds:g} s).", fg="green" if result.kept else "red", bold=True)
