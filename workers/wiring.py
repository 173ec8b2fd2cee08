"""From settings to parts: the only place that knows concrete classes. Each import of an optional driver is here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from idem.clock import Clock, SystemClock
from idem.email import Email
from idem.errors import MissingExtra, SettingsError
from idem.ledger import Ledger
from idem.policy import Policy
from idem.providers.base import Contract, Provider
from idem.send import Point, Sender
from idem.stores.base import Store
from idem.stores.sqlite import SqliteStore
from workers.settings import Settings

if TYPE_CHECKING:
    from idem.providers.lettermint import Lettermint
    from workers.brokers.redis import RedisBroker
    from workers.brokers.sqs import SqsBroker

    #: What dramatiq's worker takes, and the rest of the package.
    AnyBroker = RedisBroker | SqsBroker


def _adapter(name: str) -> type[Lettermint]:
    """The adapter of a provider; imported when it is needed, as it brings an HTTP client."""
    from idem.providers.lettermint import Lettermint  # noqa: PLC0415 - see above

    return {"lettermint": Lettermint}[name]


def contract_of(provider: str) -> Contract:
    """What a provider documents."""
    return _adapter(provider).contract


def open_store(settings: Settings) -> Store:
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


def _dynamo_store(settings: Settings, place: str) -> Store:
    region, _, table = place.partition("/")
    if not region or not table or "/" in table:
        raise SettingsError("IDEM_LEDGER_URL names no table: write dynamodb://REGION/TABLE")
    try:
        from idem.stores.dynamodb import Bucket, Connection, DynamoStore  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtra("dynamodb", "the ledger (IDEM_LEDGER_URL=dynamodb://...)") from error
    endpoint, bucket = settings.aws_endpoint_url, settings.bodies_bucket
    return DynamoStore(
        Connection("dynamodb", region, endpoint),
        table,
        namespace=settings.namespace,
        bucket=None if bucket is None else Bucket(Connection("s3", region, endpoint), bucket),
        retention_seconds=settings.retention_seconds,
    )


def _redis_store(settings: Settings) -> Store:
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
    return Policy(
        lease_seconds=settings.lease_seconds,
        http_timeout_seconds=settings.http_timeout_seconds,
        window_seconds=documented if window is None else window,
        give_up_seconds=settings.give_up_seconds,
        backoff_seconds=settings.backoff_seconds,
    )


def build_ledger(settings: Settings, clock: Clock | None = None) -> Ledger:
    """The ledger of this application."""
    return Ledger(
        open_store(settings), policy=build_policy(settings), provider=settings.provider, clock=clock or SystemClock()
    )


def build_provider(settings: Settings) -> Provider:
    """The provider's adapter; `SettingsError` when it has no token."""
    credentials = settings.credentials.get(settings.provider)
    name = f"IDEM_{settings.provider.upper()}_TOKEN"
    if credentials is None or not credentials.token.reveal():
        raise SettingsError(f"{name} is not set: put the provider's API token there")
    adapter = _adapter(settings.provider)
    return adapter(credentials.token.reveal(), credentials.base_url or adapter.contract.base_url)


def check_with(settings: Settings) -> Callable[[Email], None]:
    """What raises `UnsupportedEmail` for the configured provider; needs no token."""
    return _adapter(settings.provider)("unused").check


def build_sender(settings: Settings, ledger: Ledger, clock: Clock, reach: Callable[[Point], None]) -> Sender:
    """The sender of a worker process."""
    return Sender(
        ledger,
        build_provider(settings),
        clock=clock,
        http_timeout_seconds=settings.http_timeout_seconds,
        namespace=settings.namespace,
        reach=reach,
    )


def build_broker(settings: Settings) -> AnyBroker:
    """The broker that `IDEM_BROKER_URL` names; nothing is connected or started before it is used."""
    scheme, _, rest = settings.broker_url.partition("://")
    if scheme == "sqs" and rest:
        return _sqs_broker(settings, rest)
    if scheme not in {"embedded", "redis", "rediss"} or not rest:
        raise SettingsError(
            "IDEM_BROKER_URL names no broker: write embedded://DIR, redis://host:port/db or sqs://REGION/PREFIX"
        )
    try:
        from workers.brokers.embedded import EmbeddedBroker  # noqa: PLC0415 - an extra, imported when asked for
        from workers.brokers.redis import RedisBroker, connect  # noqa: PLC0415 - the same
    except ImportError as error:
        raise MissingExtra("local" if scheme == "embedded" else "redis", "the broker") from error
    namespace, visibility_seconds = settings.namespace, settings.visibility_seconds
    if scheme == "embedded":
        return EmbeddedBroker(Path(rest), namespace=namespace, visibility_seconds=visibility_seconds)
    return RedisBroker(connect(settings.broker_url), namespace=namespace, visibility_seconds=visibility_seconds)


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
        bucket=None if bucket is None else Bucket(Client("s3", names.region, endpoint), bucket),
    )
