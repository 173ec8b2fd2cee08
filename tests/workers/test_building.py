"""Claims of jobs that take long to build: renewed in time, by one thread, and no longer than they should be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest

from idem.clock import SystemClock
from idem.email import Email
from idem.errors import JobError
from idem.ledger import Claim, Ledger, Lost
from idem.policy import Policy
from idem.protocol import Intent, Record, State, Wait
from idem.send import Building, Ended, Later, Render, Sender
from idem.stores.memory import MemoryStore
from tests.fakes import FakeClock, FakeProvider, Fault, FaultyStore, make_email
from workers import App, Settings
from workers.building import Builds

LEASE = 60.0
BUILD = 3_600.0
POLICY = Policy(lease_seconds=LEASE)
RENDER = Render("k", "report", make_email)


@dataclass(slots=True)
class Bench:
    """A ledger, whose clock moves when told, and what holds claims on it; its thread is the test."""

    clock: FakeClock = field(default_factory=FakeClock)
    store: FaultyStore = field(default_factory=lambda: FaultyStore(MemoryStore()))
    ledger: Ledger = field(init=False)
    builds: Builds = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.store, policy=POLICY, provider="fake", clock=self.clock)
        self.builds = Builds(self.ledger.renew, clock=self.clock, lease_seconds=LEASE, build_seconds=BUILD)
        # Nobody but the test takes turns.
        self.builds._running = True

    def begin(self, key: str = "k", timeout: float | None = None) -> Building:
        claim = self.ledger.claim(Intent(key, job="report"))
        assert isinstance(claim, Claim)
        return Building(Render(key, "report", make_email, timeout_seconds=timeout), claim)

    def pass_time(self, seconds: float) -> None:
        """As the thread sees it: a look a second."""
        for _ in range(int(seconds)):
            self.clock.sleep(1)
            self.builds.renew_due()

    def stored(self, key: str = "k") -> Record:
        record = self.store.read(key)
        assert record is not None
        return record

    @property
    def is_held(self) -> bool:
        return isinstance(self.ledger.claim(Intent("k", job="report")), Wait)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_short_build_costs_no_write(bench: Bench) -> None:
    with bench.builds.hold(bench.begin()):
        bench.pass_time(LEASE / 3 - 1)
    bench.pass_time(LEASE)
    assert bench.store.counted == {"swap": 1}


def test_a_long_build_is_renewed_every_third_of_the_lease(bench: Bench) -> None:
    building = bench.begin()
    with bench.builds.hold(building):
        bench.pass_time(3 * LEASE)
        assert bench.is_held
    assert bench.stored().version == 1 + 9
    assert building.claim.record == bench.stored()
    assert building.lost is None


def test_each_of_many_builds_is_renewed(bench: Bench) -> None:
    with ExitStack() as stack:
        for key in "klm":
            stack.enter_context(bench.builds.hold(bench.begin(key)))
            bench.clock.sleep(7)
        bench.pass_time(5 * LEASE)
        until = [bench.stored(key).lease_until or 0 for key in "klm"]
        assert min(until) > bench.clock.now() + LEASE / 2


def test_a_ledger_that_does_not_answer_is_asked_again_soon(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """One line for each time; the lease outlasts a short outage, and another one is taken up again after a long one."""
    bench.store.faults = dict.fromkeys(range(2, 8), Fault.REFUSED)
    with bench.builds.hold(bench.begin()):
        bench.pass_time(LEASE - 1)
        assert bench.is_held
        assert len(caplog.records) == 6
        bench.pass_time(LEASE)
        assert bench.is_held


def test_a_claim_that_was_lost_is_not_renewed_and_what_was_built_is_dropped(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The process stood still for longer than its lease, and another worker has begun."""
    provider = FakeProvider(bench.clock)

    def build() -> Email:
        bench.clock.sleep(LEASE)
        assert isinstance(bench.ledger.claim(Intent("k", job="report")), Claim)
        bench.builds.renew_due()
        return make_email()

    sender = Sender(
        bench.ledger,
        provider,
        clock=bench.clock,
        http_timeout_seconds=20.0,
        namespace="app",
        hold=bench.builds.hold,
    )
    result = sender.send(Render("k", "report", build))
    assert isinstance(result, Later)
    assert bench.stored().state is State.RENDERING
    assert (provider.calls, bench.store.counted["swap"]) == ([], 4), "a claim, a taken one, a renewal; no freeze"
    assert [record.message for record in caplog.records] == [
        "key k is another worker's by now; what is being built here is dropped"
    ]


