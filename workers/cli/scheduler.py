"""`idem scheduler`: enqueue what is scheduled, when it is due. Workers send it."""

from __future__ import annotations

import random
import time

import click

from idem.errors import ScheduleError
from workers.process import load_app, stop_signals
from workers.schedule.scheduler import keep_up
from workers.telemetry import configure_logging

#: Each scheduler comes this much later than a slot, at the most: whoever is second finds that there is nothing to do.
_SPREAD_SECONDS = 0.2


@click.command("scheduler")
@click.option("--app", "app_name", metavar="MODULE:APP", required=True, help="The application with the schedules.")
@click.option("--verbose", "-v", is_flag=True, help="Say what is enqueued.")
def scheduler_command(app_name: str, *, verbose: bool) -> int:
    """Enqueue what is scheduled, until stopped by SIGTERM or Ctrl-C. Run as many as you like: none is the leader."""
    configure_logging(verbose=verbose)
    app = load_app(app_name)
    if not app.schedules:
        raise ScheduleError(f"--app {app_name}: it declares no schedule; write @app.schedule() above a function")
    try:
        app.ledger.check()
        app.broker.backlog()
        scheduler = app.scheduler()
        with stop_signals() as stop:
            scheduler.start()
            keep_up(scheduler, stop.wait, time.time, random.uniform(0, _SPREAD_SECONDS))
        return 0
    finally:
        app.close()
