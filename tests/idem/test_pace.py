"""The shared pace: never too fast whoever reserves, never stopped for long by a wrong clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idem import pace
from idem.errors import SettingsError
from idem.pace import AHEAD_SECONDS, LONGEST_PAUSE_SECONDS, SKEW_SECONDS, Block, Pace, Rate, Stop

NOW = 1_700_000_000.0
_EPSILON = 1e-6


@pytest.mark.parametrize(("per_second", "burst"), [(0.0, 2.0), (-1.0, 2.0), (1.0, 1.9), (float("nan"), 2.0)])
def test_a_rate_makes_sense(per_second: float, burst: float) -> None:
    with pytest.raises(SettingsError):
        Rate(per_second, burst)


@st.composite
def _schedules(draw: st.DrawFn) -> tuple[Rate, list[float], list[tuple[int, int, float, float]]]:
    """A rate, clocks, and reservations: who, how many, how long after the last one, and how late each token is used."""
    rate = Rate(draw(st.floats(0.2, 200)), draw(st.floats(2, 50)))
    skews = draw(st.lists(st.floats(-SKEW_SECONDS / 2, SKEW_SECONDS / 2), min_size=1, max_size=5))
    step = st.tuples(
        st.integers(0, len(skews) - 1), st.integers(1, rate.largest_block), st.floats(0, 3), st.floats(0, 1)
    )
    return rate, skews, draw(st.lists(step, min_size=1, max_size=60))


@given(_schedules())
@settings(deadline=None, max_examples=100)
def test_no_interval_has_more_than_the_rate_and_a_burst(
    schedule: tuple[Rate, list[float], list[tuple[int, int, float, float]]],
) -> None:
    """In real time, with each token used at the worst allowed instant of its owner's clock."""
    rate, skews, steps = schedule
    shared, real, used = Pace(), NOW, []
    for worker, count, passed, late in steps:
        real += passed
        reserved = pace.reserve(shared, rate, count, real + skews[worker])
        if isinstance(reserved, Block):
            shared = reserved.pace
            instants = (reserved.first + number * rate.spacing for number in range(count))
            used += [instant + late * rate.slack - skews[worker] for instant in instants]
    used.sort()
    spread = max(skews) - min(skews)

    # Of every interval from the i-th to the j-th: j - i + 1 <= rate * (its length + spread) + burst, in one pass.
    least = float("inf")
    for number, instant in enumerate(used):
        owed = number - rate.per_second * (instant - NOW)
        least = min(least, owed)
        assert owed - least + 1 <= rate.per_second * spread + rate.burst + 1e-3


@given(
    ahead=st.floats(-1e6, 1e6),
    rate=st.floats(0.2, 200).map(lambda per_second: Rate(per_second, 2)),
    now=st.floats(0, 2e9),
)
def test_a_wrong_clock_stops_nobody_for_long(ahead: float, rate: Rate, now: float) -> None:
    """Whatever instant is in the cell, one may reserve at once or within seconds, and then it is one's own time."""
    found = pace.reserve(Pace(next_at=now + ahead), rate, 1, now)
    if isinstance(found, Block):
        assert now - rate.slack - _EPSILON <= found.first <= now + AHEAD_SECONDS
    else:
        assert 0 < found <= max(AHEAD_SECONDS, rate.spacing) + SKEW_SECONDS + _EPSILON


def test_an_idle_bucket_is_full_and_no_more() -> None:
    rate = Rate(10, 5)
    shared, good = Pace(), 0
    while isinstance(block := pace.reserve(shared, rate, 1, NOW), Block):
        shared = block.pace
        good += block.first <= NOW + _EPSILON

    assert good == 5
    assert 0 < block <= rate.spacing


def test_versions_only_rise_and_values_never_repeat() -> None:
    """What compare-and-set rests on."""
    start = Pace(version=7, strikes=1)
    block = pace.reserve(start, Rate(1, 2), 1, NOW)
    assert isinstance(block, Block)
    changed = [
        block.pace,
        pace.limit(start, NOW, 5, "429", left=0.0),
        pace.trip(start, NOW, "503", jitter=0.5, left=0.0),
        pace.probe(start, NOW, 5, left=0.0),
        pace.close(start),
    ]

    assert all(found.version == 8 for found in changed)
    assert all(pace.decode(pace.encode(found)) == found for found in changed)


@pytest.mark.parametrize("value", [None, b"", b"junk", b"[]", b'{"version":"x"}', b"\xff"])
def test_what_cannot_be_read_stops_nobody(value: bytes | None) -> None:
    assert pace.decode(value) == Pace()


def test_a_cell_fits_a_write_unit() -> None:
    """With the longest details that the gate writes."""
    full = Pace(
        version=10**9,
        next_at=NOW + 0.123456,
        pause=Stop(NOW, 86_400.0, "x" * 200),
        circuit=Stop(NOW, 299.9, "x" * 200),
        strikes=99,
        probing=True,
        open_since=NOW,
    )

    assert len(pace.encode(full)) < 900


