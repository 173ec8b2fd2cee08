"""The gate: what several processes do with one cell, and what that costs the store."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import replace

import pytest

from idem import pace
from idem.errors import LedgerUnavailable
from idem.gate import LOOK_SECONDS, PATIENCE_SECONDS, Gate
from idem.outcome import Accepted, NotSent, Outcome, Rejected, Unknown
from idem.pace import Rate
from idem.policy import MAX_DELAY_SECONDS
from idem.stores.base import Cells
from idem.stores.memory import MemoryStore
from tests.fakes import FakeClock

LIMITED = NotSent("HTTP 429", 30.0, limited=True)
DOWN = Unknown("HTTP 503")


class CountedCells:
    """Counts what the cells are asked; answers nothing while `silent`, and loses answers while `lossy`."""

    def __init__(self) -> None:
        self._cells = MemoryStore()
        self.counted: Counter[str] = Counter()
        self.silent = False
        self.lossy = False

    def read_cell(self, name: str) -> bytes | None:
        self.counted["read"] += 1
        self._answer()
        return self._cells.read_cell(name)

    def swap_cell(self, name: str, old: bytes | None, new: bytes) -> bytes | None:
        self.counted["swap"] += 1
        self._answer()
        refused = self._cells.swap_cell(name, old, new)
        if self.lossy:
            raise LedgerUnavailable("the answer was lost")
        return refused

    def _answer(self) -> None:
        if self.silent:
            raise LedgerUnavailable("no answer")


class SkewedClock(FakeClock):
    """Another machine's clock: it goes with `clock`, and shows another time."""

    def __init__(self, clock: FakeClock, skew: float) -> None:
        self._clock = clock
        self._skew = skew

    def now(self) -> float:
        return self._clock.now() + self._skew

    def boot(self) -> float:
        return self._clock.boot()

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cells() -> CountedCells:
    return CountedCells()


def make_gate(cells: Cells, clock: FakeClock, rate: Rate | None = None, jitter: float = 0.0) -> Gate:
    return Gate(cells, "fake", clock=clock, probe_seconds=60.0, rate=rate, jitter=lambda: jitter)


def attempt(gate: Gate, outcome: Outcome, key: str = "k") -> float:
    """One email: 0.0 when it was let through, and came to `outcome`."""
    wait = gate.enter()
    if not wait:
        gate.heed("fake", key, outcome)
    gate.leave()
    return wait


def outage(gate: Gate, outcome: Outcome = DOWN) -> None:
    for number in range(pace.FAILURES):
        assert attempt(gate, outcome, f"k{number}") == 0.0


class TestCost:
    def test_without_a_rate_it_looks_once_a_second_and_writes_nothing(
        self, cells: CountedCells, clock: FakeClock
    ) -> None:
        gate = make_gate(cells, clock)
        for _ in range(10_000):
            assert attempt(gate, Accepted("id")) == 0.0
            clock.sleep(0.001)

        assert cells.counted == {"read": 10}

    def test_with_a_rate_a_process_alone_looks_and_writes_once_a_second(
        self, cells: CountedCells, clock: FakeClock
    ) -> None:
        gate, sent = make_gate(cells, clock, Rate(100, 2)), 0
        until = clock.boot() + 30
        while clock.boot() < until:
            sent += not attempt(gate, Accepted("id"))

        assert 2_900 <= sent <= 3_002
        assert cells.counted["swap"] <= 30 * 1.2
        assert cells.counted["read"] <= 30

    def test_several_processes_share_a_rate_for_two_operations_a_second_each(
        self, cells: CountedCells, clock: FakeClock
    ) -> None:
        """A process that loses the race for a block is shown the winner's value, and writes again."""
        gates = [make_gate(cells, clock, Rate(30, 2)) for _ in range(3)]
        for gate in gates:
            gate.stop()  # They do not wait in turn for each other here.
        sent: Counter[int] = Counter()
        for _ in range(30 * 200):
            for number, gate in enumerate(gates):
                sent[number] += not attempt(gate, Accepted("id"))
            clock.sleep(0.005)

        assert 30 * 30 * 0.9 <= sent.total() <= 30 * 30 + 2
        assert min(sent.values()) > 30 * 30 * 0.2
        assert cells.counted.total() <= 30 * 3 * 2.5

    def test_who_waits_asks_the_store_no_more_than_who_sends(self, cells: CountedCells, clock: FakeClock) -> None:
        gate = make_gate(cells, clock)
        attempt(gate, LIMITED)
        cells.counted.clear()
        for _ in range(20):
            assert attempt(gate, Accepted("id")) > 0.0

        assert cells.counted.total() <= 21


