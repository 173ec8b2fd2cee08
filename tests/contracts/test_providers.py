"""Every adapter x every fault of the sandbox x every phase of the wire: outcomes by its contract, ends by its class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from idem.outcome import Accepted, NotSent, Rejected, Unknown
from idem.protocol import State
from idem.providers.base import Memory
from tests.contracts.providers import (
    IMPATIENCE_SECONDS,
    KINDS,
    PATIENCE_SECONDS,
    PHASES,
    SILENT,
    Lab,
    Phase,
    drive,
    expected,
    expected_of_each,
    lab,
    lands,
    only_patience_helps,
    promised,
    speaks_smtp,
    strikes,
)
from tests.fakes import make_email
from tests.ports import free_port
from workers.sandbox.faults import Kind, Target
from workers.sandbox.registry import DIALECTS
from workers.settings import PROVIDERS

_DIALECTS = {dialect.contract.name: dialect for dialect in DIALECTS}
_CASES = [(name, kind) for name in _DIALECTS for kind in KINDS if strikes(_DIALECTS[name], kind)]
_SEARCHABLE = [name for name, dialect in _DIALECTS.items() if dialect.contract.lookup is not None]
_BATCHES = [name for name, dialect in _DIALECTS.items() if dialect.contract.batch is not None]
#: What a look-up meets that is made for a keyless provider; a `missing` one has it show nothing too early.
_LOOKUP_KINDS = (Kind.SERVER_ERROR, Kind.RATE_LIMITED, Kind.DROP, Kind.HANG, Kind.MISSING)


@pytest.fixture(scope="module")
def place() -> Iterator[Lab]:
    with lab() as place:
        yield place


def test_every_provider_is_in_the_sandbox() -> None:
    """An adapter that is listed has a judge, and its contract is the judge's."""
    assert set(PROVIDERS) <= set(_DIALECTS)


@pytest.mark.parametrize(("name", "kind"), _CASES)
def test_faults(place: Lab, name: str, kind: Kind) -> None:
    """The outcome is the contract's; the email ends as its class promises, accepted no more than once."""
    dialect, email = place.dialect(name), place.email()
    place.order(name, kind)
    patient = only_patience_helps(dialect, kind)
    ending = drive(place, name, email, kind, lambda: place.await_acceptance(email) if patient else None)
    outcome = expected(dialect, kind)
    assert type(ending.first) is outcome, ending.first
    assert not (lands(kind) and outcome in {NotSent, Rejected})
    assert ending.record.state is promised(dialect.contract, outcome), ending.record.history
    if ending.record.state is State.IN_DOUBT:
        assert place.acceptances(email) == lands(kind)
    else:
        assert place.acceptances(email) == (ending.record.state is State.SENT)


@pytest.mark.parametrize("kind", _LOOKUP_KINDS)
@pytest.mark.parametrize("name", _SEARCHABLE)
def test_faults_of_lookups(place: Lab, name: str, kind: Kind) -> None:
    """A look-up that fails, or shows too little once, decides nothing."""
    email = place.email()
    place.order(name, Kind.ACCEPT_THEN_DROP)
    ending = drive(place, name, email, kind, lambda: place.order(name, kind, Target.LOOKUP))
    assert (ending.record.state, place.acceptances(email)) == (State.SENT, 1)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind in _CASES if name in _BATCHES])
def test_faults_of_batches(place: Lab, name: str, kind: Kind) -> None:
    """What holds for one email holds for each of many; the same ones again are accepted once, whatever there was."""
    dialect, adapter, emails = place.dialect(name), place.connect(name), [place.email() for _ in range(3)]
    place.order(name, kind)
    first = place.attempt_batch(adapter, emails, IMPATIENCE_SECONDS if kind in SILENT else PATIENCE_SECONDS)
    outcome = expected_of_each(dialect, kind)
    if outcome is None:
        assert [place.acceptances(email) for email in emails] == [type(one) is Accepted for one in first]
    else:
        assert {type(one) for one in first} == {outcome}, first
    if only_patience_helps(dialect, kind):
        place.await_acceptance(emails[-1])
    if outcome is Rejected:
        assert not any(map(place.acceptances, emails))
        return
    again = place.attempt_batch(adapter, emails, PATIENCE_SECONDS)
    assert {type(one) for one in again} == {Accepted}, again
    assert [place.acceptances(email) for email in emails] == [1, 1, 1]


