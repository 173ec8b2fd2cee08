"""`compose.yaml`: what it says holds together, and what it starts works, as far as that can be seen without Docker."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import services
from tests.deploy.files import BIN, DEPLOY, load_yaml, understood
from tests.scene import Scene, open_scene
from tests.valkey import Server
from workers.settings import Settings

_COMPOSE = load_yaml("compose.yaml")
_SERVICES: dict[str, dict[str, Any]] = _COMPOSE["services"]
_OURS = {name: service for name, service in _SERVICES.items() if service["image"] == "idem-workers"}


def test_it_is_a_compose_file() -> None:
    command = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_only_the_inbox_is_reached_and_only_from_this_machine() -> None:
    ports = {name: service["ports"] for name, service in _SERVICES.items() if "ports" in service}

    assert ports == {"sandbox": ["127.0.0.1:8025:8025"]}


@pytest.mark.parametrize("name", _SERVICES)
def test_nothing_has_more_rights_than_it_needs(name: str) -> None:
    service = _SERVICES[name]

    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    # What owns a volume is root for a moment, with one right and no network.
    if service["user"].startswith("0:"):
        assert (service["cap_add"], service["network_mode"], service["restart"]) == (["CHOWN"], "none", "no")


@pytest.mark.parametrize("name", [name for name, service in _SERVICES.items() if service["restart"] != "no"])
def test_what_goes_on_is_looked_after(name: str) -> None:
    assert _SERVICES[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


@pytest.mark.parametrize("name", _SERVICES)
def test_what_is_waited_for_is_there_and_says_so(name: str) -> None:
    for other, how in _SERVICES[name].get("depends_on", {}).items():
        ends = _SERVICES[other]["restart"] == "no"

        assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")


@pytest.mark.parametrize("name", _OURS)
def test_the_commands_and_their_settings_are_understood(name: str, tmp_path: Path) -> None:
    settings = Settings.load(_OURS[name]["environment"], tmp_path)
    understood(*_OURS[name]["command"])

    assert settings.credentials[settings.provider].base_url == "http://sandbox:8025/lettermint/v1"


def test_a_worker_has_time_to_finish(tmp_path: Path) -> None:
    settings = Settings.load(_OURS["worker"]["environment"], tmp_path)

    assert int(_OURS["worker"]["stop_grace_period"].removesuffix("s")) > settings.shutdown_seconds


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """What the services are told, told to the same programs here; only the addresses differ."""
    queue = Server(tmp_path / "queue", *_SERVICES["valkey"]["command"][1:])
    queue.start()
    folder = tmp_path / "worker"
    folder.mkdir()
    with open_scene(folder) as scene:
        own = dict(_OURS["worker"]["environment"])
        own["IDEM_LETTERMINT_BASE_URL"] = own["IDEM_LETTERMINT_BASE_URL"].replace("http://sandbox:8025", scene.sandbox)
        own["IDEM_BROKER_URL"] = own["IDEM_BROKER_URL"].replace("valkey:6379", f"127.0.0.1:{queue.port}")
        own["IDEM_AWS_ENDPOINT_URL"] = services.dynamodb_local()
        scene.environ |= services.CREDENTIALS | own
        yield scene
    queue.kill()
    shutil.rmtree(queue.directory)


def test_an_email_goes_through(scene: Scene) -> None:
    scene.idem(*_OURS["init"]["command"])
    said = scene.idem(*_OURS["worker"]["healthcheck"]["test"][2:])
    assert "FAIL" not in said
    email = {"from": "shop@example.com", "to": ["ann@example.com"], "subject": "S", "text": "T"}
    Path(scene.folder, "mails.jsonl").write_text(json.dumps(email), encoding="utf-8")

    scene.idem("enqueue", "mails.jsonl")
    scene.idem(*_OURS["worker"]["command"], "--until-empty")

    assert scene.accepted() == {"S": 1}
