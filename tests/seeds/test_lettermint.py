"""Lettermint's page on idempotency: its three requests, and what our adapter makes of the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idem.bulk import Group, Ready
from idem.email import Email
from idem.ledger import Ledger
from idem.outcome import Accepted, Ground, NotSent, Rejected, Unknown
from idem.policy import Policy
from idem.send import Later, Sender
from idem.stores.memory import MemoryStore
from tests.answers import soon
from tests.fakes import FakeClock

if TYPE_CHECKING:
    from tests.seeds.conftest import Play

PROVIDER = "lettermint"

KEY = "123e4567-e89b-12d3-a456-426614174000"
SEND: dict[str, Any] = {
    "from": "John Doe <john@yourdomain.com>",
    "to": ["recipient@example.com"],
    "subject": "Hello from Lettermint!",
    "text": "Hello! This is a test email.",
}
OTHER = {**SEND, "subject": "This is different!", "text": "Thanks for signing up."}


def test_send_an_email(play: Play) -> None:
    answer = play.post("/send", SEND, KEY)
    assert answer.status_code == 202
    assert play.send(Email.from_dict(SEND), "another-key") == Accepted(play.accepted()[-1]["id"])


def test_retry_with_the_same_key_and_body(play: Play) -> None:
    """202 with the same `message_id`, and no duplicate email; the order of the JSON's names does not matter."""
    first = play.post("/send", SEND, KEY)
    again = play.post("/send", dict(reversed(SEND.items())), KEY)
    assert (again.status_code, again.json()) == (202, first.json())
    assert play.send(Email.from_dict(SEND), KEY) == Accepted(first.json()["message_id"])
    assert len(play.accepted()) == 1


def test_conflict_with_the_same_key_and_a_different_body(play: Play) -> None:
    """422 in the page's words, which are what tells it from a validation error."""
    play.post("/send", SEND, KEY)
    answer = play.post("/send", OTHER, KEY)
    assert answer.status_code == 422
    assert answer.json() == {
        "message": "This idempotency key has already been used on a request with a different payload. "
        "Retrying this request requires changing the idempotency key or payload."
    }
    found = play.send(Email.from_dict(OTHER), KEY)
    assert isinstance(found, Rejected)
    assert found.ground is Ground.CONFLICT
    assert len(play.accepted()) == 1


def test_a_key_is_valid_for_24_hours(play: Play) -> None:
    first = play.send(Email.from_dict(SEND), KEY)
    play.advance(86_370)
    assert play.send(Email.from_dict(SEND), KEY) == first
    play.advance(31)
    assert play.send(Email.from_dict(SEND), KEY) != first
    assert len(play.accepted()) == 2


def test_a_new_key_for_each_unique_email(play: Play) -> None:
    assert play.send(Email.from_dict(SEND), "key-1") != play.send(Email.from_dict(SEND), "key-2")
    assert len(play.accepted()) == 2


# The batch, as the official SDK's types document it.


def emails(*subjects: str, sender: str = "john@yourdomain.com") -> list[tuple[Email, str]]:
    """One email a subject, each under a key of its own."""
    return [(Email.from_dict({**SEND, "subject": subject, "from": sender}), f"key-{subject}") for subject in subjects]


def test_a_batch_that_comes_again_sends_only_the_rest(play: Play) -> None:
    first = play.adapter().send_each(emails("a", "b"), soon())
    again = play.adapter().send_each(emails("a", "b", "c"), soon())
    assert again[:2] == first
    assert [entry["subject"] for entry in play.accepted()] == ["a", "b", "c"]


def test_one_conflict_holds_up_no_other_email(play: Play) -> None:
    """The whole batch is refused with a 409 that does not say for which key: halves of it find out."""
    play.adapter().send_each(emails("c"), soon())
    changed = [(Email.from_dict(OTHER), key) if key == "key-c" else (email, key) for email, key in emails(*"abcdefgh")]
    found = play.adapter().send_each(changed, soon())
    assert [type(one) for one in found] == [Rejected if index == 2 else Accepted for index in range(8)]
    assert found[2] == Rejected(getattr(found[2], "detail", ""), Ground.CONFLICT)
    assert sorted(entry["subject"] for entry in play.accepted()) == list("abcdefgh")
    assert len(play.requests()) == 1 + 7


def test_one_that_fails_leaves_those_behind_it_for_later(play: Play) -> None:
    """Those before it are accepted and listed, it is refused, and the others were not reached."""
    batch = [*emails("a"), *emails("b", sender="john@unverified.test"), *emails("c")]
    first, second, third = play.adapter().send_each(batch, soon())
    assert first == Accepted(play.accepted()[0]["id"])
    assert isinstance(second, Rejected)
    assert second.ground is Ground.GATE
    assert isinstance(third, NotSent)
    assert len(play.accepted()) == 1


def test_one_that_is_running_holds_up_no_other_email(play: Play) -> None:
    play.fault("in_progress")
    assert [type(one) for one in play.adapter().send_each(emails("a", "b"), soon())] == [Accepted, Accepted]


def test_a_lost_answer_to_a_batch_is_found_by_the_same_keys(play: Play) -> None:
    play.fault("accept_then_drop")
    assert [type(one) for one in play.adapter().send_each(emails("a", "b"), soon())] == [Unknown, Unknown]
    assert [type(one) for one in play.adapter().send_each(emails("b"), soon())] == [Accepted]
    assert len(play.accepted()) == 2


def test_the_key_of_an_email_in_a_batch_is_not_that_of_a_request(play: Play) -> None:
    """What went out in a batch must be repeated in one: by itself, and under the same key, it is another email."""
    play.adapter().send_each(emails("a"), soon())
    ((email, key),) = emails("a")
    play.send(email, key)
    assert len(play.accepted()) == 2


def test_what_went_out_together_is_repeated_together(play: Play) -> None:
    """Of a message with two emails, one is settled and one in doubt: the other door would send it a second time."""
    clock, policy = FakeClock(), Policy(window_seconds=86_400.0)
    ledger = Ledger(MemoryStore(), policy=policy, provider=PROVIDER, clock=clock, jitter=lambda: 1.0)
    sender = Sender(ledger, play.adapter(), clock=clock, http_timeout_seconds=20.0, namespace="shop")
    first, second = (Ready(key, email) for email, key in emails("a", "b"))
    play.fault("accept_then_drop")
    result = sender.send(Group((first, second)))
    while isinstance(result, Later):
        clock.sleep(policy.lease_seconds)
        result = sender.send(Group((second,)))
    assert [entry["subject"] for entry in play.accepted()] == ["a", "b"]
