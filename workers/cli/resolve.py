"""`idem resolve`, `idem reopen` and `idem reconcile`: from in doubt, or rejected, to settled."""

from __future__ import annotations

import getpass
import uuid

import click
import msgspec

from idem.errors import IdemError, JobError
from idem.keys import check_key
from idem.protocol import ACCEPTANCE, Record, Resolution, State
from idem.reconcile import Step, prove
from workers.app import App

#: States in which a person's word about an acceptance counts.
_OPEN = frozenset({State.IN_DOUBT, State.UNSURE, State.RETRY, State.DROPPED})


@click.command("resolve")
@click.argument("key")
@click.option("--sent", metavar="ID", help="The provider accepted it, under this message id.")
@click.option("--not-sent", is_flag=True, help="The provider did not accept it: send it.")
@click.option("--drop", is_flag=True, help="Nobody knows, and nobody needs to: give it up.")
def resolve_command(key: str, sent: str | None, *, not_sent: bool, drop: bool) -> int:
    """Say what became of an email in doubt. Exit status 1 when the key is not in doubt (any more)."""
    if [sent is not None, not_sent, drop].count(True) != 1:
        raise click.UsageError("say one of --sent ID, --not-sent and --drop")
    app = App.from_env()
    try:
        record = app.ledger.read(check_key(key))
        if record is None:
            return _refuse("no record of this key: its job is still in the queue, or never was")
        if sent is not None:
            return _testify(app, record, sent)
        return _resolve(app, record, Resolution.NOT_SENT if not_sent else Resolution.DROP)
    finally:
        app.close()


@click.command("reopen")
@click.argument("key")
def reopen_command(key: str) -> int:
    """Open a rejected key again, once the cause is mended: a new attempt under a new key of the provider's."""
    app = App.from_env()
    try:
        record = app.ledger.read(check_key(key))
        if record is None:
            return _refuse("no record of this key: its job is still in the queue, or never was")
        return _resolve(app, record, Resolution.REOPEN)
    finally:
        app.close()


@click.command("cancel")
@click.argument("key")
def cancel_command(key: str) -> int:
    """Call a key back before it is sent, enqueued or not. Exit status 1 when it is too late."""
    app = App.from_env()
    try:
        app.cancel(key, by=f"by {_person()}")
    except JobError as error:
        return _refuse(str(error))
    finally:
        app.close()
    click.echo("cancelled")
    return 0


@click.command("reconcile")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reconcile_command(*, as_json: bool) -> None:
    """Look once after everything that is in doubt or was forgotten, as each worker does every so often."""
    app = App.from_env()
    try:
        steps = app.reconciler().run()
        left = app.ledger.count().get(State.IN_DOUBT, 0)
    finally:
        app.close()
    counts = {step.value.replace(" ", "_"): steps.get(step, 0) for step in Step} | {"in_doubt": left}
    if as_json:
        click.echo(msgspec.json.encode(counts).decode())
        return
    for name, count in counts.items():
        click.echo(f"{name.replace('_', ' '):<10} {count:>8,}")


def _testify(app: App, record: Record, message_id: str) -> int:
    if not message_id.isprintable() or not message_id:
        raise IdemError("--sent takes the provider's message id")
    if record.state not in _OPEN:
        return _refuse(f"the key is {record.state}; that is not open to doubt")
    witness = f"person {uuid.uuid4().hex}"
    settled = prove(app.ledger, record, {record.key: message_id}, witness=witness, detail=f"said by {_person()}")
    if settled.state is not State.SENT:
        return _refuse(f"the key is {settled.state} now; what you said is noted beside it as {ACCEPTANCE}")
    click.echo("sent")
    return 0


def _resolve(app: App, record: Record, resolution: Resolution) -> int:
    resolved = app.ledger.resolve(record, resolution, by=f"by {_person()}")
    if resolved is None:
        wanted = "rejected" if resolution is Resolution.REOPEN else "in doubt"
        now = app.ledger.read(record.key)
        if now is not None and now.claim_id != record.claim_id:
            return _refuse(f"the key has moved on meanwhile, and is {now.state} now: look at it once more")
        return _refuse(f"the key is {now.state if now else 'gone'}, not {wanted}")
    if resolved.state is State.DROPPED:
        click.echo("dropped")
    elif not resolved.resumable:
        click.echo("open again; the ledger does not hold its email: enqueue it once more under the same key")
    else:
        app.resume(resolved.key)
        click.echo("enqueued again")
    return 0


def _person() -> str:
    """Who is at the keyboard, for the record."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"


def _refuse(why: str) -> int:
    click.echo(f"idem: {why}", err=True)
    return 1
