"""`idem preview`: what a job would send, to look at. Nothing is claimed, enqueued or sent."""

from __future__ import annotations

import inspect
import re
import tempfile
import time
import webbrowser
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import click
import msgspec

from idem.email import Attachment, Email
from idem.errors import IdemError, JobError, UnsupportedEmail
from idem.mime.writing import to_message
from idem.outcome import Rejected
from idem.send import check_built
from workers.app import App
from workers.process import load_app
from workers.schedule.slots import Schedule, read_instant, write_instant
from workers.telemetry import configure_logging, describe_error
from workers.webhooks.event import Event

_UNSAFE = re.compile(r"[^\w.() -]")
_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px system-ui;margin:2em}}iframe{{width:100%;height:70vh;border:1px solid #ccc}}
pre{{white-space:pre-wrap;border:1px solid #ccc;padding:1em}}th{{text-align:left;padding-right:1em}}</style>
{emails}
"""


@click.command("preview")
@click.argument("app_name", metavar="MODULE:APP")
@click.argument("job")
@click.argument("args", required=False)
@click.option("--slot", metavar="INSTANT", help="For a schedule: this slot; by default the next one.")
@click.option("--event", type=click.Path(dir_okay=False, path_type=Path), help="For a webhook: a file with its body.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write everything to this directory.")
@click.option("--open", "opens", is_flag=True, help="Show it in the browser.")
def preview_command(  # noqa: PLR0913 - each is an argument of the command line
    app_name: str,
    job: str,
    args: str | None,
    *,
    slot: str | None,
    event: Path | None,
    out: Path | None,
    opens: bool,
) -> int:
    """Run a job's function and show its emails. ARGS is JSON: a list of arguments, or an object of named ones.

    Nothing is claimed, enqueued or sent; the function itself does whatever it does.
    """
    configure_logging(verbose=False)
    app = load_app(app_name)
    given, named = _arguments(app, job, args, slot, event)
    emails = _built(app, job, given, named)
    for number, email in enumerate(emails, 1):
        _show(app, email, f"{number} of {len(emails)}")
    if not emails:
        click.echo("the job builds no email", err=True)
        return 1
    if out is not None or opens:
        page = _write(emails, out or Path(tempfile.mkdtemp(prefix="idem-preview-")))
        click.echo(f"written to {page}")
        if opens and not webbrowser.open(page.resolve().as_uri()):
            raise IdemError(f"no browser can be started here: open {page} yourself")
    return 0


def _arguments(
    app: App, job: str, args: str | None, slot: str | None, event: Path | None
) -> tuple[Sequence[Any], dict[str, Any]]:
    """What the job's message would hold."""
    if job not in app.jobs:
        raise JobError(f"no job is named {job!r}; there are {', '.join(sorted(app.jobs)) or 'none'}")
    schedule, hook = app.schedules.get(job), app.hook(job)
    if slot is not None and schedule is None:
        raise JobError(f"job {job} is no schedule: leave out --slot")
    if event is not None and hook is None:
        raise JobError(f"job {job} waits for no event: leave out --event")
    if args is not None and (schedule is not None or hook is not None):
        raise JobError(f"job {job} takes no ARGS: it is called with its {'slot' if schedule else 'event'}")
    if schedule is not None:
        return [_slot(schedule, slot)], {}
    if hook is not None:
        if event is None:
            raise JobError(f"job {job} waits for an event of {hook[0]}: give --event FILE, the body as it was posted")
        return [_event(event, *hook).as_dict()], {}
    return _read_arguments(app, job, args)


def _read_arguments(app: App, job: str, args: str | None) -> tuple[Sequence[Any], dict[str, Any]]:
    try:
        read = msgspec.json.decode(args) if args is not None else []
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise JobError(f"ARGS is not JSON ({error}): write '[1234]' or '{{\"order_id\": 1234}}'") from error
    if not isinstance(read, list | dict):
        raise JobError("ARGS is neither a list nor an object: write '[1234]' or '{\"order_id\": 1234}'")
    given, named = (read, {}) if isinstance(read, list) else ([], read)
    try:
        inspect.signature(app.jobs[job]).bind(*given, **named)
    except TypeError as error:
        raise JobError(f"job {job}: {error}") from error
    return given, named


def _slot(schedule: Schedule, text: str | None) -> str:
    now = int(time.time())
    if text is None:
        upcoming = schedule.rule.next(now)
        found = upcoming if upcoming is not None else schedule.previous(now)
    else:
        found = read_instant(text)
    if found is None or not schedule.has(found):
        raise JobError(f"schedule {schedule.name} has no such slot: `idem schedule next` shows some")
    return write_instant(found)


def _event(path: Path, source: str, types: Sequence[str]) -> Event:
    """As the receiver makes it, of a body alone: what it does not say is made up."""
    try:
        data = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise JobError(f"{path} cannot be read as an event ({reason}): it must be the body as JSON") from error
    if not isinstance(data, dict):
        raise JobError(f"{path} is no event: it must be the body, a JSON object")
    kind = data.get("type")
    chosen = kind if isinstance(kind, str) and kind in types else types[0]
    return Event(source=source, id=str(data.get("id", "preview")), type=chosen, created=None, data=data)


def _built(app: App, job: str, given: Sequence[Any], named: dict[str, Any]) -> Sequence[Email]:
    try:
        built = check_built(job, app.jobs[job](*given, **named))
    except IdemError:
        raise
    except (Exception, SystemExit) as error:
        raise JobError(f"job {job} raised {describe_error(error)}: {error}") from error
    if isinstance(built, Rejected):
        raise JobError(built.detail)
    return [built] if isinstance(built, Email) else built


def _show(app: App, email: Email, which: str) -> None:
    click.echo(f"email {which}")
    for name, value in _heading(email):
        click.echo(f"  {name + ':':<12} {value}")
    try:
        app.check(email)
    except UnsupportedEmail as error:
        click.echo(f"  {app.settings.provider} cannot send it: {error}")
    click.echo(f"\n{email.text if email.text is not None else '(no text, only HTML)'}\n")


def _heading(email: Email) -> list[tuple[str, str]]:
    lists = {"From": [email.from_], "To": email.to, "Cc": email.cc, "Bcc": email.bcc, "Reply-To": email.reply_to}
    parts = [(name, ", ".join(values)) for name, values in lists.items() if values]
    parts += [("Subject", email.subject), *email.headers.items()]
    parts += [("Tags", ", ".join(email.tags))] if email.tags else []
    parts += [(f"Metadata {name}", value) for name, value in email.metadata.items()]
    return parts + [
        ("Attached", f"{item.filename} ({item.content_type}, {len(item.content):,} bytes)")
        for item in email.attachments
    ]


def _write(emails: Sequence[Email], folder: Path) -> Path:
    """A page that shows all of them, beside a folder for each: its parts, and the whole as .eml."""
    try:
        sections = [_write_email(email, folder, str(number)) for number, email in enumerate(emails, 1)]
        page = folder / "index.html"
        page.write_text(_PAGE.format(title=escape(emails[0].subject), emails="\n".join(sections)), encoding="utf-8")
    except OSError as error:
        raise IdemError(f"{folder} cannot be written ({error.strerror}): give another directory with --out") from error
    return page


def _write_email(email: Email, folder: Path, name: str) -> str:
    """The email's part of the page. What it holds runs no script there: it is in a frame that may do nothing."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "email.eml").write_bytes(to_message(email).as_bytes())
    files = [_file_name(number, item) for number, item in enumerate(email.attachments, 1)]
    for file, item in zip(files, email.attachments, strict=True):
        (place / file).write_bytes(item.content)
    rows = "".join(f"<tr><th>{escape(field)}<td>{escape(value)}" for field, value in _heading(email))
    links = "".join(f' <a href="{name}/{escape(file)}">{escape(file)}</a>' for file in ("email.eml", *files))
    shown = f"<h1>{escape(email.subject)}</h1><table>{rows}</table><p>Files:{links}</p>"
    if email.html is not None:
        (place / "body.html").write_text(_with_images(email, files), encoding="utf-8")
        shown += f'<iframe sandbox src="{name}/body.html" title="HTML"></iframe>'
    if email.text is not None:
        (place / "body.txt").write_text(email.text, encoding="utf-8")
        shown += f"<pre>{escape(email.text)}</pre>"
    return shown


def _with_images(email: Email, files: Sequence[str]) -> str:
    """The HTML, with images of the email by their files; a file is read as UTF-8 where it says nothing else."""
    html = email.html or ""
    images = {item.content_id: file for file, item in zip(files, email.attachments, strict=True) if item.content_id}
    for content_id in sorted(images, key=len, reverse=True):
        html = html.replace(f"cid:{content_id}", escape(images[content_id]))
    return f'<meta charset="utf-8">{html}'


def _file_name(number: int, item: Attachment) -> str:
    """A name of a file in one directory, whatever the attachment is called; two may be called the same."""
    return f"{number}-{_UNSAFE.sub('_', item.filename)[-100:]}"
