"""What any test may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.scene import Scene, open_scene

# How long an example takes says something about the machine, and nothing about the code.
settings.register_profile("idem", deadline=None)
settings.load_profile("idem")
# By `--hypothesis-profile=nightly`: a hundred times as many examples of everything.
settings.register_profile("nightly", deadline=None, max_examples=100 * settings().max_examples)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with open_scene(tmp_path) as opened:
        yield opened
