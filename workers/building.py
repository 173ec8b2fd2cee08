"""Jobs that take long to build their email: their claims are renewed, so that nobody else begins to build it.

One thread for all that a process builds. It is there while there is something to renew, and dies with the process: what
a killed worker was building, another one begins to when the lease is over. A build that is over within a third of the
lease costs no write. A renewal says who may build, never who may send: the freeze is a conditional write of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from idem.clock import Clock
from idem.errors import LedgerError
from idem.ledger import Claim, Lost
from idem.send import Building

_log = logging.getLogger("idem.worker")


@dataclass(slots=True)
class _Turn:
    """When a claim is to be renewed next, and until when at all; by the boot clock."""

    due: float
    began: float
    until: float


class Builds:
    """The builds of this process that are under way. Safe to share between threads.

    `build_seconds` is how long one may take where its job says nothing. It is not stopped then, as no thread can be;
    but its claim ends, and with that what keeps others from building the same.
    """

    def __init__(
        self, renew: Callable[[Claim], Claim | Lost], *, clock: Clock, lease_seconds: float, build_seconds: float
    ) -> None:
        self._renew = renew
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._build_seconds = build_seconds
        self._turns: dict[Building, _Turn] = {}
        self._lock = threading.Lock()
        self._running = False

    @contextmanager
    def hold(self, building: Building) -> Iterator[None]:
        """Renew the claim of a build for as long as the context lasts."""
        seconds, now = building.source.timeout_seconds, self._clock.boot()
        until = now + (self._build_seconds if seconds is None else seconds)
        with self._lock:
            if not self._running:
                threading.Thread(target=self._keep, name="idem-builds", daemon=True).start()
                self._running = True
            self._turns[building] = _Turn(now + self._lease_seconds / 3, now, until)
        try:
            yield
        finally:
            with self._lock:
                self._turns.pop(building, None)

    def renew_due(self) -> None:
        """Renew every claim whose turn it is."""
        now = self._clock.boot()
        with self._lock:
            due = [(building, turn) for building, turn in self._turns.items() if turn.due <= now]
        for building, turn in due:
            if now >= turn.until:
                self._give_up(building, turn)
            else:
                self._take_turn(building, turn)

    def _keep(self) -> None:
        while (seconds := self._pause()) is not None:
            # What begins meanwhile is due later than this ends, so that nobody has to wake us.
            self._clock.sleep(seconds)
            self.renew_due()

    def _pause(self) -> float | None:
        """How long to wait for the next turn; None when there is none, and the thread ends."""
        with self._lock:
            self._running = bool(self._turns)
            if not self._turns:
                return None
            return max(0.0, min(turn.due for turn in self._turns.values()) - self._clock.boot())

    def _take_turn(self, building: Building, turn: _Turn) -> None:
        claim, key = building.claim, building.source.key
        # While the ledger does not answer, asked more often: the lease goes on to run.
        turn.due = self._clock.boot() + self._lease_seconds / 12
        try:
            renewed = self._renew(claim)
        except LedgerError as error:
            _log.warning("key %s: %s; another worker may begin to build its email, too", key, error)
            return
        except Exception as error:
            _log.error("a mistake of ours: the claim on key %s was not renewed (%s)", key, type(error).__name__)
            return
        if isinstance(renewed, Claim):
            building.claim = renewed
            turn.due = self._clock.boot() + self._lease_seconds / 3
        else:
            self._lose(building, renewed)

    def _lose(self, building: Building, lost: Lost) -> None:
        with self._lock:
            under_way = self._turns.pop(building, None) is not None
        # What is over meanwhile has been frozen or settled: that is what stood in the way of the renewal.
        if under_way:
            building.lost = lost
            _log.warning("key %s is another worker's by now; what is being built here is dropped", building.source.key)

    def _give_up(self, building: Building, turn: _Turn) -> None:
        with self._lock:
            under_way = self._turns.pop(building, None) is not None
        if under_way:
            _log.error(
                "key %s: job %s has not returned for %.0f s; its claim is not renewed any more. If it may take that "
                "long, give it timeout=, or raise IDEM_BUILD_SECONDS",
                building.source.key,
                building.source.job,
                self._clock.boot() - turn.began,
            )
