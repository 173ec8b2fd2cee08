"""From settings to parts: the only place that knows concrete classes. Each import of an optional driver is here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from idem.clock import Clock, SystemClock
from idem.email import Email
from idem.errors import BrokerError, MissingExtra, SettingsError
from idem.events import EventNotes
from idem.gate import Gate
from idem.ledger import Ledger
from idem.pace import Rate
from idem.policy import Policy
from idem.protocol import InDoubt
from idem.providers.base import Contract, Prepared, Provider
from idem.reconcile import Patience, Reconciler
from idem.send import Point, Sender
from idem.stores.base import Cells, PassingCells, Store
from idem.stores.sqlite import SqliteStore
from idem.suppression import Suppression
from workers.building import Builds
from workers.settings import Settings
from workers.timing import Timing
from workers.webhooks.declared import Declared
from workers.webhooks.hearing import Hearing
from workers.webhooks.sources import Source, open_sources

if TYPE_CHECKING:
    from dramatiq import Message
    from starlette.applications import Starlette

    from workers.brokers.redis import RedisBroker
    from workers.brokers.sqs import SqsBroker
    from workers.outbox.database import Database
    from workers.outbox.producer import Outbox
    from workers.outbox.relay import Relay
    from workers.webhooks.event import Event

    #: What dramatiq's worker takes, and the rest of the package.
    AnyBroker = RedisBroker | SqsBroker


class LedgerStore(Store, PassingCells, Protocol):
    """What every store is: records, and the cells beside them."""


def _module(provider: str) -> Any:
    """The module of a provider, which has its name; imported when it is needed, as it brings a client."""
    return importlib.import_module(f"idem.providers.{provider}")


def contract_of(provider: str) -> Contract:
    """What a provider documents."""
    contract: Contract = _module(provider).CONTRACT
    return contract


def open_store(settings: Settings) -> LedgerStore:
    """The store that `IDEM_LEDGER_URL` names; nothing is opened before it is used."""
    scheme, _, rest = settings.ledger_url.partition("://")
    match scheme:
        case "sqlite" if rest.startswith("/") and len(rest) > 1:
            return SqliteStore(Path(rest[1:]), settings.namespace)
        case "dynamodb":
            return _dynamo_store(settings, rest)
        case "redis" | "rediss" | "redis+cluster" | "rediss+cluster":
            return _redis_store(settings)
        case _:
            raise SettingsError(
                "IDEM_LEDGER_URL names no ledger: write sqlite:///PATH (sqlite:////PATH for an absolute one), "
                "dynamodb://REGION/TABLE or redis://host:port/db"
            )


def _dynamo_store(settings: Settings, place: str) -> LedgerStore:
    region, _, table = place.partition("/")
    if not region or not table or "/" in table:
        raise SettingsError("IDEM_LEDGER_URL names no table: write dynamodb://REGION/TABLE")
    try:
        from idem.stores.dynamodb import Bucket, Connection, DynamoStore  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtra("dynamodb", "the ledger (IDEM_LEDGER_URL=dynamodb://...)") from error
    endpoint, bucket = settings.aws_endpoint_url, settings.bodies_bucket
    return DynamoStore(
        Connection("dynamodb", region, endpoint, signed=True),
        table,
        namespace=settings.namespace,
        bucket=None if bucket is None else Bucket(Connection("s3", region, endpoint), bucket),
        retention_seconds=settings.retention_seconds,
    )


def _redis_store(settings: Settings) -> LedgerStore:
    try:
        from idem.stores.redis import RedisStore, connector  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtra("redis", "the ledger (IDEM_LEDGER_URL=redis://...)") from error
    connect = connector(settings.ledger_url)
    return RedisStore(connect, settings.namespace, retention_seconds=settings.retention_seconds)


def build_policy(settings: Settings) -> Policy:
    """The durations, and the window of the provider's contract unless a shorter one is set."""
    documented = contract_of(settings.provider).window_seconds
    window = settings.window_seconds
    if window is not None and (documented is None or window > documented):
        raise SettingsError(
            f"IDEM_WINDOW_SECONDS is {window:g}, but {settings.provider} remembers a key for "
            f"{documented or 0:g} s: a longer window would send twice"
        )
    return _policy(settings, documented if window is None else window)


def _policy(settings: Settings, window_seconds: float | None) -> Policy:
    durations = settings.durations(window_seconds)
    durations.check()
    return Policy(
        lease_seconds=settings.lease_seconds,
        http_timeout_seconds=settings.http_timeout_seconds,
        window_seconds=durations.window_seconds,
        memory_seconds=durations.memory_seconds,
        give_up_seconds=settings.give_up_seconds,
        backoff_seconds=settings.backoff_seconds,
    )


def build_ledger(settings: Settings, store: Store, clock: Clock | None = None) -> Ledger:
    """The ledger of this application."""
    return Ledger(
        store,
        policy=build_policy(settings),
        provider=settings.provider,
        clock=clock or SystemClock(),
        others={name: _policy(settings, contract_of(name).window_seconds) for name in _others(settings)},
        fallback=settings.fallback_provider,
    )


