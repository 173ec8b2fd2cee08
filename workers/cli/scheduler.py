"""`idem scheduler`: enqueue what is scheduled, when it is due. Workers send it."""

from __future__ import annotations

import random
import time

import click

from workers.process import load_app, stop_signals
from workers.schedule.scheduler import SPREAD_SECONDS, keep_up
from workers.telemetry import configure_logging


@click.command("scheduler")
@click.option("--app", "app_name", metavar="MODULE:APP", required=True, help="The application with the schedules.")
@click.option("--verbose", "-v", is_flag=True, help="Say what is enqueued.")
def scheduler_command(app_name: str, *, verbose: bool) -> int:
    """Enqueue what is scheduled, until stopped by SIGTERM or Ctrl-C. Run as many as you like: none is the leader."""
    configure_logging(verbose=verbose)
    app = load_app(app_name)
    try:
        scheduler = app.scheduler()
        app.ledger.check()
        app.broker.backlog()
        with stop_signals() as stop:
            scheduler.start()
            keep_up(scheduler, stop.wait, time.time, random.uniform(0, SPREAD_SECONDS))
        return 0
    finally:
        app.close()
