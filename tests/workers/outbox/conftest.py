"""A database of each kind, with the tables of an outbox in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from tests.databases import KINDS, Kind, new_database
from workers.outbox import Database

TABLE = "idem_outbox"


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    kind: Kind = request.param
    return new_database(kind, tmp_path)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """The relay's side of it."""
    opened = Database(url, TABLE)
    opened.create()
    yield opened
    opened.close()


@pytest.fixture
def engine(url: str, database: Database) -> Iterator[Engine]:  # noqa: ARG001 - it makes the tables
    """The application's side of it."""
    opened = create_engine(url)
    yield opened
    opened.dispose()
