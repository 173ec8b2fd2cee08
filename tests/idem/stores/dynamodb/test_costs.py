"""What DynamoDB charges, as its own engine reports it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from idem.errors import LedgerError
from idem.ledger import Claim, Ledger
from idem.outcome import Accepted, NotSent, Outcome, Unknown
from idem.policy import Policy
from idem.protocol import Done, Intent, State
from idem.stores.dynamodb import Connection, DynamoStore, store
from tests import services
from tests.bench.units import Units
from tests.fakes import FakeClock
from tests.records import make_record

_POLICY = Policy(window_seconds=86_400.0)
_FINGERPRINT = "f" * 64


class Bill:
    """A ledger on DynamoDB Local, and what it was charged since it was last asked."""

    def __init__(self, store: DynamoStore, units: Units) -> None:
        self.clock = FakeClock()
        self.ledger = Ledger(store, policy=_POLICY, provider="lettermint", clock=self.clock, jitter=lambda: 1.0)
        self.units = units
        self.key = uuid.uuid4().hex.ljust(100, "k")

    def claim(self, job: str | None = None) -> Claim:
        claim = self.ledger.claim(Intent(self.key, job=job, fingerprint=None if job else _FINGERPRINT))
        assert isinstance(claim, Claim)
        return claim

    def charged(self) -> tuple[float, float, float, int]:
        """Write units, those of the index among them, read units, and refused writes."""
        units = self.units
        found = units.write, units.index, units.read, units.refused
        units.reset()
        return found


@pytest.fixture(params=["plain", "grouped", "signed"])
def bill(request: pytest.FixtureRequest) -> Iterator[Bill]:
    endpoint, grouped = services.dynamodb_local(), request.param != "plain"
    units = Units(services.connect("dynamodb", endpoint, signed=request.param == "signed").client)
    connection = Connection("dynamodb", client=units)
    opened = DynamoStore(connection, services.table(endpoint), namespace=uuid.uuid4().hex, grouped=grouped)
    yield Bill(opened, units)
    opened.close()


def test_a_fresh_send_is_two_units_and_no_read(bill: Bill) -> None:
    bill.ledger.settle(bill.claim(), Accepted("m" * 40))
    assert bill.charged() == (2, 0, 0, 0)


def test_a_rendered_send_is_three(bill: Bill) -> None:
    frozen = bill.ledger.freeze(bill.claim("report"), b"body " * 1_000, _FINGERPRINT)
    assert isinstance(frozen, Claim)
    bill.ledger.settle(frozen, Accepted("m" * 40))
    assert bill.charged() == (3, 0, 0, 0)


def test_a_durable_send_is_five_units_and_one_refused_write(bill: Bill) -> None:
    """Written with its email, then listed and unlisted; the worker's first claim is refused, as if it were taken."""
    bill.ledger.ask(Intent(bill.key, fingerprint=_FINGERPRINT, body=b"a short email"))
    assert bill.charged() == (2, 1, 0, 0)
    claim = bill.claim()
    assert bill.charged() == (1, 0, 0, 1)
    bill.ledger.settle(claim, Accepted("m" * 40))
    assert bill.charged() == (2, 1, 0, 0)


def test_a_redelivery_is_one_refused_write(bill: Bill) -> None:
    """Which brings the record along: no read."""
    bill.ledger.settle(bill.claim(), Accepted("m1"))
    bill.charged()
    assert isinstance(bill.ledger.claim(Intent(bill.key, fingerprint=_FINGERPRINT)), Done)
    assert bill.charged() == (0, 0, 0, 1)


def test_a_takeover_is_one_refused_write_and_one_more(bill: Bill) -> None:
    bill.claim()
    bill.clock.sleep(_POLICY.lease_seconds)
    bill.charged()
    bill.ledger.settle(bill.claim(), Accepted("m1"))
    assert bill.charged() == (2, 0, 0, 1)


@pytest.mark.parametrize(
    ("outcome", "state"), [(NotSent("refused", None), State.RETRY), (Unknown("no answer"), State.UNSURE)]
)
def test_what_needs_attention_costs_one_unit_to_list_and_one_to_unlist(
    bill: Bill, outcome: Outcome, state: State
) -> None:
    settled = bill.ledger.settle(bill.claim(), outcome)
    assert getattr(settled, "state", None) is state
    assert bill.charged() == (3, 1, 0, 0)
    bill.clock.sleep(_POLICY.lease_seconds)
    bill.ledger.settle(bill.claim(), Accepted("m1"))
    assert bill.charged() == (3, 1, 0, 1)


def test_what_is_in_flight_costs_its_sender_nothing_to_be_found(bill: Bill) -> None:
    """A claim is one unit, none of them the index's; to look costs half a read unit for each 4 KB of the table."""
    bill.claim()
    assert bill.charged() == (1, 0, 0, 0)
    (found,) = bill.ledger.list(State.SENDING, 10)
    written, _, read, _ = bill.charged()
    assert found.key == bill.key
    assert written == 0
    assert read >= 0.5 + 1, "the scan, and one consistent read of what it found"


def test_a_table_that_is_too_large_is_not_looked_through(bill: Bill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SCANNED_PAGES", 0)
    with pytest.raises(LedgerError, match="too large to be looked through for sending records"):
        list(bill.ledger.list(State.SENDING, 10))


def test_a_look_through_the_table_is_charged_by_its_size() -> None:
    """Not by what it finds: 200 records of half a KB are 25 pieces of 4 KB, at half a unit each."""
    endpoint = services.dynamodb_local()
    units = Units(services.connect("dynamodb", endpoint).client)
    opened = DynamoStore(Connection("dynamodb", client=units), f"cost-{uuid.uuid4().hex}", grouped=False)
    opened.create()
    for number in range(200):
        opened.swap(None, make_record(f"{number}", state=State.SENT, reason="x" * 300))
    units.reset()
    assert list(opened.list(State.SENDING, 10)) == []
    assert units.write == 0
    assert units.read == pytest.approx(200 * 0.5 / 4 / 2, rel=0.5)
    opened.close()
