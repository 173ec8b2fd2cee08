"""The gate in front of a provider: every worker asks it before it claims, and tells it what came of the call.

What all workers share is one cell of the store (`idem.pace`). A process looks at it about once a second while it works;
under a rate, it reserves what it will send in about a second with one write. So the gate costs a process some two
operations a second, however many emails it sends, and an email costs the ledger what it always did.

A provider that is paused, or whose circuit is open, costs no claim, no attempt and no write.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from idem import pace
from idem.clock import Clock
from idem.errors import LedgerError
from idem.outcome import Accepted, NotSent, Outcome, Rejected, Unknown
from idem.pace import Block, Pace, Rate, Stop
from idem.policy import MAX_DELAY_SECONDS
from idem.stores.base import Cells

_log = logging.getLogger("idem.worker")

#: A stop that another worker has written is seen this much later, at the latest.
LOOK_SECONDS = 1.0
#: How long a message is held at the gate before it goes back to the queue: what slows down the taking of messages that
#: could not be sent anyway.
PATIENCE_SECONDS = 1.0
#: How long a thread sleeps before it sees that the process is to stop.
_SLICE_SECONDS = 0.05
#: Refused credentials are this process's own: the others may have better ones. A person mends them, which takes longer.
_REFUSED_FACTOR = 5.0
#: A cell stays well below a write unit of 1 KB.
_DETAIL_CHARACTERS = 200

_Change = Callable[[Pace], Pace]


@dataclass(slots=True)
class _Turn:
    """A thread's permission to make one call; `outcome` is None as long as it has made none.

    `probe` is the stop by which it holds the others off, where the call is to find out whether the provider works.
    """

    token: float | None = None
    probe: Stop | None = None
    key: str = ""
    outcome: Outcome | None = None


class Gate:
    """One provider's gate in one process. Safe to share between threads; a turn belongs to the thread that entered.

    `probe_seconds` is how long a probe is waited for: longer than an attempt can take.
    """

    def __init__(  # noqa: PLR0913 - chance is decided by a test
        self,
        cells: Cells,
        provider: str,
        *,
        clock: Clock,
        probe_seconds: float,
        rate: Rate | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._cells = cells
        self._name = provider
        self._clock = clock
        self._probe_seconds = probe_seconds
        self._jitter = jitter
        self._turns = threading.local()
        self._stopped = False
        self._bucket = None if rate is None else _Bucket(rate)
        # What is below changes under the lock. Instants are the boot clock's, as the other one may be set.
        self._lock = threading.Lock()
        self._stored: bytes | None = None
        self._known = Pace()
        self._looked_at: float | None = None
        self._pause_until = 0.0
        self._circuit_until = 0.0
        self._owed: _Change | None = None
        self._spare_probe: Stop | None = None
        self._failed: set[str] = set()
        self._refused_until = 0.0
        self._refusals = 0

    def enter(self) -> float:
        """Wait for a turn, for `PATIENCE_SECONDS` at the most. 0.0 is a turn; else after how long to come again.

        Raises `LedgerError` when the cell cannot be read or written: nor could a claim.
        """
        self._turns.turn = None
        patience = self._clock.boot() + PATIENCE_SECONDS
        while True:
            wait = self._ask()
            if not wait:
                return 0.0
            left = patience - self._clock.boot()
            if left <= 0 or self._stopped:
                return self._spread(wait)
            self._sleep(min(wait, left))

    def heed(self, provider: str, key: str, outcome: Outcome) -> None:
        """Note what a call of this thread has come to, under which provider key. Does nothing else: see `leave`.

        What another provider said is none of this gate's business, and its turn is as if there had been no call. Of
        several outcomes in one turn, as of a request with many emails, the first that tells of trouble counts.
        """
        if provider != self._name:
            return
        turn = self._turn() or _Turn()
        if not isinstance(turn.outcome, NotSent | Unknown):
            turn.key, turn.outcome = key, outcome
        self._turns.turn = turn

    def leave(self) -> None:
        """End the turn: draw the conclusions from its outcome; a turn without a call is given back. Never raises.

        Apart from `heed`, so that an outcome is settled before anything else that could go wrong is done about it.
        """
        turn, self._turns.turn = self._turn(), None
        if turn is None:
            return
        if turn.outcome is None:
            self._give_back(turn)
            return
        match turn.outcome:
            case NotSent(credentials=True):
                self._refuse()
            case Accepted() | Rejected():
                self._succeed()
            case NotSent(limited=True, retry_after=seconds) | Unknown(limited=True, retry_after=seconds):
                self._stop_all(turn, seconds)
            case NotSent() | Unknown():
                self._fail(turn)

    def stop(self) -> None:
        """Let go of those who wait: the process is to stop."""
        self._stopped = True

    def look(self) -> Pace:
        """What the cell says now."""
        with self._lock:
            self._look()
            return self._known

    def _turn(self) -> _Turn | None:
        turn: _Turn | None = getattr(self._turns, "turn", None)
        return turn

    def _ask(self) -> float:
        """One try to get a turn: 0.0, or the seconds after which the next one is worth while."""
        boot = self._clock.boot()
        if self._looked_at is None or boot >= self._looked_at + LOOK_SECONDS:
            self._look_unless_another_does()
        stopped = max(self._pause_until, self._refused_until) - boot
        if stopped > 0:
            return stopped
        if self._known.strikes:
            return self._ask_for_probe()
        if self._bucket is None:
            self._turns.turn = _Turn()
            return 0.0
        return self._ask_for_token(self._bucket)

    def _look_unless_another_does(self) -> None:
        # The first look is waited for: without it, nothing is known.
        if self._lock.acquire(blocking=self._looked_at is None):
            try:
                if self._looked_at is None or self._clock.boot() >= self._looked_at + LOOK_SECONDS:
                    self._look()
            finally:
                self._lock.release()

    def _look(self) -> None:
        self._adopt(self._cells.read_cell(self._name))
        if self._owed is not None:
            self._change(self._owed)
            self._owed = None

    def _adopt(self, stored: bytes | None) -> None:
        self._stored = stored
        self._learn(pace.decode(stored))
        self._looked_at = self._clock.boot()

    def _learn(self, found: Pace) -> None:
        """Believe `found`: of a stop that is new, how long it lasts is decided now, once."""
        known, now, boot = self._known, self._clock.now(), self._clock.boot()
        ago = None if self._looked_at is None else boot - self._looked_at
        if found.pause != known.pause:
            self._pause_until = boot + pace.left_of(found.pause, now, ago)
        if found.circuit != known.circuit:
            self._circuit_until = boot + pace.left_of(found.circuit, now, ago)
        self._known = found
        self._report(known, found)

    def _change(self, change: _Change) -> bool:
        """Write what `change` makes of the pace; False when it leaves it as it is."""
        while True:
            changed = change(self._known)
            if changed == self._known:
                return False
            value = pace.encode(changed)
            refused = self._cells.swap_cell(self._name, self._stored, value)
            self._adopt(value if refused is None else refused or None)
            if refused is None:
                return True

    def _conclude(self, change: _Change) -> None:
        """Make a change that must not be lost; while the store does not answer, it holds for this process."""
        try:
            self._change(change)
        except LedgerError as error:
            _log.warning("%s: %s; what was learnt about the provider is shared later", self._name, error)
            self._owed = change
            self._learn(change(self._known))

    def _circuit_left(self) -> float:
        return self._circuit_until - self._clock.boot()

    def _ask_for_probe(self) -> float:
        """While the circuit is open, or another one probes, wait; then the first one to write it is the probe."""
        with self._lock:
            spare, self._spare_probe = self._spare_probe, None
            now = self._clock.now()
            if (spare is not None and spare == self._known.circuit and self._circuit_left() > 0) or self._change(
                lambda known: pace.probe(known, now, self._probe_seconds, left=self._circuit_left())
            ):
                self._turns.turn = _Turn(probe=self._known.circuit)
                return 0.0
            # A probe is answered soon; it is only for one who crashed that the others wait as long as it may take.
            longest = LOOK_SECONDS if self._known.probing else self._circuit_left()
            return max(_SLICE_SECONDS, min(self._circuit_left(), longest))

    def _ask_for_token(self, bucket: _Bucket) -> float:
        with self._lock:
            boot = self._clock.boot()
            wait = bucket.wait(boot)
            if wait is None:
                count = bucket.next_count(boot)
                now = self._clock.now()
                blocks: list[Block | float] = []

                def change(known: Pace) -> Pace:
                    blocks.append(block := pace.reserve(known, bucket.rate, count, now))
                    return block.pace if isinstance(block, Block) else known

                self._change(change)
                bucket.fill(blocks[-1], count, boot - now, boot)
                wait = bucket.wait(boot)
            if wait is None:
                # Rounded away, between two clocks: a token that was not good any more, or a wait that was nothing.
                return min(_SLICE_SECONDS, bucket.rate.spacing)
            if wait <= 0:
                self._turns.turn = _Turn(token=bucket.take())
            return max(wait, 0.0)

    def _give_back(self, turn: _Turn) -> None:
        with self._lock:
            if turn.token is not None and self._bucket is not None:
                self._bucket.give_back(turn.token)
            if turn.probe is not None:
                self._spare_probe = turn.probe

    def _succeed(self) -> None:
        # Looked at without the lock: this is what nearly every email comes to.
        if self._failed or self._refusals or self._known.strikes:
            with self._lock:
                self._failed.clear()
                self._refusals = 0
                self._conclude(pace.close)

    def _refuse(self) -> None:
        with self._lock:
            if self._refused_until <= self._clock.boot():
                seconds = pace.pause_after(self._refusals, self._jitter()) * _REFUSED_FACTOR
                self._refused_until = self._clock.boot() + seconds
                self._refusals += 1

    def _fail(self, turn: _Turn) -> None:
        """Of one email that fails again and again, one failure counts: it says little about the provider."""
        with self._lock:
            self._failed.add(turn.key)
            if turn.probe is not None or len(self._failed) >= pace.FAILURES:
                self._trip(turn)

    def _stop_all(self, turn: _Turn, seconds: float | None) -> None:
        """The provider said that it is too much for it. One that does not say for how long is tried by a probe."""
        now, detail = self._clock.now(), _detail(turn.outcome)
        with self._lock:
            if not seconds:
                self._trip(turn)
                return
            self._failed.clear()
            asked = seconds

            def change(known: Pace) -> Pace:
                return pace.limit(known, now, asked, detail, left=self._pause_until - self._clock.boot())

            self._conclude(change)

    def _trip(self, turn: _Turn) -> None:
        self._failed.clear()
        now, jitter, detail = self._clock.now(), self._jitter(), _detail(turn.outcome)

        def change(known: Pace) -> Pace:
            # An open circuit stays as it is; but for one that only this probe kept open.
            own = turn.probe is not None and known.circuit == turn.probe
            return pace.trip(known, now, detail, jitter=jitter, left=0.0 if own else self._circuit_left())

        self._conclude(change)

    def _spread(self, wait: float) -> float:
        """Not less than `wait`, and not the same for all who wait for one thing."""
        return min(MAX_DELAY_SECONDS, wait + self._jitter() * max(0.5, wait / 10))

    def _sleep(self, seconds: float) -> None:
        until = self._clock.boot() + seconds
        while not self._stopped and (left := until - self._clock.boot()) > 0:
            self._clock.sleep(min(left, _SLICE_SECONDS))

    def _report(self, known: Pace, found: Pace) -> None:
        """A line for each change, not for each email."""
        if found.pause is not None and found.pause != known.pause and self._pause_until > self._clock.boot():
            self._say(found.pause, "is paused")
        if found.circuit is not None and found.strikes > known.strikes:
            self._say(found.circuit, "fails: its circuit is open")
        if known.strikes and not found.strikes:
            _log.warning("%s works again: its circuit is closed", self._name)

    def _say(self, stop: Stop, what: str) -> None:
        _log.warning(
            "%s %s for %.3g s (%s); jobs stay in the queue", self._name, what, stop.seconds, stop.detail or "no reason"
        )


class _Bucket:
    """The tokens that this process has reserved and not used: a block, and those given back. By the boot clock."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._next = -math.inf
        self._left = 0
        self._returned: list[float] = []
        self._used = 0
        self._filled_at: float | None = None
        self._full_until = -math.inf

    def wait(self, boot: float) -> float | None:
        """Seconds until the next token is good, None when there is none and more may be asked for."""
        self._drop_late(boot)
        if self._returned:
            return self._returned[-1] - boot
        if self._left:
            return self._next - boot
        return self._full_until - boot if self._full_until > boot else None

    def take(self) -> float:
        """The next token."""
        self._used += 1
        if self._returned:
            return self._returned.pop()
        self._left -= 1
        self._next += self.rate.spacing
        return self._next - self.rate.spacing

    def give_back(self, token: float) -> None:
        """A token that was not used."""
        self._used -= 1
        self._returned.append(token)

    def next_count(self, boot: float) -> int:
        """How many to reserve: what this process has used in a second, going by the last block, and one more.

        So those who want more take their share from those who have more, until all blocks together last a second.
        """
        if self._filled_at is None:
            return 1
        used = self._used / max(boot - self._filled_at, pace.AHEAD_SECONDS / self.rate.largest_block)
        return min(self.rate.largest_block, round(used * pace.AHEAD_SECONDS) + 1)

    def fill(self, block: Block | float, count: int, boot_less_wall: float, boot: float) -> None:
        """Take over a reserved block; or remember when to ask again."""
        if not isinstance(block, Block):
            self._full_until = boot + block
            return
        # Never faster than the rate by our own count, however often other clocks have set the shared instant back.
        self._next = max(block.first + boot_less_wall, self._next)
        self._left = count
        self._used, self._filled_at = 0, boot

    def _drop_late(self, boot: float) -> None:
        self._returned = [token for token in self._returned if token + self.rate.slack >= boot]
        late = boot - self.rate.slack - self._next
        if self._left and late > 0:
            dropped = min(self._left, math.ceil(late * self.rate.per_second))
            self._left -= dropped
            self._next += dropped * self.rate.spacing


def _detail(outcome: Outcome | None) -> str:
    return "" if outcome is None or isinstance(outcome, Accepted) else outcome.detail[:_DETAIL_CHARACTERS]
