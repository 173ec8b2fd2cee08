"""Two schedulers and two workers, killed at random, while the clocks change: every slot is one email, none is missing.

python -m tests.chaos.slots [--seconds N] [--seed N]

The schedulers' clock goes through 2026 from 1 March to 8 November, over both changes of Amsterdam's and of New York's
clocks. What is expected is found by looking at every minute between, in `zoneinfo`, with nothing of ours; what was sent
is in the sandbox's log.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from tests.scene import Scene, open_scene
from workers.process import start_process

_ROOT = Path(__file__).parent.parent.parent
_ZONES = ("Europe/Amsterdam", "America/New_York")
_FIRST = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
_LAST = int(datetime(2026, 11, 8, tzinfo=UTC).timestamp())
#: Of each zone: hours that are skipped or come twice, by name and by the clock. Sundays, on which the clocks change.
_APP = """
from idem import Email
from workers import App

app = App.from_env()

for zone in {zones!r}:
    for name, cron in {rules!r}.items():
        @app.schedule(cron, tz=zone, catch_up="all", name=f"{{name}} {{zone}}")
        def report(slot):
            subject = f"{{slot.schedule}} {{slot.instant:%Y-%m-%dT%H:%MZ}}"
            return Email(from_="a@example.com", to="b@example.com", subject=subject, text="built once")
"""
_RULES = {"at 02:30": "30 2 * * SUN", "at 01:30": "30 1 * * SUN", "by the clock": "*/30 1-3 * * SUN"}
_SUNDAY = 6


@dataclass(frozen=True)
class Result:
    """What a run came to; a slot is a schedule's name and an instant."""

    slots: int
    missing: int
    doubled: int
    unknown: int
    kills: int
    seconds: float

    @property
    def is_kept(self) -> bool:
        """Whether each slot was one email, and there was a reason that it might not have been."""
        return self.slots > 0 and self.kills > 0 and not (self.missing or self.doubled or self.unknown)


def expected() -> Counter[str]:
    """The subject of each slot, by what clocks on the wall show at each minute."""
    return Counter(subject for zone in _ZONES for subject in _of_zone(ZoneInfo(zone)))


def on_day(subjects: Iterable[str], name: str, zone: str, day: str) -> list[str]:
    """Those of a schedule on one day in its zone."""
    return [
        subject
        for subject in subjects
        if subject.startswith(f"{name} {zone} ")
        and f"{datetime.fromisoformat(subject.rpartition(' ')[2]).astimezone(ZoneInfo(zone)):%Y-%m-%d}" == day
    ]


def _of_zone(zone: ZoneInfo) -> Iterator[str]:
    minutes: dict[date, list[tuple[int, datetime]]] = {}
    for at in range(_FIRST + 60, _LAST + 60, 60):
        local = datetime.fromtimestamp(at, zone)
        if local.weekday() == _SUNDAY:
            minutes.setdefault(local.date(), []).append((at, local))
    for of_day in minutes.values():
        for at, local in of_day:
            if local.hour in {1, 2, 3} and local.minute % 30 == 0:
                yield _subject("by the clock", zone, at)
        for name, named in (("at 02:30", (2, 30)), ("at 01:30", (1, 30))):
            # The first minute that shows it; where it is skipped, the first one after the gap.
            found = next((at for at, local in of_day if (local.hour, local.minute) >= named), None)
            if found is not None and (of_day[0][1].hour, of_day[0][1].minute) <= named:
                yield _subject(name, zone, found)


def _subject(name: str, zone: ZoneInfo, at: int) -> str:
    return f"{name} {zone.key} {datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%MZ}"


def run(folder: Path, seconds: float, seed: int, say: Callable[[str], None] = lambda _: None) -> Result:
    """A year's slots in that many seconds, and as long as the workers then need."""
    with open_scene(folder) as scene:
        return _run(scene, seconds, random.Random(seed), say)


def _run(scene: Scene, seconds: float, chance: random.Random, say: Callable[[str], None]) -> Result:
    (scene.folder / "year.py").write_text(_APP.format(zones=_ZONES, rules=_RULES), encoding="utf-8")
    scene.idem("init")
    begun, wanted, started = scene.folder / "begun", expected(), time.monotonic()
    last = _last_slots(wanted)
    with _processes(scene, seconds, begun) as processes:
        _wait_for(lambda: _all_reached(scene, dict.fromkeys(last, "2026")))
        begun.touch()
        kills = _kill(processes, chance, time.monotonic() + seconds)
        say(f"killed {kills} processes; {scene.accepted().total():,} emails so far")
        _wait_for(lambda: _all_reached(scene, last))
    scene.idem("worker", "--app", "year:app", "--until-empty")
    accepted = scene.accepted()
    return Result(
        slots=wanted.total(),
        missing=(wanted - accepted).total(),
        doubled=sum(number - 1 for number in accepted.values()),
        unknown=len(accepted.keys() - wanted.keys()),
        kills=kills,
        seconds=time.monotonic() - started,
    )


def _last_slots(wanted: Counter[str]) -> dict[str, str]:
    """The last slot of every schedule."""
    last: dict[str, str] = {}
    for name, _, at in (subject.rpartition(" ") for subject in wanted):
        last[name] = max(last.get(name, ""), at)
    return last


class _Process:
    """A process that is started again when it is killed."""

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self._start = start
        self.process = start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = self._start()


@contextmanager
def _processes(scene: Scene, seconds: float, begun: Path) -> Iterator[list[_Process]]:
    quick = [sys.executable, "-m", "tests.chaos.quick_scheduler", "year:app"]
    clock = [str(_FIRST), str(_LAST), str(seconds), str(begun)]
    environ = scene.environ | {"PYTHONPATH": str(_ROOT)}

    def scheduler() -> subprocess.Popen[bytes]:
        return start_process([*quick, *clock], cwd=scene.folder, env=environ)

    def worker() -> subprocess.Popen[bytes]:
        return scene.start("worker", "--threads", "4", "--app", "year:app")

    running = [_Process(start) for start in (scheduler, scheduler, worker, worker)]
    try:
        yield running
    finally:
        for each in running:
            each.process.terminate()
            each.process.wait()


def _kill(processes: list[_Process], chance: random.Random, until: float) -> int:
    """One or several at a time, of each kind or both."""
    kills = 0
    while time.monotonic() < until:
        time.sleep(chance.uniform(0.5, 4.0))
        for each in chance.sample(processes, chance.choice([1, 1, 1, 2, 4])):
            each.kill()
            kills += 1
    return kills


def _all_reached(scene: Scene, instants: Mapping[str, str]) -> bool:
    """Whether the slots of every schedule are enqueued up to its instant."""
    shown = json.loads(scene.idem("schedule", "list", "--json", "--app", "year:app"))
    # Both are in ISO 8601, in UTC, so that their texts compare as they do; ours are without seconds.
    return all(each["last"] is not None and each["last"][:16] >= instants[each["name"]][:16] for each in shown)


def _wait_for(condition: Callable[[], bool], patience: timedelta = timedelta(minutes=5)) -> None:
    until = time.monotonic() + patience.total_seconds()
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("the slots are not enqueued")


def main() -> int:
    """Print what a run came to; status 1 when a slot was missing, or was more than one email."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    sys.stdout.write(f"seed {chosen.seed}, {chosen.seconds:g} s\n")
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), chosen.seconds, chosen.seed, lambda line: print(line, flush=True))  # noqa: T201
    sys.stdout.write(f"{result}\n")
    return int(not result.is_kept)


if __name__ == "__main__":
    sys.exit(main())
