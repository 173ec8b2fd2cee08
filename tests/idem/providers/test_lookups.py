"""What every look-up keeps to, whatever comes back: it never raises, and only what is documented is an answer."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from idem.providers.api import Api, Onward
from idem.providers.base import CannotTell, Found, Missing, Sighting
from idem.providers.http import Answer, NoAnswer, Phase
from workers.settings import PROVIDERS

#: Every name that a look-up reads somewhere.
_NAMES = (
    "Messages", "Metadata", "MessageID", "TotalCount", "messages", "msg_id", "unique_args", "items", "paging", "next",
    "user-variables", "message", "headers", "message-id", "events", "tag", "messageId", "idem_key",
)  # fmt: skip
_LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(['{"idem_key":"x"}', "["])
_JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4),
    max_leaves=12,
)
_DEEP = {"msg_id": "m", "unique_args": "[" * 100_000, "events": [{"tag": "[" * 100_000}]}


def _api(name: str) -> Api | None:
    api = getattr(importlib.import_module(f"idem.providers.{name}"), "API", None)
    return api if isinstance(api, Api) and api.search is not None else None


_APIS = {name: api for name in PROVIDERS if (api := _api(name)) is not None}


def read(name: str, status: int, body: bytes) -> Sighting | Onward:
    search = _APIS[name].search
    assert search is not None
    return search.read(Answer(status, {}, body), "a-derived-key")


@pytest.mark.parametrize("name", _APIS)
@given(found=_JSON)
@example(found=_DEEP)
def test_nothing_is_found_that_does_not_show_the_key(name: str, found: Any) -> None:
    assert not isinstance(read(name, 200, json.dumps(found).encode()), Found)


@pytest.mark.parametrize("name", _APIS)
@given(status=st.integers(100, 999).filter(lambda status: status != 200), found=_JSON)
def test_no_other_status_tells_anything(name: str, status: int, found: Any) -> None:
    assert isinstance(read(name, status, json.dumps(found).encode()), CannotTell)


@pytest.mark.parametrize("name", _APIS)
@given(body=st.binary(max_size=100))
@example(body=b"")
@example(body=b"{}")
@example(body=b"[]")
def test_no_junk_is_missing(name: str, body: bytes) -> None:
    """An empty body, a proxy's page and an object without its list are not an empty list."""
    assert not isinstance(read(name, 200, body), Missing)


@pytest.mark.parametrize("name", _APIS)
@pytest.mark.parametrize("phase", Phase)
def test_no_answer_tells_nothing(name: str, phase: Phase) -> None:
    search = _APIS[name].search
    assert search is not None
    assert search.read(NoAnswer(phase, "why"), "a-derived-key") == CannotTell("why")


def test_the_four_are_looked_at() -> None:
    assert {"postmark", "sendgrid", "mailgun", "brevo"} <= set(_APIS)
