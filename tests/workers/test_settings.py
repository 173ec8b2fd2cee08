"""Settings: where they come from, what is refused, and that no secret is ever shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from idem.errors import SettingsError
from workers import wiring
from workers.settings import SETTINGS, Secret, Settings, environ_without_settings

_CANARY = "canary-7f3a"


def _load(environ: Mapping[str, str] | None = None, directory: Path | None = None) -> Settings:
    return Settings.load(environ or {}, directory or Path("/nowhere"))


def _problem(environ: Mapping[str, str] | None = None, directory: Path | None = None) -> str:
    with pytest.raises(SettingsError) as raised:
        _load(environ, directory)
    return str(raised.value)


class TestSources:
    def test_the_environment_wins_over_dotenv_and_dotenv_over_toml(self, tmp_path: Path) -> None:
        (tmp_path / "idem.toml").write_text("lease_seconds = 41\nvisibility_seconds = 91\nshutdown_seconds = 31\n")
        (tmp_path / ".env").write_text("IDEM_LEASE_SECONDS=42\nIDEM_VISIBILITY_SECONDS=92\n")

        found = _load({"IDEM_LEASE_SECONDS": "43"}, tmp_path)

        assert (found.lease_seconds, found.visibility_seconds, found.shutdown_seconds) == (43, 92, 31)

    def test_without_any_of_them_the_defaults_hold_and_hang_together(self, tmp_path: Path) -> None:
        assert _load({}, tmp_path) == Settings()

    def test_every_setting_is_read_under_its_own_name(self) -> None:
        names = [name for name, _, _ in SETTINGS]

        assert len(set(names)) == len(names)
        assert _load({"IDEM_NAMESPACE": "n", "IDEM_GIVE_UP_SECONDS": "7"}) == Settings(namespace="n", give_up_seconds=7)

    @pytest.mark.parametrize(
        ("line", "value"),
        [
            ("IDEM_NAMESPACE=plain", "plain"),
            ("export IDEM_NAMESPACE = spaced  ", "spaced"),
            ("IDEM_NAMESPACE='a # b'", "a # b"),
            ('IDEM_NAMESPACE="quoted"', "quoted"),
            ("IDEM_NAMESPACE=value # a comment", "value"),
            ("IDEM_NAMESPACE=a#b", "a#b"),
            ('IDEM_NAMESPACE="quoted"   # the shop', "quoted"),
            ("IDEM_NAMESPACE='a # b' # it's a comment", "a # b"),
            ("IDEM_NAMESPACE='it's'", "it's"),
            ("IDEM_NAMESPACE=it's", "it's"),
            ("# a comment\n\nOTHER=not ours\nIDEM_NAMESPACE=x=y", "x=y"),
        ],
    )
    def test_dotenv_lines(self, tmp_path: Path, line: str, value: str) -> None:
        (tmp_path / ".env").write_text(line + "\n")

        assert _load({}, tmp_path).namespace == value

    def test_toml_has_tables_for_providers(self, tmp_path: Path) -> None:
        (tmp_path / "idem.toml").write_text('[lettermint]\ntoken = "t"\nbase_url = "https://example.com/v1"\n')

        credentials = _load({}, tmp_path).credentials["lettermint"]

        assert (credentials.token.reveal(), credentials.base_url) == ("t", "https://example.com/v1")

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            (".env", b"IDEM_NAMESPACE\n", ".env line 1 is not NAME=value"),
            (".env", b"A=1\nIDEM_NAMESPACE='\n", ".env line 2: its value begins with a quote and does not end with"),
            (".env", b"IDEM_NAMESPACE=\"shop'", ".env line 1: its value begins with a quote and does not end with"),
            (".env", b"IDEM_NAMESPACE='a' b", ".env line 1: its value begins with a quote and does not end with"),
            (".env", b"\xff\xfe", ".env cannot be read"),
            ("idem.toml", b"lease_seconds = \n", "idem.toml is not TOML"),
            ("idem.toml", b"lease_seconds = true\n", "lease_seconds must be a string, a number"),
            ("idem.toml", b"lease_seconds = [1]\n", "lease_seconds must be a string, a number"),
            ("idem.toml", b"lease_seconds = 2024-01-01\n", "lease_seconds must be a string, a number"),
            ("idem.toml", b"[lettermint.deeper]\ntoken = 1\n", "lettermint must be a string, a number"),
            ("idem.toml", b"lease-seconds = 1\n", "did you mean IDEM_LEASE_SECONDS?"),
            ("idem.toml", b"\xff", "idem.toml cannot be read"),
            ("idem.toml", b"lease_seconds = " + b"9" * 5_000, "idem.toml"),
            ("idem.toml", b"lease_seconds = nan", "not a number of seconds"),
        ],
    )
    def test_a_malformed_file_is_named(self, tmp_path: Path, name: str, content: bytes, problem: str) -> None:
        (tmp_path / name).write_bytes(content)

        assert problem in _problem({}, tmp_path)

    def test_a_file_that_is_a_directory_is_named(self, tmp_path: Path) -> None:
        (tmp_path / ".env").mkdir()

        assert ".env cannot be read (IsADirectoryError)" in _problem({}, tmp_path)

    def test_a_child_gets_the_environment_without_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IDEM_NAMESPACE", "n")
        monkeypatch.setenv("IDEMPOTENT", "kept")

        assert environ_without_settings() == {k: v for k, v in os.environ.items() if k != "IDEM_NAMESPACE"}


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("IDEM_LEASE_SECOND", "did you mean IDEM_LEASE_SECONDS?"),
            ("IDEM_LETTERMINT_TOKENS", "did you mean IDEM_LETTERMINT_TOKEN?"),
            ("IDEM_LETERMINT_TOKEN", "did you mean IDEM_LETTERMINT_TOKEN?"),
            ("IDEM_LETTERMINT_BASEURL", "did you mean IDEM_LETTERMINT_BASE_URL?"),
            ("IDEM_XYZZY", "the README lists the known ones"),
        ],
    )
    def test_an_unknown_setting_with_the_nearest_known_one(self, name: str, hint: str) -> None:
        problem = _problem({name: _CANARY})

        assert problem == f"unknown setting {name} in the environment; {hint}"

    def test_an_unknown_setting_is_named_with_its_file(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("IDEM_LEASE=1\n")

        assert "unknown setting IDEM_LEASE in .env; did you mean" in _problem({}, tmp_path)

    @pytest.mark.parametrize("value", ["", "soon", "0", "-1", "nan", "inf", "1e999", "60s", "1,5", _CANARY])
    def test_what_is_not_a_duration(self, value: str) -> None:
        problem = _problem({"IDEM_LEASE_SECONDS": value})

        assert problem == "IDEM_LEASE_SECONDS in the environment is not a number of seconds above 0"

    @pytest.mark.parametrize("value", ["", "Lettermint", "sendgird", "lettermint "])
    def test_what_is_not_a_provider(self, value: str) -> None:
        assert "known: lettermint" in _problem({"IDEM_PROVIDER": value})

    @pytest.mark.parametrize("name", ["IDEM_NAMESPACE", "IDEM_BROKER_URL", "IDEM_LEDGER_URL"])
    @pytest.mark.parametrize("value", ["", "a\nb", "a\x00b", "\udcff"])
    def test_what_does_not_print(self, name: str, value: str) -> None:
        assert _problem({name: value}) == f"{name} is empty or holds characters that do not print"

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "api.example.com/v1",
            "ftp://example.com",
            "https://",
            "https:///v1",
            "https://example.com:0",
            "https://example.com:99999",
            "https://example.com:port",
            "https://[::1",
            "https://example.com/v1?x=1",
            "https://example.com/v1#x",
            f"https://user:{_CANARY}@example.com",
            f"https://:{_CANARY}@example.com",
            f"https://{_CANARY}@example.com",
            "https://exämple.com",
            "https://example.com/a b",
            "https://example.com/\nHost: evil",
        ],
    )
    def test_what_is_not_a_base_url(self, value: str) -> None:
        problem = _problem({"IDEM_LETTERMINT_BASE_URL": value})

        assert problem.startswith("IDEM_LETTERMINT_BASE_URL in the environment is not a base URL")
        assert _CANARY not in problem

    @pytest.mark.parametrize("value", ["http://127.0.0.1:8025/lettermint/v1", "https://[::1]:8443/v1", "https://a.b/"])
    def test_what_is_a_base_url(self, value: str) -> None:
        assert _load({"IDEM_LETTERMINT_BASE_URL": value}).credentials["lettermint"].base_url == value

    @pytest.mark.parametrize("value", [f"{_CANARY} x", f"{_CANARY}\n", f"{_CANARY}\r\nX-Evil: 1", f"{_CANARY}é"])
    def test_a_token_that_no_header_can_carry(self, value: str) -> None:
        problem = _problem({"IDEM_LETTERMINT_TOKEN": value})

        assert problem == "IDEM_LETTERMINT_TOKEN holds a space or a character that is not ASCII"


class TestOrders:
    """Numbers that hang together (DESIGN section 8): refused with the reason, never adjusted in silence."""

    @pytest.mark.parametrize(
        ("changed", "problem"),
        [
            (
                {"IDEM_HTTP_TIMEOUT_SECONDS": "60"},
                (
                    "the HTTP timeout (60 s) must be < the lease (60 s), or a claim ends while its request is still "
                    "running: set IDEM_HTTP_TIMEOUT_SECONDS or IDEM_LEASE_SECONDS"
                ),
            ),
            (
                {"IDEM_LEASE_SECONDS": "91"},
                (
                    "the lease (91 s) must be <= the visibility (90 s), or a dead worker's job would come back before "
                    "its claim ends, and be put off once more: set IDEM_LEASE_SECONDS or IDEM_VISIBILITY_SECONDS"
                ),
            ),
            (
                {"IDEM_SHUTDOWN_SECONDS": "20"},
                (
                    "the HTTP timeout (20 s) must be < the shutdown (20 s), or a stopping worker would leave a request "
                    "in doubt that was only slow: set IDEM_HTTP_TIMEOUT_SECONDS or IDEM_SHUTDOWN_SECONDS"
                ),
            ),
        ],
    )
    def test_an_order_that_is_broken(self, changed: dict[str, str], problem: str) -> None:
        assert _problem(changed) == problem

    def test_a_ledger_that_forgets_before_the_queue_does(self) -> None:
        """SQS keeps a message for 14 days, and as long again among the dead letters; SQLite forgets nothing."""
        month = {"IDEM_BROKER_URL": "sqs://eu-west-1/x", "IDEM_RETENTION_SECONDS": str(30 * 86_400)}
        problem = _problem(month | {"IDEM_LEDGER_URL": "dynamodb://eu-west-1/x"})

        assert problem.startswith("the life of a message, dead letters included, (2420100 s) must be < ")
        assert problem.endswith(": set IDEM_RETENTION_SECONDS")
        assert wiring.build_policy(_load(month)).memory_seconds is None

    def test_a_job_cannot_be_hidden_for_longer_than_sqs_does(self) -> None:
        sqs = {"IDEM_BROKER_URL": "sqs://eu-west-1/x"}

        assert _load(sqs | {"IDEM_VISIBILITY_SECONDS": "43200"}).visibility_seconds == 43_200
        assert _load({"IDEM_VISIBILITY_SECONDS": "43201"}).visibility_seconds == 43_201
        assert _problem(sqs | {"IDEM_VISIBILITY_SECONDS": "43201"}) == (
            "IDEM_VISIBILITY_SECONDS is 43201: SQS hides a job for 43200 s at the most"
        )

    def test_the_edge_that_is_allowed(self) -> None:
        found = _load({"IDEM_LEASE_SECONDS": "90", "IDEM_VISIBILITY_SECONDS": "90"})

        assert found.lease_seconds == found.visibility_seconds

    def test_a_window_longer_than_the_provider_documents(self) -> None:
        with pytest.raises(SettingsError, match=r"remembers a key for 86400 s: a longer window would send twice"):
            wiring.build_policy(_load({"IDEM_WINDOW_SECONDS": "86401"}))

    @pytest.mark.parametrize(("window", "used"), [("86400", 86_400.0), ("3600", 3_600.0), (None, 86_400.0)])
    def test_a_window_within_it(self, window: str | None, used: float) -> None:
        settings = _load({} if window is None else {"IDEM_WINDOW_SECONDS": window})

        assert wiring.build_policy(settings).window_seconds == used

    def test_a_window_that_its_margin_eats_up(self) -> None:
        with pytest.raises(SettingsError, match="IDEM_WINDOW_SECONDS"):
            wiring.build_policy(_load({"IDEM_WINDOW_SECONDS": "160"}))


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        [
            "redis",
            "redis://",
            "redis:host",
            "embedded://",
            "embedded:dir",
            "EMBEDDED://dir",
            "amqp://localhost",
            "http://localhost",
            "redis://localhost:port",
            "redis://localhost:99999",
            "redis://localhost/db",
            "redis://localhost/0/1",
            "redis://[::1",
            "redis://localhost?db=x",
            "redis://localhost?no_such_option=1",
            f"redis://:{_CANARY}/x@localhost",
        ],
    )
    def test_what_names_no_broker(self, url: str) -> None:
        with pytest.raises(SettingsError, match="IDEM_BROKER_URL") as raised:
            wiring.build_broker(replace(Settings(), broker_url=url))

        assert _CANARY not in str(raised.value)
        assert raised.value.__suppress_context__ or raised.value.__context__ is None

    @pytest.mark.parametrize("url", ["redis://localhost", "redis://localhost:6380/3", "rediss://u:p@host:1/"])
    def test_what_names_one(self, url: str) -> None:
        wiring.build_broker(replace(Settings(), broker_url=url)).close()

    @pytest.mark.parametrize(
        "url",
        ["ledger.db", "sqlite://", "sqlite:///", "sqlite:ledger.db", "sqlite://host/x", "postgres://x", "dynamodb://x"],
    )
    def test_what_names_no_ledger(self, url: str) -> None:
        with pytest.raises(SettingsError, match=r"IDEM_LEDGER_URL names no (ledger|table)"):
            wiring.open_store(replace(Settings(), ledger_url=url))

    @pytest.mark.parametrize("name", ["plain.db", "with#hash?and=query.db", "deeper/still/here.db"])
    def test_what_names_one_names_all_of_it(self, tmp_path: Path, name: str) -> None:
        store = wiring.open_store(replace(Settings(), ledger_url=f"sqlite:///{tmp_path}/{name}"))
        store.count()
        store.close()

        assert (tmp_path / name).is_file()


class TestSecrets:
    def test_no_way_of_writing_settings_down_shows_one(self) -> None:
        settings = _load(
            {
                "IDEM_LETTERMINT_TOKEN": _CANARY,
                "IDEM_BROKER_URL": f"redis://user:{_CANARY}@localhost/0",
                "IDEM_STRIPE_EU_WEBHOOK_SECRET": f"{_CANARY}, {_CANARY}",
            }
        )
        written = [
            repr(settings),
            str(settings),
            f"{settings}",
            repr(settings.credentials),
            str(settings.credentials["lettermint"].token),
            f"{settings.credentials['lettermint'].token!s:>20}",
            repr(wiring.build_provider(settings)),
        ]

        assert not [text for text in written if _CANARY in text]
        assert settings.credentials["lettermint"].token.reveal() == _CANARY
        assert [secret.reveal() for secret in settings.webhook_secrets["stripe_eu"]] == [_CANARY, _CANARY]
        assert "localhost/0" in repr(settings)

    def test_a_secret_says_only_whether_it_is_set(self) -> None:
        assert (repr(Secret("x")), repr(Secret(""))) == ("Secret(set)", "Secret(empty)")

    def test_a_missing_token_is_named(self) -> None:
        with pytest.raises(SettingsError, match="IDEM_LETTERMINT_TOKEN is not set"):
            wiring.build_provider(_load({"IDEM_LETTERMINT_TOKEN": ""}))

    @pytest.mark.parametrize("value", ["", ",", "one,", "one two", "sécret"])
    def test_what_is_no_webhook_secret(self, value: str) -> None:
        with pytest.raises(SettingsError, match="IDEM_STRIPE_WEBHOOK_SECRET in the environment is not one secret"):
            _load({"IDEM_STRIPE_WEBHOOK_SECRET": value})

    def test_a_webhook_secret_of_nobody(self) -> None:
        with pytest.raises(SettingsError, match="did you mean IDEM_STRIPE_WEBHOOK_SECRET"):
            _load({"IDEM_STRPE_WEBHOOK_SECRET": "secret"})
