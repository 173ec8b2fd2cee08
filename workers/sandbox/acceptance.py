"""What a provider does with one request: the rules that they all share, driven by their dialects."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from idem.providers.base import Contract, Keeps, Memory, Place
from workers.sandbox.bodies import digest_of
from workers.sandbox.clock import SandboxClock
from workers.sandbox.dialect import Call, Dialect, Endpoint, Keyed, Mail, Refused, Reply, Taken
from workers.sandbox.log import Accepted, AcceptedLog, timestamp
from workers.sandbox.memory import KeyMemory, Remembered, Slot

#: Answers that are about the email: what comes before a provider looks at the key is never bound to it.
_ABOUT_THE_EMAIL = frozenset({400, 413, 415, 422})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one request, and what it stands for: `ids` of the emails that were accepted, now or earlier."""

    reply: Reply
    ids: tuple[str, ...] = ()
    replayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as far as the rules are concerned, by whatever protocol it came."""

    account: str
    key: str | None
    digest: str
    items: Sequence[Mail | Keyed | Refused] | Reply
    answer: Callable[[Sequence[Taken | Refused]], Reply]
    clash: Callable[[int], Reply] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def slot(self) -> Slot | None:
        """The key of the request as a whole."""
        return None if self.key is None else Slot(self.account, self.key)

    def slots(self) -> set[Slot]:
        """All keys in it."""
        items = () if isinstance(self.items, Reply) else self.items
        own = {Slot(self.account, item.key, of_email=True) for item in items if isinstance(item, Keyed)}
        return own if self.slot is None else own | {self.slot}


class Acceptance:
    """Decides on requests, one at a time: `take` is not interrupted, so that the same key is never accepted twice."""

    def __init__(self, clock: SandboxClock, log: AcceptedLog) -> None:
        self._clock = clock
        self._log = log
        self._memories: dict[str, KeyMemory] = {}

    @contextlib.contextmanager
    def running(self, dialect: Dialect, request: Request) -> Iterator[bool]:
        """For as long as a request is processed; False when another one under a key of it is, and the provider says so.

        A key that is known needs no waiting for, and a provider that has no such answer lets requests overtake.
        """
        memory, now = self._memory(dialect), self._clock.now()
        unknown = {slot for slot in request.slots() if memory.recall(slot, now) is None}
        slots = unknown if dialect.in_progress is not None else set()
        if not memory.begin(slots):
            yield False
            return
        try:
            yield True
        finally:
            memory.end(slots)

    def take(self, dialect: Dialect, request: Request, instead: Reply | None = None) -> Verdict:
        """Accept, replay or refuse, as the provider documents it; `instead` is what it answers, whatever it did."""
        key, now = dialect.contract.key, self._clock.now()
        if key is not None and not all(key.admits(slot.key) for slot in request.slots()):
            return Verdict(_worded(dialect.invalid_key))
        slot = request.slot
        if slot is None:
            return self._read(dialect, request, now)[0]
        memory = self._memory(dialect)
        known = memory.recall(slot, now)
        if known is not None:
            return _again(dialect, request, known)
        verdict, taken = self._read(dialect, request, now)
        reply = instead or verdict.reply
        if verdict.ids or _stays(dialect.contract, reply.status):
            kept = reply if _stays(dialect.contract, reply.status) else verdict.reply
            memory.remember(slot, Remembered(request.digest, kept, tuple(map(_brief, taken))), now)
        return verdict

    def fail(self, dialect: Dialect, request: Request, reply: Reply) -> None:
        """Note what was answered without processing the request: some providers answer so again."""
        slot, memory, now = request.slot, self._memory(dialect), self._clock.now()
        about_it = reply.status in _ABOUT_THE_EMAIL or reply.status >= 500  # noqa: PLR2004 - HTTP's own classes
        if slot and about_it and _stays(dialect.contract, reply.status) and memory.recall(slot, now) is None:
            memory.remember(slot, Remembered(request.digest, reply), now)

    def _read(self, dialect: Dialect, request: Request, now: float) -> tuple[Verdict, tuple[Taken, ...]]:
        if isinstance(request.items, Reply):
            return Verdict(request.items), ()
        clash = self._clash(dialect, request, request.items, now)
        if clash is not None:
            return Verdict(clash), ()
        results = [self._one(dialect, request, item, now) for item in request.items]
        taken = tuple(result for result in results if isinstance(result, Taken))
        replayed = bool(taken) and all(one.replayed for one in taken)
        return Verdict(request.answer(results), tuple(one.id for one in taken), replayed), taken

    def _clash(
        self, dialect: Dialect, request: Request, items: Sequence[Mail | Keyed | Refused], now: float
    ) -> Reply | None:
        """The refusal of a request in which an email is not the one that its own key is bound to."""
        if dialect.contract.memory is not Memory.REPLAYS:
            return None
        memory = self._memory(dialect)
        for index, item in enumerate(items):
            if isinstance(item, Keyed):
                known = memory.recall(Slot(request.account, item.key, of_email=True), now)
                if known is not None and known.digest != digest_of(item.content):
                    return request.clash(index) if request.clash else _mismatch(dialect, request)
        return None

    def _one(self, dialect: Dialect, request: Request, item: Mail | Keyed | Refused, now: float) -> Taken | Refused:
        if isinstance(item, Refused):
            return item
        if not isinstance(item, Keyed) or dialect.contract.key is None:
            mail = item.mail if isinstance(item, Keyed) else item
            return self._accept(dialect, mail, request.key, request.digest, now)
        memory, slot = self._memory(dialect), Slot(request.account, item.key, of_email=True)
        known = memory.recall(slot, now)
        if known is not None:
            return replace(known.taken[0], replayed=True)
        digest = digest_of(item.content)
        taken = self._accept(dialect, item.mail, item.key, digest, now)
        memory.remember(slot, Remembered(digest, None, (_brief(taken),)), now)
        return taken

    def _accept(self, dialect: Dialect, mail: Mail, key: str | None, digest: str, now: float) -> Taken:
        entry = Accepted(
            provider=dialect.contract.name,
            id=dialect.new_id(),
            key=key,
            to=mail.to,
            subject=mail.subject,
            digest=digest,
            at=timestamp(now),
        )
        self._log.add(entry, mail, now)
        return Taken(entry.id, mail, now)

    def _memory(self, dialect: Dialect) -> KeyMemory:
        name = dialect.contract.name
        if name not in self._memories:
            self._memories[name] = KeyMemory(dialect.contract.window_seconds or 0.0)
        return self._memories[name]


def request_of(dialect: Dialect, endpoint: Endpoint, call: Call, body: bytes) -> Request:
    """Read a request as its endpoint does."""
    items = endpoint.read(call)
    return Request(
        account=call.account,
        key=_key_of(dialect, call, items),
        digest=digest_of(body if endpoint.exact else call.parsed),
        items=items,
        answer=endpoint.answer,
        clash=endpoint.clash,
        headers=call.headers,
    )


def header_key(contract: Contract, headers: Mapping[str, str]) -> str | None:
    """The idempotency key in a request's headers; None without one, and for a provider that has it elsewhere."""
    key = contract.key
    return None if key is None or key.place is not Place.HEADER else headers.get(key.name.lower())