class TestStops:
    @given(skew=st.floats(-1e6, 1e6), seconds=st.floats(0.1, 1e5), ago=st.floats(0, 2))
    def test_a_stop_written_since_the_last_look_lasts_as_long_as_it_says(
        self, skew: float, seconds: float, ago: float
    ) -> None:
        """Give or take the time between two looks, whatever the clock of its writer says."""
        left = pace.left_of(Stop(NOW + skew, seconds, ""), NOW, ago)

        assert max(0.0, seconds - ago) <= left <= seconds

    @given(skew=st.floats(-1e6, 1e6), seconds=st.floats(0.1, 1e5))
    def test_who_looks_for_the_first_time_waits_no_longer_than_it_says(self, skew: float, seconds: float) -> None:
        assert 0 <= pace.left_of(Stop(NOW + skew, seconds, ""), NOW, None) <= seconds

    def test_right_clocks_agree_to_the_instant(self) -> None:
        assert pace.left_of(Stop(NOW - 3, 10, ""), NOW, 5) == 7
        assert pace.left_of(Stop(NOW - 3, 10, ""), NOW, None) == 7
        assert pace.left_of(Stop(NOW - 30, 10, ""), NOW, None) == 0
        assert pace.left_of(None, NOW, 1) == 0

    def test_a_pause_is_never_shortened_and_never_longer_than_a_day(self) -> None:
        paused = pace.limit(Pace(), NOW, 60, "429", left=0.0)

        assert pace.limit(paused, NOW + 1, 30, "429", left=59) is paused
        assert pace.limit(paused, NOW + 1, 90, "429", left=59).pause == Stop(NOW + 1, 90, "429")
        assert pace.limit(paused, NOW + 1, 30, "429", left=0.0).pause == Stop(NOW + 1, 30, "429")
        assert pace.limit(Pace(), NOW, 1e9, "429", left=0.0).pause == Stop(NOW, LONGEST_PAUSE_SECONDS, "429")

    def test_a_provider_that_asks_for_a_pause_works(self) -> None:
        tripped = pace.trip(Pace(), NOW, "503", jitter=0.0, left=0.0)

        assert pace.limit(tripped, NOW, 5, "429", left=0.0).strikes == 0


class TestCircuit:
    def test_it_opens_for_longer_each_time_up_to_five_minutes(self) -> None:
        found, lengths = Pace(), []
        for _ in range(12):
            found = pace.trip(found, NOW, "503", jitter=0.0, left=0.0)
            assert found.circuit is not None
            lengths.append(found.circuit.seconds)

        assert lengths == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
        assert found.open_since == NOW

    @given(st.integers(0, 10_000), st.floats(0, 1))
    def test_jitter_takes_up_to_half(self, strikes: int, jitter: float) -> None:
        whole = pace.pause_after(strikes, 0.0)

        assert whole / 2 <= pace.pause_after(strikes, jitter) <= whole <= 300

    def test_many_who_notice_one_outage_open_it_once(self) -> None:
        once = pace.trip(Pace(), NOW, "503", jitter=0.0, left=0.0)

        assert pace.trip(once, NOW, "503", jitter=0.0, left=0.9) is once

    def test_one_probes_when_the_time_is_over(self) -> None:
        opened = pace.trip(Pace(), NOW, "503", jitter=0.0, left=0.0)

        assert pace.probe(Pace(), NOW, 60, left=0.0) == Pace(), "a closed circuit needs none"
        assert pace.probe(opened, NOW, 60, left=0.1) is opened

        probing = pace.probe(opened, NOW + 1, 60, left=0.0)

        assert probing.probing
        assert probing.circuit == Stop(NOW + 1, 60, "503")
        assert pace.probe(probing, NOW + 2, 60, left=59) is probing
        assert pace.probe(probing, NOW + 61, 60, left=0.0).version == probing.version + 1, "the one who probed died"

    def test_success_closes_and_failure_opens_for_longer(self) -> None:
        probing = pace.probe(pace.trip(Pace(), NOW, "503", jitter=0.0, left=0.0), NOW + 1, 60, left=0.0)
        again = pace.trip(probing, NOW + 2, "503", jitter=0.0, left=0.0)

        assert pace.close(probing) == Pace(version=3)
        assert (again.strikes, again.probing, again.open_since) == (2, False, NOW)
        assert again.circuit == Stop(NOW + 2, 2, "503")

    def test_closing_leaves_a_pause_and_the_rate(self) -> None:
        busy = replace(Pace(strikes=2), pause=Stop(NOW, 5, "429"), next_at=NOW)

        assert pace.close(busy) == replace(busy, strikes=0, version=1)
        assert pace.close(Pace()) == Pace()
