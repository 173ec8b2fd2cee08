"""Records for tests: one to start from, and a strategy for all that a ledger could ever hold."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from idem.protocol import Attempt, Evidence, Record, State
from tests.fakes import START


def make_record(key: str = "k", **changes: Any) -> Record:
    """A claimed record, less what `changes` says."""
    fields: dict[str, Any] = {
        "key": key,
        "state": State.SENDING,
        "version": 1,
        "claim_id": "c1",
        "created_at": START,
        "updated_at": START,
        "provider": "fake",
        "fingerprint": "f",
    }
    return Record(**fields | changes)


_times = st.floats(min_value=0, max_value=4e9)
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
_attempts = st.builds(
    Attempt,
    number=st.integers(0, 1_000),
    claim_id=_text,
    started_at=_times,
    ended_at=st.none() | _times,
    outcome=st.none() | _text,
    detail=st.none() | _text,
)
_evidence = st.builds(
    Evidence,
    at=_times,
    kind=_text,
    claim_id=st.none() | _text,
    message_id=st.none() | _text,
    detail=st.none() | _text,
)


def records(**fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Record]:
    """Any record at all: empty strings, zero times, binary bodies, and whatever text a provider may answer."""
    fields: dict[str, st.SearchStrategy[Any]] = {
        "key": st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=255),
        "state": st.sampled_from(State),
        "version": st.integers(1, 2**31),
        "claim_id": _text,
        "created_at": _times,
        "updated_at": _times,
        "provider": _text,
        "job": st.none() | _text,
        "fingerprint": st.none() | _text,
        "body": st.none() | st.binary(max_size=2_000),
        "generation": st.integers(0, 1_000),
        "attempts": st.integers(0, 1_000),
        "started_at": st.none() | _times,
        "lease_until": st.none() | _times,
        "ready_at": st.none() | _times,
        "unsure_since": st.none() | _times,
        "expires_at": st.none() | _times,
        "durable": st.none() | st.just(value=True),
        "call": st.none() | _text,
        "message_id": st.none() | _text,
        "reason": st.none() | _text,
        "history": st.lists(_attempts, max_size=3).map(tuple),
        "evidence": st.lists(_evidence, max_size=3).map(tuple),
    }
    return st.builds(Record, **fields | fixed)