def _key_of(dialect: Dialect, call: Call, items: Sequence[Mail | Keyed | Refused] | Reply) -> str | None:
    key = dialect.contract.key
    if key is None or key.place is Place.HEADER:
        return header_key(dialect.contract, call.headers)
    if key.place is Place.BODY:
        return _field(call.parsed, key.name)
    mail = next((item for item in items if isinstance(item, Mail)), None) if not isinstance(items, Reply) else None
    return None if mail is None else message_key(dialect.contract, mail.headers)


def message_key(contract: Contract, headers: Mapping[str, str]) -> str | None:
    """The idempotency key in a message's headers."""
    key = contract.key
    if key is None or key.place is not Place.MESSAGE_HEADER:
        return None
    return next((value for name, value in headers.items() if name.lower() == key.name.lower()), None)


def _field(parsed: object, path: str) -> str | None:
    """A text in a parsed body, by names between dots; the first value of a form's field."""
    value = parsed
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, list):
        value = next(iter(value), None)
    return value if isinstance(value, str) else None


def _again(dialect: Dialect, request: Request, known: Remembered) -> Verdict:
    """What a key that is known is answered."""
    memory = dialect.contract.memory
    if memory is Memory.REFUSES and known.taken:
        return Verdict(_worded(dialect.known), known.ids, replayed=True)
    if memory is Memory.REPLAYS and known.digest != request.digest:
        return Verdict(_mismatch(dialect, request))
    return Verdict(_marked(_worded(known.reply), dialect), known.ids, replayed=True)


def _brief(taken: Taken) -> Taken:
    """What a key is remembered with: the log alone decides how long texts are kept."""
    return replace(taken, mail=replace(taken.mail, text=None, html=None))


def _stays(contract: Contract, status: int) -> bool:
    """Whether such an answer stays bound to its key."""
    keeps = contract.key.keeps if contract.key is not None else frozenset()
    if status >= 500:  # noqa: PLR2004 - HTTP's own classes
        return Keeps.FAILURES in keeps
    return status < 300 or Keeps.REFUSALS in keeps  # noqa: PLR2004 - the same


def _mismatch(dialect: Dialect, request: Request) -> Reply:
    return _worded(None if dialect.mismatch is None else dialect.mismatch(request.headers))


def _worded(reply: Reply | None) -> Reply:
    """An answer that `Dialect` makes sure of."""
    assert reply is not None
    return reply


def _marked(reply: Reply, dialect: Dialect) -> Reply:
    marker = dialect.contract.key.replay_marker if dialect.contract.key is not None else None
    return reply if marker is None else replace(reply, headers={**reply.headers, marker[0]: marker[1]})