def build_rate(settings: Settings) -> Rate | None:
    """The rate that is set, else the documented one, else none; a quarter of a second's emails make a burst."""
    per_second = settings.rate_per_second or contract_of(settings.provider).emails_per_second
    if per_second is None:
        return None
    return Rate(per_second, settings.rate_burst or max(2.0, per_second / 4))


def build_gate(settings: Settings, cells: Cells, clock: Clock | None = None) -> Gate:
    """The gate in front of the first choice; a probe is waited for as long as its claim can last."""
    return Gate(
        cells,
        settings.provider,
        clock=clock or SystemClock(),
        probe_seconds=settings.lease_seconds,
        rate=build_rate(settings),
    )


def build_notes(settings: Settings, cells: PassingCells, clock: Clock | None = None) -> EventNotes:
    """What providers' events told, kept for as long as records are."""
    return EventNotes(cells, clock=clock or SystemClock(), keep_seconds=settings.retention_seconds)


def build_suppression(settings: Settings, cells: Cells, clock: Clock | None = None) -> Suppression:
    """The suppression list, whether it is in use or not."""
    return Suppression(cells, settings.namespace, clock=clock or SystemClock())


def build_hearing(settings: Settings, cells: PassingCells) -> Hearing:
    """What the receiver of webhooks does with events of email providers."""
    suppression = build_suppression(settings, cells) if settings.suppression == "on" else None
    return Hearing(build_notes(settings, cells), suppression)


def _others(settings: Settings) -> tuple[str, ...]:
    """Providers beside the first choice that a worker can speak to: those with credentials, and the second choice.

    An email that may have been accepted by one of them can then still be replayed or looked up there.
    """
    named = {*settings.credentials, *filter(None, [settings.fallback_provider])} - {settings.provider}
    return tuple(sorted(named))


def build_provider(settings: Settings, provider: str | None = None) -> Provider:
    """A provider's adapter, by default that of the first choice; `SettingsError` when it has no token."""
    name = provider or settings.provider
    contract, credentials = contract_of(name), settings.credentials.get(name)
    token = credentials.token.reveal() if credentials is not None else ""
    if contract.needs_token and not token:
        raise SettingsError(f"IDEM_{name.upper()}_TOKEN is not set: put the provider's API token there")
    adapter = _connect(name, token, credentials.base_url if credentials is not None else None)
    if isinstance(adapter, Prepared):
        adapter.prepare()
    return adapter


def build_providers(settings: Settings) -> dict[str, Provider]:
    """The adapters of the first choice and of all others."""
    return {name: build_provider(settings, name) for name in (settings.provider, *_others(settings))}


def _connect(provider: str, token: str, base_url: str | None) -> Provider:
    contract = contract_of(provider)
    if base_url is None and "{" in contract.base_url:
        raise SettingsError(f"IDEM_{provider.upper()}_BASE_URL is not set: {contract.base_url}, with your own part")
    adapter: Provider = _module(provider).connect(token, base_url or contract.base_url)
    return adapter


def check_with(settings: Settings) -> Callable[[Email], None]:
    """What raises `UnsupportedEmail` for the configured provider; needs no token."""
    contract = contract_of(settings.provider)
    token = "unused" if contract.needs_token else ""
    adapter: Provider = _module(settings.provider).connect(token, contract.base_url)
    return adapter.check


def build_sender(  # noqa: PLR0913 - the parts of a sender
    settings: Settings, ledger: Ledger, clock: Clock, reach: Callable[[Point], None], *, gate: Gate, cells: Cells
) -> Sender:
    """The sender of a worker process."""
    providers = build_providers(settings)
    return Sender(
        ledger,
        providers[settings.provider],
        others=tuple(providers.values()),
        clock=clock,
        http_timeout_seconds=settings.http_timeout_seconds,
        namespace=settings.namespace,
        reach=reach,
        heed=gate.heed,
        hold=build_builds(settings, ledger, clock).hold,
        withhold=_withhold_with(settings, cells, clock),
    )


def _withhold_with(settings: Settings, cells: Cells, clock: Clock) -> Callable[[Email], str | None]:
    if settings.suppression == "off":
        return lambda _email: None
    return build_suppression(settings, cells, clock).withhold


def build_builds(settings: Settings, ledger: Ledger, clock: Clock) -> Builds:
    """What holds the claims of jobs that take long to build their email."""
    return Builds(ledger.renew, clock=clock, lease_seconds=settings.lease_seconds, build_seconds=settings.build_seconds)


