"""`idem worker`: send what is enqueued."""

from __future__ import annotations

from collections.abc import Mapping

import click

from workers.app import App
from workers.process import idem_command, keep_working, load_app, work
from workers.telemetry import configure_logging


@click.command("worker")
@click.option("--app", "app_name", metavar="MODULE:APP", help="The application whose jobs to run.")
@click.option("--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="How many processes.")
@click.option("--threads", type=click.IntRange(1, 1024), default=8, show_default=True, help="Threads in each of them.")
@click.option("--until-empty", is_flag=True, help="End when nothing is ready, delayed or in flight any more.")
@click.option("--with-scheduler", is_flag=True, help="Enqueue what is scheduled as well; needs --app.")
@click.option("--verbose", "-v", is_flag=True, help="Say what becomes of every job; show whole tracebacks.")
def worker_command(  # noqa: PLR0913 - the options of the command
    app_name: str | None, processes: int, threads: int, *, until_empty: bool, with_scheduler: bool, verbose: bool
) -> int:
    """Send what is enqueued, until stopped by SIGTERM or Ctrl-C; what was begun is finished first."""
    configure_logging(verbose=verbose)
    # Loaded here too when there are several processes, so that a wrong setting is said once, and at once.
    app = load_app(app_name) if app_name else App.from_env()
    if with_scheduler:
        app.scheduler()
    if processes > 1:
        app.performer()
        flags = {"--until-empty": until_empty, "--with-scheduler": with_scheduler, "--verbose": verbose}
        return keep_working(_one_process(app_name, threads, flags), processes)
    try:
        return work(app, threads=threads, until_empty=until_empty, with_scheduler=with_scheduler)
    finally:
        app.close()


def _one_process(app_name: str | None, threads: int, flags: Mapping[str, bool]) -> list[str]:
    app = ["--app", app_name] if app_name else []
    return idem_command("worker", "--threads", str(threads), *app, *(flag for flag, on in flags.items() if on))
