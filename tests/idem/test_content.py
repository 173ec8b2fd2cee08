"""Content keys: what is the same content, and what happens between two enqueueings of it."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from idem.content import Contents, Named, by_content, digest_of_call, digest_of_email, digest_of_emails
from idem.email import FIELDS
from idem.errors import InvalidKey, LedgerUnavailable, LedgerUnusable
from idem.keys import check_key, content_key
from idem.stores.memory import MemoryStore
from tests.fakes import FakeClock, make_email

_HOUR = by_content(within=timedelta(hours=1))
_FILE = {"filename": "a.png", "content": "aGVsbG8=", "content_type": "image/png", "content_id": "a"}

#: For each field, what changes it so that those who get the email could tell.
_CHANGES: dict[str, list[Any]] = {
    "from": ["other@example.com", "Shop <shop@example.com>"],
    "to": [["bo@example.com"], ["ann@example.com", "bo@example.com"]],
    "cc": [["bo@example.com"]],
    "bcc": [["bo@example.com"]],
    "reply_to": [["bo@example.com"]],
    "subject": ["Hello!"],
    "text": ["Hi!", ""],
    "html": ["<p>Hi</p>", ""],
    "headers": [{"X-A": "1"}, {"X-A": "2"}, {"X-B": "1"}],
    "attachments": [
        [_FILE],
        [_FILE | {"content_id": "b"}],
        [_FILE | {"content_id": None}],
        [_FILE | {"content": "aGVsbG9v"}],
        [_FILE | {"content_type": "image/gif"}],
        [_FILE | {"filename": "b.png"}],
        [_FILE, _FILE],
    ],
}
_UNSEEN: dict[str, Any] = {"tags": ["a"], "metadata": {"a": "b"}}


def test_every_field_that_somebody_can_see_counts_and_no_other() -> None:
    assert {*_CHANGES, *_UNSEEN} == set(FIELDS)

    emails = [make_email(**{name: value}) for name, values in _CHANGES.items() for value in values]
    digests = [digest_of_email(email) for email in [make_email(), *emails]]
    assert len(set(digests)) == len(digests)
    for name, value in _UNSEEN.items():
        assert digest_of_email(make_email(**{name: value})) == digests[0]


def test_the_order_in_which_headers_were_given_does_not_count() -> None:
    both = [{"X-A": "1", "X-B": "2"}, {"X-B": "2", "X-A": "1"}]
    assert len({digest_of_email(make_email(headers=headers)) for headers in both}) == 1


def test_a_list_is_its_emails_in_their_order() -> None:
    one, other = make_email("1"), make_email("2")
    lists = [[one], [one, other], [other, one], [one, one], [], [make_email("1", tags=["a"])]]
    assert len({digest_of_emails(emails) for emails in lists} | {digest_of_email(one)}) == len(lists) + 1


def test_a_call_is_its_job_and_its_arguments() -> None:
    calls: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("a", [], {}),
        ("b", [], {}),
        ("a", [1], {}),
        ("a", ["1"], {}),
        ("a", [1.5], {}),
        ("a", [None], {}),
        ("a", [[1], 2], {}),
        ("a", [1, [2]], {}),
        ("a", [], {"x": 1}),
        ("a", [{"x": 1}], {}),
    ]
    digests = {digest_of_call(*call) for call in calls}
    assert len(digests) == len(calls)
    assert digest_of_call("a", [], {"x": 1, "y": 2}) == digest_of_call("a", [], {"y": 2, "x": 1})


def test_the_first_ones_tags_and_metadata_go_with_its_key() -> None:
    """Else the same key would stand for two emails."""
    contents, first = Contents(MemoryStore(), FakeClock()), make_email(tags=["a"], metadata={"order": "1"})
    contents.name("d", _HOUR, first)
    for later in (make_email(), make_email(tags=["b"]), make_email(metadata={"order": "2"}), first):
        assert contents.name("d", _HOUR, later).as_named(later).fingerprint() == first.fingerprint()


@pytest.mark.parametrize("applied", [True, False])
def test_an_answer_that_is_lost_is_no_second_effect(*, applied: bool) -> None:
    store = MemoryStore()

    class Silent(MemoryStore):
        def swap_cell(self, name: str, old: bytes | None, new: bytes, **_: object) -> bytes | None:
            if applied:
                store.swap_cell(name, old, new)
            raise LedgerUnavailable("no answer")

    clock = FakeClock()
    with pytest.raises(LedgerUnavailable):
        Contents(Silent(), clock).name("d", _HOUR)
    clock.sleep(10)
    at = clock.now() - 10 * applied
    assert Contents(store, clock).name("d", _HOUR).key == content_key("d", at)


def test_a_clock_that_is_behind_finds_the_key_too() -> None:
    store, ahead, behind = MemoryStore(), FakeClock(), FakeClock()
    ahead.sleep(600)
    named = Contents(store, ahead).name("d", _HOUR)
    assert Contents(store, behind).name("d", _HOUR) == named


def test_keys_are_keys_and_differ_with_the_instant() -> None:
    digest = digest_of_email(make_email())
    keys = [check_key(content_key(digest, at)) for at in (0.0, 1.0, 1.000001, 1_785_542_400.5)]
    assert all(a != b for a, b in itertools.combinations(keys, 2))
    assert keys[-1] == f"content/{digest[:32]}/2026-08-01T00:00:00.500000Z"


@pytest.mark.parametrize("within", [timedelta(0), timedelta(seconds=-1), 3_600, None])
def test_a_time_that_makes_no_sense(within: Any) -> None:
    with pytest.raises(InvalidKey, match="within must be a timedelta above 0"):
        by_content(within=within)


@pytest.mark.parametrize(
    ("stored", "problem"),
    [(b"x", "cannot be read"), (b'{"until":1}', "cannot be read"), (b'{"until":1,"key":"k","version":2}', "version 2")],
)
def test_a_cell_that_is_not_ours(stored: bytes, problem: str) -> None:
    store = MemoryStore()
    store.swap_cell("content/d", None, stored)
    with pytest.raises(LedgerUnusable, match=problem):
        Contents(store, FakeClock()).name("d", _HOUR)


def test_a_cell_is_small() -> None:
    assert len(msgspec.json.encode(Named(1_785_542_400.123456, content_key("d" * 64, 1_785_542_400.123456)))) < 128
