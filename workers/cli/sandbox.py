"""`idem sandbox`: the providers' APIs on this machine."""

from __future__ import annotations

import click

from idem.errors import IdemError, MissingExtra

_WIDTH = 17


@click.command("sandbox")
@click.option("--port", type=click.IntRange(0, 65535), default=8025, show_default=True, help="0 picks a free one.")
@click.option("--smtp-port", type=click.IntRange(0, 65535), help="Speak SMTP too, there; 0 picks a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
def sandbox_command(port: int, smtp_port: int | None, host: str) -> None:
    """Serve the providers' APIs locally, with their idempotency rules, a fault switch and an inbox page."""
    try:
        from workers.sandbox.app import serve  # noqa: PLC0415 - an extra, imported when asked for
    except ImportError as error:
        raise MissingExtra("web", "the sandbox") from error
    try:
        serve(host, port, smtp_port=smtp_port, ready=lambda bound, smtp: _say_where(host, bound, smtp))
    except OSError as error:
        ports = f"port {port}" if smtp_port is None else f"ports {port} and {smtp_port}"
        raise IdemError(f"cannot listen on {host} {ports} ({error.strerror}): choose another --port") from error


def _say_where(host: str, port: int, smtp_port: int | None) -> None:
    """The inbox, and the setting that points each provider's adapter here."""
    from workers.sandbox.registry import DIALECTS, place_of  # noqa: PLC0415 - an extra, which is installed by now

    authority = f"[{host}]" if ":" in host else host
    http, smtp = f"http://{authority}:{port}", None if smtp_port is None else f"smtp://{authority}:{smtp_port}"
    click.echo(f"{'inbox and log':{_WIDTH}}{http}/")
    for dialect in DIALECTS:
        place = place_of(dialect.contract, http, smtp)
        if place is not None:
            click.echo(f"{dialect.contract.title:{_WIDTH}}IDEM_{dialect.contract.name.upper()}_BASE_URL={place}")