@pytest.mark.parametrize("phase", PHASES, ids=[phase.name for phase in PHASES])
@pytest.mark.parametrize("name", _DIALECTS)
def test_phases(place: Lab, name: str, phase: Phase) -> None:
    """How far the exchange got decides, and the same key again is no second email where there are keys."""
    email, proxy = place.email(), place.proxy(name)
    with proxy.playing(phase):
        outcome = place.attempt(place.connect(name, proxy.url), email, seconds=phase.patience_seconds)
    if speaks_smtp(place.dialect(name).contract) and phase.outcome is Unknown:
        # It was cut in an early turn; the later ones have tests of their own, beside the adapter's.
        assert (type(outcome), place.acceptances(email)) == (NotSent, 0)
        return
    assert type(outcome) is phase.outcome, outcome
    if phase.lands:
        place.await_acceptance(email)
    assert place.acceptances(email) == phase.lands
    if place.dialect(name).contract.memory is not Memory.NONE:
        assert type(place.attempt(place.connect(name), email)) is Accepted
        assert place.acceptances(email) == 1


@pytest.mark.parametrize("name", _DIALECTS)
def test_a_port_that_nobody_listens_on(place: Lab, name: str) -> None:
    """Nothing left this machine."""
    closed = urlsplit(place.base_url(name))._replace(netloc=f"127.0.0.1:{free_port()}").geturl()
    assert type(place.attempt(place.connect(name, closed), place.email())) is NotSent


@pytest.mark.parametrize("name", _DIALECTS)
def test_keys(place: Lab, name: str) -> None:
    """The same bytes under the same key: what the contract's memory makes of it, to the end of the window."""
    contract, adapter, email = place.dialect(name).contract, place.connect(name), place.email()
    first, second = place.attempt(adapter, email), place.attempt(adapter, email)
    assert isinstance(first, Accepted)
    assert isinstance(second, Accepted)
    assert place.acceptances(email) == (2 if contract.memory is Memory.NONE else 1)
    if contract.memory in {Memory.REPLAYS, Memory.REPLAYS_ANY_BODY}:
        assert first == replace(second, replayed=False)
    if contract.window_seconds is not None:
        place.clock.sleep(contract.window_seconds)
        assert type(place.attempt(adapter, email)) is Accepted
        assert place.acceptances(email) == 2


@pytest.mark.parametrize("name", _DIALECTS)
def test_the_same_key_for_another_email(place: Lab, name: str) -> None:
    """It is refused where bodies are compared, dropped where they are not, and accepted where there are no keys."""
    contract, adapter, email = place.dialect(name).contract, place.connect(name), place.email()
    other = make_email(email.subject, text="Something else")
    place.attempt(adapter, email, "one-key-for-two")
    outcome = place.attempt(adapter, other, "one-key-for-two")
    assert type(outcome) is (Rejected if contract.memory is Memory.REPLAYS else Accepted)
    assert place.acceptances(email) == (2 if contract.memory is Memory.NONE else 1)


@pytest.mark.parametrize("name", _DIALECTS)
def test_a_key_in_use(place: Lab, name: str) -> None:
    """While the first request runs the answer proves nothing, or it is the first one's."""
    dialect, email = place.dialect(name), place.email()
    place.order(name, Kind.DELAY)
    adapter = place.connect(name)
    assert type(place.attempt(adapter, email, seconds=IMPATIENCE_SECONDS)) is Unknown
    meanwhile = place.attempt(adapter, email)
    if dialect.in_progress is not None:
        assert type(meanwhile) is expected(dialect, Kind.IN_PROGRESS)
    elif dialect.contract.memory is not Memory.NONE:
        assert type(meanwhile) is Accepted
    place.await_acceptance(email)
    assert place.acceptances(email) >= 1
