"""`idem enqueue`: files of emails into the queue. It can be stopped and run again: the same file has the same keys."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import click
import msgspec
from dramatiq import Message

from idem.email import Email
from idem.errors import BodyTooLarge, EmailError, InputError, InvalidKey, JobTooLarge
from idem.keys import check_key, take_explicit
from idem.protocol import Intent, conflicts
from workers.app import App
from workers.brokers.base import TOGETHER
from workers.cli.sources import FORMATS, BadLine, Line, Source, read_source
from workers.process import Stop, stop_signals


@dataclass(slots=True)
class _Report:
    """What became of every line."""

    enqueued: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    refused: list[dict[str, Any]] = field(default_factory=list)
    unreadable: bool = False

    @property
    def status(self) -> int:
        """The exit status: 2 for a file that cannot be read, 1 for bad lines, else 0."""
        return 2 if self.unreadable else 1 if self.refused else 0


@click.command("enqueue")
@click.argument("files", nargs=-1, required=True, metavar="FILE.jsonl|FILE.csv|FILE.eml|-...")
@click.option("--batch", metavar="NAME", help="Another name is another intention; by default the file's digest.")
@click.option("--format", "format_name", type=click.Choice(FORMATS), help="What the files hold, if not by their names.")
@click.option("--durable", is_flag=True, help="Write each to the ledger first, so that the queue may lose it.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def enqueue_command(
    files: tuple[str, ...], batch: str | None, format_name: str | None, *, durable: bool, as_json: bool
) -> int:
    """Enqueue one email for each line, row, or message file; `-` reads standard input.

    A line without a key gets <batch>/<line number>, so that running the same command again sends nothing twice. Bad
    lines are reported by their number, and the good ones go. Exit status 1 when a line was refused.
    """
    app = App.from_env()
    report = _Report()
    try:
        if batch is not None:
            check_key(batch)
        naming = _Naming(batch, len(files) > 1, durable or None)
        with stop_signals(signal.SIGINT) as stop:
            for name in files:
                _enqueue_file(_Run(app, naming, report, stop), name, format_name)
    finally:
        app.close()
    _print(report, as_json=as_json)
    return report.status


@dataclass(frozen=True, slots=True)
class _Naming:
    """How a line gets its key when it names none, and how it is enqueued (`durable` None: as the settings say)."""

    batch: str | None
    several: bool
    durable: bool | None

    def key(self, source: Source, number: int) -> str:
        if self.batch is None:
            return f"{source.digest}/{number}"
        # Several files under one name: their digests tell their lines apart, in whatever order they are given.
        part = f"/{source.digest[:16]}" if self.several else ""
        return f"{self.batch}{part}/{number}"


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of the command. A signal ends it between two lines or reads, never within one."""

    app: App
    naming: _Naming
    report: _Report
    stop: Stop

    def ready(self, file: IO[bytes]) -> None:
        """Wait until the file can be read."""
        if self.stop.wait_to_read(file):
            raise KeyboardInterrupt

    def go_on(self) -> None:
        """Raise what the signal would have raised by itself, anywhere."""
        if self.stop.told:
            raise KeyboardInterrupt


def _enqueue_file(run: _Run, name: str, format_name: str | None) -> None:
    path: Path | Literal["-"] = "-" if name == "-" else Path(name)
    try:
        with read_source(path, format_name, ready=run.ready) as source, _progress(source) as advance:
            batch = _Batch(run.app, source, run.report)
            try:
                for line in source.lines():
                    run.go_on()
                    _enqueue_line(batch, line, run.naming)
                    advance(line.number)
            except InputError:
                batch.send()
                raise
            batch.send()
    except InputError as error:
        run.report.unreadable = True
        _refuse(run.report, name, None, str(error))


class _Batch:
    """Good lines that go to the broker together; one counts as enqueued only once the broker has it."""

    def __init__(self, app: App, source: Source, report: _Report) -> None:
        self.app = app
        self.source = source
        self.report = report
        self._waiting: list[tuple[int, Message[None]]] = []

    def add(self, number: int, message: Message[None]) -> None:
        """Send it with those that wait, as soon as they are enough."""
        self._waiting.append((number, message))
        if len(self._waiting) >= TOGETHER:
            self.send()

    def send(self) -> None:
        """Send what waits. Raises the broker's error; what it took is counted, and a line too large is a bad line."""
        waiting, self._waiting = self._waiting, []
        failure = None
        results = self.app.broker.enqueue_many([message for _, message in waiting]) if waiting else []
        for (number, _), error in zip(waiting, results, strict=True):
            if error is None:
                self.report.enqueued += 1
            elif isinstance(error, JobTooLarge):
                _refuse(self.report, self.source.name, number, str(error))
            else:
                failure = failure or error
        if failure is not None:
            raise failure


def _enqueue_line(batch: _Batch, line: Line, naming: _Naming) -> None:
    app, source, report = batch.app, batch.source, batch.report
    if isinstance(line, BadLine):
        _refuse(report, source.name, line.number, line.error)
        return
    try:
        email, explicit = take_explicit(line.email, line.key)
        key = check_key(explicit if explicit is not None else naming.key(source, line.number))
        state = _ended_state(app, key, email)
        if state is not None:
            report.ended[state] += 1
            return
        if app.is_durable(naming.durable):
            app.enqueue(email, key=key, durable=True)
            report.enqueued += 1
            return
        message, _ = app.message(email, key=key)
    except (EmailError, InvalidKey, BodyTooLarge, JobTooLarge) as error:
        _refuse(report, source.name, line.number, str(error))
    else:
        batch.add(line.number, message)


def _ended_state(app: App, key: str, email: Email) -> str | None:
    """The state that the key has ended in; None when it is still to be sent. The worker decides in any case."""
    record = app.ledger.read(key)
    if record is None:
        return None
    if conflicts(record, Intent(key, fingerprint=email.fingerprint())):
        raise InvalidKey("its key already stands for another email; give it another key, or another --batch")
    return record.state.value if record.ended else None


def _refuse(report: _Report, name: str, number: int | None, error: str) -> None:
    # A file's name may be bytes that are no text, which JSON cannot hold.
    name, error = (text.encode("utf-8", "replace").decode("utf-8") for text in (name, error))
    report.refused.append({"file": name, "line": number, "error": error})
    where = error if number is None else f"{name} line {number}: {error}"
    click.echo(f"idem: {where}", err=True)


@contextlib.contextmanager
def _progress(source: Source) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's standard error; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.progress import Progress  # noqa: PLC0415 - the same

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(source.name, total=source.total)
        yield lambda number: progress.update(task, completed=number)


def _print(report: _Report, *, as_json: bool) -> None:
    if as_json:
        fields = {"enqueued": report.enqueued, "ended": dict(report.ended), "refused": report.refused}
        click.echo(msgspec.json.encode(fields).decode())
        return
    click.echo(", ".join(_words(report)))


def _words(report: _Report) -> Sequence[str]:
    words = [f"enqueued {report.enqueued:,}"]
    words += [f"{count:,} already {state.replace('_', ' ')}" for state, count in sorted(report.ended.items())]
    return [*words, f"refused {len(report.refused):,}"] if report.refused else words
