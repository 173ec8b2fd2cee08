"""Chaos with real processes: they are killed, halted and restarted, and each email is still accepted once.

    python -m tests.chaos --jobs 10000 --kills 500            what CI runs
    python -m tests.chaos --jobs 100000 --kills 5000          before a release
    python -m tests.chaos --ledger dynamodb --seed 7 ...      another ledger, another order of faults

Worker processes, two schedulers and a receiver of webhooks are killed by SIGKILL four times a second, from outside and
at crash points; workers are halted by SIGSTOP past their lease; the broker is killed and started again, the ledger
stalls or restarts; the provider drops, fails, hangs and limits; jobs and events come twice, or forged, or contradict
each other. Emails are ready, delayed, expiring, in bulks, built by jobs one or two at a time, for events and by a
schedule; some would rather be sent twice than never. What is counted comes from the provider's own log of acceptances.
Exit status 1 if the promise was broken: then the directory with all logs is kept, and every violation is in its
`violations.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.chaos.faults import Chaos
from tests.chaos.fleet import Fleet
from tests.chaos.intentions import Intention, Poster, Producer, Progress, plan
from tests.chaos.stage import TRIGGERED, Stage, keep, stage
from tests.chaos.verdict import Effect, Judge, Verdict, Violation, effects, slots_between, write_violations

_LOOK_SECONDS = 0.2
_REPORT_SECONDS = 5.0
#: How long after the last fault everything may take to settle, and one second more for every so many jobs.
_SETTLE_SECONDS, _JOBS_A_SECOND = 120.0, 500
_EVENTS_A_JOB = 0.02
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Run:
    """What a run is told."""

    jobs: int
    kills: int
    ledger: str
    seed: int

    def dice(self, whose: str) -> random.Random:
        """Each part has its own, so that none depends on how fast the others are."""
        return random.Random(f"{self.seed}/{whose}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: the figures as JSON has them, and the verdict."""

    figures: dict[str, Any]
    verdict: Verdict
    folder: Path

    @property
    def kept(self) -> bool:
        return not self.verdict.violations


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=10_000, help="how many jobs (default: 10,000)")
    parser.add_argument("--kills", type=int, default=500, help="how many processes are killed (default: 500)")
    parser.add_argument("--ledger", choices=("valkey", "dynamodb", "sqlite"), default="valkey")
    parser.add_argument("--seed", type=int, help="what the faults are drawn from (default: another one each time)")
    given = parser.parse_args(arguments)
    # So that whatever was started ends with this process, also when it is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = random.randrange(1_000_000) if given.seed is None else given.seed
    outcome = run(Run(given.jobs, given.kills, given.ledger, seed), _say)
    _show(outcome)
    return 0 if outcome.kept else 1


