"""The command `idem`. Each command's file is imported when the command is asked for, so that `idem --help` is quick.

Exit status: 0 done, 1 a negative answer, 2 bad usage or settings. An error is one clear line on standard error.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import version
from typing import Any, NoReturn

import click

from idem.errors import BrokerError, IdemError, LedgerError, OutboxError
from idem.privacy import redact
from workers.telemetry import describe_error

#: Every command, the file that has it, and what it is for.
_COMMANDS = {
    "cancel": ("resolve", "Call a key back before it is sent."),
    "dead": ("dead", "Look into the dead letters; requeue or drop them."),
    "demo": ("demo", "Send 500 emails through faults and kills, and count what arrived."),
    "doctor": ("doctor", "Check settings, ledger, broker and provider."),
    "enqueue": ("enqueue", "Enqueue the emails of JSONL, CSV and .eml files."),
    "explain": ("records", "Show what is known about one key."),
    "init": ("init", "Prepare this directory: settings, ledger and queue."),
    "outbox": ("outbox", "Look at what the relay set aside; put it back or drop it."),
    "preview": ("preview", "Show what a job would send, in the terminal or the browser."),
    "reconcile": ("resolve", "Find out about emails in doubt, once."),
    "relay": ("relay", "Take committed rows from the outbox to the queue."),
    "reopen": ("resolve", "Send a rejected email again, once its cause is mended."),
    "resolve": ("resolve", "Say what became of an email in doubt."),
    "list": ("records", "List the records in one state."),
    "sandbox": ("sandbox", "Serve the providers' APIs locally, with faults and an inbox."),
    "schedule": ("schedule", "Show, run, pause and backfill schedules."),
    "scheduler": ("scheduler", "Enqueue what is scheduled, when it is due."),
    "status": ("records", "Count what waits in the queue and what the ledger holds."),
    "suppress": ("suppress", "Show and change the list of addresses that nothing is sent to."),
    "webhooks": ("webhooks", "Receive other services' events and enqueue their jobs."),
    "worker": ("worker", "Send what is enqueued."),
}


class _Commands(click.Group):
    """Finds a command by its name in the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - the same
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"workers.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - the same
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(_COMMANDS.items())])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("idem-workers"), prog_name="idem")
def idem() -> None:
    """Queue workers for email jobs whose effect happens exactly once."""


def main() -> NoReturn:
    """Run the command line."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run one command and return its exit status."""
    try:
        status: Any = idem.main(args, prog_name="idem", standalone_mode=False)
    except Exception as error:
        return _explain(error)
    return status if isinstance(status, int) else 0


def _explain(error: Exception) -> int:
    """Say what stopped a command, and give its exit status."""
    match error:
        case click.exceptions.Abort():
            return _fail("stopped; run the same command again to go on", 130)
        case click.ClickException():
            error.show()
            return error.exit_code
        case BrokenPipeError():
            # Whoever read our output has gone, as `head` does; Python must not complain when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        case BrokerError() | LedgerError() | OutboxError():
            return _fail(str(error), 1)
        case IdemError():
            return _fail(str(error), 2)
        case _:
            return _fail(f"a mistake of ours: {describe_error(error)}; please report it. It sends nothing twice", 1)


def _fail(problem: str, status: int) -> int:
    click.echo(f"idem: {redact(problem, limit=1_000)}", err=True)
    return status
