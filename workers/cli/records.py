"""`idem status`, `idem explain` and `idem list`: what the queue and the ledger hold."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from idem.keys import check_key
from idem.protocol import Record, State
from workers.app import App

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_TIMES = ("created_at", "updated_at", "started_at", "ended_at", "lease_until", "ready_at", "unsure_since", "at")


@click.command("status")
@_JSON
def status_command(*, as_json: bool) -> None:
    """Count what waits in the queue and what the ledger holds; a state that the ledger does not count is null."""
    app = App.from_env()
    try:
        backlog = app.broker.backlog()
        queue = {name: getattr(backlog, name) for name in ("ready", "delayed", "in_flight", "dead")}
        counted = app.ledger.count()
        ledger: dict[str, int | None] = {state.value: counted.get(state) for state in State}
    finally:
        app.close()
    if as_json:
        _print_json({"queue": queue, "ledger": ledger})
        return
    for title, counts in (("queue", queue), ("ledger", ledger)):
        click.echo(title)
        for name, count in counts.items():
            shown = "not counted" if count is None else f"{count:,}"
            click.echo(f"  {name.replace('_', ' '):<10} {shown:>11}")


@click.command("explain")
@click.argument("key")
@_JSON
def explain_command(key: str, *, as_json: bool) -> int:
    """Show what is known about one key: its state, attempts and evidence. Exit status 1 when there is no record."""
    app = App.from_env()
    try:
        record = app.ledger.read(check_key(key))
    finally:
        app.close()
    if record is None:
        click.echo(
            "null" if as_json else "no record of this key: its job is still in the queue, or never was", err=not as_json
        )
        return 1
    described = describe(record)
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
    """A record for people and programs: times in ISO 8601, nothing that is empty, and of a frozen body its size."""
    fields: dict[str, Any] = msgspec.to_builtins(record, builtin_types=(bytes,))
    body = fields.pop("body")
    described = _readable(fields)
    return described if body is None else described | {"frozen_bytes": len(body)}


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
    for name in ("history", "evidence"):
        if fields[name]:
            click.echo(name)
        for item in fields[name]:
            click.echo("  " + "  ".join(f"{part.replace('_', ' ')} {value}" for part, value in item.items()))
