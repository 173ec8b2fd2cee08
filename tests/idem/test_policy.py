"""Durations: what is refused together, when a window is open, and how long a pause is."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem.errors import SettingsError
from idem.policy import MAX_DELAY_SECONDS, Durations, Policy, memory_of


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lease_seconds": 0}, "lease_seconds is 0"),
        ({"lease_seconds": -1}, "more than 0"),
        ({"http_timeout_seconds": 0}, "http_timeout_seconds"),
        ({"give_up_seconds": 0}, "give_up_seconds"),
        ({"backoff_seconds": -0.5}, "backoff_seconds"),
        ({"lease_seconds": math.nan}, "lease_seconds"),
        ({"http_timeout_seconds": 60}, "must be < the lease"),
        ({"http_timeout_seconds": 61}, "must be < the lease"),
        ({"window_seconds": 160}, "must be < the provider's window"),
        ({"window_seconds": 0}, "must be < the provider's window"),
        ({"window_seconds": -1}, "must be < the provider's window"),
    ],
    ids=str,
)
def test_durations_that_break_a_rule_are_refused_with_the_reason(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        Policy(**settings)


def test_the_defaults_and_the_smallest_window_hang_together() -> None:
    assert Policy().http_timeout_seconds < Policy().lease_seconds
    assert Policy(window_seconds=160.5).window_open(0.0, 0.25)


_DAY = 86_400.0
_ALL = Durations(
    window_seconds=_DAY, retention_seconds=90 * _DAY, queue_seconds=14 * _DAY, dead_letter_seconds=14 * _DAY
)


def test_the_defaults_hang_together() -> None:
    """Each rule once, as `doctor` prints them."""
    _ALL.check()
    assert [str(rule) for rule in _ALL.rules()] == [
        "HTTP timeout 20 s < lease 60 s",
        "lease 60 s <= visibility 90 s",
        "HTTP timeout 20 s < shutdown 30 s",
        "margin 8640 s < provider's window 86400 s",
        "visibility 90 s < window less its margin 77760 s",
        "time to give up 86400 s < nine tenths of the retention 6998400 s",
        "life of a message, dead letters included, 2420100 s < nine tenths of the retention 6998400 s",
    ]


@pytest.mark.parametrize(
    ("changes", "broken", "least"),
    [
        ({"http_timeout_seconds": 60.0, "shutdown_seconds": 90.0}, "HTTP timeout", {"http_timeout_seconds": 59.9}),
        ({"lease_seconds": 90.1}, "lease", {"lease_seconds": 90.0}),
        ({"shutdown_seconds": 20.0}, "HTTP timeout", {"shutdown_seconds": 20.1}),
        ({"window_seconds": 160.0}, "margin", {"window_seconds": 250.1}),
        ({"window_seconds": 250.0}, "visibility", {"window_seconds": 250.1}),
        ({"give_up_seconds": 81 * _DAY}, "time to give up", {"give_up_seconds": 81 * _DAY - 1}),
        ({"retention_seconds": 31 * _DAY}, "life of a message", {"retention_seconds": 31.2 * _DAY}),
        ({"queue_seconds": 67 * _DAY}, "life of a message", {"queue_seconds": 66.9 * _DAY}),
        ({"dead_letter_seconds": 67 * _DAY}, "life of a message", {"dead_letter_seconds": 66.9 * _DAY}),
        ({"lease_seconds": math.nan}, "HTTP timeout", {"lease_seconds": 60.0}),
    ],
    ids=str,
)
def test_each_rule_is_refused_with_its_reason_and_its_settings(
    changes: dict[str, float], broken: str, least: dict[str, float]
) -> None:
    """And holds again a step further."""
    with pytest.raises(SettingsError) as refused:
        replace(_ALL, **changes).check()
    said = str(refused.value)
    assert said.startswith(f"the {broken}")
    assert ", or " in said
    assert re.search(r": set IDEM_[A-Z_]+_SECONDS( or IDEM_[A-Z_]+_SECONDS)?$", said)
    replace(_ALL, **(changes | least)).check()


def test_a_message_is_hidden_little_longer_than_its_claim_lives() -> None:
    """And never for longer than the queue hides it."""
    assert Durations().hidden_seconds == 65.0
    assert Durations(lease_seconds=88.0).hidden_seconds == 90.0


def test_what_does_not_apply_is_not_asked() -> None:
    """No keys, a ledger that forgets nothing, a queue that keeps a message until it is done."""
    assert len(list(Durations().rules())) == 3
    assert len(list(replace(_ALL, queue_seconds=None).rules())) == 6
    assert Durations().memory_seconds is None


def test_a_message_outlives_the_memory_of_its_record_by_a_tenth_too_early() -> None:
    """While it is younger, the record of what it led to, which ended later than it began, is still there."""
    policy = Policy(memory_seconds=memory_of(100.0))
    assert not policy.forgets(1_000.0, 1_089.9)
    assert policy.forgets(1_000.0, 1_090.0)
    assert not Policy().forgets(0.0, 1e12), "a ledger that forgets nothing"


def test_the_margin_is_the_larger_of_the_two() -> None:
    """A tenth of a long window, twice lease and request for a short one (rule 7)."""
    assert Policy(window_seconds=86_400).margin_seconds == 8_640
    assert Policy(window_seconds=900).margin_seconds == 160
    assert Policy().margin_seconds == 160


def test_a_window_closes_by_its_margin_too_early() -> None:
    policy = Policy(window_seconds=1_000)
    assert policy.window_open(0.0, 839.9)
    assert not policy.window_open(0.0, 840.0)
    assert not Policy().window_open(0.0, 0.0), "a provider without keys remembers nothing"


@given(
    st.floats(0, 1e10),
    st.floats(-7_200, 7_200),
    st.floats(0, 86_400),
)
def test_a_window_that_is_open_by_a_wrong_clock_is_open_in_truth(since: float, skew: float, age: float) -> None:
    """Two hours of error, either way, are within the margin of a day's window (F20)."""
    policy = Policy(window_seconds=86_400)
    if policy.window_open(since, since + age + skew):
        assert age < 86_400 - 1_000


@given(st.integers(0, 10_000), st.floats(0, 1), st.none() | st.floats(0, 86_400))
def test_a_pause_is_never_nothing_and_never_too_long(attempts: int, jitter: float, retry_after: float | None) -> None:
    pause = Policy().backoff(attempts, jitter, retry_after)
    assert pause > 0
    assert pause >= (retry_after or 0)
    assert pause <= max(MAX_DELAY_SECONDS, retry_after or 0)


def test_pauses_double_up_to_the_limit_and_are_spread() -> None:
    policy = Policy(backoff_seconds=2)
    assert [policy.backoff(n, 1.0) for n in (1, 2, 3)] == [2, 4, 8]
    assert policy.backoff(50, 1.0) == MAX_DELAY_SECONDS
    assert policy.backoff(3, 0.5) == 4
    assert policy.backoff(3, 0.0) == pytest.approx(0.8), "also without luck it is not at once"
    assert policy.backoff(1, 1.0, 30.0) == 30
    assert policy.backoff(50, 1.0, 30.0) == MAX_DELAY_SECONDS
