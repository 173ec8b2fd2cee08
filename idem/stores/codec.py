"""Records as bytes: the one form that stores keep, with a version of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from idem.errors import LedgerUnusable
from idem.protocol import Record

#: Moves when a reader of the former version would misread a record.
RECORD_VERSION = 1

_ENCODER = msgspec.json.Encoder()


class _Version(msgspec.Struct):
    v: int | None = None


# Made here, and not when they are first needed: msgspec 0.22 crashes the process (SIGSEGV) when two threads learn about
# one type at the same moment. A test holds every type to this.
_VERSION_DECODER = msgspec.json.Decoder(_Version)
_RECORD_DECODER = msgspec.json.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """The record as JSON, without its frozen body (which stores keep beside it) and without what is not set."""
    fields: dict[str, Any] = msgspec.to_builtins(record)
    del fields["body"]
    present = {name: value for name, value in fields.items() if value is not None and value != ()}
    return _ENCODER.encode({"v": RECORD_VERSION} | present)


def decode_record(data: bytes, body: bytes | None) -> Record:
    """Read a record back; `LedgerUnusable` when a newer version wrote it or it is damaged."""
    try:
        version = _VERSION_DECODER.decode(data).v
        if version == RECORD_VERSION:
            return replace(_RECORD_DECODER.decode(data), body=body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LedgerUnusable(
            "a record in the ledger cannot be read: it is damaged, or in a state of a newer version; "
            "restore the ledger, or upgrade the program"
        ) from error
    raise LedgerUnusable(
        f"a record in the ledger has version {version}, this program knows {RECORD_VERSION}: "
        "upgrade the program before it works on this ledger"
    )
