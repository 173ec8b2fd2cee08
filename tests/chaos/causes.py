"""Why an email at a provider without keys may be in doubt: what befell its attempt, as those who did it wrote down.

Without a cause, the doubt is a mistake of ours: whoever reads every answer as none loses nothing and sends nothing
twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from idem import Record
from idem.protocol import Attempt

#: Clocks are read, and log entries are made, some time before or after what they speak of.
_SLACK_SECONDS = 0.5
#: What makes a request slow, and nothing else.
_PAUSE = "delay"


@dataclass(frozen=True, slots=True)
class Incident:
    """What was done to the processes of one lane, or to what all of them need (`lane` is None), in Unix seconds."""

    what: str
    since: float
    until: float
    lane: str | None = None


class Causes:
    """Finds the cause of a doubt in the lane of one provider, by the sandbox's two logs and the incidents."""

    def __init__(
        self,
        *,
        accepted: Iterable[Mapping[str, Any]],
        requests: Iterable[Mapping[str, Any]],
        incidents: Iterable[Incident],
        lease_seconds: float,
        timeout_seconds: float,
    ) -> None:
        self._lease_seconds = lease_seconds
        self._timeout_seconds = timeout_seconds
        self._incidents = list(incidents)
        struck = [one for one in requests if one["fault"] not in {None, _PAUSE}]
        self._by_id = {one["id"]: str(one["fault"]) for one in struck if one["id"] is not None}
        #: Of a request that was not accepted, a provider without keys notes nothing that would name its email.
        self._nameless = [(_instant(one["at"]), str(one["fault"])) for one in struck if one["id"] is None]
        self._accepted: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for entry in accepted:
            self._accepted[entry["subject"]].append((_instant(entry["at"]), entry["id"]))

    def of(self, lane: str, subject: str, record: Record) -> str | None:
        """What made the record's last attempt end in doubt; None if nothing did."""
        if not record.history:
            return None
        attempt = record.history[-1]
        if attempt.ended_at is None:
            return self._incident(lane, attempt)
        if attempt.ended_at >= attempt.started_at + self._timeout_seconds:
            return "no answer in time"
        return self._fault(self._accepted.get(subject, ()), record.attempts, attempt.started_at, attempt.ended_at)

    def _incident(self, lane: str, attempt: Attempt) -> str | None:
        """Of an attempt that nobody could settle while its lease went on."""
        since, until = attempt.started_at - _SLACK_SECONDS, attempt.started_at + self._lease_seconds + _SLACK_SECONDS
        befell = (one for one in self._incidents if one.lane in {None, lane} and _meet(one, since, until))
        return next((one.what for one in befell), None)

    def _fault(self, accepted: Sequence[tuple[float, str]], attempts: int, since: float, until: float) -> str | None:
        """Of the last attempt, settled by the worker that made it. What was accepted before is an earlier one's."""
        since -= _SLACK_SECONDS
        struck = next((self._by_id[entry] for at, entry in accepted if at >= since and entry in self._by_id), None)
        if struck is not None or len(accepted) >= attempts:
            return struck
        return next((fault for at, fault in self._nameless if since <= at <= until), None)


def _meet(incident: Incident, since: float, until: float) -> bool:
    return incident.since <= until and since <= incident.until


def _instant(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
