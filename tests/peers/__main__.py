"""The peers and we under the same faults: `python -m tests.peers [--jobs N] [--kills N] [--seed S] [--only NAME...]`.

Two workers of eight threads; one of them is killed by SIGKILL every few seconds. The provider is the sandbox, once as
one that keeps keys (Lettermint) and once as one that has none but can be searched (Postmark); of all sends, 9 % are
accepted without a usable answer and 8 % are not accepted. What is counted comes from the provider's log of acceptances.
Recovery, in another run: a worker is killed with as many requests in flight as it can have, up to `--in-flight`; those
that were not answered by then are timed, and no others. It has more processes where one cannot have that many.

Once nothing moves any more, ours goes on until look-ups have told what became of the emails in doubt. They need the
time in which Postmark shows an acceptance, three times over, which nobody waits for here: its clock is put forward.

Each peer is wired in `tests/peers/wired` as its documentation says, by somebody who wants it to do well; a client that
never repeats by itself, the lease and the back-off are the same for all. Whatever is wrong there is a bug of ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tests.peers.contestants import CONTESTANTS, Contestant, Place
from tests.peers.run import FAULTS, Doubt, Sandbox, Tally, endure, percentile, recover
from tests.scene import open_scene
from tests.valkey import DURABLE, Server

_PROVIDERS: Final = {"lettermint": "keyed", "postmark": "searchable"}
_PACKAGES: Final = ("dramatiq", "dramatiq-sqs", "aws-lambda-powertools", "exactly-once", "idemkit")
_HEAD: Final = (
    f"{'':<26}{'provider':<12}{'once':>7}{'duplicates':>12}{'lost':>7}{'never':>7}{'queued':>8}{'dead':>6}"
    f"{'kills':>7}{'seconds':>9}  undecided"
)


@contextmanager
def stage(kind: type[Contestant], provider: str) -> Iterator[tuple[Contestant, Sandbox]]:
    """An empty server, an empty sandbox and one contestant between them."""
    with tempfile.TemporaryDirectory() as name, open_scene(Path(name)) as scene:
        server = Server(Path(name, "valkey"), *DURABLE)
        server.start()
        try:
            place = Place(scene.sandbox, server.url, Path(name), provider)
            yield kind(place), Sandbox(scene.sandbox)
        finally:
            server.kill()


def _line(kind: type[Contestant], provider: str, tally: Tally) -> str:
    return (
        f"{kind.name:<26}{_PROVIDERS[provider]:<12}{tally.once:>7,}{tally.duplicates:>12,}{tally.lost:>7,}{tally.never:>7,}"
        f"{tally.waiting:>8,}{tally.dead:>6,}{tally.kills:>7,}{tally.seconds:>9.0f}  {_undecided(kind, tally)}"
    )


def _undecided(kind: type[Contestant], tally: Tally) -> str:
    if not kind.held_means:
        return "-"
    looked_up = "" if tally.doubt == tally.doubt_at_rest else f" after look-ups; before, {_doubt(tally.doubt_at_rest)}"
    return f"{_doubt(tally.doubt, kind.held_means)}{looked_up}"


def _doubt(doubt: Doubt, means: str = "") -> str:
    words = f"{doubt.keys:,} {means}".rstrip()
    return f"{words}, of them accepted {doubt.accepted:,}" if doubt.keys else words


def _recovery(values: Sequence[float | None], cap: float) -> str:
    shown = (f"p{part} {_seconds(percentile(values, part), cap)}" for part in (50, 99))
    return f"{'  '.join(shown)}  ({len(values)} in flight)"


def _seconds(value: float | None, cap: float) -> str:
    return f"> {cap:g} s" if value is None else f"{value:.1f} s"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--in-flight", type=int, default=32, help="requests in flight at the kill, as far as can be")
    parser.add_argument("--cap", type=float, default=90.0, help="how long to wait for a recovery, in seconds")
    parser.add_argument("--patience", type=float, default=45.0, help="seconds without a move that end a run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=[kind.name for kind in CONTESTANTS])
    parser.add_argument("--json", type=Path, help="a file for the figures")
    return parser.parse_args()


def main() -> None:
    """Run each, and print a line as soon as it is known."""
    given = _options()
    kinds = [kind for kind in CONTESTANTS if not given.only or kind.name in given.only]
    figures: list[dict[str, Any]] = []
    shown = ", ".join(f"{name} {rate:.0%}" for name, rate in FAULTS.items())
    _say(
        f"{given.jobs:,} jobs each, seed {given.seed}; {shown}; "
        + ", ".join(f"{one} {version(one)}" for one in _PACKAGES)
    )
    _say(_HEAD)
    for provider in _PROVIDERS:
        for kind in kinds:
            with stage(kind, provider) as (contestant, sandbox):
                chance = random.Random(given.seed)
                tally = endure(contestant, sandbox, given, chance)
            _say(_line(kind, provider, tally))
            figures.append({"name": kind.name, "provider": provider} | dataclasses.asdict(tally))
    _say("\nrecovery after kill -9: to the next attempt of each job whose request had no answer yet")
    for kind in kinds:
        with stage(kind, "lettermint") as (contestant, sandbox):
            values = recover(contestant, sandbox, in_flight=given.in_flight, cap=given.cap)
        _say(f"{kind.name:<26}{_recovery(values, given.cap)}")
        figures.append({"name": kind.name, "recovery": values})
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
