"""The suppression list: who is on it, what that costs, and what it does to an email on its way."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from idem import Email, State
from idem.bulk import Ready
from idem.errors import EmailError, LedgerUnavailable, LedgerUnusable
from idem.ledger import Ledger
from idem.policy import Policy
from idem.protocol import Resolution
from idem.send import Ended, Later, Render, Resume, Sender
from idem.stores.memory import MemoryStore
from idem.suppression import FRESH_SECONDS, Entry, Reason, Suppression
from tests.fakes import Answer, FakeClock, FakeProvider, make_email

ANN = "ann@example.com"


class CountingStore(MemoryStore):
    """Counts the reads of its cells; `silent`, it does not answer them."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.silent = False

    def read_cell(self, name: str) -> bytes | None:
        self.reads[name] += 1
        if self.silent:
            raise LedgerUnavailable("no answer")
        return super().read_cell(name)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def listed(store: CountingStore, clock: FakeClock) -> Suppression:
    return Suppression(store, "default", clock=clock)


def to(*addresses: str, **parts: object) -> Email:
    return Email.from_dict({"from": "a@example.com", "to": list(addresses), "subject": "s", "text": "t", **parts})


def test_an_address_is_on_the_list_until_it_is_taken_off(listed: Suppression, clock: FakeClock) -> None:
    assert listed.find(ANN) is None
    assert listed.add(ANN, Reason.BOUNCED, source="ses/1")
    assert listed.find(ANN) == Entry(Reason.BOUNCED, clock.now(), "ses/1")
    assert listed.remove(ANN)
    assert listed.find(ANN) is None
    assert not listed.remove(ANN)


def test_who_is_on_it_stays_as_he_was(listed: Suppression) -> None:
    assert listed.add(ANN, Reason.COMPLAINED, source="first")
    assert not listed.add(ANN, Reason.PERSON, source="second")
    assert [entry.source for _, entry in listed.entries()] == ["first"]


@pytest.mark.parametrize(
    "spelling", ["ANN@EXAMPLE.COM", "Ann <ann@Example.com>", " ann@example.com", '"Ann, A." <ann@example.com>']
)
def test_an_address_has_many_spellings(listed: Suppression, spelling: str) -> None:
    listed.add(spelling, Reason.BOUNCED, source="x")

    assert listed.find(ANN) is not None


def test_a_domain_is_known_by_both_its_names(listed: Suppression) -> None:
    listed.add("ann@bücher.example", Reason.BOUNCED, source="x")

    assert listed.find("ann@xn--bcher-kva.example") is not None
    assert listed.find("ann+tag@bücher.example") is None


def test_what_is_no_address_is_refused(listed: Suppression) -> None:
    for junk in ("", "ann", "ann@", "a b@example.com"):
        with pytest.raises(EmailError):
            listed.add(junk, Reason.BOUNCED, source="x")


def test_namespaces_are_apart_and_no_address_is_written_down(store: CountingStore, listed: Suppression) -> None:
    other = Suppression(store, "other", clock=FakeClock())
    listed.add(ANN, Reason.BOUNCED, source="ses/1")

    assert other.find(ANN) is None
    assert not any(b"ann" in value or b"example" in value for value in store._cells.values())


def test_an_email_to_somebody_else_costs_a_read_every_few_seconds(
    listed: Suppression, store: CountingStore, clock: FakeClock
) -> None:
    """Of the directory; with one address on the list, one in a thousand others has a cell that is read too."""
    listed.add(ANN, Reason.BOUNCED, source="x")
    store.reads.clear()
    for number in range(500):
        assert listed.withhold(to(f"someone{number}@example.com")) is None
    assert store.reads["suppressed"] == 1
    assert store.reads.total() <= 4
    clock.sleep(FRESH_SECONDS)
    listed.withhold(to("someone@example.com"))
    assert store.reads["suppressed"] == 2


def test_who_was_taken_off_can_be_sent_to_at_once(store: CountingStore, listed: Suppression, clock: FakeClock) -> None:
    """Whatever another process remembers: who is on the list is read anew."""
    worker = Suppression(store, "default", clock=clock)
    listed.add(ANN, Reason.BOUNCED, source="x")
    assert worker.withhold(to(ANN)) is not None
    listed.remove(ANN)
    assert worker.withhold(to(ANN)) is None


def test_who_comes_onto_it_is_held_back_seconds_later(
    store: CountingStore, listed: Suppression, clock: FakeClock
) -> None:
    worker = Suppression(store, "default", clock=clock)
    assert worker.withhold(to(ANN)) is None
    listed.add(ANN, Reason.BOUNCED, source="x")
    clock.sleep(FRESH_SECONDS)
    assert worker.withhold(to(ANN)) is not None


@pytest.mark.parametrize(
    ("email", "place"),
    [
        (to("bob@example.com", ANN), "to[1]"),
        (to("bob@example.com", cc=[ANN]), "cc[0]"),
        (to("bob@example.com", bcc=["x@example.com", "Ann <ANN@example.com>"]), "bcc[1]"),
    ],
)
def test_any_recipient_counts_and_none_is_named(listed: Suppression, email: Email, place: str) -> None:
    listed.add(ANN, Reason.COMPLAINED, source="x")
    why = listed.withhold(email)

    assert why is not None
    assert f"suppressed: {place} is on the suppression list (complained, since 2023-11-14)" in why
    assert "ann" not in why.lower()