def build_reconciler(
    settings: Settings, ledger: Ledger, clock: Clock, resume: Callable[[str], None], cells: PassingCells
) -> Reconciler:
    """What finds out about emails in doubt."""
    return Reconciler(
        ledger,
        build_providers(settings),
        clock=clock,
        namespace=settings.namespace,
        patience=Patience.of(
            lease=settings.lease_seconds,
            http_timeout=settings.http_timeout_seconds,
            evidence=settings.evidence_seconds,
            visibility=settings.visibility_seconds,
            asked=settings.sweep_seconds,
        ),
        resume=resume,
        in_doubt=InDoubt(settings.in_doubt),
        events=build_notes(settings, cells, clock),
    )


def build_sources(settings: Settings) -> dict[str, Source]:
    """Who may post webhooks."""
    secrets = settings.webhook_secrets.items()
    return open_sources({name: [secret.reveal() for secret in listed] for name, listed in secrets})


def build_webhooks(
    settings: Settings,
    declared: Declared,
    enqueue: Callable[[Message[None]], Any],
    clock: Clock,
    hear: Callable[[Event], bool],
) -> Starlette:
    """The receiver of webhooks; `SettingsError` when a source that a job waits for has no secret."""
    try:
        from workers.webhooks.app import Receiver, build_app  # noqa: PLC0415 - an extra, imported when asked for
    except ImportError as error:
        raise MissingExtra("web", "the receiver of webhooks") from error
    sources = build_sources(settings)
    for name in sorted(declared.sources - sources.keys()):
        raise SettingsError(f"IDEM_{name.upper()}_WEBHOOK_SECRET is not set, and a job waits for events of {name}")
    receiver = Receiver(
        sources,
        declared,
        enqueue,
        hear=hear,
        clock=clock,
        tolerance_seconds=settings.webhook_tolerance_seconds,
        most_bytes=int(settings.webhook_bytes),
    )
    return build_app(receiver)


def build_broker(settings: Settings) -> AnyBroker:
    """The broker that `IDEM_BROKER_URL` names; nothing is connected or started before it is used."""
    scheme, _, rest = settings.broker_url.partition("://")
    if scheme == "sqs" and rest:
        return _sqs_broker(settings, rest)
    if scheme.partition("+")[0] not in {"embedded", "redis", "rediss"} or not rest:
        raise SettingsError(
            "IDEM_BROKER_URL names no broker: write embedded://DIR, redis://host:port/db or sqs://REGION/PREFIX"
        )
    try:
        from workers.brokers.embedded import EmbeddedBroker  # noqa: PLC0415 - an extra, imported when asked for
        from workers.brokers.redis import RedisBroker  # noqa: PLC0415 - the same
        from workers.brokers.servers import connect  # noqa: PLC0415 - the same
    except ImportError as error:
        raise MissingExtra("local" if scheme == "embedded" else "redis", "the broker") from error
    namespace, hidden_seconds = settings.namespace, settings.durations().hidden_seconds
    if scheme == "embedded":
        return EmbeddedBroker(Path(rest), namespace=namespace, visibility_seconds=hidden_seconds)
    return RedisBroker(connect(settings.broker_url), namespace=namespace, visibility_seconds=hidden_seconds)


def _sqs_broker(settings: Settings, place: str) -> SqsBroker:
    try:
        from workers.brokers.sqs import Bucket, Client, Names, SqsBroker  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtra("sqs", "the broker (IDEM_BROKER_URL=sqs://...)") from error
    names, bucket = Names.parse(place), settings.bodies_bucket
    endpoint = settings.aws_endpoint_url
    return SqsBroker(
        Client("sqs", names.region, endpoint),
        names,
        visibility_seconds=settings.visibility_seconds,
        hidden_seconds=settings.durations().hidden_seconds,
        bucket=None if bucket is None else Bucket(Client("s3", names.region, endpoint), bucket),
    )


def build_outbox(
    settings: Settings,
    check: Callable[[Email], None],
    timing: Callable[[float | None, datetime | None, float | datetime | None], Timing],
) -> Outbox:
    """The producer's side of the outbox: its rows go into whatever transaction it is given."""
    from workers.outbox import Outbox  # noqa: PLC0415 - an extra; it says itself which

    return Outbox(settings.outbox_table, check=check, timing=timing)


def open_rows(settings: Settings) -> Database:
    """The database that `IDEM_OUTBOX_URL` names; nothing is opened before it is used."""
    from workers.outbox import Database  # noqa: PLC0415 - an extra; it says itself which

    if settings.outbox_url is None:
        raise SettingsError("IDEM_OUTBOX_URL is not set: write the URL of your database, as SQLAlchemy takes it")
    return Database(settings.outbox_url, settings.outbox_table)


def build_relay(
    settings: Settings,
    rows: Database,
    ask: Callable[[Message[None], Timing], None],
    ask_all: Callable[[Sequence[Message[None]]], Sequence[BrokerError | None]] | None,
) -> Relay:
    """What a relay process needs."""
    from workers.outbox import Relay, Turn  # noqa: PLC0415 - an extra; it says itself which

    return Relay(rows, Turn(rows, lease_seconds=settings.outbox_lease_seconds), ask, ask_all)
