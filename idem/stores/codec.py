"""Records as bytes: the one form that stores keep, with a version of its own."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from idem.errors import LedgerUnusable
from idem.protocol import Record, State

#: The newest version of a record that this program reads.
RECORD_VERSION = 2
#: Nearly all have the first one still: a version moves only where a reader of the former one would misread a record.
_FIRST_VERSION = 1
#: One that does not know of `marked` would repeat an attempt with other bytes under the same key.
_MARKED = frozenset({State.SENDING, State.UNSURE})

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
    version = RECORD_VERSION if record.marked and record.state in _MARKED else _FIRST_VERSION
    return _ENCODER.encode({"v": version} | present)


def decode_record(data: bytes, body: bytes | None) -> Record:
    """Read a record back; `LedgerUnusable` when a newer version wrote it or it is damaged."""
    try:
        version = _VERSION_DECODER.decode(data).v
        if version in range(_FIRST_VERSION, RECORD_VERSION + 1):
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
