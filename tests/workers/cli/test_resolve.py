"""`idem resolve`, `idem reopen`, `idem reconcile`: a person's word, fenced like any transition, and written down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from idem.clock import SystemClock
from idem.ledger import Claim, Ledger
from idem.outcome import Outcome, Rejected, Unknown
from idem.policy import Policy
from idem.protocol import InDoubt, Intent, Record, Resolution, State
from tests.workers.parts import RunIdem, Sandbox, make_email
from workers import App, Settings, wiring

KEY = "order-1"


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


def end(app: App, outcome: Outcome, choice: InDoubt | None = None) -> Record:
    """One attempt at an email that ended so, for a worker that knows of no window."""
    policy = Policy(lease_seconds=2, http_timeout_seconds=1)
    ledger = Ledger(wiring.open_store(app.settings), policy=policy, provider="lettermint", clock=SystemClock())
    email = make_email(1)
    claim = ledger.claim(Intent(KEY, fingerprint=email.fingerprint(), body=email.canonical(), in_doubt=choice))
    assert isinstance(claim, Claim)
    record = ledger.settle(claim, outcome)
    ledger.close()
    assert isinstance(record, Record)
    return record


def state(app: App) -> State:
    record = app.ledger.read(KEY)
    assert record is not None
    return record.state


def test_it_was_sent(app: App, call_idem: RunIdem) -> None:
    end(app, Unknown("no answer"))

    ran = call_idem("resolve", KEY, "--sent", "m-77")

    assert (ran.status, ran.out) == (0, "sent\n")
    record = app.ledger.read(KEY)
    assert record is not None
    assert (record.state, record.message_id, record.body) == (State.SENT, "m-77", None)
    assert (record.evidence[-1].kind, record.evidence[-1].message_id) == ("accepted", "m-77")
    assert (record.evidence[-1].detail or "").startswith("said by ")


def test_it_was_not_and_goes_out_once(app: App, call_idem: RunIdem, run_idem: RunIdem, sandbox: Sandbox) -> None:
    """Its message was acknowledged long ago: the ledger has kept the email."""
    end(app, Unknown("no answer"))

    ran = call_idem("resolve", KEY, "--not-sent")

    assert (ran.status, ran.out) == (0, "enqueued again\n")
    assert run_idem("worker", "--until-empty").status == 0
    assert state(app) is State.SENT
    assert len(sandbox.accepted()) == 1
    again = call_idem("resolve", KEY, "--not-sent")
    assert (again.status, again.problem) == (1, "idem: the key is sent, not in doubt")


def test_it_is_given_up(app: App, call_idem: RunIdem) -> None:
    """And not called back: it may have been accepted."""
    end(app, Unknown("no answer"))

    assert call_idem("resolve", KEY, "--drop").out == "dropped\n"

    assert state(app) is State.DROPPED
    ran = call_idem("cancel", KEY)
    assert (ran.status, ran.problem) == (1, "idem: the key cannot be cancelled any more: it is dropped")
    assert call_idem("resolve", KEY, "--sent", "m1").out == "sent\n", "known better later"


def test_a_rejection_is_opened_again(app: App, call_idem: RunIdem, run_idem: RunIdem, sandbox: Sandbox) -> None:
    end(app, Rejected("the domain is not verified"))
    app.enqueue(make_email(1), key=KEY)
    assert run_idem("worker", "--until-empty").status == 0
    assert sandbox.accepted() == [], "by itself nothing comes after a rejection"

    ran = call_idem("reopen", KEY)

    assert (ran.status, ran.err) == (0, "")
    assert "enqueue it once more under the same key" in ran.out
    app.enqueue(make_email(2), key=KEY)
    assert run_idem("worker", "--until-empty").status == 0
    assert state(app) is State.SENT
    (accepted,) = sandbox.accepted()
    assert accepted["subject"] == make_email(2).subject, "the corrected email"


def test_what_is_opened_again_can_be_enqueued_from_a_file(
    app: App, tmp_path: Path, call_idem: RunIdem, run_idem: RunIdem, sandbox: Sandbox
) -> None:
    """Corrected, under its key."""
    end(app, Rejected("the domain is not verified"))
    (tmp_path / "mails.jsonl").write_text(json.dumps(make_email(2).as_dict() | {"key": KEY}))
    assert call_idem("enqueue", "mails.jsonl").status == 1
    call_idem("reopen", KEY)

    assert call_idem("enqueue", "mails.jsonl").out == "enqueued 1\n"

    assert run_idem("worker", "--until-empty").status == 0
    assert [accepted["subject"] for accepted in sandbox.accepted()] == [make_email(2).subject]


def test_what_was_called_back_is_not_enqueued(tmp_path: Path, call_idem: RunIdem) -> None:
    call_idem("cancel", KEY)
    (tmp_path / "mails.jsonl").write_text(json.dumps(make_email(2).as_dict() | {"key": KEY}))

    ran = call_idem("enqueue", "mails.jsonl")

    assert (ran.status, ran.out) == (0, "enqueued 0, 1 already cancelled\n")


@pytest.mark.parametrize(
    ("outcome", "args", "problem"),
    [
        (Rejected("no"), ["resolve", KEY, "--not-sent"], "the key is rejected, not in doubt"),
        (Rejected("no"), ["resolve", KEY, "--drop"], "the key is rejected, not in doubt"),
        (Rejected("no"), ["resolve", KEY, "--sent", "m1"], "the key is rejected; that is not open to doubt"),
        (Unknown("?"), ["reopen", KEY], "the key is in_doubt, not rejected"),
        (Unknown("?"), ["resolve", "other", "--drop"], "no record of this key: its job is still in the queue, or"),
        (Unknown("?"), ["reopen", "other"], "no record of this key: its job is still in the queue, or never was"),
    ],
)
def test_what_is_not_open_is_refused_in_one_line(
    app: App, call_idem: RunIdem, outcome: Outcome, args: list[str], problem: str
) -> None:
    before = end(app, outcome)

    ran = call_idem(*args)

    assert (ran.status, ran.out) == (1, "")
    assert ran.problem.startswith(f"idem: {problem}")
    assert app.ledger.read(KEY) == before


def test_what_somebody_else_has_decided_meanwhile_stands(
    app: App, call_idem: RunIdem, monkeypatch: pytest.MonkeyPatch
) -> None:
    end(app, Unknown("no answer"))
    resolve = Ledger.resolve

    def late(ledger: Ledger, record: Record, resolution: Resolution, *, by: str) -> Record | None:
        assert resolve(ledger, record, Resolution.DROP, by="by another") is not None
        return resolve(ledger, record, resolution, by=by)

    monkeypatch.setattr(Ledger, "resolve", late)
    ran = call_idem("resolve", KEY, "--not-sent")

    assert (ran.status, ran.out) == (1, "")
    assert ran.problem == "idem: the key has moved on meanwhile, and is dropped now: look at it once more"
    assert state(app) is State.DROPPED


@pytest.mark.parametrize("args", [[], ["--sent", "m1", "--drop"], ["--drop", "--not-sent"], ["--sent", ""]])
def test_bad_usage_changes_nothing(app: App, call_idem: RunIdem, args: list[str]) -> None:
    before = end(app, Unknown("no answer"))

    assert call_idem("resolve", KEY, *args).status == 2

    assert app.ledger.read(KEY) == before


def test_reconcile_does_what_the_job_chose(app: App, call_idem: RunIdem) -> None:
    end(app, Unknown("no answer"), InDoubt.DROP)

    first, second = (call_idem("reconcile", "--json").json for _ in range(2))

    none = dict.fromkeys(("found", "heard", "not_found", "resent", "resumed", "in_doubt"), 0)

    assert first == none | {"dropped": 1}
    assert second == first | {"dropped": 0}
    assert "dropped" in call_idem("reconcile").out


def test_a_worker_reconciles_by_itself(app: App, run_idem: RunIdem, sandbox: Sandbox, call_idem: RunIdem) -> None:
    """Without a person, without a command: a job that would rather send twice than never."""
    end(app, Unknown("no answer"), InDoubt.RESEND)
    app.enqueue(make_email(2), key="something to do")
    sandbox.order("delay", times=1, delay_ms=500)

    assert run_idem("worker", "--until-empty").status == 0

    explained = call_idem("explain", KEY, "--json").json
    assert explained["state"] == "sent"
    assert [item["kind"] for item in explained["evidence"]] == ["resend"]
    assert len(sandbox.accepted()) == 2
