"""`idem dead`: look into the dead letters, and decide about them. Nothing else ever does."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import click
import msgspec

from idem.errors import IdemError
from idem.privacy import redact
from workers.app import App
from workers.brokers.base import DeadLetter, JobBroker

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_REASON = click.option("--reason", metavar="TEXT", help="Only those whose reason holds this text.")
#: Enough of an id for a person to copy; what is typed may be shorter, or the whole.
_SHOWN_CHARACTERS = 12


@click.group("dead")
def dead_command() -> None:
    """Show the dead letters, and requeue or drop them. ID may be the beginning of one, if no other begins so."""


@dead_command.command("list")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at the most.")
@_REASON
@_JSON
def list_command(limit: int, reason: str | None, *, as_json: bool) -> None:
    """List them, the one longest buried first: id, when, key, job, tries, reason."""
    with _broker() as broker:
        letters = [describe_letter(letter) for letter in islice(_having(broker, reason), limit)]
    if as_json:
        print_json(letters)
        return
    for letter in letters:
        shown = {**letter, "id": letter["id"][:_SHOWN_CHARACTERS]}
        words = (shown[name] for name in ("id", "buried_at", "key", "job", "tries", "reason"))
        click.echo("  ".join("-" if word is None else str(word) for word in words))


@dead_command.command("show")
@click.argument("letter_id", metavar="ID")
@click.option("--payload", is_flag=True, help="Show the whole message too: addresses, text, arguments.")
@_JSON
def show_command(letter_id: str, *, payload: bool, as_json: bool) -> int:
    """Show one. Exit status 1 when there is none of this id."""
    with _broker() as broker:
        letter = _find(broker, letter_id)
    if letter is None:
        click.echo("null" if as_json else _none(letter_id), err=not as_json)
        return 1
    described = describe_letter(letter) | {"bytes": len(letter.payload)}
    if as_json:
        print_json(described | ({"payload": _as_json(letter.payload)} if payload else {}))
        return 0
    for name, value in described.items():
        click.echo(f"{name.replace('_', ' '):<14} {'-' if value is None else value}")
    if payload:
        click.echo(_plain(letter.payload.decode(errors="replace")))
    return 0


@dead_command.command("requeue")
@click.argument("letter_id", metavar="[ID]", required=False)
@click.option("--all", "all_letters", is_flag=True, help="All of them, or those that --reason names.")
@_REASON
def requeue_command(letter_id: str | None, reason: str | None, *, all_letters: bool) -> int:
    """Make them ready again, under the same keys: a key that was sent is not sent again. Exit status 1 if none was."""
    if (letter_id is None) != all_letters or (reason is not None and not all_letters):
        raise click.UsageError("write an ID, or --all, or --all --reason TEXT")
    with _broker() as broker:
        if letter_id is None:
            done = sum(broker.requeue_dead(letter) for letter in _having(broker, reason))
            click.echo(f"requeued {done:,}")
            return 0 if done else 1
        letter = _find(broker, letter_id)
        if letter is None or not broker.requeue_dead(letter):
            click.echo(_none(letter_id), err=True)
            return 1
    click.echo(f"requeued {_title(letter)}")
    return 0


@dead_command.command("drop")
@click.argument("letter_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop_command(letter_id: str, *, yes: bool) -> int:
    """Drop one for good. Exit status 1 when there is none of this id, or when you say no."""
    with _broker() as broker:
        letter = _find(broker, letter_id)
        if letter is None:
            click.echo(_none(letter_id), err=True)
            return 1
        if not yes and not click.confirm(f"drop {_title(letter)} for good?", err=True):
            return 1
        if not broker.drop_dead(letter):
            click.echo(_none(letter_id), err=True)
            return 1
    click.echo(f"dropped {_title(letter)}")
    return 0


@contextmanager
def _broker() -> Iterator[JobBroker]:
    app = App.from_env()
    try:
        yield app.broker
    finally:
        app.close()


def _having(broker: JobBroker, reason: str | None) -> Iterator[DeadLetter]:
    return (letter for letter in broker.dead_letters() if reason is None or reason in letter.reason)


def _find(broker: JobBroker, letter_id: str) -> DeadLetter | None:
    """The one letter whose id begins so; an id that is whole is found although others begin with it."""
    found = [letter for letter in broker.dead_letters() if _plain(letter.id).startswith(letter_id)]
    whole = [letter for letter in found if _plain(letter.id) == letter_id]
    if len(whole or found) > 1:
        raise IdemError(f"{len(found)} dead letters have an id that begins with {letter_id}: write more of it")
    return next(iter(whole or found), None)


def describe_letter(letter: DeadLetter) -> dict[str, Any]:
    """All that may be shown to anybody who may see keys; foreign text as one line."""
    at = letter.buried_at
    return {
        "id": _plain(letter.id),
        "buried_at": None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
        "key": None if letter.key is None else _plain(letter.key),
        "job": None if letter.job is None else _plain(letter.job),
        "tries": letter.tries,
        "reason": redact(_plain(letter.reason)),
    }


def _title(letter: DeadLetter) -> str:
    described = describe_letter(letter)
    known = (f"{name} {described[name]}" for name in ("key", "job", "reason") if described[name] is not None)
    return f"{described['id']} ({', '.join(known)})"


def _none(letter_id: str) -> str:
    return f"no dead letter has the id {letter_id}: it was requeued or dropped, or never was one"


def _plain(text: str) -> str:
    """Text that any terminal and any JSON can hold, in one line."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _as_json(payload: bytes) -> Any:
    """The message as JSON, if it is; else its bytes in base64."""
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {"base64": base64.b64encode(payload).decode()}


def print_json(value: Any) -> None:
    """Print it for programs, and so that people can read it."""
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())
