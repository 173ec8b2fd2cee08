"""What every provider's adapter must do, by its contract and by the sandbox's log, never by its code.

A `Lab` is a sandbox with time that jumps, and any adapter connected to it. `expected` says what one attempt that meets
a fault is known to have done, `promised` how its email ends; `drive` takes an email through the protocol to that end.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import os
import select
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from unittest import mock
from urllib.parse import urlsplit

from idem.bulk import Ready
from idem.clock import Deadline
from idem.email import Email
from idem.keys import provider_key
from idem.ledger import Ledger
from idem.outcome import Accepted, NotSent, Outcome, Rejected, Unknown
from idem.policy import Policy
from idem.protocol import Record, State
from idem.providers.base import (
    BatchKeys,
    Contract,
    KeyedBatches,
    KeyedRequests,
    Meaning,
    Memory,
    Prepared,
    Provider,
    Searchable,
    Sighting,
)
from idem.providers.submission import Stage
from idem.reconcile import Patience, Reconciler
from idem.send import Ended, Later, Resume, Sender
from idem.stores.base import Store
from idem.stores.memory import MemoryStore
from tests.fakes import make_email
from workers.sandbox import smtp
from workers.sandbox.app import Sandbox, build_app, running
from workers.sandbox.dialect import Dialect, Reply
from workers.sandbox.faults import Fault, Kind, Target
from workers.sandbox.registry import place_of
from workers.sandbox.server import listen
from workers.settings import PROVIDERS

#: The whole of one request, in real seconds: of one that is answered, and of one that is not.
PATIENCE_SECONDS: Final = 5.0
IMPATIENCE_SECONDS: Final = 0.15
#: How long a request is held up that its client gives up on.
DELAY_SECONDS: Final = 0.3
LEASE_SECONDS: Final = 60.0
_ROUNDS = 40

#: What a provider wants of credentials beside a text without spaces.
_TOKENS: Final = {"smtp": "user:password"}
_ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "eu-west-1",
}

#: Every fault of sends; each strikes once.
KINDS: Final[tuple[Kind, ...]] = tuple(kind for kind in Kind if kind is not Kind.MISSING)
_PAUSES: Final = frozenset({Kind.DELAY, Kind.LATE})
SILENT: Final = _PAUSES | {Kind.HANG, Kind.ACCEPT_THEN_HANG}

_TYPES: Final[dict[Meaning, type[Outcome]]] = {
    Meaning.ACCEPTED: Accepted,
    Meaning.KNOWN: Accepted,
    Meaning.CONFLICT: Rejected,
    Meaning.INVALID: Rejected,
    Meaning.FORBIDDEN: Rejected,
    Meaning.CREDENTIALS: NotSent,
    Meaning.NOT_NOW: NotSent,
    Meaning.IN_PROGRESS: Unknown,
    Meaning.UNCLEAR: Unknown,
}


class JumpingClock:
    """The real time and more: to sleep is to jump ahead, while sockets wait for real."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> float:
        return time.time() + self._ahead

    def boot(self) -> float:
        return time.monotonic() + self._ahead

    def sleep(self, seconds: float) -> None:
        self._ahead += max(0.0, seconds)


