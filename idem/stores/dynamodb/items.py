"""A record as an item of the table, and back.

    pk    S  <namespace> U+001F <key>; a key prints, so that the form is read in one way only
    s     S  state    \
    v     N  version   } the fence of every conditional write
    c     S  claim id /
    r     S  the record as JSON, without its frozen body
    b     B  the frozen body, zlib
    o     S  where a frozen body lies that is too large for an item
    ttl   N  when the item may be forgotten; only of records that have ended for good
    ap    S  <namespace> U+001F <state> U+001F <shard> \
    at    N  since when                                } the index of what needs attention; absent from all others

A first claim and a sent email have neither `ap` nor `at`, so that they cost nothing in the index. A durable record is
in it from when it is asked for until its attempt is settled, under one `ap` and one `at`: one write unit when it comes,
one when it leaves, and nothing when it is claimed in between.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

from idem.errors import LedgerUnusable
from idem.protocol import ASKED, ENDED, Record, State
from idem.stores.codec import decode_record, encode_record

#: Amazon's form of a value, such as `{"S": "text"}`, and an item of them.
Value = dict[str, Any]
Item = dict[str, Value]

#: What a person or a reconciler goes looking for.
INDEXED: Final = (State.IN_DOUBT, State.REJECTED, State.UNSURE, State.RETRY, State.PENDING)

#: What may be forgotten in the end. A record in doubt stays until somebody has settled it.
FORGETTABLE: Final = ENDED - {State.IN_DOUBT}

#: Parts of the index that each state is spread over. One part takes 1,000 writes a second, and an index that is
#: throttled throttles the table; in an outage of the provider, every attempt writes RETRY. Part of the format.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/bp-partition-key-design.html
SHARDS: Final = 4

#: Every attribute that a write decides about: one that the new item lacks is taken away.
ATTRIBUTES: Final = ("s", "v", "c", "r", "b", "o", "ttl", "ap", "at")

_SEPARATOR = "\x1f"


def partition_key(namespace: str, key: str) -> str:
    """The `pk` of a key."""
    return f"{namespace}{_SEPARATOR}{key}"


def key_value(pk: str) -> Item:
    """The primary key as a request wants it."""
    return {"pk": {"S": pk}}


def attention_keys(namespace: str, state: State) -> list[str]:
    """The index's partitions that hold a state."""
    return [_attention_key(namespace, state, shard) for shard in range(SHARDS)]


def _attention_key(namespace: str, state: State, shard: int) -> str:
    return f"{namespace}{_SEPARATOR}{state.value}{_SEPARATOR}{shard}"


def record_to_item(namespace: str, record: Record, retention_seconds: float) -> Item:
    """The whole item, less the frozen body."""
    pk = partition_key(namespace, record.key)
    item: Item = {
        "pk": {"S": pk},
        "s": {"S": record.state.value},
        "v": {"N": str(record.version)},
        "c": {"S": record.claim_id},
        "r": {"S": encode_record(record).decode()},
    }
    if record.state in FORGETTABLE:
        # By this machine's clock, which AWS has checked: it refuses requests that were signed minutes off.
        item["ttl"] = {"N": str(int(record.updated_at + retention_seconds))}
    asked = record.durable and record.state in ASKED
    if asked or record.state in INDEXED:
        state = State.PENDING if asked else record.state
        item["ap"] = {"S": _attention_key(namespace, state, zlib.crc32(pk.encode()) % SHARDS)}
        # Six places: a number of DynamoDB's has no room for the smallest floats.
        item["at"] = {"N": f"{_asked_at(record) if asked else record.updated_at:.6f}"}
    return item


def _asked_at(record: Record) -> float:
    """The same before and after a claim, so that the index is not written; later once it was enqueued again."""
    return record.ready_at if record.ready_at is not None else record.created_at


def item_to_record(item: Item, body: bytes | None) -> Record:
    """Read an item back; `LedgerUnusable` when it is damaged or newer than this program."""
    try:
        data = item["r"]["S"].encode()
    except KeyError as error:
        raise LedgerUnusable(
            "an item in the ledger's table is not a record: the table must hold nothing else"
        ) from error
    return decode_record(data, body)
