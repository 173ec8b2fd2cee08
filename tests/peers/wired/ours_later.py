"""The command `idem` some time later: `python -m tests.peers.wired.ours_later SECONDS ARGS...`.

For look-ups that have to wait for three quarters of an hour. The provider's clock is put forward by as much.
"""

from __future__ import annotations

import sys
import time

from idem.clock import SystemClock
from workers.cli import run


def put_forward(seconds: float) -> None:
    """Let the wall clock of this process be ahead."""
    # On the class: every part that asks for the time makes a clock of its own. mypy counts the clock twice.
    SystemClock.now = lambda _clock: time.time() + seconds  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    put_forward(float(sys.argv[1]))
    sys.exit(run(sys.argv[2:]))
