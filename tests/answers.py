"""Answers on the wire, without a wire: what a provider said, and a client that hears it every time."""

from __future__ import annotations

import json
from collections.abc import Mapping

from idem.clock import Deadline, SystemClock
from idem.outcome import Ground, Outcome, Rejected
from idem.providers import reading
from idem.providers.base import Contract
from idem.providers.http import Answer, HttpClient, NoAnswer

#: An outcome, its class, or the ground of a rejection: as much as a test wants to say.
Expected = Outcome | type[Outcome] | Ground


class Answers(HttpClient):
    """Gives one answer after the other, the last one for ever, and keeps what it was asked."""

    def __init__(self, *found: Answer | NoAnswer) -> None:
        super().__init__()
        self._found = list(found)
        self.asked: list[tuple[str, Mapping[str, str], bytes]] = []

    def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: Deadline) -> Answer | NoAnswer:  # noqa: ARG002 - the same answer at any time
        self.asked.append((url, headers, body))
        return self._found.pop(0) if len(self._found) > 1 else self._found[0]

    def get(self, url: str, headers: Mapping[str, str], deadline: Deadline) -> Answer | NoAnswer:
        """See `post`."""
        return self.post(url, headers, b"", deadline)


class OneAnswer(Answers):
    """Answers every exchange alike."""

    def __init__(self, found: Answer | NoAnswer) -> None:
        super().__init__(found)


class BriefClient(HttpClient):
    """Closes its connection after every exchange: nothing is left open, in whatever thread it was."""

    def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: Deadline) -> Answer | NoAnswer:
        try:
            return super().post(url, headers, body, deadline)
        finally:
            self._connection()[1].close()


def answer(status: int, body: object = b"", **headers: str) -> Answer:
    """An answer with JSON, or with these bytes; header names have underscores here."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, data)


def say(contract: Contract, status: int, body: object = b"", **headers: str) -> Outcome:
    """What the answer to a single send proves."""
    return reading.outcome(contract, answer(status, body, **headers))


def is_as(found: Outcome, expected: Expected) -> bool:
    """Whether an outcome is what a test says of it."""
    if isinstance(expected, Ground):
        return isinstance(found, Rejected) and found.ground is expected
    return isinstance(found, expected) if isinstance(expected, type) else found == expected


def soon() -> Deadline:
    """A deadline that does not matter."""
    return Deadline.after(SystemClock(), 10)