@pytest.mark.parametrize(("timeout", "seconds"), [(None, BUILD), (100.0, 100.0)])
def test_a_function_that_never_returns_is_not_held_for_ever(
    bench: Bench, caplog: pytest.LogCaptureFixture, timeout: float | None, seconds: float
) -> None:
    """One line says so; the claim is over one lease later. Should it return after all, what it built may be frozen."""
    building = bench.begin(timeout=timeout)
    with bench.builds.hold(building):
        bench.pass_time(seconds + LEASE / 3)
        (line,) = [record.message for record in caplog.records]
        assert line.startswith("key k: job report has not returned for ")
        bench.pass_time(LEASE)
        assert 0 < (bench.stored().lease_until or 0) <= bench.clock.now()
    assert isinstance(bench.ledger.freeze(building.claim, b"body", "f"), Claim)
    assert len(caplog.records) == 1


def test_a_mistake_of_ours_costs_a_line_and_not_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    tries: list[Claim] = []

    def renew(claim: Claim) -> Claim | Lost:
        tries.append(claim)
        raise ZeroDivisionError

    builds = Builds(renew, clock=clock, lease_seconds=LEASE, build_seconds=BUILD)
    builds._running = True
    with builds.hold(Bench().begin()):
        for _ in range(2):
            clock.sleep(LEASE / 3)
            builds.renew_due()
    assert len(tries) == len(caplog.records) == 2
    assert "ZeroDivisionError" in caplog.text


@contextmanager
def no_more_threads() -> Iterator[None]:
    before = threading.active_count()
    yield
    for thread in threading.enumerate():
        if thread.name == "idem-builds":
            thread.join()
    assert threading.active_count() == before


def test_one_thread_holds_all_and_ends_with_the_last(caplog: pytest.LogCaptureFixture) -> None:
    """With real time: builds that outlast the lease, in many threads; each is built once, although one waits for it."""
    clock, policy = SystemClock(), Policy(lease_seconds=3.0, http_timeout_seconds=0.1)
    ledger = Ledger(MemoryStore(), policy=policy, provider="fake", clock=clock)
    builds = Builds(ledger.renew, clock=clock, lease_seconds=3.0, build_seconds=BUILD)
    provider = FakeProvider(FakeClock())
    sender = Sender(ledger, provider, clock=clock, http_timeout_seconds=0.1, namespace="app", hold=builds.hold)
    built: list[str] = []
    several: list[int] = []

    def slowly(key: str) -> Callable[[], Email]:
        def build() -> Email:
            built.append(key)
            clock.sleep(4.0)
            several.append(sum(thread.name == "idem-builds" for thread in threading.enumerate()))
            return make_email()

        return build

    def work(key: str) -> None:
        while not isinstance(sender.send(Render(key, "report", slowly(key))), Ended):
            clock.sleep(0.05)

    with no_more_threads():
        threads = [threading.Thread(target=work, args=(key,)) for key in "abcdabcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert sorted(built) == list("abcd")
    assert len(provider.accepted) == 4
    assert set(several) == {1}
    assert caplog.records == []


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), True, "60"])
def test_a_timeout_that_is_none_is_refused(timeout: float) -> None:
    app = App(Settings())
    with pytest.raises(JobError, match=r"timeout is .*: it must be a number of seconds above 0"):
        app.job("a", timeout=timeout)
    with pytest.raises(JobError):
        app.schedule("@daily", name="b", timeout=timeout)(make_email)


def test_a_timeout_is_that_of_its_job() -> None:
    app = App(Settings())
    app.job("a", timeout=5)(make_email)
    app.schedule("@daily", name="b", timeout=7)(lambda: None)
    app.webhook("stripe", "x", name="c", timeout=9)(lambda _event: None)
    app.job("d")(make_email)
    assert app.timeouts == {"a": 5, "b": 7, "c": 9}
