"""`idem init`: prepare a directory."""

from __future__ import annotations

from pathlib import Path

import click

from idem.errors import SettingsError
from workers.app import App
from workers.settings import SETTINGS, Settings
from workers.wiring import contract_of

_FILE = "idem.toml"

#: What to write for a setting that has no default; the window's is the provider's own.
_EXAMPLES = {
    "IDEM_AWS_ENDPOINT_URL": "http://127.0.0.1:8000",
    "IDEM_BODIES_BUCKET": "a-bucket",
    "IDEM_RATE_BURST": 2.0,
    "IDEM_RATE_PER_SECOND": 10.0,
    "IDEM_FALLBACK_PROVIDER": "lettermint",
    "IDEM_OUTBOX_URL": "postgresql+psycopg://user@host/name",
}


@click.command("init")
def init_command() -> None:
    """Write idem.toml with every setting and its default, and create the ledger and the queue. What is there stays."""
    path = Path(_FILE)
    if path.exists():
        click.echo(f"{_FILE} is there already; it stays as it is")
    else:
        try:
            path.write_text(_template(Settings.load().provider), encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"{_FILE} cannot be written ({error.strerror}): go to a directory of yours") from error
        click.echo(f"wrote {_FILE}: every setting, with its default")
    app = App(Settings.load())
    try:
        known = app.ledger.create()
        app.ledger.check()
        queue = app.broker.create()
        if app.settings.outbox_url is not None:
            app.rows.create()
    finally:
        app.close()
    click.echo(f"the ledger is ready: {app.settings.shown_ledger_url}")
    for sentence in known:
        click.echo(f"  {sentence}")
    for sentence in queue:
        click.echo(f"the queue is ready: {sentence}")
    if app.settings.outbox_url is not None:
        click.echo(f"the outbox is ready: the tables {app.settings.outbox_table}, ..._aside and ..._turn")
    provider = app.settings.provider
    token = f"put the provider's token into IDEM_{provider.upper()}_TOKEN, then " * contract_of(provider).needs_token
    click.echo(f"next: {token}run idem worker")


def _template(provider: str) -> str:
    lines = ["# Settings of idem-workers. The environment wins: lease_seconds here is IDEM_LEASE_SECONDS there.", ""]
    for name, default, meaning in SETTINGS:
        example = _EXAMPLES.get(name, contract_of(Settings().provider).window_seconds)
        given = example if default is None else default
        value = f'"{given}"' if isinstance(given, str) else f"{given:.10g}"
        lines += [f"# {meaning}", f"# {name.removeprefix('IDEM_').lower()} = {value}", ""]
    lines += [f"[{provider}]", "# Better in the environment than in a file.", '# token = ""']
    lines += [f'# base_url = "{contract_of(provider).base_url}"', ""]
    return "\n".join(lines)
