"""The tables of an outbox, for every database alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Float, Integer, LargeBinary, MetaData, String, Table, Text
from sqlalchemy.dialects.mysql import LONGBLOB

#: SQLite counts up by itself only in a column that is an INTEGER.
_ID = BigInteger().with_variant(Integer(), "sqlite")
#: Unix seconds.
_INSTANT = Float(53)
#: MySQL's own choice would hold 64 KB.
_BYTES = LargeBinary().with_variant(LONGBLOB(), "mysql", "mariadb")

#: Other engines of MySQL have no transactions, and its character set may be Latin-1.
_OPTIONS: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
}


@dataclass(frozen=True, slots=True)
class Tables:
    """`waiting` holds the rows that the queue has not got yet, `aside` those that it cannot get as they are.

    `turn` has the one row that says which relay is at work.
    """

    metadata: MetaData
    waiting: Table
    aside: Table
    turn: Table


def make_tables(name: str) -> Tables:
    """The tables `<name>`, `<name>_aside` and `<name>_turn`, in a metadata of their own."""
    metadata = MetaData()
    waiting = Table(
        name,
        metadata,
        Column("id", _ID, primary_key=True, autoincrement=True),
        Column("created_at", _INSTANT, nullable=False),
        Column("ready_at", _INSTANT),
        Column("message", _BYTES, nullable=False),
        # No id comes again: what a relay that slept has seen is this row, and no other.
        sqlite_autoincrement=True,
        **_OPTIONS,
    )
    aside = Table(
        f"{name}_aside",
        metadata,
        Column("id", _ID, primary_key=True, autoincrement=False),
        Column("created_at", _INSTANT, nullable=False),
        Column("ready_at", _INSTANT),
        Column("message", _BYTES, nullable=False),
        Column("reason", Text, nullable=False),
        Column("aside_at", _INSTANT, nullable=False),
        **_OPTIONS,
    )
    turn = Table(
        f"{name}_turn",
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("holder", String(36), nullable=False),
        Column("beat", BigInteger, nullable=False),
        Column("heard_at", _INSTANT, nullable=False),
        **_OPTIONS,
    )
    return Tables(metadata, waiting, aside, turn)