class TestPause:
    def test_everybody_respects_what_one_was_told(self, cells: CountedCells, clock: FakeClock) -> None:
        one, other, late = (make_gate(cells, clock) for _ in range(3))
        attempt(other, Accepted("id"))
        attempt(one, LIMITED)

        assert 28 < attempt(one, Accepted("id")) <= 30
        assert 27 < attempt(late, Accepted("id")) <= 29
        assert 26 < attempt(other, Accepted("id")) <= 28

        clock.sleep(27)

        assert [attempt(gate, Accepted("id")) for gate in (one, other, late)] == [0.0, 0.0, 0.0]

    def test_another_process_sees_it_within_a_second(self, cells: CountedCells, clock: FakeClock) -> None:
        one, other = make_gate(cells, clock), make_gate(cells, clock)
        attempt(other, Accepted("id"))
        attempt(one, LIMITED)
        passed = 0
        while not attempt(other, Accepted("id")):
            clock.sleep(0.01)
            passed += 1

        assert passed <= LOOK_SECONDS / 0.01 + 1

    @pytest.mark.parametrize("skew", [-7_200.0, -5.0, 5.0, 7_200.0])
    def test_a_wrong_clock_makes_it_neither_endless_nor_unseen(
        self, cells: CountedCells, clock: FakeClock, skew: float
    ) -> None:
        """F20: the writer's clock is hours off; those who were at work stop for the time that was asked for."""
        writer, reader = make_gate(cells, SkewedClock(clock, skew)), make_gate(cells, clock)
        attempt(reader, Accepted("id"))
        attempt(writer, LIMITED)
        clock.sleep(LOOK_SECONDS)

        assert 27 < attempt(reader, Accepted("id")) <= 30

        clock.sleep(30)

        assert attempt(reader, Accepted("id")) == 0.0
        assert attempt(make_gate(cells, clock), Accepted("id")) <= 30, "even one that has not seen it before"

    def test_a_message_is_held_for_a_moment_and_then_returned(self, cells: CountedCells, clock: FakeClock) -> None:
        gate = make_gate(cells, clock, jitter=1.0)
        attempt(gate, LIMITED)
        before = clock.boot()
        wait = attempt(gate, Accepted("id"))

        assert clock.boot() - before == pytest.approx(PATIENCE_SECONDS)
        assert 29.0 + 2.5 < wait < 29.1 + 3.0, "the whole of it, and not the same for everybody"

    def test_a_day_is_chained_of_delays_that_a_queue_can_hold(self, cells: CountedCells, clock: FakeClock) -> None:
        gate = make_gate(cells, clock)
        attempt(gate, NotSent("HTTP 429", 86_400.0, limited=True))

        assert attempt(gate, Accepted("id")) == MAX_DELAY_SECONDS

    def test_a_refusal_of_one_email_pauses_nobody(self, cells: CountedCells, clock: FakeClock) -> None:
        gate = make_gate(cells, clock)
        for outcome in (NotSent("busy", 30.0), Unknown("in progress", 30.0), Rejected("no"), DOWN):
            assert attempt(gate, outcome) == 0.0

        assert attempt(gate, Accepted("id")) == 0.0
        assert cells.counted["swap"] == 0

    def test_of_several_calls_in_one_turn_trouble_is_remembered(self, cells: CountedCells, clock: FakeClock) -> None:
        """A request with many emails, or what goes by itself after it: an acceptance does not hide a limit."""
        gate = make_gate(cells, clock)
        gate.enter()
        for outcome in (Accepted("id"), LIMITED, DOWN, Accepted("id")):
            gate.heed("fake", "k", outcome)
        gate.leave()

        assert attempt(gate, Accepted("id")) > 0

    def test_what_another_provider_says_is_not_ours(self, cells: CountedCells, clock: FakeClock) -> None:
        gate = make_gate(cells, clock, Rate(1, 2))
        for _ in range(5):
            assert gate.enter() == 0.0
            gate.heed("other", "k", LIMITED)
            gate.leave()

        assert gate.look().pause is None
        assert cells.counted["swap"] == 1, "nor is its turn used up"

    def test_a_limit_without_a_time_is_tried_by_one(self, cells: CountedCells, clock: FakeClock) -> None:
        gate = make_gate(cells, clock)
        attempt(gate, NotSent("HTTP 429", limited=True))

        assert gate.look().strikes == 1

    def test_a_process_that_is_to_stop_lets_go_at_once(self, cells: CountedCells, clock: FakeClock) -> None:
        gate = make_gate(cells, clock)
        attempt(gate, LIMITED)
        gate.stop()
        before = clock.boot()

        assert attempt(gate, Accepted("id")) > 0
        assert clock.boot() == before


