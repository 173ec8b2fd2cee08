"""`idem relay`: take committed rows from the outbox to the queue. Workers send them."""

from __future__ import annotations

import logging

import click

from idem.errors import OutboxUnavailable
from workers.app import App
from workers.outbox.relay import Relay, keep_relaying
from workers.process import stop_signals
from workers.telemetry import configure_logging

_log = logging.getLogger("idem.worker")


@click.command("relay")
@click.option("--until-empty", is_flag=True, help="End when no committed row waits any more.")
@click.option("--verbose", "-v", is_flag=True, help="Say what is enqueued.")
def relay_command(*, until_empty: bool, verbose: bool) -> int:
    """Enqueue what committed transactions have put into the outbox, until stopped by SIGTERM or Ctrl-C.

    Run as many as you like: one is at work, and another takes its place within IDEM_OUTBOX_LEASE_SECONDS.
    """
    configure_logging(verbose=verbose)
    app = App.from_env()
    settings = app.settings
    try:
        relay = app.relay()
        app.rows.check()
        app.broker.backlog()
        with stop_signals() as stop:
            keep_relaying(
                relay,
                stop.wait,
                until_empty=until_empty,
                poll_seconds=settings.outbox_poll_seconds,
                most_seconds=settings.outbox_lease_seconds / 2,
            )
        _release(relay)
        return 0
    finally:
        app.close()


def _release(relay: Relay) -> None:
    """It has done its work, whether or not the others hear of it."""
    try:
        relay.release()
    except OutboxUnavailable as error:
        _log.warning("another relay takes the turn when its lease is over, and not at once: %s", error)
