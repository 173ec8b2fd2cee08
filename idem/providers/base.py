"""The seam of a provider: a `Contract` of documented facts, and a call that speaks only in outcomes.

A contract is data. The adapter reads answers by its table, the sandbox keeps its rules, the README's table is made
from it, and the tests take from it what they expect; a fact is written down once.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Final, Literal, Protocol, runtime_checkable

from idem.clock import Deadline
from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.outcome import Accepted, Outcome, Rejected


class Memory(StrEnum):
    """What a provider does with a key that it has seen before."""

    REPLAYS = "replays"
    """Answers as it did the first time; another body under the key is refused."""
    REPLAYS_ANY_BODY = "replays any body"
    """Answers as it did the first time, whatever the body: a changed email under an old key is dropped in silence."""
    REFUSES = "refuses"
    """Refuses it, without saying what became of the first request: the refusal is the proof of acceptance."""
    NONE = "none"
    """It has no keys: the same request again is a second email."""


class Place(StrEnum):
    """Where in a request the key goes."""

    HEADER = "HTTP header"
    BODY = "field of the body"
    MESSAGE_HEADER = "header of the message"


class Keeps(StrEnum):
    """What a key stays bound to, beside an acceptance."""

    REFUSALS = "4xx"
    """A refusal of the email is answered again, even when its cause is mended: only a new key helps."""
    FAILURES = "5xx"
    """So is a failure: the same key can never succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """How a provider takes a key. `name` is that of the header, or the path of the field (`headers.idempotencyKey`).

    `window_seconds` is how long it remembers one: the shortest that any of its pages gives. `characters` is a regular
    expression for one character. The keys that we derive satisfy every provider's limits; the sandbox enforces these.
    """

    place: Place
    name: str
    window_seconds: float
    shortest: int = 1
    longest: int = 255
    characters: str = r"[ -~]"
    keeps: frozenset[Keeps] = frozenset()
    replay_marker: tuple[str, str] | None = None

    def admits(self, key: str) -> bool:
        """Whether the provider would take this key."""
        return re.fullmatch(f"(?:{self.characters}){{{self.shortest},{self.longest}}}", key) is not None


class Meaning(StrEnum):
    """What an answer says, in the protocol's terms; `idem.providers.reading` turns it into an outcome."""

    ACCEPTED = "accepted"
    KNOWN = "the key was accepted before"
    CONFLICT = "the key stands for another body"
    IN_PROGRESS = "a request under the key is running"
    INVALID = "the email is refused"
    FORBIDDEN = "refused before the key was looked at"
    CREDENTIALS = "the credentials are refused"
    NOT_NOW = "nothing was done, and it may pass"
    UNCLEAR = "it may have been accepted"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of an outcome table: an answer with one of `statuses` and, where given, this code and these words.

    `code` and `words` are regular expressions, for the whole of the error's code and anywhere in its message.
    `pause_seconds` is how long to wait where such an answer does not say it: a quota does not pass in seconds.
    """

    statuses: Container[int]
    meaning: Meaning
    code: str | None = None
    words: str | None = None
    pause_seconds: float | None = None

    def matches(self, status: int, code: str, message: str) -> bool:
        """Whether the line is about such an answer."""
        if status not in self.statuses:
            return False
        if self.code is not None and not re.fullmatch(self.code, code, re.IGNORECASE):
            return False
        return self.words is None or re.search(self.words, message, re.IGNORECASE | re.DOTALL) is not None


#: What any JSON API over HTTP means by these, where its own table says nothing else: wrong credentials (401), out of
#: credit (402), forbidden (403), a base URL that is not this API's (404, 405), a body that is refused, a rate limit.
#: Everything else (a 408, a 5xx, a status that nobody documented) proves nothing.
USUAL: Final = (
    Row(range(200, 300), Meaning.ACCEPTED),
    Row({401}, Meaning.CREDENTIALS),
    Row({403}, Meaning.FORBIDDEN),
    Row({402, 404, 405, 429}, Meaning.NOT_NOW),
    Row({400, 413, 415, 422}, Meaning.INVALID),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Where an answer has what: paths of names through its JSON (`data.id`), or `header:NAME`; the first found counts.

    `retry_after` is looked for beside the header of that name, in seconds.
    """

    message_id: tuple[str, ...]
    code: tuple[str, ...] = ()
    message: tuple[str, ...] = ("message",)
    retry_after: tuple[str, ...] = ()


