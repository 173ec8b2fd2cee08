"""The results page, made by the commands that it shows: `python -m tests.results [NAME...]`.

Runs the commands of the named sections (all: a day on two cores) and puts what they print into `tests/RESULTS.md`; the
other sections stay as they are.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).with_name("RESULTS.md")
_HEAD: Final = """# Results

What the claims in the [README](../README.md) stand on. Each section is what a command printed, and
`python -m tests.results NAME` runs it again and writes it here. Where nothing happened in N cases the bound is 3/N
(95 % confidence), never "0 %".
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One section: its title, what it shows, and the module and arguments of its command."""

    title: str
    words: str
    command: tuple[str, ...]


RUNS: Final[Mapping[str, Run]] = {
    "simulation": Run(
        "A million simulated jobs",
        "The production code with time, chance, ledger, broker and provider injected; the provider's log judges.",
        ("tests.sim", "--seeds", "10000", "--jobs", "100"),
    ),
    "exhaustive": Run(
        "Every fault, and every pair",
        "Small scenarios with every single fault, with every pair of them, and with two workers at every turn.",
        ("tests.sim", "--exhaustive"),
    ),
    "mutants": Run(
        "Planted bugs",
        "Each is put into the code and has to be caught; the tier that caught it is beside it.",
        ("tests.sim.mutants",),
    ),
    "chaos": Run(
        "Real processes, killed",
        "Workers, a scheduler, a webhook receiver, the broker and the ledger, under SIGKILL and SIGSTOP.",
        ("tests.chaos", "--jobs", "10000", "--kills", "500", "--seed", "20261122"),
    ),
    "release": Run(
        "Real processes, killed 5,000 times",
        "The same at the size of a release.",
        ("tests.chaos", "--jobs", "100000", "--kills", "5000", "--seed", "919612"),
    ),
    "peers": Run(
        "The peers under the same faults",
        "How each is wired: [tests/peers/wired](peers/wired). Corrections are welcome.",
        ("tests.peers",),
    ),
    "providers": Run(
        "Providers and faults",
        "Every provider under every fault of the sandbox.",
        ("tests.bench.providers",),
    ),
    "ledger": Run(
        "What the ledgers cost",
        "Writes, reads and units for each kind of delivery; writes per second and client CPU.",
        ("tests.bench.ledger",),
    ),
    "races": Run(
        "Raced claims",
        "Many processes, one key: one winner each round.",
        ("tests.bench.races", "--rounds", "6300"),
    ),
    "broker": Run(
        "The brokers beside stock dramatiq",
        "Redis on one Valkey server that syncs every write, SQS on one emulator.",
        ("tests.bench.broker",),
    ),
    "sqs": Run("The SQS broker beside dramatiq-sqs", "On one emulator.", ("tests.bench.sqs",)),
    "webhooks": Run("A storm of webhooks", "Redelivered, forged, and the receiver killed.", ("tests.bench.webhooks",)),
    "fuzz": Run(
        "A million damaged webhooks",
        "Genuine requests of every sender, each damaged at random, straight into the application.",
        ("tests.bench.webhooks", "--fuzz", "1000000"),
    ),
    "schedules": Run("Schedules", "100,000 of them, and catching up.", ("tests.bench.schedule",)),
    "slots": Run("Slots across clock changes", "Schedulers and workers, killed for 2 min.", ("tests.chaos.slots",)),
    "outbox": Run(
        "The outbox",
        "10,000 transactions, a third rolled back.",
        ("tests.bench.outbox", "--transactions", "10000", "--kills", "40"),
    ),
    "events": Run("Events and the suppression list", "What they cost.", ("tests.bench.events",)),
}


def main() -> None:
    """Run the commands of some sections, and write the page after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", choices=[*RUNS, []], help="sections to make anew; none means all")
    for name in parser.parse_args().names or RUNS:
        made = sections(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
        made[name] = _section(RUNS[name])
        PAGE.write_text(_page(made), encoding="utf-8")


def sections(page: str) -> dict[str, str]:
    """The sections that are there, by name."""
    by_title = {run.title: name for name, run in RUNS.items()}
    parts = re.split(r"^## (.+)\n", page, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {by_title[title]: f"## {title}\n{text.rstrip()}\n" for title, text in pairs if title in by_title}


def _page(made: Mapping[str, str]) -> str:
    return "\n".join([_HEAD, *(made[name] for name in RUNS if name in made)])


def _section(run: Run) -> str:
    command = [sys.executable, "-m", *run.command]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    ending = "" if done.returncode == 0 else f"\nIt ended with status {done.returncode}.\n"
    shown = " ".join(("python", "-m", *run.command))
    where = f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}"
    return f"## {run.title}\n\n{run.words}\n\n```console\n$ {shown}\n{done.stdout.rstrip()}\n```\n{ending}\n{where}.\n"


if __name__ == "__main__":
    main()
