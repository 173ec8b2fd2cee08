"""What is in doubt at a provider without keys needs a cause: or who reads every answer as none would be right."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from idem import State
from idem.protocol import Attempt, Evidence, Resolution
from tests.chaos.causes import Causes, Incident
from tests.chaos.intentions import Form
from tests.chaos.stage import LANES, Lane
from tests.chaos.verdict import Effect, LaneFigures, count
from tests.records import make_record

_AT = 1_800_000_000.0
_KEYLESS = next(lane for lane in LANES if not lane.certain)
_EFFECT = Effect(_KEYLESS, "keyless-1", ("keyless-1",))
_UNKNOWN = Attempt(number=1, claim_id="a", started_at=_AT, ended_at=_AT + 0.2, outcome="Unknown")
#: Of a worker that said no more.
_OPEN = replace(_UNKNOWN, ended_at=None, outcome=None)


def _request(fault: str | None, entry_id: str | None = "id-1", at: float = _AT + 0.1) -> dict[str, Any]:
    return {"fault": fault, "id": entry_id, "at": _instant(at)}


def _instant(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def _judge(
    *attempts: Attempt, accepted: int, request: dict[str, Any], incident: Incident | None = None, at: float = _AT + 0.1
) -> str | None:
    causes = Causes(
        accepted=[{"subject": "keyless-1", "id": "id-1", "at": _instant(at)}] * accepted,
        requests=[request],
        incidents=[] if incident is None else [incident],
        lease_seconds=2.0,
        timeout_seconds=0.8,
    )
    record = make_record("keyless-1", state=State.IN_DOUBT, history=attempts, attempts=len(attempts))
    problem = count(LaneFigures(), _EFFECT, accepted, record, causes)
    return None if problem is None else problem[0]


@pytest.mark.parametrize("fault", [None, "delay"])
def test_an_answer_that_was_read_as_none_is_a_violation(fault: str | None) -> None:
    killed = Incident("killed", _AT, _AT + 0.1, _KEYLESS.name)

    # The worker itself wrote down what it believes: that another one was killed at that time is no excuse.
    assert _judge(_UNKNOWN, accepted=1, request=_request(fault), incident=killed) == "in doubt without a cause"


def test_a_fault_of_another_request_is_no_cause() -> None:
    other = _request("accept_then_drop", "id-2")

    assert _judge(_UNKNOWN, accepted=1, request=other) == "in doubt without a cause"
    assert _judge(_UNKNOWN, accepted=0, request=other) == "in doubt without a cause"


def test_a_fault_of_its_own_request_is_a_cause() -> None:
    assert _judge(_UNKNOWN, accepted=1, request=_request("accept_then_drop")) is None
    assert _judge(_UNKNOWN, accepted=0, request=_request("drop", None)) is None
    assert _judge(_UNKNOWN, accepted=0, request=_request("drop", None, _AT + 5)) == "in doubt without a cause"


def test_what_befell_an_earlier_attempt_is_no_cause() -> None:
    """One that was sent again by choice: accepted the first time; the second time, its request was dropped."""
    earlier = replace(_OPEN, started_at=_AT - 5)

    assert _judge(earlier, _UNKNOWN, accepted=1, at=_AT - 4, request=_request("drop", None)) is None
    # Its worker was struck that time, and not this time.
    struck = _request("accept_then_drop", at=_AT - 4)
    assert _judge(earlier, _UNKNOWN, accepted=1, at=_AT - 4, request=struck) == "in doubt without a cause"


def test_so_is_an_answer_that_comes_too_late() -> None:
    assert _judge(replace(_UNKNOWN, ended_at=_AT + 0.9), accepted=1, request=_request("delay")) is None


@pytest.mark.parametrize(
    ("incident", "problem"),
    [
        (None, "in doubt without a cause"),
        (Incident("killed", _AT + 0.1, _AT + 0.2, _KEYLESS.name), None),
        (Incident("killed", _AT + 0.1, _AT + 0.2, "keyed"), "in doubt without a cause"),
        (Incident("killed", _AT + 9, _AT + 10, _KEYLESS.name), "in doubt without a cause"),
        (Incident("halted", _AT - 1, _AT + 5, _KEYLESS.name), None),
        (Incident("the ledger was away", _AT, _AT + 1), None),
    ],
)
def test_a_silent_worker_was_killed_or_halted_or_had_no_ledger(incident: Incident | None, problem: str | None) -> None:
    assert _judge(_OPEN, accepted=1, request=_request(None), incident=incident) == problem


_NOTHING = Causes(accepted=[], requests=[], incidents=[], lease_seconds=2.0, timeout_seconds=0.8)
_RESENT = Evidence(at=_AT, kind=Resolution.RESEND.value)


def _verdict(
    form: Form, state: State, accepted: int, *, lane: Lane = _KEYLESS, evidence: Sequence[Evidence] = ()
) -> tuple[str | None, LaneFigures]:
    figures, effect = LaneFigures(), Effect(lane, "keyless-1", ("keyless-1",), form)
    record = make_record("keyless-1", state=state, evidence=tuple(evidence))
    problem = count(figures, effect, accepted, record, _NOTHING)
    return None if problem is None else problem[0], figures


def test_what_was_chosen_to_be_sent_again_may_be_accepted_once_more_each_time() -> None:
    problem, figures = _verdict(Form.RESEND, State.SENT, 2, evidence=[_RESENT])

    assert (problem, figures.resent, figures.duplicates) == (None, 1, 0)
    assert _verdict(Form.RESEND, State.SENT, 3, evidence=[_RESENT])[0] == "duplicate"
    assert _verdict(Form.RESEND, State.SENT, 2)[0] == "duplicate"
    # By nobody else's choice, and not where the provider can tell.
    assert _verdict(Form.READY, State.SENT, 2, evidence=[_RESENT])[0] == "duplicate"
    assert _verdict(Form.RESEND, State.SENT, 2, lane=LANES[0], evidence=[_RESENT])[0] == "duplicate"
    assert _verdict(Form.RESEND, State.IN_DOUBT, 1)[0] == "in doubt"
    assert _verdict(Form.RESEND, State.IN_DOUBT, 1, evidence=[_RESENT])[0] == "in doubt without a cause"


def test_what_expired_is_not_lost_and_was_not_accepted() -> None:
    problem, figures = _verdict(Form.EXPIRING, State.EXPIRED, 0)

    assert (problem, figures.expired, figures.lost) == (None, 1, 0)
    assert _verdict(Form.EXPIRING, State.EXPIRED, 1)[0] == "expired, and accepted"
    assert _verdict(Form.READY, State.EXPIRED, 0)[0] == "lost"
