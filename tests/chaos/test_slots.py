"""The run of two minutes, in fifteen seconds; and that what it expects knows of the changes of the clocks."""

from __future__ import annotations

from pathlib import Path

from tests.chaos import slots

_HOURS = {
    "Europe/Amsterdam": {"2026-03-29": 4, "2026-10-25": 8, "2026-06-07": 6},
    "America/New_York": {"2026-03-08": 4, "2026-11-01": 8, "2026-06-07": 6},
}


def test_what_is_expected_has_each_change_of_the_clocks_in_it() -> None:
    wanted = slots.expected()
    for zone, days in _HOURS.items():
        for day, count in days.items():
            by_the_clock = slots.on_day(wanted, "by the clock", zone, day)

            assert len(by_the_clock) == count, (zone, day)
            assert len(slots.on_day(wanted, "at 02:30", zone, day)) == 1
    # Where 02:30 is skipped, it is the end of the gap; of two times 02:30, it is the first.
    assert "at 02:30 Europe/Amsterdam 2026-03-29T01:00Z" in wanted
    assert "at 02:30 Europe/Amsterdam 2026-10-25T00:30Z" in wanted
    assert "at 01:30 America/New_York 2026-11-01T05:30Z" in wanted
    assert len(wanted) == wanted.total()


def test_every_slot_is_one_email_whoever_is_killed_while_the_clocks_change(tmp_path: Path) -> None:
    result = slots.run(tmp_path, 15, seed=20261025)

    assert result.missing == result.doubled == result.unknown == 0
    assert result.slots > 500
    assert result.kills >= 3
