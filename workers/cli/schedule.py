"""`idem schedule`: what is scheduled, and what a person or another scheduler can do about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import click
import msgspec

from idem.errors import ScheduleError
from workers import wiring
from workers.app import App
from workers.process import load_app
from workers.schedule.board import Entry, cell_of, tag
from workers.schedule.scheduler import enqueue_slots
from workers.schedule.slots import Schedule, read_instant, write_instant

_APP = click.option("--app", "app_name", metavar="MODULE:APP", required=True, help="The application.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
#: A slot this far ahead has begun: whoever started us has another clock.
_AHEAD_SECONDS = 5
#: The year 3000.
_NEVER = 32_503_680_000


def _instant(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else read_instant(text)
    except ScheduleError as error:
        raise click.BadParameter(str(error)) from error


@click.group("schedule")
def schedule_command() -> None:
    """Show schedules, run slots, pause. An INSTANT is in ISO 8601 with its offset: 2026-03-29T07:00:00Z."""


@schedule_command.command("list")
@_APP
@_JSON
def list_command(app_name: str, *, as_json: bool) -> None:
    """List the schedules: name, rule, time zone, catch-up, whether it is paused, last slot enqueued, next slot."""
    now = int(time.time())
    with _app(app_name) as app:
        cells = {cell: app.board.read(cell) for cell in {cell_of(name) for name in app.schedules}}
        shown = [
            _describe(schedule, cells[cell_of(name)].get(tag(name)), now)
            for name, schedule in sorted(app.schedules.items())
        ]
    _print(shown, as_json=as_json)


@schedule_command.command("next")
@click.argument("name", required=False)
@click.option("--count", type=click.IntRange(1, 10_000), default=5, show_default=True, help="How many slots of each.")
@_APP
@_JSON
def next_command(name: str | None, count: int, app_name: str, *, as_json: bool) -> None:
    """List the next slots of one schedule or of all: name, instant in UTC, local time."""
    now = int(time.time())
    with _app(app_name) as app:
        chosen = [_find(app, name)] if name else [app.schedules[each] for each in sorted(app.schedules)]
        shown = [
            {"name": schedule.name, "instant": write_instant(slot), "local": schedule.local(slot).isoformat()}
            for schedule in chosen
            for slot in islice(schedule.between(now, _NEVER), count)
        ]
    _print(shown, as_json=as_json)


@schedule_command.command("run")
@click.argument("name")
@click.option("--slot", metavar="INSTANT", callback=_instant, help="This slot.")
@click.option("--now-slot", is_flag=True, help="The slot that has come last: for a CronJob or a crontab.")
@_APP
def run_command(name: str, slot: int | None, app_name: str, *, now_slot: bool) -> None:
    """Enqueue one slot under its key, and print that: however often and by whomever, it is sent once."""
    if (slot is None) != now_slot:
        raise click.UsageError("write --slot INSTANT or --now-slot")
    with _app(app_name) as app:
        schedule = _find(app, name)
        at = slot if slot is not None else schedule.previous(int(time.time()) + _AHEAD_SECONDS + 1)
        if at is None or not schedule.has(at):
            raise ScheduleError(_no_slot(schedule, at))
        _check_remembered(app, at)
        for key in _enqueue(app, schedule, [at]):
            click.echo(key)


@schedule_command.command("backfill")
@click.argument("name")
@click.option("--from", "first", metavar="INSTANT", required=True, callback=_instant, help="From this instant on.")
@click.option("--to", "last", metavar="INSTANT", callback=_instant, help="Up to this one; by default up to now.")
@click.option("--dry-run", is_flag=True, help="Only print the keys.")
@_APP
def backfill_command(name: str, first: int, last: int | None, app_name: str, *, dry_run: bool) -> int:
    """Enqueue all slots from one instant to another, and print their keys: what was sent is not sent again."""
    until = min(int(time.time()), last if last is not None else _NEVER)
    with _app(app_name) as app:
        schedule = _find(app, name)
        _check_remembered(app, first)
        slots = schedule.between(first - 1, until)
        done = 0
        for key in map(schedule.key, slots) if dry_run else _enqueue(app, schedule, slots):
            click.echo(key)
            done += 1
    return 0 if done else 1


@schedule_command.command("pause")
@click.argument("name")
@_APP
def pause_command(name: str, app_name: str) -> None:
    """Let a schedule's slots pass, from the next one on; what is in the queue is sent."""
    now = int(time.time())
    _change(app_name, name, lambda entry: Entry(entry.last if entry else now, paused=True))


@schedule_command.command("resume")
@click.argument("name")
@_APP
def resume_command(name: str, app_name: str) -> None:
    """Let a paused schedule go on from now; `backfill` makes up for what passed meanwhile."""
    now = int(time.time())
    _change(app_name, name, lambda entry: Entry(now) if entry is None or entry.paused else entry)


def _enqueue(app: App, schedule: Schedule, slots: Iterable[int]) -> Iterator[str]:
    """The keys of slots, each once the broker has it."""
    return chain.from_iterable(enqueue_slots(app.ask_each, ((schedule, slot) for slot in slots)))


def _change(app_name: str, name: str, change: Callable[[Entry | None], Entry]) -> None:
    with _app(app_name) as app:
        entry = app.board.set(_find(app, name).name, change)
    click.echo(f"{name} is {'paused' if entry.paused else 'not paused'}")


@contextmanager
def _app(name: str) -> Iterator[App]:
    app = load_app(name)
    try:
        yield app
    finally:
        app.close()


def _find(app: App, name: str) -> Schedule:
    if name not in app.schedules:
        raise ScheduleError(f"no schedule is named {name!r}: `idem schedule list` shows them")
    return app.schedules[name]


def _check_remembered(app: App, slot: int) -> None:
    if wiring.build_policy(app.settings).forgets(slot, time.time()):
        raise ScheduleError(f"{write_instant(slot)} is longer ago than the ledger remembers: it may have been sent")


def _no_slot(schedule: Schedule, at: int | None) -> str:
    if at is None:
        return f"schedule {schedule.name} has had no slot so far"
    around = [each for each in (schedule.previous(at), schedule.rule.next(at)) if each is not None]
    near = " and ".join(map(write_instant, around))
    return f"schedule {schedule.name} has no slot at {write_instant(at)}; near it: {near or 'none'}"


def _describe(schedule: Schedule, entry: Entry | None, now: int) -> dict[str, Any]:
    upcoming = schedule.rule.next(max(now, entry.last if entry else now))
    return {
        "name": schedule.name,
        "rule": schedule.rule.text,
        "tz": str(schedule.rule.zone),
        "catch_up": str(schedule.catch_up),
        "paused": entry is not None and entry.paused,
        "last": None if entry is None else write_instant(entry.last),
        "next": None if upcoming is None else write_instant(upcoming),
    }


def _print(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows)).decode())
        return
    for row in rows:
        click.echo("  ".join(_word(value) for value in row.values()))


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "paused" if value else "on"
    return "-" if value is None else str(value)
