"""What a user declared: which job is to run for which event."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dramatiq import Message

from idem.email import Email
from idem.errors import JobError
from idem.keys import event_key
from idem.protocol import InDoubt
from workers.jobs import job_message
from workers.webhooks.event import Event
from workers.webhooks.sources import SCHEMES, sender_of

Hook = Callable[[Event], Email | Sequence[Email] | None]


@dataclass(frozen=True, slots=True)
class _Wish:
    job: str
    in_doubt: InDoubt | None


class Declared:
    """The jobs of each source and type of event."""

    def __init__(self) -> None:
        self._wishes: dict[tuple[str, str], list[_Wish]] = {}

    @property
    def sources(self) -> set[str]:
        """Those that some job waits for."""
        return {source for source, _ in self._wishes}

    def add(self, source: str, types: Sequence[str], job: str, in_doubt: InDoubt | None) -> None:
        """Have a job run for these events; a type once more changes nothing."""
        for kind in dict.fromkeys(types):
            self._wishes.setdefault((source, kind), []).append(_Wish(job, in_doubt))

    def of(self, job: str) -> tuple[str, list[str]] | None:
        """The source and the types of events that a job runs for; None if it is no webhook's."""
        found = [place for place, wishes in self._wishes.items() if any(wish.job == job for wish in wishes)]
        return (found[0][0], [kind for _, kind in found]) if found else None

    def messages(self, event: Event) -> list[Message[None]]:
        """A message for each job that wants the event, under the key that makes a second delivery free."""
        made = []
        for wish in self._wishes.get((event.source, event.type), ()):
            key = event_key(event.source, event.id, wish.job)
            made.append(job_message(wish.job, [event.as_dict()], {}, key, wish.in_doubt)[0])
        return made


def check_declaration(source: str, types: Sequence[str], function: Callable[..., Any]) -> None:
    """Raise `JobError` for what could never run."""
    if sender_of(source) is None:
        raise JobError(f"no sender is named {source!r}; known: {', '.join(SCHEMES)}, each also as <sender>_<account>")
    if not types or not all(isinstance(kind, str) and kind for kind in types):
        raise JobError(f'write @app.webhook("{source}", "a.type.of.event"), with one type or more')
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise JobError("write @app.webhook(...) above a plain function; coroutines are not awaited")
    try:
        inspect.signature(function).bind(object())
    except TypeError as error:
        raise JobError(f"the function takes one argument, the event: {error}") from error


def as_job(hook: Hook) -> Callable[[dict[str, Any]], Email | Sequence[Email] | None]:
    """The job that reads the event from its message and calls the function with it."""

    def perform(event: dict[str, Any]) -> Email | Sequence[Email] | None:
        return hook(Event.from_dict(event))

    return perform
