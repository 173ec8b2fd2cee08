"""The storm and the fuzzing of `tests.bench.webhooks`, small."""

from __future__ import annotations

from tests.bench.webhooks import fuzz, stage, storm


def test_a_storm_with_forgeries_redeliveries_and_kills_is_one_effect_an_event() -> None:
    with stage() as set_up:
        found = storm(set_up, events=40, deliveries=400)

    assert found.kept, found


def test_no_damaged_request_is_a_5xx_or_taken() -> None:
    fuzzed = fuzz(5_000)

    assert fuzzed.wrong == []
    assert fuzzed.answers.total() == 5_000
