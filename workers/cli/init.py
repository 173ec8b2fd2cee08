"""`idem init`: prepare a directory."""

from __future__ import annotations

from pathlib import Path

import click

from workers.app import App
from workers.settings import PROVIDERS, SETTINGS, Settings

_FILE = "idem.toml"


@click.command("init")
def init_command() -> None:
    """Write idem.toml with every setting and its default, and create the ledger. What is there already stays."""
    path = Path(_FILE)
    if path.exists():
        click.echo(f"{_FILE} is there already; it stays as it is")
    else:
        path.write_text(_template(), encoding="utf-8")
        click.echo(f"wrote {_FILE}: every setting, with its default")
    app = App(Settings.load())
    try:
        app.ledger.count()
    finally:
        app.close()
    click.echo(f"the ledger is ready: {app.settings.ledger_url}")
    click.echo(f"next: put the provider's token into IDEM_{app.settings.provider.upper()}_TOKEN, then run idem worker")


def _template() -> str:
    lines = ["# Settings of idem-workers. The environment wins: lease_seconds here is IDEM_LEASE_SECONDS there.", ""]
    for name, default, meaning in SETTINGS:
        value = f'"{default}"' if isinstance(default, str) else "" if default is None else f"{default:g}"
        lines += [f"# {meaning}", f"# {name.removeprefix('IDEM_').lower()} = {value}".rstrip(), ""]
    for provider in PROVIDERS:
        lines += [f"[{provider}]", "# Better in the environment than in a file.", '# token = ""', '# base_url = ""', ""]
    return "\n".join(lines)
