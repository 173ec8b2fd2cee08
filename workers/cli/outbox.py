"""`idem outbox`: look at the rows that the relay set aside, and decide about them. Nothing else ever does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from workers.app import App
from workers.brokers.base import DeadLetter
from workers.cli.dead import describe_letter, print_json
from workers.outbox.database import Database


@click.group("outbox")
def outbox_command() -> None:
    """Show the rows that the queue could not get, and put them back or drop them."""


@outbox_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(*, as_json: bool) -> None:
    """List what is set aside, the row longest there first: id, when, key, job, reason."""
    with _rows() as rows:
        listed = [describe_letter(letter) for letter in rows.list_aside()]
    names = {"id": "id", "aside_at": "buried_at", "key": "key", "job": "job", "reason": "reason"}
    shown = [{name: row[theirs] for name, theirs in names.items()} for row in listed]
    if as_json:
        print_json(shown)
        return
    for row in shown:
        click.echo("  ".join("-" if word is None else str(word) for word in row.values()))


@outbox_command.command("return")
@click.argument("row_id", metavar="[ID]", required=False)
@click.option("--all", "all_rows", is_flag=True, help="All of them.")
def return_command(row_id: str | None, *, all_rows: bool) -> int:
    """Let rows wait for the relay again, under the same keys. Exit status 1 if there was none."""
    if (row_id is None) != all_rows:
        raise click.UsageError("write an ID, or --all")
    with _rows() as rows:
        done = sum(rows.put_back(letter) for letter in rows.list_aside() if row_id in {None, letter.id})
    click.echo(f"returned {done:,}", err=not done)
    return 0 if done else 1


@outbox_command.command("drop")
@click.argument("row_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop_command(row_id: str, *, yes: bool) -> int:
    """Drop one for good. Exit status 1 when there is none of this id, or when you say no."""
    with _rows() as rows:
        letter = _find(rows, row_id)
        if letter is not None and not yes and not click.confirm(f"drop row {row_id} ({letter.reason})?", err=True):
            return 1
        if letter is None or not rows.drop_aside(letter):
            click.echo(f"no row {row_id} is set aside: it was returned or dropped, or never was one", err=True)
            return 1
    click.echo(f"dropped row {row_id}")
    return 0


@contextmanager
def _rows() -> Iterator[Database]:
    app = App.from_env()
    try:
        yield app.rows
    finally:
        app.close()


def _find(rows: Database, row_id: str) -> DeadLetter | None:
    return next((letter for letter in rows.list_aside() if letter.id == row_id), None)
