"""What email providers tell, as the sandbox posts it: opened, understood, and taken to what is in doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from idem import State, Unknown
from idem.events import Happened
from idem.keys import provider_key
from idem.ledger import Claim
from idem.protocol import Intent
from tests.workers.parts import RunIdem, Sandbox, StartIdem, wait_for
from tests.workers.webhooks.deliveries import WHSEC
from workers import App, Event
from workers.sandbox.dialect import Mail
from workers.sandbox.webhooks import SCHEMES, Posting
from workers.sandbox.webhooks import Event as Posted
from workers.settings import Settings
from workers.webhooks.delivery import Delivery
from workers.webhooks.happened import Told, told
from workers.webhooks.signatures import Tolerance
from workers.webhooks.sources import open_sources

AT = 1_800_000_000.0


DERIVED = provider_key("default", "a-key", 0)


def posted(provider: str, kind: Posted, key: str = DERIVED, at: float = AT) -> tuple[dict[str, str], bytes]:
    mail = Mail(
        sender="shop@example.com",
        to=("ann@example.com",),
        subject="Hello",
        tags=_tags(provider, key) if key else (),
        metadata={"idem_key": key} if key else {},
    )
    scheme = SCHEMES[provider]
    return scheme.write(
        Posting(
            event=kind,
            name=scheme.names[kind],
            id="evt_1",
            message_id="id-1",
            recipient="ann@example.com",
            mail=mail,
            at=at,
            secret=WHSEC,
        )
    )


def _tags(provider: str, key: str) -> tuple[str, ...]:
    match provider:
        case "getmailer":
            return (f"idem_key_{key}",)
        case "brevo":
            return ("a-tag", key)
        case _:
            return (f"idem_key={key}",)


def opened(provider: str, headers: dict[str, str], body: bytes) -> Event:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    (event,) = open_sources({provider: (WHSEC,)})[provider].open(Delivery.of(raw, body), Tolerance(AT, 300.0))
    return event


@pytest.mark.parametrize("provider", ["lettermint", "getmailer", "nuntly", "resend"])
@pytest.mark.parametrize("kind", Posted)
def test_what_the_sandbox_posts_is_understood(provider: str, kind: Posted) -> None:
    event = opened(provider, *posted(provider, kind))

    assert told(event) == Told(Happened(kind.value), provider, "id-1", ("ann@example.com",), DERIVED)


@pytest.mark.parametrize("key", ["", "theirs"])
def test_a_key_that_is_none_of_ours_is_none(key: str) -> None:
    found = told(opened("lettermint", *posted("lettermint", Posted.DELIVERED, key=key)))

    assert found is not None
    assert found.provider_key is None


@pytest.mark.parametrize(
    ("source", "kind", "data"),
    [
        ("stripe", "email.sent", {"data": {}}),
        ("resend", "domain.created", {"data": {}}),
        ("resend", "email.sent", {}),
        ("resend", "email.sent", {"data": []}),
    ],
)
def test_other_events_tell_nothing_of_an_email(source: str, kind: str, data: dict[str, Any]) -> None:
    assert told(Event(source=source, id="e", type=kind, created=None, data=data)) is None


@pytest.mark.parametrize("junk", [7, None, "x", [], [7, {"name": "idem_key"}], {"idem_key": 7}])
def test_what_is_malformed_is_left_out(junk: object) -> None:
    data = {"data": dict.fromkeys(("message_id", "to", "recipient", "metadata", "tags", "headers"), junk)}
    found = told(Event(source="resend_eu", id="e", type="email.failed", created=None, data=data))

    assert found is not None
    assert (found.happened, found.provider, found.provider_key) == (Happened.DROPPED, "resend", None)
    assert not found.happened.is_of_an_accepted_email


def test_an_event_with_the_derived_key_ends_a_doubt(tmp_path: Path) -> None:
    """An event of another key changes nothing."""
    environ = {
        "IDEM_LEDGER_URL": f"sqlite:///{tmp_path}/ledger.db",
        "IDEM_PROVIDER": "smtp",
        "IDEM_SMTP_BASE_URL": "smtp://127.0.0.1:1",
    }
    app = App(Settings.load(environ, tmp_path))
    try:
        app.ledger.create()
        claim = app.ledger.claim(Intent("welcome-42", fingerprint="f"))
        assert isinstance(claim, Claim)
        app.ledger.settle(claim, Unknown("no answer"))
        states = [_heard(app, key) for key in ("another", "welcome-42")]
    finally:
        app.close()

    assert states == [(State.IN_DOUBT, None), (State.SENT, "id-1")]


def _heard(app: App, key: str) -> tuple[State, str | None]:
    event = opened("lettermint", *posted("lettermint", Posted.DELIVERED, provider_key("default", key, 0)))
    app._hear(event)
    app.reconciler().run()
    record = app.ledger.read("welcome-42")
    assert record is not None
    return record.state, record.message_id


HOOKS = """
from idem import Email
from workers import App, Event

app = App.from_env()

@app.webhook("lettermint", "message.hard_bounced")
def alert(event: Event) -> Email:
    return Email(from_="shop@example.com", to="desk@example.com", subject=event.data["data"]["recipient"], text="x")
"""


def test_a_bounce_that_the_sandbox_posts_is_a_job(
    tmp_path: Path, start_idem: StartIdem, run_idem: RunIdem, sandbox: Sandbox
) -> None:
    """Posted three times, by the sandbox itself: one email to the desk."""
    (tmp_path / "hooks.py").write_text(HOOKS)
    running = start_idem("webhooks", "--app", "hooks:app", "--port", "0", env={"IDEM_LETTERMINT_WEBHOOK_SECRET": WHSEC})
    url = wait_for(lambda: "/lettermint" in running.log and running.log.split()[-1])
    sandbox.tell(provider="lettermint", url=url, secret=WHSEC, events=["bounced"], times=1, copies=3)
    (tmp_path / "mail.jsonl").write_text(
        '{"from": "shop@example.com", "to": "gone@example.com", "subject": "Hi", "text": "Hi", "key": "k"}\n'
    )
    assert run_idem("enqueue", "mail.jsonl").status == 0
    assert run_idem("worker", "--app", "hooks:app", "--until-empty").status == 0
    wait_for(lambda: sandbox.answers() == [200, 200, 200])
    assert run_idem("worker", "--app", "hooks:app", "--until-empty").status == 0

    assert sandbox.recipients() == ["gone@example.com", "desk@example.com"]