def run(told: Run, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """Set the stage, let chaos loose, wait until all is settled, and judge."""
    say(f"{told.jobs:,} jobs, {told.kills:,} kills, ledger {told.ledger}, seed {told.seed}")
    with stage(told.ledger) as set_up:
        outcome = _Play(set_up, told, say).play()
        if not outcome.kept:
            keep(set_up.folder)
            write_violations(set_up.folder / "violations.jsonl", outcome.verdict.violations)
        return outcome


class _Play:
    def __init__(self, set_up: Stage, told: Run, say: Callable[[str], None]) -> None:
        self._stage = set_up
        self._told = told
        self._say = say
        self._said_at = 0.0
        self._fleet = Fleet(set_up, told.dice("fleet"))
        self._over = False
        self._progress = Progress(lambda: 1.0 if self._over else self._fleet.kills / max(1, told.kills))
        self._chaos = Chaos(set_up, self._fleet, self._progress, told.kills, told.dice("faults"))
        self._judge = Judge(set_up, self._progress)
        self._intentions: list[Intention] = plan(told.jobs, told.dice("plan"))

    def play(self) -> Outcome:
        began = time.monotonic()
        events = max(5, int(self._told.jobs * _EVENTS_A_JOB))
        threads = [
            Producer(self._stage, self._intentions, self._progress, self._told.dice("producer")),
            Poster(self._stage.receiver_port, events, self._progress, self._told.dice("poster")),
        ]
        for thread in threads:
            thread.start()
        self._chaos.run(self._told.jobs, self._report)
        struck = time.monotonic()
        self._chaos.mend()
        self._over = True
        self._wait_for(lambda: not any(thread.is_alive() for thread in threads))
        self._fleet.end(self._fleet.schedulers)
        intended = self._intended()
        self._wait_for(lambda: self._is_settled(intended))
        settled = time.monotonic()
        self._fleet.end(self._fleet.members)
        self._stage.sandbox.read()
        # Anew: the first slot may have been sent after others.
        verdict = self._judge.judge(self._intended())
        if self._fleet.kills < self._told.kills:
            missing = f"{self._fleet.kills} of {self._told.kills}: the machine is too busy, or nothing moves"
            verdict.violations.append(Violation("too few kills", "the run", missing))
        seconds = {"seconds": round(settled - began, 1), "settling": round(settled - struck, 1)}
        return Outcome(self._figures(verdict) | seconds, verdict, self._stage.folder)

    def _intended(self) -> list[Effect]:
        return effects(self._intentions, self._progress, self._slots())

    def _slots(self) -> list[datetime]:
        """To the last that is enqueued: no scheduler runs any more."""
        entry = self._stage.apps[TRIGGERED].board.entry("beat")
        self._stage.sandbox.read()
        last = None if entry is None else datetime.fromtimestamp(entry.last, UTC)
        return slots_between(self._stage.sandbox.accepted, last)

    def _is_settled(self, intended: list[Effect]) -> bool:
        if any(app.broker.backlog().pending for app in self._stage.apps.values()):
            return False
        return next(self._judge.unsettled(intended), None) is None

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        """What is not there in time is for the verdict to name."""
        deadline = time.monotonic() + _SETTLE_SECONDS + self._told.jobs / _JOBS_A_SECOND
        while not condition() and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            self._fleet.look()
            self._stage.sandbox.read()
            self._report()

    def _report(self) -> None:
        if time.monotonic() < self._said_at + _REPORT_SECONDS:
            return
        self._said_at = time.monotonic()
        accepted = len(self._stage.sandbox.accepted)
        self._say(f"  enqueued {self._progress.enqueued:>7,}  accepted {accepted:>7,}  killed {self._fleet.kills:>5,}")

    def _figures(self, verdict: Verdict) -> dict[str, Any]:
        progress, total = self._progress, verdict.total
        requests = self._stage.sandbox.call("GET", "state")
        return {
            **asdict(self._told),
            **asdict(total),
            "lanes": {name: asdict(figures) for name, figures in verdict.lanes.items()},
            "violations": len(verdict.violations),
            "killed": self._fleet.kills,
            "killed_at_crash_points": self._fleet.at_points,
            "processes": self._fleet.started,
            **{name.replace(" ", "_"): count for name, count in sorted(self._chaos.counts.items())},
            "enqueued_again": progress.repeats + sum(each.again for each in self._intentions),
            "conflicts": len(progress.conflicts),
            "events_redelivered": progress.redelivered,
            "events_forged": progress.forged,
            "requests": requests["requests"],
            "replays": requests["replays"],
            "latency_seconds": self._latencies(),
            "bound": 3 / max(1, total.intended),
        }

    def _latencies(self) -> dict[str, float]:
        """From the first attempt to enqueue a job to the acceptance of its email, whatever was in between."""
        waits = sorted(
            datetime.fromisoformat(entry["at"]).timestamp() - self._progress.enqueued_at[entry["subject"]]
            for entry in self._stage.sandbox.accepted
            if entry["subject"] in self._progress.enqueued_at
        )
        if not waits:
            return {}
        last = len(waits) - 1
        return {name: round(waits[int(at * last)], 2) for name, at in (("p50", 0.5), ("p99", 0.99), ("max", 1))}


def _show(outcome: Outcome) -> None:
    figures = outcome.figures
    columns = list(next(iter(figures["lanes"].values())))
    _tell(f"\n{'':12}" + "".join(f"{name.replace('_', ' '):>18}" for name in columns))
    for name, row in (figures["lanes"] | {"all": figures}).items():
        _tell(f"{name:12}" + "".join(f"{row[column]:>18,}" for column in columns))
    _tell("")
    for violation in outcome.verdict.violations[:_SHOWN]:
        _tell(f"{violation.kind}: {violation.subject}: {violation.detail}")
        _tell("".join(f"    {line}\n" for line in violation.lines))
    if outcome.kept:
        _tell(f"no duplicate and none lost in {figures['intended']:,}: a bound of {figures['bound']:.1e} at 95 %")
    else:
        _tell(f"{len(outcome.verdict.violations)} violations; all of them, and the logs, are kept in {outcome.folder}")
        _tell(f"the same faults again: --seed {figures['seed']}")
    _tell(json.dumps(figures))


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
