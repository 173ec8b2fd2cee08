"""What came of it: the provider's log against the intentions. Our own ledger is asked only what it admits to."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from idem import LedgerUnavailable, Record, State
from idem.keys import event_key, slot_key
from idem.protocol import Resolution
from tests.chaos.causes import Causes
from tests.chaos.intentions import Form, Intention, Progress
from tests.chaos.stage import HTTP_TIMEOUT_SECONDS, LANES, LEASE_SECONDS, TRIGGERED, Lane, Stage

_BEAT = "beat "
_LINES = 40
#: For so many violations: each search reads every log.
_TOLD = 20
#: What no process of ours may say: a mistake in the program.
_MISTAKE = re.compile(r"Traceback|a mistake of ours")


@dataclass(frozen=True, slots=True)
class Effect:
    """One email that was intended, and the records that may speak of it."""

    lane: Lane
    subject: str
    keys: tuple[str, ...]
    form: Form = Form.READY

    def may_doubt(self, record: Record) -> bool:
        """Whether it may stay in doubt: its provider cannot tell, and it was sent again, once, if that was chosen."""
        return not self.lane.certain and (self.form is not Form.RESEND or self.most(record) > 1)

    def most(self, record: Record | None) -> int:
        """How often it may be accepted: where its provider cannot tell, once more for each time that was chosen."""
        if record is None or self.lane.certain or self.form is not Form.RESEND:
            return 1
        return 1 + sum(evidence.kind == Resolution.RESEND for evidence in record.evidence)


@dataclass(frozen=True, slots=True)
class Violation:
    """The promise broken for one effect, with what to look at."""

    kind: str
    subject: str
    detail: str
    record: Any = None
    lines: tuple[str, ...] = ()


@dataclass(slots=True)
class LaneFigures:
    """One lane: `in_doubt_accepted` are those in doubt of which the provider's log has an acceptance.

    `resent` counts acceptances beyond the first where `in_doubt="resend"` chose them; `expired` are not lost.
    """

    intended: int = 0
    accepted: int = 0
    duplicates: int = 0
    lost: int = 0
    in_doubt: int = 0
    in_doubt_accepted: int = 0
    resent: int = 0
    expired: int = 0


@dataclass(slots=True)
class Verdict:
    """The figures, and every violation."""

    lanes: dict[str, LaneFigures]
    violations: list[Violation] = field(default_factory=list)

    @property
    def total(self) -> LaneFigures:
        columns = [asdict(figures) for figures in self.lanes.values()]
        return LaneFigures(**{name: sum(column[name] for column in columns) for name in columns[0]})


def effects(intentions: Iterable[Intention], progress: Progress, slots: Iterable[datetime]) -> list[Effect]:
    """Everything that was intended, whatever triggered it."""
    jobs = [Effect(each.lane, subject, keys, each.form) for each in intentions for subject, keys in each.effects()]
    events = [Effect(TRIGGERED, f"event {name}", (event_key("standard", name, "heard"),)) for name in progress.events]
    beats = [Effect(TRIGGERED, f"{_BEAT}{slot:%Y-%m-%dT%H:%M:%SZ}", (slot_key("beat", slot),)) for slot in slots]
    return jobs + events + beats


def slots_between(accepted: Iterable[dict[str, Any]], last: datetime | None) -> list[datetime]:
    """The slots that the schedule owes: from the first that was sent to the last that it was enqueued for.

    A scheduler that was killed before it noted the last one has enqueued that all the same.
    """
    sent = [entry["subject"].removeprefix(_BEAT) for entry in accepted if entry["subject"].startswith(_BEAT)]
    if not sent or last is None:
        return []
    first, latest = (datetime.fromisoformat(end).timestamp() for end in (min(sent), max(sent)))
    return [datetime.fromtimestamp(at, UTC) for at in range(int(first), int(max(latest, last.timestamp())) + 1)]


class Judge:
    """Compares, one effect at a time."""

    def __init__(self, stage: Stage, progress: Progress) -> None:
        self._stage = stage
        self._progress = progress
        self._told = 0

    def unsettled(self, intended: Iterable[Effect]) -> Iterator[Effect]:
        """What was not accepted so far and has no end yet either, or was and still has to be looked up."""
        accepted = {entry["subject"] for entry in self._stage.sandbox.accepted}
        for effect in intended:
            if effect.subject not in accepted or effect.lane.searched or effect.form is Form.RESEND:
                record = self.record(effect)
                if record is None or not _is_end(effect, record):
                    yield effect

    def record(self, effect: Effect) -> Record | None:
        """The record that speaks of it."""
        ledger = self._stage.apps[effect.lane].ledger
        try:
            return next(filter(None, map(ledger.read, effect.keys)), None)
        except LedgerUnavailable:
            return None

    def judge(self, intended: list[Effect]) -> Verdict:
        verdict = Verdict({lane.name: LaneFigures() for lane in LANES})
        log = Counter(entry["subject"] for entry in self._stage.sandbox.accepted)
        causes = self._causes()
        for effect in intended:
            accepted, record = log.pop(effect.subject, 0), self.record(effect)
            problem = count(verdict.lanes[effect.lane.name], effect, accepted, record, causes)
            if problem is not None:
                verdict.violations.append(self._violation(*problem, effect.subject, record))
        for subject, times in log.items():
            kind = "conflict accepted" if subject.startswith("conflict ") else "forged"
            verdict.violations.append(self._violation(kind, f"accepted {times} times, intended never", subject, None))
        verdict.violations += self._buried()
        verdict.violations += self._mistakes()
        return verdict

    def _causes(self) -> Causes:
        """The logs of the providers without keys: what is in doubt anywhere else needs no cause to be a violation."""
        providers = {lane.provider for lane in LANES if not lane.certain}
        accepted, requests = self._stage.sandbox.accepted, self._stage.sandbox.call("GET", "requests")
        return Causes(
            accepted=[entry for entry in accepted if entry["provider"] in providers],
            requests=[request for request in requests if request["provider"] in providers],
            incidents=self._stage.incidents,
            lease_seconds=LEASE_SECONDS,
            timeout_seconds=HTTP_TIMEOUT_SECONDS,
        )

    def _buried(self) -> Iterator[Violation]:
        """Dead letters there are for conflicts, and for each of them, and no others."""
        buried = defaultdict(set)
        for lane, app in self._stage.apps.items():
            for letter in app.broker.dead_letters():
                buried[lane, letter.key].add(letter.reason)
        for lane, key in self._progress.conflicts - buried.keys():
            yield self._violation("conflict not buried", f"lane {lane.name}", key, None)
        for (lane, found), reasons in buried.items():
            if (lane, found) not in self._progress.conflicts:
                yield self._violation("buried", f"lane {lane.name}: {', '.join(reasons)}", found or "", None)

    def _mistakes(self) -> Iterator[Violation]:
        if self._progress.forged_answers - {401}:
            yield Violation("forged", "webhooks", f"answered by {sorted(self._progress.forged_answers)}")
        for log in sorted(self._stage.logs.glob("*.log")):
            text = log.read_text(errors="replace")
            if found := _MISTAKE.search(text):
                yield Violation("mistake", log.name, text[max(0, found.start() - 300) : found.start() + 1_500])

    def _violation(self, kind: str, detail: str, subject: str, record: Record | None) -> Violation:
        """With the lines of the logs that name the key: their file names say which process it was."""
        self._told += 1
        lines = tuple(self._lines(subject, record)) if self._told <= _TOLD else ()
        return Violation(kind, subject, detail, msgspec.to_builtins(record), lines)

    def _lines(self, subject: str, record: Record | None) -> list[str]:
        names = {subject} | ({record.key} if record is not None else set())
        pattern = re.compile("|".join(rf"{re.escape(name)}(?![\w/-])" for name in names))
        found = [
            f"{log.name}: {line}"
            for log in sorted(self._stage.logs.glob("*.log"))
            for line in log.read_text(errors="replace").splitlines()
            if pattern.search(line)
        ]
        return found[-_LINES:]


def _is_end(effect: Effect, record: Record) -> bool:
    if record.state is State.IN_DOUBT:
        return effect.may_doubt(record)
    return record.state is State.SENT or (record.state is State.EXPIRED and effect.form is Form.EXPIRING)


def count(
    figures: LaneFigures, effect: Effect, accepted: int, record: Record | None, causes: Causes
) -> tuple[str, str] | None:
    """Take an effect into the figures; the violation, if it is one."""
    figures.intended += 1
    figures.accepted += accepted > 0
    state = "absent" if record is None else record.state.value
    seen = f"accepted {accepted} times, its record is {state}"
    if accepted > (most := effect.most(record)):
        figures.duplicates += accepted - most
        return "duplicate", seen
    figures.resent += max(0, accepted - 1)
    if record is not None and record.state is State.IN_DOUBT:
        figures.in_doubt += 1
        figures.in_doubt_accepted += accepted > 0
        problem = _doubt(effect, record, causes)
    elif record is not None and record.state is State.EXPIRED and effect.form is Form.EXPIRING:
        figures.expired += 1
        problem = "expired, and accepted" if accepted else None
    elif not accepted:
        figures.lost += 1
        problem = "lost"
    else:
        problem = None if record is not None and record.state is State.SENT else "unsettled"
    return None if problem is None else (problem, seen)


def _doubt(effect: Effect, record: Record, causes: Causes) -> str | None:
    """What is wrong with a doubt, if anything is."""
    if not effect.may_doubt(record):
        return "in doubt"
    caused = causes.of(effect.lane.name, effect.subject, record) is not None
    return None if caused else "in doubt without a cause"


def write_violations(path: Path, violations: list[Violation]) -> None:
    """All of them, one JSON object a line."""
    lines = [msgspec.json.encode(asdict(violation), enc_hook=str).decode() for violation in violations]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
