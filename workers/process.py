"""Worker processes: one that works, and one that keeps several of them working."""

from __future__ import annotations

import ctypes
import importlib
import io
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import dramatiq

from idem.errors import BrokerUnavailable, IdemError
from workers.app import App
from workers.telemetry import describe_error
from workers.upkeep import enqueue_due, keeping_up, looking_after

_log = logging.getLogger("idem.worker")

_LOOK_SECONDS = 0.1
#: How long an idle worker may sleep between two looks at the queue.
_IDLE_MS = 100
_RESTART_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def work(app: App, *, threads: int, until_empty: bool, with_scheduler: bool = False) -> int:
    """Work until told to stop (SIGTERM, SIGINT), or until nothing is left; what was begun is finished first.

    `with_scheduler`: enqueue what is scheduled as well, as long as it works; `until_empty`, what is due at the start.

    Returns the exit status: 0, or 1 when `until_empty` and the provider refuses the credentials, so that nothing can
    be sent. Raises `IdemError` when the broker or the ledger cannot be used at the start.
    """
    performer = app.performer()
    app.ledger.check()
    app.broker.check()
    worker = dramatiq.Worker(app.broker, worker_threads=threads, worker_timeout=_IDLE_MS)
    with stop_signals() as stop, looking_after(app), _scheduling(app, with_scheduler, until_empty) as check:
        worker.start()
        try:
            while not stop.wait(_LOOK_SECONDS):
                check()
                if until_empty and performer.credentials_refused.is_set():
                    return 1
                if until_empty and _is_empty(app):
                    return 0
            return 0
        finally:
            performer.stop()
            worker.stop(timeout=int(app.settings.shutdown_seconds * 1000))


@contextmanager
def _scheduling(app: App, wanted: bool, once: bool) -> Iterator[Callable[[], None]]:  # noqa: FBT001 - as `work` was told
    """Be a scheduler, or enqueue once what is due, if that is wanted; what is yielded raises if that has failed."""
    if wanted and not once:
        with keeping_up(app) as check:
            yield check
    else:
        if wanted:
            enqueue_due(app)
        yield lambda: None


def _is_empty(app: App) -> bool:
    try:
        return app.broker.is_empty()
    except BrokerUnavailable:
        return False


def keep_working(command: Sequence[str], processes: int) -> int:
    """Run `command` in that many processes; one that is killed is started again. Returns the highest exit status."""
    with stop_signals() as stop:
        children = [_Child(command) for _ in range(processes)]
        while not stop.wait(_LOOK_SECONDS):
            if not [child for child in children if child.alive()]:
                break
        for child in children:
            child.terminate()
        return max(child.status() for child in children)


class _Child:
    """One worker process, kept alive until it ends by itself."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._told = False
        self._process = self._start()
        self._started_at = time.monotonic()

    def alive(self) -> bool:
        """Whether it works, or works again: a process that a signal ended is replaced, no more than once a second."""
        status = self._process.poll()
        if status is None:
            return True
        if status >= 0:
            return False
        if time.monotonic() - self._started_at >= _RESTART_SECONDS:
            _log.warning("a worker process was ended by signal %d; another one takes its place", -status)
            self._process = self._start()
            self._started_at = time.monotonic()
        return True

    def terminate(self) -> None:
        self._told = self._process.poll() is None
        if self._told:
            self._process.terminate()

    def status(self) -> int:
        """The exit status once it has ended; a process that was killed while it finished its work counts as 1.

        One that was killed before would have been replaced, and our own SIGTERM ends one that has not begun to work.
        """
        status = self._process.wait()
        if status >= 0:
            return status
        return int(self._told and status != -signal.SIGTERM)

    def _start(self) -> subprocess.Popen[bytes]:
        return start_process(self._command)


def start_process(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that is told to stop when this one ends, however it ends (on Linux)."""
    parent = os.getpid()
    return subprocess.Popen(command, preexec_fn=lambda: _follow(parent), **options)  # noqa: S603, PLW1509


def idem_command(*args: str) -> list[str]:
    """The command line that runs `idem` with this interpreter.

    With -P, because a user's own package named `workers` in the working directory must not come first.
    """
    return [sys.executable, "-P", "-m", "workers.cli", *args]


def _follow(parent: int) -> None:
    """In the child: drain and stop when the parent is gone, be it by SIGKILL. Linux only; elsewhere children stay."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


class Stop:
    """Whether a signal has told this process to stop.

    Not a `threading.Event`: a handler runs in the thread that waits, which may hold the event's lock at that instant,
    and would wait for itself. And no exception: one that a handler raises in a finalizer is printed, and forgotten.
    """

    def __init__(self, woken: int) -> None:
        self.told = False
        self._woken = woken

    def wait(self, seconds: float) -> bool:
        """Wait that long, and say whether to stop."""
        if not self.told:
            time.sleep(seconds)
        return self.told

    def wait_to_read(self, file: IO[bytes]) -> bool:
        """Wait until there is something to read, or the end, or a signal; say whether to stop."""
        with suppress(io.UnsupportedOperation):
            # A file has a descriptor, what a test puts in its place need not.
            descriptor = file.fileno()
            while not self.told:
                if descriptor in select.select([descriptor, self._woken], [], [])[0]:
                    break
                os.read(self._woken, 1)
        return self.told


@contextmanager
def stop_signals(*numbers: signal.Signals) -> Iterator[Stop]:
    """What these signals tell, by default SIGTERM and SIGINT; a second one is left to Python. In the main thread."""
    with _wakeups() as woken:
        stop = Stop(woken)
        before: dict[signal.Signals, Any] = {}

        def on_signal(number: int, _frame: object) -> None:
            stop.told = True
            signal.signal(number, before[signal.Signals(number)])

        for number in numbers or (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, on_signal)
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _wakeups() -> Iterator[int]:
    """A descriptor from which a byte can be read after each signal: what wakes a `select` that waits for a file too."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    before = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    try:
        yield woken
    finally:
        signal.set_wakeup_fd(before)
        os.close(woken)
        os.close(waker)


def load_app(name: str) -> App:
    """The application that `MODULE:APP` names; the working directory is where modules are looked for first."""
    sys.path.insert(0, str(Path.cwd()))
    return find_app(name, f"--app {name}")


def find_app(name: str, said: str) -> App:
    """The application that `MODULE:APP` names; an error begins with what was `said`."""
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise IdemError(f"{said}: write MODULE:APP, such as shop.mail:app")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise IdemError(f"{said}: there is no module named {error.name}") from error
    except IdemError:
        raise
    except (Exception, SystemExit) as error:
        raise IdemError(f"{said}: the module raised {describe_error(error)}") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise IdemError(f"{said}: the module {module_name} has no {attribute}")
    if not isinstance(found, App):
        raise IdemError(f"{said}: {attribute} is {type(found).__name__}; it must be a workers.App")
    return found
