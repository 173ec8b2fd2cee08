"""The settings: the only reader of the environment.

They come from the environment, then `.env`, then `idem.toml` in the working directory; the first that names a setting
wins. Each is one line of `SETTINGS`, which is also what the README's table and the checks are made from.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from idem.errors import SettingsError
from idem.policy import Durations
from idem.protocol import InDoubt

_PREFIX = "IDEM_"
_PROVIDER_SETTING = re.compile(r"IDEM_(?P<provider>[A-Z0-9_]+?)_(?P<part>TOKEN|BASE_URL)")
_WEBHOOK_SETTING = re.compile(r"IDEM_(?P<source>(?P<sender>[A-Z0-9]+)(_[A-Z0-9_]{1,40})?)_WEBHOOK_SECRET")
_URL_PASSWORD = re.compile(r"(?<=://).*@", re.DOTALL)
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_QUOTED = re.compile(r"""(?P<quote>['"])(?P<value>.*?)(?P=quote)(\s+#.*)?""")
_ENV_LINE = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<value>.*)")

#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SetQueueAttributes.html
_SQS_SECONDS = 14 * 86_400.0
_SQS_HIDDEN_SECONDS = 43_200.0

#: The providers that have an adapter, by the names of their modules; each takes `IDEM_<PROVIDER>_TOKEN` and
#: `IDEM_<PROVIDER>_BASE_URL`.
PROVIDERS = (
    "lettermint", "getmailer", "nuntly", "resend", "postmark", "ses", "sendgrid", "mailgun", "brevo",
    "lettermint_smtp", "resend_smtp", "smtp",
)  # fmt: skip

#: Who can post webhooks, by the names of their modules; each, and each `<sender>_<account>`, takes
#: `IDEM_<SOURCE>_WEBHOOK_SECRET`.
WEBHOOKS = (
    "stripe", "github", "shopify", "standard", "lettermint", "getmailer", "nuntly", "resend", "postmark", "ses",
    "sendgrid", "mailgun", "brevo", "hmac",
)  # fmt: skip


class Secret:
    """A value that must not be shown: its `repr` and `str` say only whether there is one."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(set)" if self._value else "Secret(empty)"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one provider needs; `base_url` None means the provider's own."""

    token: Secret
    base_url: str | None


def _setting(default: Any, name: str, help_text: str) -> Any:
    return field(default=default, metadata={"name": _PREFIX + name, "help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, read and checked. Durations are in seconds."""

    broker_url: str = _setting(
        "embedded://.idem",
        "BROKER_URL",
        "where jobs wait: `embedded://DIR` starts a Valkey server in that directory, `redis://host:port/db` uses yours,"
        " `sqs://REGION/PREFIX` is Amazon SQS",
    )
    ledger_url: str = _setting(
        "sqlite:///.idem/ledger.db",
        "LEDGER_URL",
        "where records are kept: `sqlite:///PATH`, `dynamodb://REGION/TABLE`, `redis://host:port/db`",
    )
    aws_endpoint_url: str | None = _setting(
        None, "AWS_ENDPOINT_URL", "another endpoint for DynamoDB, SQS and S3, such as an emulator's"
    )
    bodies_bucket: str | None = _setting(
        None,
        "BODIES_BUCKET",
        "an S3 bucket for what is too large for a DynamoDB item (320 KB) or an SQS message (1 MiB)",
    )
    retention_seconds: float = _setting(
        7_776_000.0, "RETENTION_SECONDS", "how long DynamoDB and Redis keep the record of an email that has ended"
    )
    provider: str = _setting(
        "lettermint", "PROVIDER", "who sends the emails: " + ", ".join(f"`{p}`" for p in PROVIDERS)
    )
    fallback_provider: str | None = _setting(
        None, "FALLBACK_PROVIDER", "who sends an email that the provider definitely did not accept"
    )
    in_doubt: str = _setting(
        "hold",
        "IN_DOUBT",
        "what becomes of an email in doubt when nothing can be found out, where its job says nothing: `hold` it for a "
        "person, `resend` it, or `drop` it",
    )
    namespace: str = _setting("default", "NAMESPACE", "keeps the keys of two applications apart")
    lease_seconds: float = _setting(
        60.0, "LEASE_SECONDS", "how long a worker may hold a claim; renewed while a job builds its email"
    )
    build_seconds: float = _setting(
        3_600.0,
        "BUILD_SECONDS",
        "how long a job may take to build its email, where it has no `timeout=`: for so long its claim is renewed",
    )
    http_timeout_seconds: float = _setting(
        20.0, "HTTP_TIMEOUT_SECONDS", "the whole of one request to the provider; shorter than the lease"
    )
    window_seconds: float | None = _setting(
        None, "WINDOW_SECONDS", "how long the provider remembers a key; by default what it documents, and never more"
    )
    visibility_seconds: float = _setting(
        90.0,
        "VISIBILITY_SECONDS",
        "how long the queue hides a job in hand; a worker asks for its lease and 5 s, if less",
    )
    backoff_seconds: float = _setting(
        1.0, "BACKOFF_SECONDS", "the first pause before a retry; it doubles, up to 15 min"
    )
    evidence_seconds: float = _setting(
        900.0, "EVIDENCE_SECONDS", "how long `resend` and `drop` wait for a look-up or a provider's event to tell"
    )
    reconcile_seconds: float = _setting(
        60.0, "RECONCILE_SECONDS", "how often each worker looks after what is in doubt or was forgotten"
    )
    durable: str = _setting(
        "off", "DURABLE", "`on`: what is enqueued is written to the ledger first, and survives a queue that loses it"
    )
    suppression: str = _setting(
        "off",
        "SUPPRESSION",
        "`on`: addresses that bounced for good or complained, as provider events tell, get nothing any more",
    )
    sweep_seconds: float = _setting(
        900.0,
        "SWEEP_SECONDS",
        "after how long a durable job that nobody has begun is enqueued again; then twice as long",
    )
    give_up_seconds: float = _setting(
        86_400.0, "GIVE_UP_SECONDS", "after how long an email that was never sent ends as rejected"
    )
    rate_per_second: float | None = _setting(
        None,
        "RATE_PER_SECOND",
        "emails a second that all workers together send; by default what the provider documents, else no limit",
    )
    rate_burst: float | None = _setting(
        None,
        "RATE_BURST",
        "emails that may go at once under the rate, at least 2; by default those of a quarter second",
    )
    outbox_url: str | None = _setting(
        None,
        "OUTBOX_URL",
        "the database that `idem relay` reads, as SQLAlchemy takes it: `postgresql+psycopg://user@host/name`, "
        "`mysql+pymysql://...`, `sqlite:///PATH`",
    )
    outbox_table: str = _setting(
        "idem_outbox", "OUTBOX_TABLE", "the table of the outbox; the names of two more begin with it"
    )
    outbox_lease_seconds: float = _setting(
        10.0, "OUTBOX_LEASE_SECONDS", "how long the relay at work may be silent before another one takes its place"
    )
    outbox_poll_seconds: float = _setting(
        0.2, "OUTBOX_POLL_SECONDS", "how often an idle relay looks; at most a quarter of its lease"
    )
    shutdown_seconds: float = _setting(
        30.0, "SHUTDOWN_SECONDS", "how long a stopping worker may finish what it began; longer than the HTTP timeout"
    )
    webhook_tolerance_seconds: float = _setting(
        300.0, "WEBHOOK_TOLERANCE_SECONDS", "how far from now, either way, the signed instant of a webhook may be"
    )
    # SendGrid posts up to 768 KB of events at once, and drops them when they were refused for 24 hours.
    webhook_bytes: float = _setting(1_048_576.0, "WEBHOOK_BYTES", "the largest body of a webhook that is taken")
    credentials: Mapping[str, Credentials] = field(default_factory=dict)
    webhook_secrets: Mapping[str, tuple[Secret, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.durations().check()
        if self.rate_burst is not None and self.rate_burst < 2:  # noqa: PLR2004 - see idem.pace.Rate
            raise SettingsError(f"IDEM_RATE_BURST is {self.rate_burst:g}: it must be at least 2")
        if self.outbox_poll_seconds * 4 > self.outbox_lease_seconds:
            raise SettingsError(
                f"IDEM_OUTBOX_POLL_SECONDS is {self.outbox_poll_seconds:g}: it must be at most a quarter of "
                f"IDEM_OUTBOX_LEASE_SECONDS, which is {self.outbox_lease_seconds:g}"
            )

        if self.broker_url.startswith("sqs://") and self.visibility_seconds > _SQS_HIDDEN_SECONDS:
            raise SettingsError(
                f"IDEM_VISIBILITY_SECONDS is {self.visibility_seconds:.10g}: SQS hides a job for "
                f"{_SQS_HIDDEN_SECONDS:.10g} s at the most"
            )

    def __repr__(self) -> str:
        shown = (f"{item.name}={getattr(self, item.name)!r}" for item in fields(self))
        return f"Settings({', '.join(_URL_PASSWORD.sub('***@', text) for text in shown)})"

    def durations(self, window_seconds: float | None = None) -> Durations:
        """All durations, with the window of the provider once it is known; where nothing is forgotten, no retention."""
        # SQS keeps no message for longer, whatever its queues are set to; the other brokers keep it until it is done.
        kept = _SQS_SECONDS if self.broker_url.startswith("sqs://") else None
        return Durations(
            http_timeout_seconds=self.http_timeout_seconds,
            lease_seconds=self.lease_seconds,
            visibility_seconds=self.visibility_seconds,
            shutdown_seconds=self.shutdown_seconds,
            give_up_seconds=self.give_up_seconds,
            window_seconds=window_seconds,
            retention_seconds=None if self.ledger_url.startswith("sqlite:") else self.retention_seconds,
            queue_seconds=kept,
            dead_letter_seconds=kept,
        )

    @property
    def shown_ledger_url(self) -> str:
        """Where the ledger is, without the password that its URL may hold."""
        return _URL_PASSWORD.sub("***@", self.ledger_url)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, directory: Path | None = None) -> Settings:
        """Read the environment and the files of `directory`; `SettingsError` names the setting and its source."""
        values: dict[str, tuple[str, str]] = {}
        for source, found in _sources(os.environ if environ is None else environ, directory or Path()):
            for name, value in found:
                _check_name(name, source)
                values.setdefault(name, (value, source))
        known = {item.metadata["name"]: item for item in fields(cls) if item.metadata}
        parsed: dict[str, Any] = {
            known[name].name: _parse(known[name], *values[name]) for name in values if name in known
        }
        return cls(**parsed, credentials=_credentials(values), webhook_secrets=_webhook_secrets(values))


#: Name, default and meaning of every setting that has a fixed name.
SETTINGS = tuple(
    (item.metadata["name"], item.default, item.metadata["help"]) for item in fields(Settings) if item.metadata
)


def environ_without_settings() -> dict[str, str]:
    """The environment less every setting of ours: what a process gets whose settings are given to it apart."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}


def _sources(environ: Mapping[str, str], directory: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    yield "the environment", [(name, value) for name, value in environ.items() if name.startswith(_PREFIX)]
    yield ".env", list(_read_env(directory / ".env"))
    yield "idem.toml", list(_read_toml(directory / "idem.toml"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path.name} cannot be read ({error.__class__.__name__}): it must be a UTF-8 text file"
        ) from error


def _read_env(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_read(path).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        parts = _ENV_LINE.fullmatch(text)
        if parts is None:
            raise SettingsError(f".env line {number} is not NAME=value")
        if parts["name"].startswith(_PREFIX):
            yield parts["name"], _unquote(parts["value"], f".env line {number}")


def _unquote(value: str, place: str) -> str:
    """A value without its quotes, if it has any, and without the comment behind it."""
    if not value.startswith(("'", '"')):
        return value.split(" #", 1)[0].strip()
    quoted = _QUOTED.fullmatch(value)
    if quoted is None:
        raise SettingsError(f"{place}: its value begins with a quote and does not end with the same one")
    return quoted["value"]


def _read_toml(path: Path) -> Iterator[tuple[str, str]]:
    """`lease_seconds = 60` is IDEM_LEASE_SECONDS; `token` in the table `[lettermint]` is IDEM_LETTERMINT_TOKEN."""
    try:
        tables = tomllib.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"idem.toml is not TOML: {error}") from error
    for name, value in tables.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for part, inner in parts:
            if isinstance(inner, bool) or not isinstance(inner, str | int | float):
                raise SettingsError(f"idem.toml: {name} must be a string, a number, or a table of those")
            yield _PREFIX + "_".join(filter(None, (name, part))).upper(), str(inner)


def _check_name(name: str, source: str) -> None:
    known = {setting for setting, _, _ in SETTINGS}
    found = _PROVIDER_SETTING.fullmatch(name)
    if name in known or (found and found["provider"].lower() in PROVIDERS):
        return
    posting = _WEBHOOK_SETTING.fullmatch(name)
    if posting and posting["sender"].lower() in WEBHOOKS:
        return
    credentials = {f"{_PREFIX}{provider.upper()}_{part}" for provider in PROVIDERS for part in ("TOKEN", "BASE_URL")}
    secrets = {f"{_PREFIX}{sender.upper()}_WEBHOOK_SECRET" for sender in WEBHOOKS}
    near = difflib.get_close_matches(name, sorted(known | credentials | secrets), n=1)
    hint = f"did you mean {near[0]}?" if near else "the README lists the known ones"
    raise SettingsError(f"unknown setting {name} in {source}; {hint}")


def _parse(item: Any, value: str, source: str) -> str | float:
    name = item.metadata["name"]
    if not item.name.endswith("_seconds"):
        return _PARSERS.get(item.name, _parse_text)(name, value)
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise SettingsError(f"{name} in {source} is not a number of seconds above 0")
    return seconds


def _parse_text(name: str, value: str) -> str:
    if not value or not value.isprintable():
        raise SettingsError(f"{name} is empty or holds characters that do not print")
    return value


def _parse_provider(name: str, value: str) -> str:
    if value not in PROVIDERS:
        raise SettingsError(f"{name} names no known provider; known: {', '.join(PROVIDERS)}")
    return value


def _parse_url(name: str, value: str) -> str:
    _check_base_url(name, value)
    return value


def _parse_in_doubt(name: str, value: str) -> str:
    if value not in set(InDoubt):
        raise SettingsError(f"{name} must be one of {', '.join(InDoubt)}")
    return value


def _parse_table(name: str, value: str) -> str:
    if _TABLE.fullmatch(value) is None:
        raise SettingsError(f"{name} is no plain name of a table: letters, digits and _, at most 40 of them")
    return value


def _parse_number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise SettingsError(f"{name} is not a number above 0")
    return number


def _parse_switch(name: str, value: str) -> str:
    if value not in {"on", "off"}:
        raise SettingsError(f"{name} must be on or off")
    return value


_PARSERS: Mapping[str, Callable[[str, str], str | float]] = {
    "durable": _parse_switch,
    "suppression": _parse_switch,
    "provider": _parse_provider,
    "fallback_provider": _parse_provider,
    "in_doubt": _parse_in_doubt,
    "aws_endpoint_url": _parse_url,
    "outbox_table": _parse_table,
    "rate_per_second": _parse_number,
    "rate_burst": _parse_number,
    "webhook_bytes": _parse_number,
}


def _credentials(values: Mapping[str, tuple[str, str]]) -> dict[str, Credentials]:
    found = {}
    for provider in PROVIDERS:
        token, _ = values.get(f"{_PREFIX}{provider.upper()}_TOKEN", ("", ""))
        base_url, source = values.get(f"{_PREFIX}{provider.upper()}_BASE_URL", (None, ""))
        if not all("!" <= char <= "~" for char in token):
            raise SettingsError(f"{_PREFIX}{provider.upper()}_TOKEN holds a space or a character that is not ASCII")
        if base_url is not None:
            _check_base_url(f"{_PREFIX}{provider.upper()}_BASE_URL in {source}", base_url)
        if token or base_url:
            found[provider] = Credentials(Secret(token), base_url)
    return found


def _webhook_secrets(values: Mapping[str, tuple[str, str]]) -> dict[str, tuple[Secret, ...]]:
    """By source; several, separated by commas, while one takes the place of another."""
    found = {}
    for name, (value, source) in values.items():
        named = _WEBHOOK_SETTING.fullmatch(name)
        if named is None:
            continue
        secrets = [part.strip() for part in value.split(",")]
        if not all(secrets) or not all("!" <= char <= "~" for secret in secrets for char in secret):
            raise SettingsError(f"{name} in {source} is not one secret, or several with a comma between two")
        found[named["source"].lower()] = tuple(map(Secret, secrets))
    return found


def _check_base_url(name: str, value: str) -> None:
    try:
        parts = urlsplit(value)
        valid = parts.scheme in {"http", "https", "smtp", "smtps"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not all("!" <= char <= "~" for char in value) or {"?", "#", "@"} & set(value):
        raise SettingsError(f"{name} is not a base URL such as https://api.example.com/v1")
