"""From settings to adapters that need more than a token."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from idem.errors import MissingExtra, SettingsError
from tests import services
from tests.fakes import make_email
from workers import wiring
from workers.settings import PROVIDERS, Settings


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Settings]:
    """Settings of a machine that knows no region."""
    for name, value in services.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return Settings


def test_a_worker_without_a_region_does_not_start(load: type[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load.load({"IDEM_PROVIDER": "ses"})
    with pytest.raises(SettingsError, match="AWS_REGION"):
        wiring.build_provider(settings)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert wiring.build_provider(settings).contract.name == "ses"
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtra, match="ses"):
        wiring.build_provider(settings)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_whoever_only_enqueues_needs_no_more_than_the_name(
    load: type[Settings], provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No token, no region, no client, no address of a server."""
    monkeypatch.setitem(sys.modules, "boto3", None)
    wiring.check_with(load.load({"IDEM_PROVIDER": provider}))(make_email())


def test_a_server_has_no_address_of_its_own(load: type[Settings]) -> None:
    with pytest.raises(SettingsError, match="IDEM_SMTP_BASE_URL is not set"):
        wiring.build_provider(load.load({"IDEM_PROVIDER": "smtp"}))
    settings = load.load({"IDEM_PROVIDER": "smtp", "IDEM_SMTP_BASE_URL": "smtp://mail.example.com:587"})
    assert wiring.build_provider(settings).contract.name == "smtp"


@pytest.mark.parametrize("provider", ["lettermint_smtp", "resend_smtp"])
def test_a_relay_needs_a_token(load: type[Settings], provider: str) -> None:
    with pytest.raises(SettingsError, match=f"IDEM_{provider.upper()}_TOKEN is not set"):
        wiring.build_provider(load.load({"IDEM_PROVIDER": provider}))
    settings = load.load({"IDEM_PROVIDER": provider, f"IDEM_{provider.upper()}_TOKEN": "secret"})
    assert wiring.build_provider(settings).contract.name == provider
