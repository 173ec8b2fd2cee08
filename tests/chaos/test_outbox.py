"""The outbox from end to end: relays and workers are killed, and the emails sent are exactly the committed ones."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from tests.databases import Kind, new_database
from tests.outbox import Shop, play
from tests.scene import Scene


@pytest.fixture
def shop(scene: Scene, request: pytest.FixtureRequest) -> Iterator[Shop]:
    kind: Kind = request.param
    opened = Shop(scene, new_database(kind, scene.folder))
    yield opened
    opened.close()


@pytest.mark.parametrize("shop", ["postgresql", "sqlite"], indirect=True)
def test_what_is_sent_is_what_was_committed(shop: Shop) -> None:
    scene = shop.scene
    scene.idem("init")
    for fault in ("accept_then_drop", "503"):
        scene.call("/api/faults", "POST", {"provider": "*", "fault": fault, "rate": 0.03, "times": None})

    outcome = play(shop, transactions=300, threads=2, kills=6)

    assert outcome.committed == 200
    assert outcome.kept, outcome
    assert outcome.kills >= 2
    assert json.loads(scene.idem("status", "--json"))["outbox"] == {"waiting": 0, "aside": 0}
    assert "0 rows wait; 0 are set aside; a relay was at work" in scene.idem("doctor")


@pytest.mark.parametrize("shop", ["sqlite"], indirect=True)
def test_what_is_set_aside_is_shown_and_returned(shop: Shop) -> None:
    scene = shop.scene
    scene.idem("init")
    shop.order(0)
    with shop.engine.begin() as connection:
        connection.execute(text("UPDATE idem_outbox SET message = x'00'"))
    shop.order(1)
    scene.idem("relay", "--until-empty")
    (listed,) = json.loads(scene.idem("outbox", "list", "--json"))

    assert listed["reason"] == "it holds no message that can be read"
    assert json.loads(scene.idem("status", "--json"))["outbox"] == {"waiting": 0, "aside": 1}
    assert "returned 1" in scene.idem("outbox", "return", "--all")

    scene.idem("outbox", "return", listed["id"], status=1)
    scene.idem("relay", "--until-empty")
    (again,) = json.loads(scene.idem("outbox", "list", "--json"))
    scene.idem("outbox", "drop", "no-such-row", "--yes", status=1)

    assert f"dropped row {again['id']}" in scene.idem("outbox", "drop", again["id"], "--yes")
    assert scene.idem("outbox", "list") == ""


@pytest.mark.parametrize("shop", ["sqlite"], indirect=True)
def test_a_relay_that_is_told_to_stop_stops(shop: Shop) -> None:
    shop.scene.idem("init")
    relay = shop.scene.start("relay")
    shop.order(0)
    shop.scene.idem("worker", "--until-empty")
    while not shop.scene.accepted():
        shop.scene.idem("worker", "--until-empty")
    relay.terminate()

    assert relay.wait() == 0
