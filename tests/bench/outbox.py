"""What an outbox keeps while relays and workers are killed, and what it costs.

python -m tests.bench.outbox [--transactions N] [--kills N] [--database sqlite|postgresql|mariadb]

The servers sync what they commit, as by their defaults. `kept` counts from the provider's log: committed orders, emails
accepted, and those that are duplicates, missing, or of a transaction that was rolled back. `relayed` is one relay on a
full outbox into the queue of `embedded://`, `add` one transaction after the other with an email and without.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.databases import KINDS, Kind, new_database
from tests.outbox import Shop, add_seconds, play
from tests.scene import open_scene

_EACH = 1_000


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def survive(kind: Kind, transactions: int, kills: int) -> bool:
    """Take orders while relays and workers are killed; whether the emails sent are the committed ones."""
    # The embedded server may still be writing its last lines when the directory goes.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, open_scene(Path(name)) as scene:
        shop = Shop(scene, new_database(kind, scene.folder, durable=True))
        try:
            scene.idem("init")
            outcome = play(shop, transactions=transactions, threads=2, kills=kills)
        finally:
            shop.close()
    _say(
        f"{kind:<11} kept   {transactions:,} transactions, committed {outcome.committed:,}, "
        f"accepted {outcome.accepted:,}, duplicates {outcome.duplicates}, missing {outcome.missing}, "
        f"uncommitted {outcome.uncommitted}, kills {outcome.kills}, {outcome.seconds:.0f} s"
    )
    return outcome.kept


def measure(kind: Kind) -> None:
    """What a transaction costs with an email, and how fast one relay is."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, open_scene(Path(name)) as scene:
        shop = Shop(scene, new_database(kind, scene.folder, durable=True))
        try:
            scene.idem("init")
            seconds = dict.fromkeys((False, True), 0.0)
            # In turn, as the machine may have better and worse seconds.
            for first in range(0, _EACH, 100):
                for with_email in seconds:
                    number = first + (_EACH if with_email else 0)
                    seconds[with_email] += add_seconds(shop, 100, with_email=with_email, first=number)
            begun = time.perf_counter()
            scene.idem("relay", "--until-empty")
            relayed = time.perf_counter() - begun
        finally:
            shop.close()
    without, beside = (seconds[each] / _EACH * 1_000 for each in (False, True))
    _say(f"{kind:<11} add    {beside:.2f} ms with, {without:.2f} ms without: {beside / without:.2f} times as much")
    _say(f"{kind:<11} relay  {_EACH / relayed:,.0f} rows/s, the process's start included ({relayed:.1f} s)")


def main() -> int:
    """Measure; exit status 1 when the promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transactions", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--database", choices=KINDS, action="append")
    options = parser.parse_args()
    kept = True
    for kind in options.database or KINDS:
        measure(kind)
        kept &= survive(kind, options.transactions, options.kills)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