def test_two_who_add_at_once_lose_nothing(store: CountingStore) -> None:
    addresses = [f"p{number}@example.com" for number in range(400)]

    def add(address: str) -> bool:
        return Suppression(store, "default", clock=FakeClock()).add(address, Reason.BOUNCED, source="x")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(add, addresses))
    assert len(list(Suppression(store, "default", clock=FakeClock()).entries())) == 400


def test_a_crash_between_the_two_writes_leaves_an_entry_that_is_looked_for(listed: Suppression) -> None:
    """The directory comes first: the entry is written when the event is posted again, and found."""

    class Dies(Exception):
        """The process ends here."""

    def die(*_: object) -> bool:
        raise Dies

    change, listed._change = listed._change, die  # type: ignore[assignment, method-assign]  # to stop in between
    with pytest.raises(Dies):
        listed.add(ANN, Reason.BOUNCED, source="x")
    listed._change = change  # type: ignore[method-assign]  # the next process
    assert listed.add(ANN, Reason.BOUNCED, source="x")
    assert listed.withhold(to(ANN)) is not None


def test_a_list_that_cannot_be_read_is_told(store: CountingStore, listed: Suppression) -> None:
    listed.add(ANN, Reason.BOUNCED, source="x")
    (name,) = [name for name in store._cells if name != "suppressed"]
    store._cells[name] = b"junk"
    with pytest.raises(LedgerUnusable, match="suppression list"):
        listed.find(ANN)


class TestOnItsWay:
    """What becomes of an email to somebody on the list."""

    @pytest.fixture
    def provider(self, clock: FakeClock) -> FakeProvider:
        return FakeProvider(clock)

    @pytest.fixture
    def ledger(self, clock: FakeClock) -> Ledger:
        policy = Policy(lease_seconds=60.0, http_timeout_seconds=20.0, window_seconds=86_400.0)
        return Ledger(MemoryStore(), policy=policy, provider="fake", clock=clock, jitter=lambda: 0.0)

    @pytest.fixture
    def sender(self, ledger: Ledger, provider: FakeProvider, clock: FakeClock, listed: Suppression) -> Sender:
        return Sender(
            ledger, provider, clock=clock, http_timeout_seconds=20.0, namespace="default", withhold=listed.withhold
        )

    def test_it_is_rejected_before_the_first_byte_and_sent_after_both_words(
        self, sender: Sender, ledger: Ledger, provider: FakeProvider, listed: Suppression
    ) -> None:
        email = make_email()
        listed.add(email.to[0], Reason.BOUNCED, source="x")
        ended = sender.send(Ready("k", email))
        assert isinstance(ended, Ended)
        assert (ended.record.state, provider.calls) == (State.REJECTED, [])
        assert "suppressed: to[0]" in (ended.record.reason or "")
        assert isinstance(sender.send(Ready("k", email)), Ended)
        assert provider.calls == []

        listed.remove(email.to[0])
        reopened = ledger.resolve(ended.record, Resolution.REOPEN, by="a person")
        assert reopened is not None
        assert reopened.resumable
        sender.send(Resume("k"))
        record = ledger.read("k")
        assert record is not None
        assert (record.state, len(provider.accepted)) == (State.SENT, 1)

    def test_what_may_have_been_accepted_is_repeated_all_the_same(
        self, sender: Sender, provider: FakeProvider, listed: Suppression, clock: FakeClock
    ) -> None:
        """The bounce may be of this very email; a replay sends nothing anew."""
        email = make_email()
        provider.script = [Answer.ACCEPT_THEN_SILENCE]
        later = sender.send(Ready("k", email))
        assert isinstance(later, Later)
        listed.add(email.to[0], Reason.BOUNCED, source="x")
        clock.sleep(FRESH_SECONDS + 60)
        ended = sender.send(Ready("k", email))
        assert isinstance(ended, Ended)
        assert (ended.record.state, len(provider.accepted)) == (State.SENT, 1)

    def test_a_list_that_cannot_be_asked_sends_nothing_and_ends_nothing(
        self, sender: Sender, provider: FakeProvider, store: CountingStore, clock: FakeClock
    ) -> None:
        store.silent = True
        later = sender.send(Ready("k", make_email()))
        assert isinstance(later, Later)
        assert (later.record.state, provider.calls) == (State.RETRY, [])
        store.silent = False
        clock.sleep(3_600)
        ended = sender.send(Ready("k", make_email()))
        assert isinstance(ended, Ended)
        assert ended.record.state is State.SENT

    def test_what_a_job_froze_is_sent_after_it_is_opened_again(
        self, sender: Sender, ledger: Ledger, provider: FakeProvider, listed: Suppression
    ) -> None:
        email = make_email()
        listed.add(email.to[0], Reason.COMPLAINED, source="x")
        ended = sender.send(Render("k", "report", lambda: email))
        assert isinstance(ended, Ended)
        listed.remove(email.to[0])
        assert ledger.resolve(ended.record, Resolution.REOPEN, by="a person") is not None
        assert isinstance(sender.send(Resume("k")), Ended)
        assert len(provider.accepted) == 1