@dataclass
class Lab:
    """A sandbox that runs, and what connects to it."""

    clock: JumpingClock
    sandbox: Sandbox
    url: str
    smtp_port: int
    _counter: Iterator[int] = field(default_factory=itertools.count)
    _adapters: dict[tuple[str, str], Provider] = field(default_factory=dict)
    _proxies: dict[str, Proxy] = field(default_factory=dict)

    @property
    def providers(self) -> tuple[str, ...]:
        """Those with an adapter and a dialect."""
        return tuple(name for name in PROVIDERS if name in self.sandbox.dialects)

    def dialect(self, name: str) -> Dialect:
        return self.sandbox.dialects[name]

    def base_url(self, name: str) -> str:
        """Where the provider's own base URL is in the sandbox, its own parts filled in."""
        place = place_of(self.dialect(name).contract, self.url, f"smtp://127.0.0.1:{self.smtp_port}")
        assert place is not None
        return place

    def connect(self, name: str, base_url: str | None = None) -> Provider:
        """One adapter for each base URL, as a process has it."""
        url = base_url or self.base_url(name)
        if (name, url) not in self._adapters:
            module = importlib.import_module(f"idem.providers.{name}")
            adapter = self._adapters[name, url] = module.connect(_TOKENS.get(name, "token-1234"), url)
            if isinstance(adapter, Prepared):
                adapter.prepare()
        return self._adapters[name, url]

    def proxy(self, name: str) -> Proxy:
        """One in front of each provider, as an adapter may take long to make."""
        if name not in self._proxies:
            self._proxies[name] = Proxy(self.base_url(name))
        return self._proxies[name]

    def disconnect(self) -> None:
        """Adapters keep their connections for the life of a process; here it ends."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            self._adapters.clear()
            gc.collect()
        for proxy in self._proxies.values():
            proxy.close()

    def email(self) -> Email:
        """One that no other case has."""
        return make_email(f"Case {next(self._counter)}")

    def order(self, name: str, kind: Kind, on: Target = Target.SEND) -> None:
        """The fault strikes this provider's next request."""
        delay = DELAY_SECONDS * 1000 if kind in _PAUSES else 0.0
        self.sandbox.faults.clear()
        self.sandbox.faults.post(Fault(provider=name, kind=kind, on=on, times=1, delay_ms=delay))

    def acceptances(self, email: Email) -> int:
        """What the judge says."""
        return sum(entry.subject == email.subject for entry in self.sandbox.accepted.entries())

    def await_acceptance(self, email: Email) -> None:
        """A request that is on its way arrives."""
        late = time.monotonic() + 10
        while not self.acceptances(email):
            assert time.monotonic() < late, "a request that was held up never arrived"
            time.sleep(0.01)

    def attempt(
        self, adapter: Provider, email: Email, key: str | None = None, seconds: float = PATIENCE_SECONDS
    ) -> Outcome:
        """One call, without a ledger."""
        key = key or provider_key("contract", email.subject, 0)
        return adapter.send(email, key, Deadline.after(self.clock, seconds))

    def attempt_batch(self, adapter: Provider, emails: Sequence[Email], seconds: float) -> tuple[Outcome, ...]:
        """One call for all of them, under the keys that the contract's batch has; what became of each."""
        batch, deadline = adapter.contract.batch, Deadline.after(self.clock, seconds)
        assert batch is not None
        keys = [provider_key("contract", email.subject, 0) for email in emails]
        if batch.keys is BatchKeys.EACH:
            assert isinstance(adapter, KeyedBatches)
            return adapter.send_each(list(zip(emails, keys, strict=True)), deadline)
        assert isinstance(adapter, KeyedRequests)
        batched = adapter.send_all(emails, keys[0], deadline)
        return batched.each or (batched.whole,) * len(emails)


def speaks_smtp(contract: Contract) -> bool:
    """Whether its exchange has many turns, so that bytes on the wire say little about how far it got."""
    return urlsplit(contract.base_url).scheme in {"smtp", "smtps"}


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """A sandbox of every provider, for as long as the context lasts."""
    clock = JumpingClock()
    app = build_app(clock, seed=1)
    listener = listen("127.0.0.1", 0)
    with mock.patch.dict(os.environ, _ENVIRONMENT), listener, running(app, smtp=listener) as url:
        place = Lab(clock, app.state.sandbox, url, listener.getsockname()[1])
        yield place
        place.disconnect()


def strikes(dialect: Dialect, kind: Kind) -> bool:
    """Whether the provider has words for such a fault."""
    words = {Kind.IN_PROGRESS: dialect.in_progress, Kind.CONFLICT: dialect.mismatch}
    return words.get(kind, True) is not None


def expected(dialect: Dialect, kind: Kind) -> type[Outcome]:
    """What an attempt that meets the fault is known to have done: the contract's table, over the provider's words."""
    if dialect in smtp.DIALECTS:
        return _expected_by_smtp(dialect, kind)
    reply = _reply(dialect, kind)
    if reply is None:
        return Unknown
    return _TYPES[dialect.contract.meaning(reply.status, *_said(dialect.contract, reply))]


def _expected_by_smtp(dialect: Dialect, kind: Kind) -> type[Outcome]:
    """The same where the code is what a reply is to."""
    reply = smtp.reply_to(kind, dialect)
    stage = Stage.MAIL if kind in smtp.AT_MAIL else Stage.END
    return Unknown if reply is None else _TYPES[dialect.contract.meaning(reply.status, stage, str(reply.body))]


def expected_of_each(dialect: Dialect, kind: Kind) -> type[Outcome] | None:
    """The same for each email of a request with many.

    None where each has its own key, and a refusal of the whole does not say which of them it is about, or (409) which
    is in use: nothing was done for any of them, and the adapter may send them apart.
    """
    whole, batch = expected(dialect, kind), dialect.contract.batch
    vague = whole is Rejected or kind is Kind.IN_PROGRESS
    return None if vague and batch is not None and batch.keys is BatchKeys.EACH else whole


def _reply(dialect: Dialect, kind: Kind) -> Reply | None:
    """The answer that the fault is; None for silence."""
    if kind is Kind.IN_PROGRESS:
        return dialect.in_progress
    if kind is Kind.CONFLICT and dialect.mismatch is not None:
        return dialect.mismatch({})
    if not kind.ending.isdecimal():
        return None
    return dialect.refusal(int(kind.ending), HTTPStatus(int(kind.ending)).phrase)


