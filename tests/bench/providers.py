"""What one fault does to one email of each provider, and how it ends: `python -m tests.bench.providers`.

A row is a fault, a column a provider; the acceptances are those of the sandbox's log. Ends with 1 if a promise breaks.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from idem.outcome import Accepted, NotSent, Outcome, Rejected, Unknown
from idem.protocol import State
from idem.providers.base import Contract, Memory
from tests.contracts.providers import KINDS, Lab, drive, lab, lands, only_patience_helps, strikes
from workers.sandbox.faults import Kind

_LETTERS: Final[dict[type[Outcome], str]] = {Accepted: "A", Rejected: "R", NotSent: "N", Unknown: "?"}
_FIRST, _WIDTH = 23, 13
_STATES: Final = {State.SENT: "sent", State.REJECTED: "rejected", State.IN_DOUBT: "in doubt"}


@dataclass(frozen=True)
class Cell:
    """One email that met one fault."""

    provider: str
    kind: Kind
    outcome: str
    acceptances: int
    state: State
    attempts: int

    @property
    def lost(self) -> bool:
        """Said to be sent, and never accepted."""
        return self.state is State.SENT and not self.acceptances

    @property
    def stray(self) -> bool:
        """Accepted, and said to be rejected; or neither ended nor in doubt."""
        return self.state not in _STATES or (self.state is State.REJECTED and self.acceptances > 0)

    def __str__(self) -> str:
        return f"{self.outcome} {self.acceptances} {_STATES.get(self.state, self.state)}"


def play(place: Lab, name: str, kind: Kind) -> Cell:
    """Send one email into the fault, and take it to its end."""
    dialect, email = place.dialect(name), place.email()
    place.order(name, kind)
    patient = only_patience_helps(dialect, kind)
    ending = drive(place, name, email, kind, lambda: place.await_acceptance(email) if patient else None)
    outcome = _LETTERS[type(ending.first)]
    return Cell(name, kind, outcome, place.acceptances(email), ending.record.state, ending.attempts)


def promise(contract: Contract) -> str:
    """The class of a provider, in a word."""
    if contract.memory is not Memory.NONE:
        return contract.memory.value
    return "searchable" if contract.lookup is not None else "neither"


def _mark(kind: Kind) -> str:
    return f"{kind}{'+' if kind.accepts else '~' if lands(kind) else ''}"


def _matrix(place: Lab, cells: Mapping[tuple[str, Kind], Cell]) -> Iterator[str]:
    names = place.providers
    yield " " * _FIRST + "".join(f"{name[: _WIDTH - 2]:{_WIDTH}}" for name in names)
    yield " " * _FIRST + "".join(f"{promise(place.dialect(name).contract)[: _WIDTH - 2]:{_WIDTH}}" for name in names)
    for kind in KINDS:
        row = (str(cells.get((name, kind), "-")) for name in names)
        yield f"{_mark(kind):{_FIRST}}" + "".join(f"{cell:{_WIDTH}}" for cell in row)


@dataclass(frozen=True)
class Totals:
    """The emails of all providers of one class."""

    name: str
    cells: Sequence[Cell]

    @property
    def doubts(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.state is State.IN_DOUBT]

    @property
    def duplicates(self) -> int:
        return sum(max(0, cell.acceptances - 1) for cell in self.cells)

    @property
    def kept(self) -> bool:
        """Whether the promise of the class was kept.

        What is in doubt, the log can tell: an acceptance of each request that went through, and of no other.
        """
        broken = self.duplicates or any(cell.lost or cell.stray for cell in self.cells)
        proved = all(cell.acceptances == lands(cell.kind) for cell in self.doubts)
        return not broken and proved and (self.name == "neither" or not self.doubts)

    def __str__(self) -> str:
        states = Counter(cell.state for cell in self.cells)
        numbers = (
            len(self.cells), states[State.SENT], states[State.REJECTED], len(self.doubts),
            sum(cell.acceptances for cell in self.doubts), self.duplicates,
            sum(cell.lost for cell in self.cells), sum(cell.stray for cell in self.cells),
        )  # fmt: skip
        return f"{self.name:{_FIRST}}" + "".join(f"{number:>{_WIDTH}}" for number in numbers)


def _totals(place: Lab, cells: Iterable[Cell]) -> list[Totals]:
    classes: dict[str, list[Cell]] = {}
    for cell in cells:
        classes.setdefault(promise(place.dialect(cell.provider).contract), []).append(cell)
    return [Totals(name, ours) for name, ours in classes.items()]


def main() -> int:
    """Print the matrix; 1 when a promise was broken."""
    began = time.perf_counter()
    with lab() as place:
        pairs = [(name, kind) for kind in KINDS for name in place.providers if strikes(place.dialect(name), kind)]
        cells = {(name, kind): play(place, name, kind) for name, kind in pairs}
        lines, totals = list(_matrix(place, cells)), _totals(place, cells.values())
    kept = all(one.kept for one in totals)
    heads = ("emails", "sent", "rejected", "in doubt", "accepted", "duplicates", "lost", "stray")
    seconds = time.perf_counter() - began
    report = [
        "the attempt that met the fault (A accepted, R rejected, N not sent, ? unknown) · acceptances · final state",
        "a fault with + strikes after the acceptance, one with ~ holds the request up",
        "",
        *lines,
        "",
        " " * _FIRST + "".join(f"{head:>{_WIDTH}}" for head in heads) + "  (accepted: of those in doubt)",
        *map(str, totals),
        "",
        f"{len(cells)} emails in {seconds:.0f} s: {'every' if kept else 'NOT every'} promise kept",
    ]
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in report)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
