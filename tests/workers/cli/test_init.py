"""`idem init`: a file of settings to start from."""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path

import pytest

from tests.workers.parts import RunIdem
from workers import wiring
from workers.settings import SETTINGS, Settings

#: A setting that is commented out, among comments in words.
_SETTING = re.compile(r"^# (?=[a-z_]+ = )", re.MULTILINE)


@pytest.fixture
def written(call_idem: RunIdem, tmp_path: Path) -> str:
    ran = call_idem("init")
    assert (ran.status, ran.err) == (0, "")
    return (tmp_path / "idem.toml").read_text()


def test_as_written_it_changes_nothing(written: str, tmp_path: Path) -> None:
    assert tomllib.loads(written) == {"lettermint": {}}
    assert Settings.load({}, tmp_path) == Settings()


def test_every_line_uncommented_is_a_setting_with_its_default(written: str, tmp_path: Path) -> None:
    uncommented, count = _SETTING.subn("", written)
    (tmp_path / "idem.toml").write_text(uncommented)

    settings = Settings.load({}, tmp_path)

    assert count == len(SETTINGS) + 2
    assert len(tomllib.loads(uncommented)) == len(SETTINGS) + 1
    assert wiring.build_policy(settings) == wiring.build_policy(Settings())
    assert settings.broker_url == Settings().broker_url
    assert settings.credentials["lettermint"].base_url == wiring.contract_of("lettermint").base_url


@pytest.mark.parametrize("number", range(len(SETTINGS) + 2))
def test_so_does_each_line_alone(written: str, tmp_path: Path, number: int) -> None:
    places = list(_SETTING.finditer(written))
    place = places[number]
    (tmp_path / "idem.toml").write_text(written[: place.start()] + written[place.end() :])

    Settings.load({}, tmp_path)


def test_the_ledger_is_there_and_no_server_was_started(written: str, tmp_path: Path) -> None:
    assert written
    assert (tmp_path / "ledger.db").is_file()
    assert not (tmp_path / ".idem").exists()


def test_running_it_again_leaves_everything_as_it_is(written: str, tmp_path: Path, call_idem: RunIdem) -> None:
    mine = written + "# mine\n"
    (tmp_path / "idem.toml").write_text(mine)

    ran = call_idem("init")

    assert ran.status == 0
    assert "idem.toml is there already; it stays as it is" in ran.out
    assert (tmp_path / "idem.toml").read_text() == mine


def test_it_says_what_comes_next(call_idem: RunIdem) -> None:
    assert "next: put the provider's token into IDEM_LETTERMINT_TOKEN, then run idem worker\n" in call_idem("init").out


def test_settings_that_are_wrong_already_are_one_line(call_idem: RunIdem, tmp_path: Path) -> None:
    (tmp_path / "idem.toml").write_text("laese_seconds = 1\n")

    ran = call_idem("init")

    assert ran.status == 2
    assert ran.problem.startswith("idem: unknown setting IDEM_LAESE_SECONDS in idem.toml; did you mean")


def test_a_place_that_cannot_be_written_is_one_line(call_idem: RunIdem, tmp_path: Path) -> None:
    """A link to nowhere: root may write into every directory."""
    (tmp_path / "idem.toml").symlink_to(tmp_path / "no" / "such" / "place")

    ran = call_idem("init")

    assert ran.status == 2
    assert ran.problem == "idem: idem.toml cannot be written (No such file or directory): go to a directory of yours"


def test_a_ledger_that_cannot_be_made_is_one_line(call_idem: RunIdem, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    ran = call_idem("init", env={"IDEM_LEDGER_URL": f"sqlite:///{tmp_path}/file/ledger.db"})

    assert ran.status == 1
    assert "does not answer" in ran.problem
    assert stat.S_ISREG((tmp_path / "idem.toml").stat().st_mode)
