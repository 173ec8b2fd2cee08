"""The commands that look into a queue or fill it, on SQS."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import services
from tests.workers.brokers.sqs.parts import Proxy, Side, refusal
from tests.workers.parts import Ran, RunIdem, make_email
from workers.brokers.base import Bury

Idem = Callable[..., Ran]


@pytest.fixture
def idem(faulty: Side, proxy: Proxy, call_idem: RunIdem) -> Idem:
    """A command on the queues of `faulty`, through the proxy."""
    env = services.aws_environ(proxy.endpoint) | {"IDEM_BROKER_URL": str(faulty.names)}
    return lambda *args: call_idem(*args, env=env)


def _write(tmp_path: Path, count: int, *, large: int | None = None) -> Path:
    path = tmp_path / "mails.jsonl"
    emails = (make_email(number, text="x" * (1_100_000 if number == large else 1)) for number in range(count))
    path.write_text("".join(json.dumps(email.as_dict()) + "\n" for email in emails))
    return path


class TestEnqueue:
    def test_ten_lines_share_a_request(self, faulty: Side, proxy: Proxy, idem: Idem, tmp_path: Path) -> None:
        assert idem("enqueue", _write(tmp_path, 25)).out == "enqueued 25\n"

        requests = [asked["Entries"] for action, asked in proxy.requests if action == "SendMessageBatch"]
        assert list(map(len, requests)) == [10, 10, 5]
        assert faulty.counts() == (25, 0, 0, 0)

    def test_a_line_that_is_too_large_is_a_bad_line(self, faulty: Side, idem: Idem, tmp_path: Path) -> None:
        ran = idem("enqueue", _write(tmp_path, 4, large=2))

        assert (ran.status, ran.out) == (1, "enqueued 3, refused 1\n")
        assert "mails.jsonl line 3: a job of 1,1" in ran.err
        assert faulty.counts() == (3, 0, 0, 0)

    def test_what_the_broker_does_not_take_is_said_and_comes_when_it_is_run_again(
        self, faulty: Side, proxy: Proxy, idem: Idem, tmp_path: Path
    ) -> None:
        file = _write(tmp_path, 25)
        answers = iter([None, refusal("ServiceUnavailable", status=503)({})])
        proxy.answer("SendMessageBatch", lambda _: next(answers))

        ran = idem("enqueue", file)

        assert ran.status != 0
        assert len(ran.err.splitlines()) == 1
        assert faulty.counts() == (10, 0, 0, 0)
        proxy.mend()
        assert idem("enqueue", file).out == "enqueued 25\n"
        assert faulty.counts() == (35, 0, 0, 0)

    def test_one_of_many_that_is_not_taken_is_said(self, proxy: Proxy, idem: Idem, tmp_path: Path) -> None:
        def refuse_one(asked: dict[str, object]) -> dict[str, object]:
            entries = asked["Entries"]
            assert isinstance(entries, list)
            failed = {"Id": entries[3]["Id"], "Code": "InternalError", "SenderFault": False}
            done = [{"Id": entry["Id"], "MessageId": "m", "MD5OfMessageBody": "0"} for entry in entries[:3]]
            return {"status": 200, "json": {"Successful": done, "Failed": [failed]}}

        proxy.answer("SendMessageBatch", refuse_one)

        ran = idem("enqueue", _write(tmp_path, 4))

        assert ran.status != 0
        assert "does not take the request now (InternalError)" in ran.err


class TestDead:
    def test_a_letter_is_listed_shown_requeued_and_dropped(self, faulty: Side, idem: Idem) -> None:
        for number in range(2):
            faulty.enqueue(number)
            faulty.end(faulty.take(), Bury(f"reason {number}"))

        listed = {letter["key"]: letter for letter in idem("dead", "list", "--json").json}
        assert {key: (one["job"], one["reason"], one["tries"]) for key, one in listed.items()} == {
            "key-0": ("email", "reason 0", 0), "key-1": ("email", "reason 1", 0)
        }  # fmt: skip
        first, second = listed["key-0"]["id"], listed["key-1"]["id"]
        assert "key-0" in idem("dead", "show", first).out
        assert idem("dead", "requeue", first).status == 0
        assert faulty.take().kwargs["key"] == "key-0"
        assert idem("dead", "requeue", first).status == 1
        assert idem("dead", "drop", second, "--yes").status == 0
        assert idem("dead", "list").out == ""

    def test_all_are_requeued(self, faulty: Side, idem: Idem) -> None:
        for number in range(12):
            faulty.enqueue(number)
            faulty.end(faulty.take(), Bury("no"))

        assert idem("dead", "requeue", "--all").out == "requeued 12\n"

        assert sum(faulty.counts()[:3]) == 12
        assert idem("dead", "list").out == ""
