"""`idem status`, `idem explain` and `idem list`: for people, and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from idem.protocol import State
from tests.workers.parts import RunIdem, Sandbox, make_email
from workers import App, Settings

_STATES = [state.value for state in State]  # fmt: skip


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


@pytest.fixture
def sent(app: App, run_idem: RunIdem, sandbox: Sandbox) -> App:
    """Two emails that were sent, one of them after a conflict, one that waits, and one for ever in the dead letters."""
    app.enqueue(make_email(1), key="first")
    sandbox.order("503", times=1)
    assert run_idem("worker", "--until-empty").status == 0
    app.enqueue(make_email(2), key="first")
    app.enqueue(make_email(2), key="second")
    assert run_idem("worker", "--until-empty").status == 0
    app.enqueue(make_email(3), key="third")
    return app


class TestStatus:
    def test_of_nothing(self, call_idem: RunIdem) -> None:
        assert call_idem("status", "--json").json == {
            "queue": {"ready": 0, "delayed": 0, "in_flight": 0, "dead": 0},
            "ledger": dict.fromkeys(_STATES, 0),
            "provider": {"name": "lettermint", "standing": "asked"},
        }

    @pytest.mark.usefixtures("sent")
    def test_as_json_and_for_people(self, call_idem: RunIdem) -> None:
        ran = call_idem("status", "--json")

        assert (ran.status, ran.err) == (0, "")
        assert ran.json == {
            "queue": {"ready": 1, "delayed": 0, "in_flight": 0, "dead": 1},
            "ledger": dict.fromkeys(_STATES, 0) | {"sent": 2},
            "provider": {"name": "lettermint", "standing": "asked"},
        }

        lines = call_idem("status").out.splitlines()
        assert lines[0] == "queue"
        assert lines[5] == "ledger"
        assert [line.rsplit(maxsplit=1)[0].strip() for line in lines[6:-2]] == [
            state.replace("_", " ") for state in _STATES
        ]
        assert lines[-2:] == ["provider", "  lettermint: asked"]
        assert ["ready", "1"] in [line.split() for line in lines]
        assert ["sent", "2"] in [line.split() for line in lines]


class TestExplain:
    def test_an_unknown_key(self, call_idem: RunIdem) -> None:
        ran = call_idem("explain", "unknown")

        assert (ran.status, ran.out) == (1, "")
        assert ran.err == "no record of this key: its job is still in the queue, or never was\n"

    def test_an_unknown_key_as_json(self, call_idem: RunIdem) -> None:
        ran = call_idem("explain", "unknown", "--json")

        assert (ran.status, ran.out, ran.err) == (1, "null\n", "")

    @pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "\udcff"])
    def test_what_is_no_key(self, call_idem: RunIdem, key: str) -> None:
        ran = call_idem("explain", key)

        assert ran.status == 2
        assert ran.problem.startswith("idem: a key ")

    def test_a_record_as_json_and_for_people(self, sent: App, sandbox: Sandbox, call_idem: RunIdem) -> None:
        shown = call_idem("explain", "first", "--json").json

        accepted = sandbox.accepted()[0]
        conflict = make_email(2).fingerprint()
        times = {name: datetime.fromisoformat(shown[name]) for name in ("created_at", "updated_at")}
        assert all(timedelta() <= datetime.now(UTC) - at < timedelta(minutes=2) for at in times.values())
        assert times["created_at"] < times["updated_at"]
        assert {
            name: shown[name] for name in ("key", "state", "provider", "attempts", "message_id", "fingerprint")
        } == {
            "key": "first",
            "state": "sent",
            "provider": "lettermint",
            "attempts": 2,
            "message_id": accepted["id"],
            "fingerprint": make_email(1).fingerprint(),
        }
        assert [(item["number"], item["outcome"]) for item in shown["history"]] == [(1, "Unknown"), (2, "Accepted")]
        assert [(item["kind"], item["detail"]) for item in shown["evidence"]] == [("conflict", conflict)]
        assert all(value is not None for value in shown.values())
        assert "body" not in shown
        assert sent.ledger.count()[State.SENT] == 2

        ran = call_idem("explain", "first")

        assert (ran.status, ran.err) == (0, "")
        lines = [line.split() for line in ran.out.splitlines()]
        assert ["key", "first"] in lines
        assert ["state", "sent"] in lines
        assert ["history"] in lines
        assert ["evidence"] in lines
        assert "outcome Accepted" in ran.out
        assert "@example.com" not in ran.out

    def test_a_frozen_email_is_shown_by_its_size(self, app: App, call_idem: RunIdem) -> None:
        """What a job built is somebody's email."""
        job = app.job("job")(lambda: [make_email(1), make_email(2)])
        job.send(key="k")
        performer = app.performer()
        message = next(app.broker.consume("default", timeout=10))
        assert message is not None
        performer.perform(message._message, message.kwargs)

        ran = call_idem("explain", "k", "--json")

        assert ran.json["state"] == "split"
        assert ran.json["frozen_bytes"] > 100
        assert "@example.com" not in ran.out
        assert "frozen bytes" in call_idem("explain", "k").out


class TestList:
    def test_as_json_and_for_people_the_one_longest_unchanged_first(self, sent: App, call_idem: RunIdem) -> None:
        """A conflict is a change too: the first one has been noted after it was sent."""
        shown = call_idem("list", "--state", "sent", "--json").json

        assert [record["state"] for record in shown] == ["sent", "sent"]
        assert {record["key"] for record in shown} == {"first", "second"}
        assert shown[0]["updated_at"] <= shown[1]["updated_at"]
        assert shown[0] == call_idem("explain", shown[0]["key"], "--json").json
        assert call_idem("list", "--state", "sent", "--limit", "1", "--json").json == shown[:1]

        record = sent.ledger.read("second")
        assert record is not None
        lines = call_idem("list", "--state", "sent").out.splitlines()
        assert any(line.endswith(f"  second  {record.message_id}") for line in lines)
        assert len(lines) == 2

    @pytest.mark.parametrize("state", _STATES)
    def test_every_state_can_be_asked_for(self, call_idem: RunIdem, state: str) -> None:
        assert (call_idem("list", "--state", state).out, call_idem("list", "--state", state, "--json").out) == (
            "",
            "[]\n",
        )

    def test_a_damaged_ledger_is_one_line(self, tmp_path: Path, call_idem: RunIdem) -> None:
        (tmp_path / "ledger.db").write_bytes(json.dumps({"not": "a database"}).encode() * 1_000)

        for args in (["status"], ["list", "--state", "sent"], ["explain", "k"]):
            ran = call_idem(*args)
            assert ran.status == 1
            assert "is damaged or not a ledger" in ran.problem