def _said(contract: Contract, reply: Reply) -> tuple[str, str]:
    """The code and the message, from where the contract says that they are."""
    codes = [_at(reply, path) for path in contract.reply.code]
    messages = [_at(reply, path) for path in contract.reply.message]
    code = next((str(value) for value in codes if isinstance(value, str | int)), "")
    return code, next((value for value in messages if isinstance(value, str) and value), "")


def _at(reply: Reply, path: str) -> object:
    if path.startswith("header:"):
        return {name.lower(): value for name, value in reply.headers.items()}.get(path.removeprefix("header:").lower())
    value: Any = reply.body
    for name in path.split("."):
        try:
            value = value[int(name) if isinstance(value, list | tuple) else name]
        except (TypeError, KeyError, IndexError, ValueError):
            return None
    return value


def lands(kind: Kind) -> bool:
    """Whether the request that meets the fault is accepted, then or later."""
    return kind.accepts or kind in _PAUSES


def only_patience_helps(dialect: Dialect, kind: Kind) -> bool:
    """Whether a request that is held up must have arrived before anybody can do something about its email.

    A look-up only tells of what has arrived, and under a key that is in use nothing is to be had; a replay that the
    provider lets overtake needs no such patience.
    """
    if dialect.contract.memory is Memory.NONE:
        return lands(kind)
    return kind is Kind.DELAY and dialect.in_progress is not None


def promised(contract: Contract, outcome: type[Outcome]) -> State:
    """How an email ends whose first attempt had this outcome, and whose next ones meet no fault."""
    if outcome is Rejected:
        return State.REJECTED
    certain = contract.memory is not Memory.NONE or contract.lookup is not None
    return State.SENT if outcome in {Accepted, NotSent} or certain else State.IN_DOUBT


@dataclass
class Ending:
    """What became of one email: of its first attempt, and of itself."""

    first: Outcome
    record: Record
    attempts: int


class Recorder:
    """An adapter, and every outcome that it gave."""

    def __init__(self, adapter: Provider) -> None:
        self._adapter = adapter
        self.outcomes: list[Outcome] = []

    @property
    def contract(self) -> Contract:
        return self._adapter.contract

    def check(self, email: Email) -> None:
        self._adapter.check(email)

    def find(self, provider_key: str, since: float, deadline: Deadline) -> Sighting:
        assert isinstance(self._adapter, Searchable)
        return self._adapter.find(provider_key, since, deadline)

    def send(self, email: Email, provider_key: str, deadline: Deadline) -> Outcome:
        outcome = self._adapter.send(email, provider_key, deadline)
        self.outcomes.append(outcome)
        return outcome


def drive(lab: Lab, name: str, email: Email, kind: Kind, after_first: Callable[[], None] = lambda: None) -> Ending:
    """Take an email as far as it goes: messages redelivered when they are due, and whatever is in doubt reconciled."""
    journey = _Journey(lab, name, MemoryStore(), IMPATIENCE_SECONDS if kind in SILENT else PATIENCE_SECONDS)
    record = journey.first(email)
    after_first()
    record = journey.until_settled(record)
    return Ending(journey.adapter.outcomes[0], record, len(journey.adapter.outcomes))


