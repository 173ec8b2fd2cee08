"""A provider that answers as it is told: for what an adapter makes of answers."""

from __future__ import annotations

import json
from collections.abc import Mapping

from idem.clock import Deadline
from idem.providers.http import Answer, HttpClient, NoAnswer


def answer(status: int, body: object = b"", **headers: str) -> Answer:
    """An answer with these bytes, or with this as JSON; `retry_after` is the header `retry-after`."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, data)


class Answers(HttpClient):
    """Answers one exchange after the other, the last one for ever, and keeps what it was asked."""

    def __init__(self, *answers: Answer | NoAnswer) -> None:
        super().__init__()
        self._answers = list(answers)
        self.asked: list[tuple[str, Mapping[str, str], bytes]] = []

    def post(self, url: str, headers: Mapping[str, str], body: bytes, deadline: Deadline) -> Answer | NoAnswer:  # noqa: ARG002 - the same at any time
        self.asked.append((url, headers, body))
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def get(self, url: str, headers: Mapping[str, str], deadline: Deadline) -> Answer | NoAnswer:
        return self.post(url, headers, b"", deadline)
