"""`idem dead`: what a person sees of the dead letters, and what they can do about them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.workers.parts import RunIdem, Sandbox, Valkey, make_email, wait_for
from workers import App, Settings
from workers.brokers.base import Backlog, Bury, dispose
from workers.brokers.redis import RedisBroker
from workers.jobs import QUEUE, email_message


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


def _bury(app: App, key: str, reason: str) -> None:
    app.broker.enqueue(email_message(make_email(), key)[0])
    consumer = app.broker.consume(QUEUE, timeout=10)
    message = wait_for(lambda: next(consumer))
    dispose(message, Bury(reason))
    consumer.ack(message)


def _put(app: App, valkey: Valkey, message_id: bytes, data: bytes) -> None:
    """What anybody may write into the queue; the next look of a worker buries it."""
    ready = _ready(app)
    with valkey.client() as raw:
        raw.hset(f"{ready}.msgs", mapping={message_id: data})
        raw.rpush(ready, message_id)
    assert next(app.broker.consume(QUEUE, timeout=10)) is None


def _ready(app: App) -> str:
    """Where the server keeps what is ready."""
    assert isinstance(app.broker, RedisBroker)
    return f"{app.broker.namespace}:{QUEUE}"


def _listed(call_idem: RunIdem, *args: str) -> Any:
    return call_idem("dead", "list", "--json", *args).json


class TestList:
    def test_of_nothing(self, call_idem: RunIdem) -> None:
        assert (call_idem("dead", "list").out, call_idem("dead", "list", "--json").out) == ("", "[]\n")

    def test_what_is_known_the_one_longest_buried_first(self, app: App, call_idem: RunIdem) -> None:
        _bury(app, "first", "to ann@example.com")
        _bury(app, "second", "two\nlines")

        first, second = _listed(call_idem)

        assert {name: first[name] for name in ("key", "job", "tries", "reason")} == {
            "key": "first", "job": "email", "tries": 0, "reason": "to <address>"
        }  # fmt: skip
        assert second["reason"] == "two lines"
        at = datetime.fromisoformat(first["buried_at"])
        assert timedelta() <= datetime.now(UTC) - at < timedelta(minutes=2)
        assert _listed(call_idem, "--limit", "1") == [first]
        assert _listed(call_idem, "--reason", "two") == [second]

        lines = call_idem("dead", "list").out.splitlines()
        assert [line.split("  ")[2:] for line in lines] == [
            ["first", "email", "0", "to <address>"], ["second", "email", "0", "two lines"]
        ]  # fmt: skip
        assert first["id"].startswith(lines[0].split()[0])

    @pytest.mark.parametrize("data", [b"\xff\x00", b"[1]", b"{}", b'{"kwargs": 1, "options": [], "message_id": 7}'])
    def test_what_cannot_be_read_is_listed_too(self, app: App, valkey: Valkey, call_idem: RunIdem, data: bytes) -> None:
        _put(app, valkey, b"x\xff\x1b[2J", data)

        (shown,) = _listed(call_idem)

        assert (shown["id"], shown["key"], shown["job"], shown["tries"]) == ("x\ufffd\ufffd[2J", None, None, None)
        assert shown["reason"] == "it cannot be decoded"
        assert call_idem("dead", "list").out.isprintable() is False
        assert "\x1b" not in call_idem("dead", "list").out


class TestShow:
    def test_without_the_payload_nothing_of_the_email(self, app: App, call_idem: RunIdem) -> None:
        _bury(app, "k", "because")
        (listed,) = _listed(call_idem)

        shown = call_idem("dead", "show", listed["id"][:8], "--json").json

        assert shown.pop("bytes") > 100
        assert shown == listed
        text = call_idem("dead", "show", listed["id"]).out
        assert ["key", "k"] in [line.split() for line in text.splitlines()]
        assert "@" not in text

    def test_with_the_payload_all_of_it(self, app: App, call_idem: RunIdem) -> None:
        _bury(app, "k", "because")
        (listed,) = _listed(call_idem)

        shown = call_idem("dead", "show", listed["id"], "--payload", "--json").json

        assert shown["payload"]["kwargs"]["email"]["to"] == ["r1@example.com"]
        assert "r1@example.com" in call_idem("dead", "show", listed["id"], "--payload").out

    def test_a_payload_that_is_no_json(self, app: App, valkey: Valkey, call_idem: RunIdem) -> None:
        _put(app, valkey, b"bad", b"\xff\x1b")

        assert call_idem("dead", "show", "bad", "--payload", "--json").json["payload"] == {"base64": "/xs="}
        assert "\x1b" not in call_idem("dead", "show", "bad", "--payload").out

    def test_an_unknown_id(self, call_idem: RunIdem) -> None:
        ran = call_idem("dead", "show", "nothing")

        assert (ran.status, ran.out) == (1, "")
        assert ran.problem == "no dead letter has the id nothing: it was requeued or dropped, or never was one"
        assert call_idem("dead", "show", "nothing", "--json").out == "null\n"

    def test_an_id_that_begins_several(self, app: App, valkey: Valkey, call_idem: RunIdem) -> None:
        for message_id in (b"abc", b"abd", b"ab"):
            _put(app, valkey, message_id, b"x")

        ran = call_idem("dead", "show", "a")

        assert ran.status == 2
        assert ran.problem == "idem: 3 dead letters have an id that begins with a: write more of it"
        assert call_idem("dead", "show", "ab").status == 0


class TestRequeue:
    def test_one_comes_again_under_its_key_with_its_tries_forgotten(
        self, app: App, sandbox: Sandbox, call_idem: RunIdem, run_idem: RunIdem
    ) -> None:
        message = email_message(make_email(), "k")[0].copy(options={"tries": 7})
        app.broker.enqueue(message)
        consumer = app.broker.consume(QUEUE, timeout=10)
        held = wait_for(lambda: next(consumer))
        dispose(held, Bury("because"))
        consumer.ack(held)
        (listed,) = _listed(call_idem)
        assert listed["tries"] == 7

        ran = call_idem("dead", "requeue", listed["id"][:6])

        assert (ran.status, ran.out) == (0, f"requeued {listed['id']} (key k, job email, reason because)\n")
        assert app.broker.backlog() == Backlog(1, 0, 0, 0)
        assert run_idem("worker", "--until-empty").status == 0
        assert sandbox.recipients() == ["r1@example.com"]
        assert call_idem("explain", "k").status == 0
        assert call_idem("dead", "requeue", listed["id"]).status == 1

    def test_all_or_those_of_one_reason(self, app: App, call_idem: RunIdem) -> None:
        for number in range(3):
            _bury(app, f"k{number}", "no worker knew the job" if number else "another")

        assert call_idem("dead", "requeue", "--all", "--reason", "knew").out == "requeued 2\n"
        assert app.broker.backlog() == Backlog(2, 0, 0, 1)
        assert call_idem("dead", "requeue", "--all").out == "requeued 1\n"
        assert call_idem("dead", "requeue", "--all").status == 1

    def test_what_cannot_be_read_is_buried_again_without_harm(
        self, app: App, valkey: Valkey, call_idem: RunIdem, run_idem: RunIdem
    ) -> None:
        _put(app, valkey, b"bad", b"\xff\x00")
        app.enqueue(make_email(), key="good")
        before = call_idem("dead", "show", "bad", "--payload", "--json").json

        assert call_idem("dead", "requeue", "bad").status == 0
        assert run_idem("worker", "--until-empty").status == 0

        after = call_idem("dead", "show", "bad", "--payload", "--json").json
        assert after.pop("buried_at") > before.pop("buried_at")
        assert after == before

    @pytest.mark.parametrize("args", [[], ["x", "--all"], ["x", "--reason", "y"], ["--reason", "y"]])
    def test_what_to_requeue_must_be_clear(self, call_idem: RunIdem, args: list[str]) -> None:
        assert call_idem("dead", "requeue", *args).status == 2


class TestDrop:
    def test_only_when_a_person_says_so(self, app: App, call_idem: RunIdem) -> None:
        _bury(app, "k", "because")
        (listed,) = _listed(call_idem)

        asked = call_idem("dead", "drop", listed["id"], stdin="n\n")
        assert asked.status == 1
        assert f"drop {listed['id']} (key k, job email, reason because) for good?" in asked.err
        assert app.broker.backlog().dead == 1

        dropped = call_idem("dead", "drop", listed["id"][:5], "--yes")
        assert (dropped.status, dropped.out) == (0, f"dropped {listed['id']} (key k, job email, reason because)\n")
        assert app.broker.backlog() == Backlog(0, 0, 0, 0)
        assert call_idem("dead", "drop", listed["id"], "--yes").status == 1

    def test_nothing_of_it_stays_on_the_server(self, app: App, valkey: Valkey, call_idem: RunIdem) -> None:
        _put(app, valkey, b"bad", b"\xff")

        assert call_idem("dead", "drop", "bad", stdin="y\n").status == 0
        with valkey.client() as raw:
            assert not raw.keys(f"{_ready(app)}.XQ*")


def test_what_two_people_decide_at_once_happens_once(app: App) -> None:
    _bury(app, "k", "because")
    (letter,) = app.broker.dead_letters()

    assert [app.broker.requeue_dead(letter), app.broker.requeue_dead(letter), app.broker.drop_dead(letter)] == [
        True, False, False
    ]  # fmt: skip
    assert app.broker.backlog() == Backlog(1, 0, 0, 0)
    assert "options" in json.loads(letter.payload)
