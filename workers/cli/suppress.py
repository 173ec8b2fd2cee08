"""`idem suppress`: the addresses that nothing is sent to."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from idem.suppression import Entry, Reason
from workers.app import App

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_ADDRESSES = click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")


@click.group("suppress")
def suppress_command() -> None:
    """Show and change the list of addresses that nothing is sent to while IDEM_SUPPRESSION is on."""


@suppress_command.command("add")
@_ADDRESSES
def add_command(addresses: tuple[str, ...]) -> None:
    """Put addresses on the list; one that is there stays as it is."""
    by = f"by {_person()}"
    _with_app(lambda app: _each(addresses, lambda one: app.suppression.add(one, Reason.PERSON, source=by), "added"))


@suppress_command.command("remove")
@_ADDRESSES
def remove_command(addresses: tuple[str, ...]) -> int:
    """Take addresses off the list; `idem reopen KEY` then sends what they held back. Exit status 1 for none."""
    removed: int = _with_app(lambda app: _each(addresses, app.suppression.remove, "removed"))
    return 0 if removed else 1


@suppress_command.command("check")
@click.argument("address")
@_JSON
def check_command(address: str, *, as_json: bool) -> int:
    """Say whether an address is on the list, why and since when. Exit status 1 when it is not."""
    entry: Entry | None = _with_app(lambda app: app.suppression.find(address))
    if as_json:
        _print_json(None if entry is None else _described(entry))
    elif entry is None:
        click.echo("not on the list", err=True)
    else:
        click.echo("  ".join(_described(entry).values()))
    return 1 if entry is None else 0


@suppress_command.command("list")
@_JSON
def list_command(*, as_json: bool) -> None:
    """List the entries, the oldest first. The list holds digests, no addresses: `check` knows an address."""
    found = _with_app(lambda app: sorted(app.suppression.entries(), key=lambda item: item[1].since))
    shown = [{"digest": digest, **_described(entry)} for digest, entry in found]
    if as_json:
        _print_json(shown)
        return
    for item in shown:
        click.echo("  ".join(item.values()))


def _with_app(act: Callable[[App], Any]) -> Any:
    """What `act` returns for an application that is closed afterwards."""
    app = App.from_env()
    try:
        return act(app)
    finally:
        app.close()


def _each(addresses: Sequence[str], change: Callable[[str], bool], done: str) -> int:
    changed = sum([change(address) for address in addresses])
    click.echo(f"{done} {changed} of {len(addresses)}")
    return changed


def _described(entry: Entry) -> dict[str, str]:
    since = datetime.fromtimestamp(entry.since, UTC).isoformat(timespec="seconds")
    return {"since": since, "reason": entry.reason.value, "source": entry.source}


def _person() -> str:
    """Who is at the keyboard, for the list."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"


def _print_json(value: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())