class TestCircuit:
    def test_failures_in_a_row_open_it_for_all(self, cells: CountedCells, clock: FakeClock) -> None:
        one, other = make_gate(cells, clock), make_gate(cells, clock)
        outage(one)

        assert one.look().strikes == 1
        assert other.look().strikes == 1

    def test_an_email_that_fails_again_and_again_says_little(self, cells: CountedCells, clock: FakeClock) -> None:
        gate = make_gate(cells, clock)
        for _ in range(50):
            assert attempt(gate, DOWN, "poison") == 0.0
        for number in range(50):
            assert attempt(gate, DOWN, f"k{number}") == 0.0
            assert attempt(gate, Accepted("id")) == 0.0

        assert cells.counted["swap"] == 0

    def test_one_probes_and_closes_it(self, cells: CountedCells, clock: FakeClock) -> None:
        one, other = make_gate(cells, clock), make_gate(cells, clock)
        outage(one)
        clock.sleep(1.0)

        assert one.enter() == 0.0
        assert 0 < other.enter() <= LOOK_SECONDS, "a probe is soon over"
        other.leave()

        one.heed("fake", "k", Accepted("id"))
        one.leave()

        assert attempt(one, Accepted("id")) == 0.0
        clock.sleep(LOOK_SECONDS)
        assert attempt(other, Accepted("id")) == 0.0
        assert one.look().strikes == 0

    def test_a_probe_that_fails_doubles_the_time(self, cells: CountedCells, clock: FakeClock) -> None:
        gate, seconds = make_gate(cells, clock), 0.0
        probes: list[float] = []
        outage(gate)
        start = clock.boot()
        while len(probes) < 6:
            if attempt(gate, DOWN, "k") == 0.0:
                probes.append(round(clock.boot() - start, 1))
        for expected, probed in zip((1, 3, 7, 15, 31, 63), probes, strict=True):
            assert probed == pytest.approx(expected, abs=0.5 + seconds)
            seconds += 0.1

    def test_a_probe_that_made_no_call_is_passed_on(self, cells: CountedCells, clock: FakeClock) -> None:
        """Its message was about an email that has long been sent."""
        gate = make_gate(cells, clock)
        outage(gate)
        clock.sleep(1.0)

        assert gate.enter() == 0.0
        gate.leave()
        assert attempt(gate, Accepted("id")) == 0.0
        assert gate.look().strikes == 0

    def test_a_probe_that_died_is_replaced(self, cells: CountedCells, clock: FakeClock) -> None:
        dead, other = make_gate(cells, clock), make_gate(cells, clock)
        outage(dead)
        clock.sleep(1.0)

        assert dead.enter() == 0.0
        clock.sleep(60.0)
        assert attempt(other, Accepted("id")) == 0.0

    def test_of_many_threads_one_probes(self, cells: CountedCells, clock: FakeClock) -> None:
        gates = [make_gate(cells, clock) for _ in range(2)]
        outage(gates[0])
        clock.sleep(1.0)
        for gate in gates:
            gate.stop()
        barrier, waits = threading.Barrier(8), list[float]()

        def enter(gate: Gate) -> None:
            barrier.wait()
            waits.append(gate.enter())

        threads = [threading.Thread(target=enter, args=(gates[number % 2],)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(waits)[:2][0] == 0.0
        assert sorted(waits)[1] > 0.0

    def test_a_probe_decides_although_the_cell_has_changed_meanwhile(
        self, cells: CountedCells, clock: FakeClock
    ) -> None:
        """Another worker's block got in between: the probe's own stop must not keep the circuit as it is."""
        gate = make_gate(cells, clock)
        outage(gate)
        clock.sleep(1.0)
        assert gate.enter() == 0.0
        stored = cells.read_cell("fake")
        probing = pace.decode(stored)
        assert cells.swap_cell("fake", stored, pace.encode(replace(probing, version=99, next_at=1.0))) is None
        gate.heed("fake", "k", DOWN)
        gate.leave()

        assert (gate.look().strikes, gate.look().version, gate.look().probing) == (2, 100, False)


class TestCredentials:
    def test_who_is_refused_stops_alone(self, cells: CountedCells, clock: FakeClock) -> None:
        """A token is a process's own: one that is wrong must not stop those whose token is right."""
        wrong, right = make_gate(cells, clock), make_gate(cells, clock)
        assert attempt(wrong, NotSent("HTTP 401", credentials=True)) == 0.0

        assert attempt(wrong, Accepted("id")) > 3.0
        assert attempt(right, Accepted("id")) == 0.0
        assert cells.counted["swap"] == 0

        clock.sleep(5.0)
        assert attempt(wrong, Accepted("id")) == 0.0


class TestTroubleWithTheStore:
    def test_a_silent_store_lets_nobody_through(self, cells: CountedCells, clock: FakeClock) -> None:
        gate = make_gate(cells, clock)
        cells.silent = True
        with pytest.raises(LedgerUnavailable):
            gate.enter()
        gate.leave()

    @pytest.mark.parametrize("trouble", ["silent", "lossy"])
    def test_what_could_not_be_shared_holds_here_and_is_shared_later(
        self, cells: CountedCells, clock: FakeClock, trouble: str
    ) -> None:
        one, other = make_gate(cells, clock), make_gate(cells, clock)
        assert one.enter() == 0.0
        setattr(cells, trouble, True)
        one.heed("fake", "k", LIMITED)
        one.leave()
        setattr(cells, trouble, False)

        assert attempt(one, Accepted("id")) > 25
        assert attempt(other, Accepted("id")) > 25

    @pytest.mark.parametrize("ending", [LIMITED, DOWN, Accepted("id"), NotSent("no", credentials=True)])
    def test_leaving_never_raises(self, cells: CountedCells, clock: FakeClock, ending: Outcome) -> None:
        """What is settled is settled, whatever becomes of what was learnt from it."""
        gate = make_gate(cells, clock)
        outage(gate)
        clock.sleep(1.0)
        assert gate.enter() == 0.0
        cells.silent = True
        gate.heed("fake", "k", ending)
        gate.leave()


class TestTokens:
    def test_a_token_of_a_message_without_a_call_is_not_lost(self, cells: CountedCells, clock: FakeClock) -> None:
        gate = make_gate(cells, clock, Rate(1, 2))
        for _ in range(5):
            assert gate.enter() == 0.0
            gate.leave()
        assert cells.counted["swap"] == 1
        assert attempt(gate, Accepted("id")) == 0.0

    @pytest.mark.parametrize("skew", [-7_200.0, 7_200.0])
    def test_a_wrong_clock_starves_nobody_and_sends_no_faster_than_the_rate(
        self, cells: CountedCells, clock: FakeClock, skew: float
    ) -> None:
        gates = [make_gate(cells, SkewedClock(clock, skew), Rate(10, 2)), make_gate(cells, clock, Rate(10, 2))]
        for gate in gates:
            gate.stop()
        sent: Counter[int] = Counter()
        for _ in range(2_000):
            for number, gate in enumerate(gates):
                sent[number] += not attempt(gate, Accepted("id"))
            clock.sleep(0.01)

        assert all(0.8 * 200 <= sent[number] <= 202 for number in range(2))


def test_a_change_is_said_once(cells: CountedCells, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    gates = [make_gate(cells, clock), make_gate(cells, clock)]
    with caplog.at_level(logging.WARNING, "idem.worker"):
        attempt(gates[0], LIMITED)
        for gate in gates * 10:
            attempt(gate, Accepted("id"))

    assert caplog.messages == ["fake is paused for 30 s (HTTP 429); jobs stay in the queue"] * 2
