"""`idem doctor`: check everything that a worker needs, before it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from idem.errors import IdemError, LedgerError
from workers import wiring
from workers.app import App
from workers.cli.records import describe_pace, pace_sentence
from workers.settings import Settings
from workers.webhooks.sources import Source


@click.command("doctor")
def doctor_command() -> int:
    """Check settings, ledger, broker and provider, and say what the promise rests on. Exit status 1 if one fails."""
    app = App(Settings.load())
    checks: dict[str, Callable[[], Sequence[str]]] = {
        "settings": lambda: _numbers(app.settings),
        # Made inside, as making one may fail as well.
        "ledger": lambda: app.ledger.check(),  # noqa: PLW0108
        "broker": lambda: app.broker.check(),  # noqa: PLW0108
        "provider": lambda: [*_provider(app.settings), *_pace(app)],
        "webhooks": lambda: _webhooks(app.settings),
        "outbox": lambda: _outbox(app),
    }
    try:
        # All of them, so that everything can be mended at once.
        passed = [_report(name, check) for name, check in checks.items()]
        return 0 if all(passed) else 1
    finally:
        app.close()


def _report(name: str, check: Callable[[], Sequence[str]]) -> bool:
    try:
        said = check()
    except IdemError as error:
        click.echo(f"FAIL  {name:<9} {error}")
        return False
    for sentence in said:
        click.echo(f"ok    {name:<9} {sentence}")
    return True


def _numbers(settings: Settings) -> Sequence[str]:
    """They were checked when they were loaded; the policy adds the provider's window."""
    policy = wiring.build_policy(settings)
    sums = [str(rule) for rule in settings.durations(policy.window_seconds).rules()]
    if policy.window_seconds is None:
        sums.append("the provider has no keys: what is in doubt is never sent again by itself")
    return sums


def _provider(settings: Settings) -> Sequence[str]:
    """The token is there, where one is needed; whether it is valid, only an email can tell."""
    contract = wiring.build_provider(settings).contract
    token = "a token is set" if contract.needs_token else "needs no token"
    keys = "keys" if contract.key is not None else "no keys"
    return (f"{contract.title}: {token}; {keys} as of {contract.checked}, {contract.source}",)


def _webhooks(settings: Settings) -> Sequence[str]:
    """Who may post, with how many secrets each; nothing where nobody may."""
    return [f"/{name}: {source.scheme.title}, {_secrets(len(source.keys))}" for name, source in _sources(settings)]


def _outbox(app: App) -> Sequence[str]:
    """What there is in it; nothing where there is none."""
    return app.rows.check() if app.settings.outbox_url is not None else ()


def _sources(settings: Settings) -> Sequence[tuple[str, Source]]:
    return sorted(wiring.build_sources(settings).items())


def _secrets(count: int) -> str:
    return "a secret is set" if count == 1 else f"{count} secrets are set"


def _pace(app: App) -> Sequence[str]:
    """How fast it is asked, and whether at all; what the ledger cannot say, its own line does."""
    rate = wiring.build_rate(app.settings)
    limits = () if rate is None else (f"at most {rate.per_second:g} emails a second, {rate.burst:g} at once",)
    try:
        described = describe_pace(app.settings.provider, app.gate.look())
    except LedgerError:
        return limits
    return limits if described["standing"] == "asked" else (*limits, pace_sentence(described))
