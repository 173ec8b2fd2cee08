"""`idem status`, `idem explain` and `idem list`: what the queue and the ledger hold."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from idem import pace
from idem.keys import check_key, provider_key
from idem.pace import Pace, Stop
from idem.protocol import Record, State
from workers.app import App

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_TIMES = (
    "created_at",
    "updated_at",
    "started_at",
    "ended_at",
    "lease_until",
    "ready_at",
    "unsure_since",
    "opened_at",
    "expires_at",
    "at",
    "since",
    "until",
)


#: Each is a read; more are of a provider that refuses and keeps its refusals.
_MOST_GENERATIONS = 10


@click.command("status")
@_JSON
def status_command(*, as_json: bool) -> None:
    """Count what waits in the queue and what the ledger holds, and say whether the provider is asked at the moment.

    A state that the ledger does not count is null.
    """
    app = App.from_env()
    try:
        backlog = app.broker.backlog()
        queue = {name: getattr(backlog, name) for name in ("ready", "delayed", "in_flight", "dead")}
        counted = app.ledger.count()
        ledger: dict[str, int | None] = {state.value: counted.get(state) for state in State}
        provider = describe_pace(app.settings.provider, app.gate.look())
        outbox = _count_outbox(app)
    finally:
        app.close()
    if as_json:
        _print_json({"queue": queue, "ledger": ledger, **outbox, "provider": provider})
        return
    for title, counts in (("queue", queue), ("ledger", ledger), *outbox.items()):
        click.echo(title)
        for name, count in counts.items():
            shown = "not counted" if count is None else f"{count:,}"
            click.echo(f"  {name.replace('_', ' '):<10} {shown:>11}")
    click.echo(f"provider\n  {pace_sentence(provider)}")


def _count_outbox(app: App) -> dict[str, dict[str, int]]:
    """Where there is an outbox: how many rows wait for the relay, and how many it has set aside."""
    if app.settings.outbox_url is None:
        return {}
    found = app.rows.look()
    return {"outbox": {"waiting": found.waiting, "aside": found.aside}}


@click.command("explain")
@click.argument("key")
@_JSON
def explain_command(key: str, *, as_json: bool) -> int:
    """Show a key's state, attempts, evidence and provider events. Exit status 1 when there is no record."""
    app = App.from_env()
    try:
        record = app.ledger.read(check_key(key))
        events = [] if record is None else describe_events(app, record)
    finally:
        app.close()
    if record is None:
        click.echo(
            "null" if as_json else "no record of this key: its job is still in the queue, or never was", err=not as_json
        )
        return 1
    described = describe(record) | ({"events": events} if events else {})
    if as_json:
        _print_json(described)
    else:
        _print_fields(described)
    return 0


@click.command("list")
@click.option("--state", type=click.Choice([state.value for state in State]), required=True, help="Which records.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at the most.")
@_JSON
def list_command(state: str, limit: int, *, as_json: bool) -> None:
    """List the records in one state, the one longest unchanged first.

    On DynamoDB, `sending` and `rendering` are looked for in the whole table, and `sent` and `split` are not listed.
    """
    app = App.from_env()
    try:
        records = [describe(record) for record in app.ledger.list(State(state), limit)]
    finally:
        app.close()
    if as_json:
        _print_json(records)
        return
    for record in records:
        words = [record["updated_at"], record["key"], record.get("message_id") or record.get("reason") or ""]
        click.echo("  ".join(words).rstrip())


def describe(record: Record) -> dict[str, Any]:
    """A record for people and programs: times in ISO 8601, nothing that is empty; of what is to be sent, its size."""
    fields: dict[str, Any] = msgspec.to_builtins(record, builtin_types=(bytes,))
    for name, size in (("body", "frozen_bytes"), ("call", "argument_bytes")):
        kept = fields.pop(name)
        fields |= {size: None if kept is None else len(kept)}
    return _readable(fields)


def describe_events(app: App, record: Record) -> list[dict[str, Any]]:
    """What the provider's events told of a record's email, under whichever generation of its key, the first first."""
    first = max(0, record.generation - _MOST_GENERATIONS)
    keys = [provider_key(app.settings.namespace, record.key, each) for each in range(first, record.generation + 1)]
    notes = sorted((note for key in keys for note in app.notes.of(key).notes), key=lambda note: note.at)
    return [_readable(msgspec.to_builtins(note)) for note in notes]


def describe_pace(provider: str, found: Pace) -> dict[str, Any]:
    """Whether a provider is `asked`, `paused`, or its circuit is `open`; since and until when, and why."""
    now = time.time()
    for standing, stop in (("paused", found.pause), ("open", found.circuit)):
        if stop is not None and (pace.left_of(stop, now, None) > 0 or (standing == "open" and found.strikes)):
            since = found.open_since if standing == "open" and found.open_since is not None else stop.since
            times = _readable({"since": since, "until": _end(stop)})
            return {"name": provider, "standing": standing, **times, "reason": stop.detail}
    return {"name": provider, "standing": "asked"}


def pace_sentence(described: Mapping[str, Any]) -> str:
    """The same for people."""
    match described["standing"]:
        case "paused":
            return f"{described['name']}: paused until {described['until']} after {described['reason']}"
        case "open":
            since, until = described["since"], described["until"]
            return f"{described['name']}: circuit open since {since}, tried again at {until}: {described['reason']}"
        case _:
            return f"{described['name']}: asked"


def _end(stop: Stop) -> float:
    return stop.since + stop.seconds


def _readable(fields: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        if name in _TIMES:
            shown[name] = datetime.fromtimestamp(value, UTC).isoformat(timespec="milliseconds")
        elif name in {"history", "evidence"}:
            shown[name] = [_readable(item) for item in value]
        else:
            shown[name] = value
    return shown


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def _print_fields(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if not isinstance(value, list):
            click.echo(f"{name.replace('_', ' '):<14} {value}")
    for name in ("history", "evidence", "events"):
        if fields.get(name):
            click.echo(name)
        for item in fields.get(name, ()):
            click.echo("  " + "  ".join(f"{part.replace('_', ' ')} {value}" for part, value in item.items()))
