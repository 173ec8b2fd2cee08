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


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with open_scene(tmp_path) as opened:
        yield opened
