"""`idem webhooks`: receive other services' events."""

from __future__ import annotations

import logging

import click

from idem.errors import IdemError, MissingExtra
from workers.process import load_app
from workers.telemetry import configure_logging

_log = logging.getLogger("idem.webhooks")


@click.command("webhooks")
@click.option("--app", "app_name", metavar="MODULE:APP", required=True, help="The application that declares the jobs.")
@click.option("--port", type=click.IntRange(0, 65535), default=8026, show_default=True, help="0 picks a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--verbose", "-v", is_flag=True, help="Say what is refused, and why; show whole tracebacks.")
def webhooks_command(app_name: str, port: int, host: str, *, verbose: bool) -> None:
    """Receive events at /SOURCE and enqueue their jobs, until stopped by SIGTERM or Ctrl-C."""
    configure_logging(verbose=verbose)
    app = load_app(app_name)
    try:
        receiver = app.webhooks()
        from workers.webhooks.server import serve  # noqa: PLC0415 - an extra, imported when asked for
    except ImportError as error:
        raise MissingExtra("web", "the receiver of webhooks") from error
    try:
        serve(receiver, host, port, ready=lambda bound: _say_where(host, bound, sorted(app.settings.webhook_secrets)))
    except OSError as error:
        raise IdemError(f"cannot listen on {host} port {port} ({error.strerror}): choose another --port") from error
    finally:
        app.close()
        for (source, became), times in sorted(receiver.state.receiver.counts.items()):
            _log.warning("%s: %d %s", source, times, became)


def _say_where(host: str, port: int, sources: list[str]) -> None:
    authority = f"[{host}]" if ":" in host else host
    for source in sources or ["(no source has a secret)"]:
        click.echo(f"http://{authority}:{port}/{source}")
