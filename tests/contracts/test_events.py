"""Every provider that tells of its emails: an answer is lost, and an event, as the sandbox posts it, ends the doubt."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
import uvicorn
from msgspec.structs import replace

from idem.bulk import Bulk, Ready
from idem.email import Email
from idem.events import EventNotes, Happened
from idem.keys import provider_key
from idem.ledger import Ledger
from idem.outcome import Accepted
from idem.policy import Policy
from idem.protocol import Record, State
from idem.providers.base import KeyedRequests
from idem.reconcile import Patience, Reconciler, Step
from idem.send import Ended, Sender, intent_of
from idem.stores.memory import MemoryStore
from idem.suppression import Reason, Suppression
from tests.contracts.providers import Lab, lab
from tests.fakes import make_email
from tests.workers.webhooks.deliveries import PLAIN, WHSEC
from tests.workers.webhooks.key_pairs import certificate, ec_key, private, public, rsa_key
from workers.sandbox.faults import Kind
from workers.sandbox.registry import DIALECTS
from workers.sandbox.webhooks import SES_TOPIC
from workers.webhooks import ses
from workers.webhooks.app import Receiver, build_app
from workers.webhooks.declared import Declared
from workers.webhooks.hearing import Hearing
from workers.webhooks.sources import SCHEMES, Source

_CONTRACTS = {dialect.contract.name: dialect.contract for dialect in DIALECTS}
_TELLING = [name for name, contract in _CONTRACTS.items() if contract.events is not None]
_WHOLE = ["nuntly", "resend"]
#: What the sandbox signs with, and what the receiver verifies by, where it is not the same.
_SIGNING = dict.fromkeys(_TELLING, WHSEC) | {
    "postmark": "user:password",
    "getmailer": PLAIN,
    "mailgun": PLAIN,
    "brevo": PLAIN,
    "sendgrid": private(ec_key()),
    "ses": private(rsa_key()),
}
_VERIFYING = _SIGNING | {"sendgrid": public(ec_key()), "ses": SES_TOPIC}
NAMESPACE = "contract"


@dataclass
class Place:
    """A sandbox, a receiver that hears it, and a ledger whose every lost answer is a doubt: no key is remembered."""

    lab: Lab
    store: MemoryStore
    url: str
    receiver: Receiver

    def order(self, name: str, *events: str, times: int = 1) -> None:
        """The sandbox tells these events of this provider's next emails."""
        order = {
            "provider": name,
            "url": f"{self.url}/{name}",
            "secret": _SIGNING[name],
            "events": list(events),
            "times": times,
            "copies": 2,
        }
        answer = httpx.post(f"{self.lab.url}/api/webhooks", json=order)
        assert answer.status_code == 201, answer.text

    def await_events(self, count: int) -> list[int]:
        """The statuses of the last events, once they are all answered."""
        late = time.monotonic() + 20
        while time.monotonic() < late:
            posted = httpx.get(f"{self.lab.url}/api/events").json()[-count:]
            if len(posted) == count and all(event["status"] for event in posted):
                return [event["status"] for event in posted]
            time.sleep(0.02)
        raise AssertionError("the events were not answered")

    def ledger(self, name: str) -> Ledger:
        policy = Policy(lease_seconds=60.0, http_timeout_seconds=5.0, window_seconds=None)
        return Ledger(self.store, policy=policy, provider=name, clock=self.lab.clock)

    def notes(self) -> EventNotes:
        return EventNotes(self.store, clock=self.lab.clock, keep_seconds=1e6)

    def suppression(self) -> Suppression:
        return Suppression(self.store, NAMESPACE, clock=self.lab.clock)

    def sender(self, name: str) -> Sender:
        return Sender(
            self.ledger(name),
            self.lab.connect(name),
            clock=self.lab.clock,
            http_timeout_seconds=5.0,
            namespace=NAMESPACE,
            withhold=self.suppression().withhold,
        )

    def reconcile(self, name: str) -> dict[Step, int]:
        return dict(
            Reconciler(
                self.ledger(name),
                {name: self.lab.connect(name)},
                clock=self.lab.clock,
                namespace=NAMESPACE,
                patience=Patience.of(lease=60.0, http_timeout=5.0, evidence=900.0, visibility=90.0),
                resume=lambda _key: None,
                events=self.notes(),
            ).run()
        )

    def read(self, name: str, key: str) -> Record:
        record = self.ledger(name).read(key)
        assert record is not None
        return record


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with lab() as laboratory:
        store = MemoryStore()
        suppression = Suppression(store, NAMESPACE, clock=laboratory.clock)
        hearing = Hearing(EventNotes(store, clock=laboratory.clock, keep_seconds=1e6), suppression)
        receiver = Receiver(
            {name: _source(name, laboratory) for name in _TELLING},
            Declared(),
            lambda _message: None,
            hear=hearing.hear,
            clock=laboratory.clock,
            tolerance_seconds=300.0,
            most_bytes=65_536,
        )
        with _serving(receiver) as url:
            yield Place(laboratory, store, url, receiver)


def _source(name: str, laboratory: Lab) -> Source:
    scheme = SCHEMES[name]
    if name == "ses":
        pem = certificate(rsa_key(), at=laboratory.clock.now())
        scheme = ses.scheme(ses.Topics(lambda _url: pem))
    return Source(name, scheme, scheme.keys([_VERIFYING[name]]))


