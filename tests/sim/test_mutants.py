"""The simulation has teeth: each bug that is planted in the real code is caught, and by a tier that takes seconds."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.sim.mutants import MUTANTS, catch


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", MUTANTS)
def test_each_planted_bug_is_caught(name: str) -> None:
    caught = next(catch(name), None)
    assert caught is not None, "nothing caught it"
    print(f"{name}: {caught.tier}, run {caught.runs}: {caught.problem}")  # noqa: T201 - to read, with -rA
