"""`idem doctor`, on what is well and on what is not."""

from __future__ import annotations

from pathlib import Path

from tests.valkey import Server
from tests.workers.parts import RunIdem


def _verdicts(out: str) -> list[list[str]]:
    """What is said of each part, once."""
    return [list(words) for words in dict.fromkeys(tuple(line.split()[:2]) for line in out.splitlines())]


def test_what_is_well_is_said_in_a_line_each(run_idem: RunIdem) -> None:
    ran = run_idem("doctor")

    assert ran.status == 0
    assert _verdicts(ran.out) == [
        ["ok", "settings"],
        ["ok", "ledger"],
        ["ok", "broker"],
        ["ok", "provider"],
    ]
    assert "HTTP timeout 1 s < lease 2 s" in ran.out


def test_who_may_post_webhooks_is_said(call_idem: RunIdem) -> None:
    secrets = {
        "IDEM_STRIPE_WEBHOOK_SECRET": "whsec_first,whsec_second",
        "IDEM_HMAC_BILLING_WEBHOOK_SECRET": "canary-one",
    }
    ran = call_idem("doctor", env=secrets)

    assert ran.status == 0
    assert "webhooks  /stripe: Stripe, 2 secrets are set" in ran.out
    assert "webhooks  /hmac_billing: HMAC, a secret is set" in ran.out
    assert "canary" not in ran.out
    assert call_idem("doctor", env={"IDEM_STANDARD_WEBHOOK_SECRET": "not Base64"[:3]}).status == 1


def test_everything_that_fails_is_said_at_once(run_idem: RunIdem, tmp_path: Path) -> None:
    """A damaged ledger, a server that may evict jobs, and no token: three lines, and no more is needed to mend them."""
    (tmp_path / "bad.db").write_text("garbage" * 100)
    server = Server(tmp_path / "valkey", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    server.start()
    try:
        broker = {"IDEM_BROKER_URL": server.url, "IDEM_LETTERMINT_TOKEN": ""}
        ran = run_idem("doctor", env={"IDEM_LEDGER_URL": "sqlite:///bad.db"} | broker)
    finally:
        server.kill()

    assert ran.status == 1
    assert _verdicts(ran.out) == [
        ["ok", "settings"],
        ["FAIL", "ledger"],
        ["FAIL", "broker"],
        ["FAIL", "provider"],
    ]
    assert "noeviction" in ran.out


def test_a_redis_ledger_says_what_a_crash_can_take_back(run_idem: RunIdem, tmp_path: Path) -> None:
    server = Server(tmp_path / "valkey", "--appendonly", "yes", "--appendfsync", "everysec")
    server.start()
    try:
        ran = run_idem("doctor", env={"IDEM_LEDGER_URL": server.url})
    finally:
        server.kill()

    assert ran.status == 0
    assert "synced every second" in ran.out
    assert "no replica" in ran.out