class _serving:  # noqa: N801 - a context
    """A receiver by HTTP, on a free port."""

    def __init__(self, receiver: Receiver) -> None:
        config = uvicorn.Config(build_app(receiver), lifespan="off", log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


def test_who_tells_is_who_has_a_source() -> None:
    assert _TELLING
    assert set(_TELLING) <= SCHEMES.keys()


@pytest.mark.parametrize("name", _TELLING)
def test_an_event_ends_a_doubt(place: Place, name: str) -> None:
    """Accepted, and the answer is lost; told twice, of three things: sent, by one acceptance, and noted once each."""
    email = place.lab.email()
    place.lab.order(name, Kind.ACCEPT_THEN_DROP)
    place.order(name, "delivered", "bounced")
    ended = place.sender(name).send(Ready(email.subject, email))
    assert isinstance(ended, Ended)
    assert ended.record.state is State.IN_DOUBT

    assert place.await_events(4) == [200] * 4
    assert place.reconcile(name) == {Step.HEARD: 1}

    record = place.read(name, email.subject)
    assert (record.state, place.lab.acceptances(email)) == (State.SENT, 1)
    assert record.evidence[-1].detail == f"an event of {name}: delivered"
    accepted = place.lab.sandbox.accepted.entries()[-1]
    assert record.message_id == accepted.id
    heard = place.notes().of(provider_key(NAMESPACE, email.subject, 0))
    assert [note.kind for note in heard.notes] == [Happened.DELIVERED, Happened.BOUNCED]
    entry = place.suppression().find(email.to[0])
    assert entry is not None
    assert entry.reason is Reason.BOUNCED
    assert place.suppression().remove(email.to[0])


@pytest.mark.parametrize("name", _WHOLE)
def test_an_email_of_many_in_one_request_has_its_own_events(place: Place, name: str) -> None:
    """Though they share one key: each carries that of its record."""
    emails = tuple(_to(f"person{number}@example.com", place.lab.email()) for number in range(1, 4))
    assert isinstance(place.lab.connect(name), KeyedRequests)
    place.lab.sandbox.faults.clear()
    place.order(name, "complained", times=3)
    key = f"{name}-bulk"
    place.sender(name).send(Bulk(f"{key}/1-3", emails))
    place.await_events(6)

    for number in range(1, 4):
        record = place.read(name, f"{key}/{number}")
        heard = place.notes().of(provider_key(NAMESPACE, record.key, 0))
        assert (record.state, heard.message_id) == (State.SENT, record.message_id)
        assert [note.kind for note in heard.notes] == [Happened.COMPLAINED]
        assert place.suppression().remove(f"person{number}@example.com")


@pytest.mark.parametrize("name", _WHOLE)
def test_one_who_is_suppressed_holds_up_nobody_else(place: Place, name: str) -> None:
    """A range that would be one request is one for each of the others."""
    emails = tuple(_to(f"other{number}@example.com", place.lab.email()) for number in range(3))
    place.suppression().add("Other1@Example.com", Reason.PERSON, source="a test")
    sender, key = place.sender(name), f"{name}-split"
    ended = sender.send(Bulk(f"{key}/1-3", emails))
    assert isinstance(ended, Ended)
    assert ended.record.state is State.SPLIT
    for part in ended.emails:
        sender.send(part)

    assert [place.read(name, f"{key}/{number}").state for number in range(1, 4)] == [
        State.SENT, State.REJECTED, State.SENT,
    ]  # fmt: skip
    assert [place.lab.acceptances(email) for email in emails] == [1, 0, 1]


def _to(address: str, email: Email) -> Email:
    return Email.from_dict(email.as_dict() | {"to": [address]})


@pytest.mark.parametrize("name", [name for name in _TELLING if _CONTRACTS[name].key is not None])
def test_an_attempt_of_a_former_version_is_repeated_with_its_own_bytes(place: Place, name: str) -> None:
    """A record that does not say that its attempts carry the key is repeated without it, and replayed."""
    adapter = place.lab.connect(name)
    email = make_email(f"Former {name}")
    key = provider_key(NAMESPACE, email.subject, 0)
    place.lab.sandbox.faults.clear()
    assert isinstance(place.lab.attempt(adapter, email, key), Accepted)
    policy = Policy(lease_seconds=60.0, http_timeout_seconds=5.0, window_seconds=adapter.contract.window_seconds)
    ledger = Ledger(MemoryStore(), policy=policy, provider=name, clock=place.lab.clock)
    place.lab.clock.sleep(1)
    sender = Sender(ledger, adapter, clock=place.lab.clock, http_timeout_seconds=5.0, namespace=NAMESPACE)
    _begin_as_the_former_version_did(ledger, email, place)
    ended = sender.send(Ready(email.subject, email))

    assert isinstance(ended, Ended)
    assert (ended.record.state, place.lab.acceptances(email)) == (State.SENT, 1)


def _begin_as_the_former_version_did(ledger: Ledger, email: Email, place: Place) -> None:
    """A claim whose worker died, and whose record has no `marked`."""
    claim = ledger.claim(intent_of(Ready(email.subject, email)))
    record = ledger.read(email.subject)
    assert record is not None
    assert claim is not None
    former = replace(record, marked=None, version=record.version + 1)
    assert ledger._store.swap(record, former) is None
    place.lab.clock.sleep(61)
