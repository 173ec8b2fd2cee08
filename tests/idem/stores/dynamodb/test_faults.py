"""The ledger on DynamoDB while calls fail: before, after they were applied, and long after.

Every write of the protocol meets every fault, on both ways of writing; the client is a worker's own, with a fault put
between it and the engine.
"""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore.exceptions import (  # type: ignore[import-untyped]  # ships no types
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    ReadTimeoutError,
)

from idem.errors import LedgerUnavailable
from idem.ledger import Claim, Ledger
from idem.outcome import Accepted, NotSent, Unknown
from idem.policy import Policy
from idem.protocol import Done, Intent, Record, State, Wait
from idem.stores.dynamodb import Connection, DynamoStore
from tests import services
from tests.contracts.test_dynamodb import make_store
from tests.fakes import FakeClock

_POLICY = Policy(window_seconds=86_400.0)
_SENT = Accepted("m1")


@dataclass(frozen=True, slots=True)
class Fault:
    """What one write meets: whether it is applied, and what the caller is told."""

    applied: bool
    told: Callable[[], Exception]
    late: bool = False


def _answer(code: str) -> Callable[[], Exception]:
    return lambda: ClientError({"Error": {"Code": code, "Message": ""}}, "PutItem")


def _lost() -> Exception:
    lost: Exception = ReadTimeoutError(endpoint_url="x")
    return lost


FAULTS = {
    "not connected": Fault(applied=False, told=lambda: ConnectTimeoutError(endpoint_url="x")),
    "lost before": Fault(applied=False, told=_lost),
    "lost after": Fault(applied=True, told=_lost),
    "closed after": Fault(applied=True, told=lambda: ConnectionClosedError(endpoint_url="x")),
    "500 before": Fault(applied=False, told=_answer("InternalServerError")),
    "500 after": Fault(applied=True, told=_answer("InternalServerError")),
    "throttled": Fault(applied=False, told=_answer("ProvisionedThroughputExceededException")),
    "expired": Fault(applied=False, told=_answer("ExpiredTokenException")),
    "late": Fault(applied=False, told=_lost, late=True),
}


@dataclass(slots=True)
class FaultyClient:
    """A client whose n-th write (from 1) meets `faults[n]`; after an outage's first fault, nothing gets through."""

    client: Any
    faults: dict[int, Fault] = field(default_factory=dict)
    outage: bool = False
    writes: int = 0
    late: list[Callable[[], Any]] = field(default_factory=list)

    def put_item(self, **request: Any) -> Any:
        return self._write(lambda: self.client.put_item(**request))

    def batch_execute_statement(self, **request: Any) -> Any:
        return self._write(lambda: self.client.batch_execute_statement(**request))

    def get_item(self, **request: Any) -> Any:
        return self.client.get_item(**request)

    def recover(self) -> None:
        """Let everything through from now on, what is late included."""
        self.faults.clear()
        self.outage = False
        self.apply_late()

    def apply_late(self) -> None:
        """Let the delayed requests arrive; nobody hears what becomes of them."""
        for write in self.late:
            try:
                write()
            except ClientError as error:
                assert error.response["Error"]["Code"] == "ConditionalCheckFailedException"  # noqa: PT017 - the only one that may be
        self.late.clear()

    def _write(self, write: Callable[[], Any]) -> Any:
        self.writes += 1
        fault = self.faults.get(self.writes)
        if self.outage and fault is None and self.writes > min(self.faults):
            fault = FAULTS["not connected"]
        if fault is None:
            return write()
        if fault.applied:
            with contextlib.suppress(ClientError):
                write()
        if fault.late:
            self.late.append(write)
        raise fault.told()


class Bench:
    """Workers, each with a faulty way to one namespace of a table of DynamoDB Local."""

    def __init__(self, writer: str) -> None:
        self.clock = FakeClock()
        self.writer = writer
        self._namespace = uuid.uuid4().hex
        self._ids = itertools.count(1)

    def worker(self, faults: dict[int, Fault] | None = None, *, outage: bool = False) -> tuple[Ledger, FaultyClient]:
        endpoint = services.dynamodb_local()
        signed = self.writer.startswith("signed")
        client = FaultyClient(services.share("dynamodb", endpoint, signed=signed).client, faults or {}, outage)
        store: DynamoStore = make_store(
            Connection("dynamodb", client=client), services.table(endpoint), self.writer, namespace=self._namespace
        )
        ledger = Ledger(
            store,
            policy=_POLICY,
            provider="fake",
            clock=self.clock,
            new_id=lambda: f"c{next(self._ids)}",
            jitter=lambda: 1.0,
        )
        return ledger, client

    def stored(self) -> Record:
        record = self.worker()[0].read("k")
        assert record is not None
        return record

    def lease_over(self) -> None:
        self.clock.sleep(_POLICY.lease_seconds)


