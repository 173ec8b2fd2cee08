"""The two clocks, and the deadline that believes the worse one."""

from __future__ import annotations

import time

from idem.clock import Deadline, SystemClock
from tests.fakes import FakeClock


def test_the_systems_clocks_go_forward() -> None:
    clock = SystemClock()
    wall, boot = clock.now(), clock.boot()
    assert abs(wall - time.time()) < 5
    clock.sleep(0.01)
    assert clock.boot() - boot >= 0.009
    assert clock.now() >= wall


def test_a_deadline_counts_down() -> None:
    clock = FakeClock()
    deadline = Deadline.after(clock, 10)
    assert deadline.left() == 10
    clock.sleep(4)
    assert deadline.left() == 6
    clock.sleep(10)
    assert deadline.left() == -4


def test_a_suspended_machine_is_seen_by_the_boot_clock() -> None:
    clock = FakeClock()
    deadline = Deadline.after(clock, 10)
    clock.booted += 11
    assert deadline.left() == -1


def test_a_restored_snapshot_is_seen_by_the_wall_clock() -> None:
    clock = FakeClock()
    deadline = Deadline.after(clock, 10)
    clock.wall += 3_600
    assert deadline.left() == -3_590


def test_a_clock_that_is_set_back_gives_no_more_time() -> None:
    clock = FakeClock()
    deadline = Deadline.after(clock, 10)
    clock.wall -= 7_200
    assert deadline.left() == 10
    clock.booted += 3
    assert deadline.left() == 7
