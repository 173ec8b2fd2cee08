"""The page of Lettermint's Laravel driver: which key an email gets, in what order, and the defects that we do without.

Its driver derives a key from parts of the content and from a clock bucket. Here a job has a key of its own, which does
not depend on when it is tried; the content decides whether the same key was meant for the same email, and names an
effect only where that is asked for.
"""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from idem.bulk import Ready
from idem.content import Contents, by_content, digest_of_email
from idem.email import FIELDS, Email
from idem.keys import take_explicit
from idem.ledger import Ledger
from idem.policy import Policy
from idem.protocol import State
from idem.providers.lettermint import CONTRACT, encode
from idem.send import Ended, Later, Result, Sender
from idem.stores.memory import MemoryStore
from tests.fakes import FakeClock

if TYPE_CHECKING:
    from tests.seeds.conftest import Play

PROVIDER = "lettermint"

EMAIL: dict[str, Any] = {
    "from": "shop@example.com",
    "to": ["ann@example.com"],
    "subject": "Your order",
    "text": "It is on its way.",
    "html": "<p>It is on its way.</p>",
}
FILE = {"filename": "a.pdf", "content": "aGVsbG8=", "content_type": "application/pdf"}

#: One email each, all different for those who get it; the driver gives most of them one key.
DIFFERENT: dict[str, dict[str, Any]] = {
    "as it is": {},
    "from": {"from": "other@example.com"},
    "to": {"to": ["bo@example.com"]},
    "to, both": {"to": ["ann@example.com", "bo@example.com"]},
    "cc": {"cc": ["bo@example.com"]},
    "bcc": {"bcc": ["bo@example.com"]},
    "reply_to": {"reply_to": ["bo@example.com"]},
    "subject": {"subject": "Your order!"},
    "text": {"text": "It has arrived."},
    "text, alone": {"html": None},
    "html": {"html": "<p>It has arrived.</p>"},
    "html, alone": {"text": None},
    "headers": {"headers": {"X-A": "1"}},
    "headers, other": {"headers": {"X-A": "2"}},
    "tags": {"tags": ["a"]},
    "metadata": {"metadata": {"a": "b"}},
    "attachments": {"attachments": [FILE]},
    "attachments, other content": {"attachments": [FILE | {"content": "aGVsbG9v"}]},
    "attachments, other name": {"attachments": [FILE | {"filename": "b.pdf"}]},
    "attachments, inline": {"attachments": [FILE | {"content_id": "a"}]},
}


def test_every_part_of_the_content_counts() -> None:
    """It hashes no files, no headers, no reply address, and no text beside HTML; and takes cc for bcc."""
    assert {name.partition(",")[0] for name in DIFFERENT} == {"as it is", *FIELDS}
    prints = {name: Email.from_dict(EMAIL | changes).fingerprint() for name, changes in DIFFERENT.items()}
    assert [pair for pair in itertools.combinations(prints, 2) if prints[pair[0]] == prints[pair[1]]] == []


def test_another_content_under_a_key_is_noticed_at_the_provider_too() -> None:
    """What distinguishes two emails is in the bytes that the key is bound to."""
    bodies = [encode(Email.from_dict(EMAIL | changes), "k").data for changes in DIFFERENT.values()]
    assert len(set(bodies)) == len(DIFFERENT)


class Worker:
    """A worker with a ledger, whose clock and the provider's go together."""

    def __init__(self, play: Play) -> None:
        self.play, self.clock, self.store = play, FakeClock(), MemoryStore()
        policy = Policy(window_seconds=CONTRACT.window_seconds)
        ledger = Ledger(self.store, policy=policy, provider="lettermint", clock=self.clock, jitter=lambda: 1.0)
        self._sender = Sender(
            ledger, play.adapter(), clock=self.clock, http_timeout_seconds=policy.http_timeout_seconds, namespace="shop"
        )

    def deliver(self, key: str, email: Email) -> Result:
        return self._sender.send(Ready(key, email))

    def sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        self.play.advance(seconds)


def test_a_retry_across_the_edge_of_a_bucket_keeps_its_key(play: Play) -> None:
    """There it gets a new key from `floor(time / window)`, and the email goes out twice."""
    worker, email = Worker(play), Email.from_dict(EMAIL)
    worker.sleep(3_600 - worker.clock.now() % 3_600 - 1)
    play.fault("accept_then_drop")
    assert isinstance(worker.deliver("order-1", email), Later)
    worker.sleep(3_601)
    assert isinstance(worker.deliver("order-1", email), Ended)
    first, second = play.requests()
    assert first["key"] == second["key"]
    assert len(play.accepted()) == 1


@pytest.mark.parametrize("hours", [1, 23, 25, 24 * 30])
def test_a_job_that_comes_again_sends_nothing(play: Play, hours: int) -> None:
    """There "permanent" ends with the provider's 24 hours; here the ledger remembers."""
    worker, email = Worker(play), Email.from_dict(EMAIL)
    worker.deliver("order-1", email)
    worker.sleep(hours * 3_600)
    again = worker.deliver("order-1", email)
    assert isinstance(again, Ended)
    assert again.record.state is State.SENT
    assert len(play.requests()) == 1


def test_the_same_content_under_another_key_is_another_email(play: Play) -> None:
    worker, email = Worker(play), Email.from_dict(EMAIL)
    worker.deliver("order-1", email)
    worker.deliver("order-2", email)
    assert len(play.accepted()) == 2


@pytest.mark.parametrize(
    ("argument", "header", "expected"),
    [
        ("argument", "header", "argument"),
        (None, "header", "header"),
        ("argument", None, "argument"),
        (None, None, None),
    ],
)
def test_the_order_of_priority(argument: str | None, header: str | None, expected: str | None) -> None:
    """A key in the email's headers is always respected, and is beaten only by one that is said aloud."""
    headers = {"X-A": "1"} if header is None else {"X-A": "1", "idempotency-KEY": header}
    email, key = take_explicit(Email.from_dict(EMAIL | {"headers": headers}), argument)
    assert key == expected
    assert dict(email.headers) == {"X-A": "1"}


@pytest.mark.parametrize("before", [1, 1_800, 3_599])
def test_the_same_content_across_the_edge_of_a_bucket_is_one_email(play: Play, before: int) -> None:
    """There `floor(time / window)` is part of the key of a content: a second later, it may be another email."""
    worker, email = Worker(play), Email.from_dict(EMAIL)
    contents, hour = Contents(worker.store, worker.clock), by_content(within=timedelta(hours=1))
    worker.sleep(3_600 - worker.clock.now() % 3_600 - before)
    for seconds in (0, before, 3_599 - before):
        worker.sleep(seconds)
        worker.deliver(contents.name(digest_of_email(email), hour).key, email)
    assert len(play.requests()) == 1
    worker.sleep(1)
    worker.deliver(contents.name(digest_of_email(email), hour).key, email)
    assert len(play.accepted()) == 2


def test_contents_that_differ_for_those_who_get_them_are_different_emails() -> None:
    prints = {name: digest_of_email(Email.from_dict(EMAIL | changes)) for name, changes in DIFFERENT.items()}
    assert [name for name in prints if prints[name] == prints["as it is"]] == ["as it is", "tags", "metadata"]
    assert len(set(prints.values())) == len(DIFFERENT) - 2