@pytest.fixture(params=["plain", "grouped", "signed statements"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


READY = Intent("k", fingerprint="f")
JOB = Intent("k", job="report")


def taken(ledger: Ledger, intent: Intent = READY) -> Claim:
    claim = ledger.claim(intent)
    assert isinstance(claim, Claim)
    return claim


@pytest.mark.parametrize("name", FAULTS)
def test_a_claim_that_was_not_answered_is_nobodys(bench: Bench, name: str) -> None:
    """Nothing may be sent on it; after its lease at the latest, the next delivery has it."""
    ledger, client = bench.worker({1: FAULTS[name]}, outage=True)
    with pytest.raises(LedgerUnavailable):
        ledger.claim(READY)
    client.recover()
    again = ledger.claim(READY)
    if isinstance(again, Wait):
        bench.lease_over()
        again = ledger.claim(READY)
    assert isinstance(again, Claim)
    assert isinstance(ledger.settle(again, _SENT), Record)
    assert bench.stored().state is State.SENT


@pytest.mark.parametrize("name", FAULTS)
def test_a_claim_that_is_asked_for_again_recognises_itself(bench: Bench, name: str) -> None:
    """One answer that was lost locks nobody out, neither at once nor when the request arrives late."""
    ledger, client = bench.worker({1: FAULTS[name]})
    claim = taken(ledger)
    client.apply_late()
    assert isinstance(ledger.settle(claim, _SENT), Record)
    assert bench.stored().state is State.SENT


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", FAULTS)
def test_a_settle_is_insisted_on_and_recognises_itself(bench: Bench, name: str, times: int) -> None:
    """Asked again until it is answered; never locked out by its own write."""
    ledger, client = bench.worker({2 + number: FAULTS[name] for number in range(times)})
    settled = ledger.settle(taken(ledger), _SENT)
    assert isinstance(settled, Record)
    assert client.writes == 2 + times
    client.apply_late()
    stored = bench.stored()
    assert (stored.state, stored.version, stored.message_id) == (State.SENT, 2, "m1")


@pytest.mark.parametrize("name", FAULTS)
def test_a_freeze_that_was_not_answered_is_repaired_by_the_next_delivery(bench: Bench, name: str) -> None:
    """One frozen body: what the second build froze, or the first, but never a mixture."""
    ledger, client = bench.worker({2: FAULTS[name]}, outage=True)
    claim = taken(ledger, JOB)
    with pytest.raises(LedgerUnavailable):
        ledger.freeze(claim, b"first", "f1")
    bench.lease_over()
    client.outage = False
    client.faults.clear()
    again = taken(ledger, JOB)
    client.apply_late()
    if again.record.body is None:
        frozen = ledger.freeze(again, b"second", "f2")
        assert isinstance(frozen, Claim)
        again = frozen
    body = again.record.body
    assert bench.stored().body == body
    assert body == (b"first" if FAULTS[name].applied else b"second")
    assert isinstance(ledger.settle(again, _SENT), Record)


@pytest.mark.parametrize("name", ["lost after", "500 after", "lost before", "late"])
def test_a_takeover_heals_like_a_first_claim(bench: Bench, name: str) -> None:
    dead, _ = bench.worker()
    taken(dead)
    bench.lease_over()
    # Its first write is the insert that finds the record; the second is the takeover.
    ledger, client = bench.worker({2: FAULTS[name]}, outage=True)
    with pytest.raises(LedgerUnavailable):
        ledger.claim(READY)
    client.recover()
    bench.lease_over()
    assert isinstance(ledger.settle(taken(ledger), _SENT), Record)
    assert bench.stored().state is State.SENT


@pytest.mark.parametrize("further", range(1, 6))
@pytest.mark.parametrize("step", ["claim", "settle"])
def test_a_write_that_arrives_late_moves_nothing_back(bench: Bench, step: str, further: int) -> None:
    """After one to five further transitions, by others and by the same worker."""
    ledger, client = bench.worker({1 if step == "claim" else 2: FAULTS["late"]}, outage=True)
    if step == "claim":
        with pytest.raises(LedgerUnavailable):
            ledger.claim(READY)
    else:
        # Not an acceptance: the worker gives up when its lease is over.
        claim = taken(ledger)
        with pytest.raises(LedgerUnavailable):
            ledger.settle(claim, NotSent("refused"))
        bench.lease_over()
    steps = _transitions(bench)
    for _ in range(further):
        next(steps, None)
    before = bench.stored()
    client.apply_late()
    assert bench.stored() == before


def _transitions(bench: Bench) -> Iterator[None]:
    """Claim, unsure, takeover, retry later, claim again, sent."""
    ledger, _ = bench.worker()
    for outcome in (Unknown("no answer"), Unknown("again"), _SENT):
        claim = taken(ledger)
        yield
        ledger.settle(claim, outcome)
        bench.lease_over()
        yield


def test_a_lost_claim_brings_its_acceptance(bench: Bench) -> None:
    """The holder comes back after another one took over and did not know: its evidence settles the record."""
    slow, _ = bench.worker({2: FAULTS["lost before"]})
    claim = taken(slow)
    bench.lease_over()
    other, _ = bench.worker()
    other.settle(taken(other), Unknown("no answer"))
    slow.settle(claim, _SENT)
    assert bench.stored().state is State.SENT
    assert bench.stored().message_id == "m1"
    bench.lease_over()
    assert isinstance(other.claim(READY), Done)


def test_a_clock_that_is_wrong_takes_over_early_and_settles_once(bench: Bench) -> None:
    """Two holders of one claim each, one record: the loser is told."""
    first, _ = bench.worker()
    claim = taken(first)
    bench.lease_over()
    second, _ = bench.worker()
    taken_over = taken(second)
    bench.clock.sleep(-2 * 3_600.0)
    lost = first.settle(claim, NotSent("refused"))
    assert not isinstance(lost, Record)
    assert isinstance(second.settle(taken_over, _SENT), Record)
    assert bench.stored().state is State.SENT