class BatchKeys(StrEnum):
    """What a key stands for in a request with many emails."""

    EACH = "each email"
    REQUEST = "the whole request"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A request that carries many emails, at most `most`; without attachments, where it says so."""

    path: str
    most: int
    keys: BatchKeys
    attachments: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """How an email is found again by the derived key that it carries, as `handle` says.

    An email that was accepted shows up within `lag_seconds`, and can be found for `horizon_seconds`.
    """

    handle: str
    source: str
    lag_seconds: float
    horizon_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """The feed that tells what became of an accepted email; its events bring the derived key back, as `handle` says.

    `added_to` is what of an email the key is added to; None where the adapter puts it into every request.
    """

    handle: str
    source: str
    added_to: Literal["metadata", "tags"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one email may have; None where nothing is documented, 0 where it has no place.

    `recipients` counts cc and bcc too, `to` does not; `bytes` is the size of the whole request.
    """

    recipients: int | None = None
    to: int | None = None
    tags: int | None = None
    metadata: int | None = None
    reply_to: int | None = None
    attachments: int | None = None
    bytes: int | None = None
    empty_subject: bool = True

    def check(self, email: Email, title: str) -> None:
        """Raise `UnsupportedEmail` for the first limit that the email is over."""
        recipients = len(email.to) + len(email.cc) + len(email.bcc)
        for field, has, most in (
            ("to", recipients, self.recipients),
            ("to", len(email.to), self.to),
            ("tags", len(email.tags), self.tags),
            ("metadata", len(email.metadata), self.metadata),
            ("reply_to", len(email.reply_to), self.reply_to),
            ("attachments", len(email.attachments), self.attachments),
        ):
            if most is not None and has > most:
                takes = f"at most {most}" if most else "none"
                raise UnsupportedEmail(field, f"{title} takes {takes}, this email has {has}")
        if not self.empty_subject and not email.subject:
            raise UnsupportedEmail("subject", f"is empty, and {title} requires one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What a provider documents, dated and linked. `sources` begin with the page on repeated requests.

    `key` is None exactly where `memory` is NONE. `table` decides about answers, its first matching row; one that no row
    matches is UNCLEAR. `contradictions` says where the provider's own pages differ, and what was made of it.
    `emails_per_second` is a documented limit.
    """

    name: str
    title: str
    sources: tuple[str, ...]
    checked: date
    base_url: str
    memory: Memory
    key: Key | None
    table: tuple[Row, ...]
    reply: Reply
    limits: Limits = Limits()
    batch: Batch | None = None
    lookup: Lookup | None = None
    events: Events | None = None
    needs_token: bool = True
    emails_per_second: float | None = None
    contradictions: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The page on repeated requests."""
        return self.sources[0]

    @property
    def window_seconds(self) -> float | None:
        """How long a key is remembered; None without keys."""
        return self.key.window_seconds if self.key is not None else None

    def row(self, status: int, code: str, message: str) -> Row:
        """The line of the table that is about such an answer; one that says UNCLEAR where there is none."""
        for row in self.table:
            if row.matches(status, code, message):
                return row
        return Row({status}, Meaning.UNCLEAR)

    def meaning(self, status: int, code: str, message: str) -> Meaning:
        """What an answer says."""
        return self.row(status, code, message).meaning


@dataclass(frozen=True, slots=True)
class Found:
    """The provider has accepted an email with this key."""

    message_id: str | None


@dataclass(frozen=True, slots=True)
class Missing:
    """The provider shows none with this key, so far."""


@dataclass(frozen=True, slots=True)
class CannotTell:
    """The look-up itself failed."""

    detail: str


Sighting = Found | Missing | CannotTell


@dataclass(frozen=True, slots=True)
class Batched:
    """What became of a request with many emails: of the request, and of each email in it once that was accepted."""

    whole: Outcome
    each: tuple[Accepted | Rejected, ...] = ()


class Provider(Protocol):
    """Where emails are accepted."""

    @property
    def contract(self) -> Contract:
        """The documented facts that the protocol and the sandbox go by."""
        ...

    def check(self, email: Email) -> None:
        """Raise `UnsupportedEmail` for what this provider cannot express, so that nothing is dropped in silence."""
        ...

    def send(self, email: Email, provider_key: str, deadline: Deadline) -> Outcome:
        """Make one attempt, the whole of it before `deadline`; never retries, never raises for what the wire does."""
        ...


@runtime_checkable
class Searchable(Provider, Protocol):
    """A provider whose contract has a `lookup`."""

    def find(self, provider_key: str, since: float, deadline: Deadline) -> Sighting:
        """Look for the email that carries this key and was sent after `since` (Unix seconds); never raises."""
        ...


@runtime_checkable
class Prepared(Provider, Protocol):
    """A provider that needs more than a token: a client that is installed, settings of its own."""

    def prepare(self) -> None:
        """Raise `IdemError` for what would keep every email from being sent; does nothing when it was called before."""
        ...


@runtime_checkable
class KeyedBatches(Provider, Protocol):
    """A provider whose contract has a `batch` with a key for each email."""

    def send_each(self, emails: Sequence[tuple[Email, str]], deadline: Deadline) -> tuple[Outcome, ...]:
        """One attempt for all of them, each under its own key; an outcome for each, in their order."""
        ...


@runtime_checkable
class KeyedRequests(Provider, Protocol):
    """A provider whose contract has a `batch` with one key for the request."""

    def send_all(self, emails: Sequence[Email], provider_key: str, deadline: Deadline) -> Batched:
        """One attempt for all of them under one key."""
        ...