class _Journey:
    """One ledger, one adapter, the messages of one email; `patience_seconds` is that of the first try."""

    def __init__(self, lab: Lab, name: str, store: Store, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._clock = lab.clock
        self.adapter = Recorder(lab.connect(name))
        contract = self.adapter.contract
        policy = Policy(
            lease_seconds=LEASE_SECONDS,
            http_timeout_seconds=PATIENCE_SECONDS,
            window_seconds=contract.window_seconds,
        )
        self._lag = contract.lookup.lag_seconds if contract.lookup is not None else 0.0
        self._ledger = Ledger(store, policy=policy, provider=name, clock=self._clock)
        self._messages: list[Ready | Resume] = []
        self._reconciler = Reconciler(
            self._ledger,
            {name: self.adapter},
            clock=self._clock,
            namespace="contract",
            patience=Patience.of(lease=LEASE_SECONDS, http_timeout=patience_seconds, evidence=900.0, visibility=90.0),
            resume=lambda key: self._messages.append(Resume(key)),
        )

    def first(self, email: Email) -> Record:
        """The message comes for the first time."""
        self._messages.append(Ready(email.subject, email))
        return self._receive(self._patience_seconds)

    def until_settled(self, record: Record) -> Record:
        """Redeliver and reconcile until nothing changes any more."""
        for _ in range(_ROUNDS):
            if self._messages:
                self._clock.sleep((record.ready_at or record.lease_until or self._clock.now()) - self._clock.now())
                record = self._receive()
            elif record.state is State.IN_DOUBT:
                self._clock.sleep(LEASE_SECONDS + self._lag + 1)
                self._reconciler.run()
                record = self._ledger.read(record.key) or record
            else:
                break
        return record

    def _receive(self, patience_seconds: float = PATIENCE_SECONDS) -> Record:
        sender = Sender(
            self._ledger,
            self.adapter,
            clock=self._clock,
            http_timeout_seconds=patience_seconds,
            namespace="contract",
        )
        result = sender.send(self._messages[0])
        assert isinstance(result, Ended | Later)
        if isinstance(result, Ended):
            self._messages.pop(0)
        return result.record


@dataclass(frozen=True)
class Phase:
    """How far an exchange gets on the wire: so many bytes of the request, then of the answer, then the end.

    None is all of it; `ending` is `close`, `reset` or `silence`. `every` is the pause after each few bytes of answer.
    """

    name: str
    request: int | None
    answer: int | None
    ending: str
    outcome: type[Outcome]
    every: float = 0.0

    @property
    def lands(self) -> bool:
        """Whether the provider got the whole request."""
        return self.request is None

    @property
    def patience_seconds(self) -> float:
        """How long to wait for what comes of it."""
        return (
            IMPATIENCE_SECONDS if self.ending == "silence" or self.every * 10 > IMPATIENCE_SECONDS else PATIENCE_SECONDS
        )


PHASES: Final = (
    Phase("closed before the request", 0, 0, "close", Unknown),
    Phase("reset before the request", 0, 0, "reset", Unknown),
    Phase("silent before the request", 0, 0, "silence", Unknown),
    Phase("closed in the request", 40, 0, "close", Unknown),
    Phase("reset in the request", 40, 0, "reset", Unknown),
    Phase("silent in the request", 40, 0, "silence", Unknown),
    Phase("closed after the request", None, 0, "close", Unknown),
    Phase("reset after the request", None, 0, "reset", Unknown),
    Phase("silent after the request", None, 0, "silence", Unknown),
    Phase("closed in the answer", None, 20, "close", Unknown),
    Phase("reset in the answer", None, 20, "reset", Unknown),
    Phase("silent in the answer", None, 20, "silence", Unknown),
    Phase("an answer that drips for too long", None, None, "close", Unknown, every=0.1),
    Phase("an answer that drips", None, None, "close", Accepted, every=0.002),
)


class Proxy:
    """Stands between an adapter and the sandbox, and lets exchanges get as far as its phase says."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (str(parts.hostname), parts.port or 80)
        self._phase, self._over = PHASES[-1], threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = parts._replace(netloc=f"127.0.0.1:{self._listener.getsockname()[1]}").geturl()
        self._accepting = self._start(self._accept)

    @contextlib.contextmanager
    def playing(self, phase: Phase) -> Iterator[None]:
        """Play a phase; what is left of it at the end is closed."""
        self._phase, self._over = phase, threading.Event()
        yield
        self._over.set()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            if thread is not self._accepting:
                thread.join(10)
                assert not thread.is_alive()
        for connection in self._open:
            connection.close()
        self._open.clear()
        self._threads = [self._accepting]

    def close(self) -> None:
        """Listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10)

    def _start(self, target: Callable[..., None], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments)
        thread.start()
        # Not before: whoever goes through them joins them.
        self._threads.append(thread)
        return thread

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream, timeout=10)
                self._open += [client, server]
                self._start(self._pass_on, client, server, self._phase, self._over)

    def _pass_on(self, client: socket.socket, server: socket.socket, phase: Phase, over: threading.Event) -> None:
        """Both ways, until one side has ended, or there would be more than the phase has.

        One thread looks at both: a socket that another one is reading does not close, and so would not reset.
        """
        left = {client: phase.request, server: phase.answer}
        with contextlib.suppress(OSError, ValueError):  # the latter for a socket that is closed meanwhile
            while not over.is_set():
                for source in select.select([client, server], [], [], 0.05)[0]:
                    target, most = (server if source is client else client), left[source]
                    data = source.recv(8 if phase.every and source is server else 65_536)
                    target.sendall(data if most is None else data[:most])
                    if not data or (most is not None and len(data) >= most):
                        _end(client, phase, over)
                        return
                    left[source] = None if most is None else most - len(data)
                    over.wait(phase.every if source is server else 0.0)


def _end(client: socket.socket, phase: Phase, over: threading.Event) -> None:
    match phase.ending:
        case "close":
            client.shutdown(socket.SHUT_RDWR)
        case "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        case _:
            over.wait()
