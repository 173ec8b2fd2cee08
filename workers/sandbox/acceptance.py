"""What a provider does with one request: the rules that they all share, driven by their dialects."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from idem.clock import Clock
from idem.providers.base import Keeps
from workers.sandbox.dialect import Dialect, Endpoint, Reply
from workers.sandbox.log import Accepted, AcceptedLog, timestamp
from workers.sandbox.memory import KeyMemory, Remembered


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one request, and what it stands for: `ids` of the emails that were accepted, now or earlier."""

    reply: Reply
    ids: tuple[str, ...] = ()
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class _Request:
    """A request whose sender is known and whose body could be parsed."""

    headers: Mapping[str, str]
    account: str
    key: str | None
    parsed: object
    digest: str
    now: float


class Acceptance:
    """Decides on requests, one at a time: `take` is not interrupted, so that the same key is never accepted twice."""

    def __init__(self, clock: Clock, log: AcceptedLog) -> None:
        self._clock = clock
        self._log = log
        self._memories: dict[str, KeyMemory] = {}

    def take(self, dialect: Dialect, endpoint: Endpoint, headers: Mapping[str, str], body: bytes) -> Verdict:
        """Accept, replay or refuse, as the provider documents it: credentials first, then the key, then the email."""
        account = dialect.account(headers)
        if account is None:
            return Verdict(dialect.refusal(401, "Unauthenticated."))
        key = key_of(dialect, headers)
        if key is not None and dialect.contract.key is not None and not dialect.contract.key.admits(key):
            return Verdict(dialect.invalid_key)
        try:
            parsed = msgspec.json.decode(body)
            digest = canonical_digest(parsed)
        except (msgspec.MsgspecError, RecursionError):
            return Verdict(dialect.refusal(400, "The request body is not valid JSON."))
        return self._remembered(dialect, endpoint, _Request(headers, account, key, parsed, digest, self._clock.now()))

    def _remembered(self, dialect: Dialect, endpoint: Endpoint, request: _Request) -> Verdict:
        if request.key is None:
            return self._read(dialect, endpoint, request)
        memory = self._memory(dialect)
        known = memory.recall(request.account, request.key, request.now)
        if known is not None:
            if known.digest != request.digest:
                return Verdict(dialect.mismatch(request.headers))
            return Verdict(_marked(known.reply, dialect), known.ids, replayed=True)
        verdict = self._read(dialect, endpoint, request)
        if verdict.ids or (dialect.contract.key is not None and Keeps.REFUSALS in dialect.contract.key.keeps):
            answer = Remembered(request.digest, verdict.reply, verdict.ids)
            memory.remember(request.account, request.key, answer, request.now)
        return verdict

    def _read(self, dialect: Dialect, endpoint: Endpoint, request: _Request) -> Verdict:
        mails = endpoint.read(request.parsed)
        if isinstance(mails, Reply):
            return Verdict(mails)
        ids = tuple(str(uuid.uuid4()) for _ in mails)
        for mail_id, mail in zip(ids, mails, strict=True):
            entry = Accepted(
                provider=dialect.contract.name,
                id=mail_id,
                key=request.key,
                to=mail.to,
                subject=mail.subject,
                digest=request.digest,
                at=timestamp(request.now),
            )
            self._log.add(entry, mail)
        return Verdict(endpoint.answer(ids), ids)

    def _memory(self, dialect: Dialect) -> KeyMemory:
        name = dialect.contract.name
        if name not in self._memories:
            self._memories[name] = KeyMemory(dialect.contract.window_seconds or 0.0)
        return self._memories[name]


def key_of(dialect: Dialect, headers: Mapping[str, str]) -> str | None:
    """The idempotency key of a request; None without one, and for a provider that has no keys."""
    key = dialect.contract.key
    return None if key is None else headers.get(key.name.lower())


def canonical_digest(parsed: object) -> str:
    """SHA-256 of parsed JSON, written with sorted names, no white space and plain UTF-8: what "the same body" means."""
    return hashlib.sha256(msgspec.json.encode(parsed, order="sorted")).hexdigest()


def _marked(reply: Reply, dialect: Dialect) -> Reply:
    marker = dialect.contract.key.replay_marker if dialect.contract.key is not None else None
    return reply if marker is None else replace(reply, headers={**reply.headers, marker[0]: marker[1]})
