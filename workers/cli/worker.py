"""`idem worker`: send what is enqueued."""

from __future__ import annotations

import click

from workers.app import App
from workers.process import idem_command, keep_working, load_app, work
from workers.telemetry import configure_logging


@click.command("worker")
@click.option("--app", "app_name", metavar="MODULE:APP", help="The application whose jobs to run.")
@click.option("--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="How many processes.")
@click.option("--threads", type=click.IntRange(1, 1024), default=8, show_default=True, help="Threads in each of them.")
@click.option("--until-empty", is_flag=True, help="End when nothing is ready, delayed or in flight any more.")
@click.option("--verbose", "-v", is_flag=True, help="Say what becomes of every job; show whole tracebacks.")
def worker_command(app_name: str | None, processes: int, threads: int, *, until_empty: bool, verbose: bool) -> int:
    """Send what is enqueued, until stopped by SIGTERM or Ctrl-C; what was begun is finished first."""
    configure_logging(verbose=verbose)
    # Loaded here too when there are several processes, so that a wrong setting is said once, and at once.
    app = load_app(app_name) if app_name else App.from_env()
    if processes > 1:
        app.performer()
        return keep_working(_one_process(app_name, threads, until_empty=until_empty, verbose=verbose), processes)
    try:
        return work(app, threads=threads, until_empty=until_empty)
    finally:
        app.close()


def _one_process(app_name: str | None, threads: int, *, until_empty: bool, verbose: bool) -> list[str]:
    app = ["--app", app_name] if app_name else []
    flags = ["--until-empty"] * until_empty + ["--verbose"] * verbose
    return idem_command("worker", "--threads", str(threads), *app, *flags)
