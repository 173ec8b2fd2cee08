"""The message on the wire: strictly written, strictly read."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from decimal import Decimal
from typing import Any

import pytest
from dramatiq import Message

from idem.bulk import Bulk, Group, Ready
from idem.errors import EmailError, InvalidKey, JobError
from idem.protocol import InDoubt
from idem.send import Resume
from tests.workers.parts import make_email
from workers.jobs import ACTOR, QUEUE, Call, Job, email_message, job_message, part_message, read_message, resume_message

_EMAIL = make_email().as_dict()


def _over_the_wire(message: Message[None]) -> Message[None]:
    return Message.decode(message.encode())


class TestEmails:
    def test_an_email_survives_the_wire(self) -> None:
        email = make_email(cc=["c@example.com"], html="<p>é</p>", headers={"X-A": "b"}, tags=["t"], metadata={"m": "1"})
        message, key = email_message(email, "k1")

        assert read_message(_over_the_wire(message).kwargs, message.message_id) == Ready("k1", email)
        assert key == "k1"

    def test_without_a_key_it_is_the_messages_own_id(self) -> None:
        message, key = email_message(make_email(), None)

        assert key == message.message_id
        assert uuid.UUID(key).version == 4
        assert read_message(_over_the_wire(message).kwargs, "another") == Ready(key, make_email())

    def test_the_idempotency_key_header_is_the_key_and_is_not_sent_on(self) -> None:
        email = make_email(headers={"idempotency-KEY": "from-header", "X-A": "b"})

        message, key = email_message(email, None)

        assert key == "from-header"
        assert message.kwargs["email"]["headers"] == {"X-A": "b"}

    def test_the_argument_beats_the_header(self) -> None:
        message, key = email_message(make_email(headers={"Idempotency-Key": "h"}), "argument")

        assert key == "argument"
        assert "headers" not in message.kwargs["email"]

    @pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "\udcff"])
    def test_a_key_that_no_store_could_hold(self, key: str) -> None:
        with pytest.raises(InvalidKey):
            email_message(make_email(), key)
        with pytest.raises(InvalidKey):
            job_message("job", (), {}, key)

    def test_the_message_names_our_actor_and_carries_no_options(self) -> None:
        message, _ = email_message(make_email(), None)

        assert (message.queue_name, message.actor_name, message.args, message.options) == (QUEUE, ACTOR, (), {})


class TestArguments:
    @pytest.mark.parametrize(
        "value",
        [None, True, 0, -(2**70), 1.5, "", "é\U0001f600", [], [1, [2]], {"a": {"b": [None]}}, "x" * 100_000],
    )
    def test_json_values_arrive_as_they_are(self, value: Any) -> None:
        message, key = job_message("job", [value], {"name": value}, None)

        call = read_message(_over_the_wire(message).kwargs, "another")

        assert call == Call(key, "job", [value], {"name": value})

    def test_a_tuple_arrives_as_a_list(self) -> None:
        message, _ = job_message("job", [(1, (2,))], {}, None)

        call = read_message(_over_the_wire(message).kwargs, "another")

        assert isinstance(call, Call)
        assert call.args == [[1, [2]]]

    @pytest.mark.parametrize(
        ("value", "named"),
        [
            (b"bytes", "bytes"),
            ({1, 2}, "set"),
            (object(), "object"),
            (dt.date(2026, 1, 1), "date"),
            (Decimal(1), "Decimal"),
            (uuid.UUID(int=1), "UUID"),
            (float("nan"), "nan"),
            (float("-inf"), "-inf"),
            ({1: "a"}, "int as a name"),
            ([[{"deep": {None: 1}}]], "NoneType as a name"),
            (make_email(), "Email"),
            ("half of \ud83d", "text with a lone surrogate"),
            ({"\ud83d": 1}, "text with a lone surrogate"),
        ],
    )
    def test_what_the_worker_would_get_as_something_else_is_refused(self, value: Any, named: str) -> None:
        for args, kwargs in (([value], {}), ([], {"name": value})):
            with pytest.raises(JobError, match="must be JSON values") as raised:
                job_message("job", args, kwargs, None)
            assert named in str(raised.value)

    def test_a_list_that_holds_itself_is_refused(self) -> None:
        endless: list[Any] = []
        endless.append(endless)

        with pytest.raises(JobError, match="nested too deeply"):
            job_message("job", endless, {}, None)


class TestSeveral:
    @pytest.mark.parametrize("choice", [None, InDoubt.RESEND])
    def test_every_part_of_a_bulk_survives_the_wire(self, choice: InDoubt | None) -> None:
        one, two = (Ready(f"news/{number}", make_email(number), choice) for number in (1, 2))
        for part in (one, Bulk("news/1-2", (one.email, two.email), choice), Group((one, two))):
            message = part_message(part)

            assert read_message(_over_the_wire(message).kwargs, message.message_id) == part

    def test_a_resumed_key(self) -> None:
        assert read_message(_over_the_wire(resume_message("k")).kwargs, "another") == Resume("k")


class TestReading:
    def test_a_foreign_message_without_a_key_gets_its_own_id(self) -> None:
        assert read_message({"email": _EMAIL}, "message-id") == Ready("message-id", make_email())

    def test_the_key_in_a_foreign_emails_header_counts(self) -> None:
        foreign = {"email": _EMAIL | {"headers": {"Idempotency-Key": "h"}}}

        assert read_message(foreign, "message-id") == Ready("h", make_email())

    @pytest.mark.parametrize(
        "payload",
        [
            {},
            {"key": "k"},
            {"email": _EMAIL, "job": "both"},
            {"email": None, "job": None},
            {"email": _EMAIL, "args": [1]},
            {"email": _EMAIL, "kwargs": {"a": 1}},
            {"email": _EMAIL, "extra": 1},
            {"email": "text"},
            {"email": [_EMAIL]},
            {"job": 7},
            {"job": "j", "args": "text"},
            {"job": "j", "args": {}},
            {"job": "j", "kwargs": []},
            {"job": "j", "key": 7},
            {"job": "j", "arg": []},
            {"job": "j", "in_doubt": "perhaps"},
            {"resume": True},
            {"key": "k", "resume": True, "job": "j"},
            {"key": "k", "resume": True, "in_doubt": "drop"},
            {"key": "k", "resume": True, "args": [1]},
            {"emails": [_EMAIL, _EMAIL]},
            {"key": "news/1-2", "emails": []},
            {"key": "news/1-2", "emails": [_EMAIL]},
            {"key": "news/0-1", "emails": [_EMAIL, _EMAIL]},
            {"key": "news", "emails": [_EMAIL, _EMAIL]},
            {"key": "news/1-2", "emails": [_EMAIL, _EMAIL], "email": _EMAIL},
            {"group": []},
            {"group": [{"email": _EMAIL}]},
            {"group": [{"key": "a", "email": _EMAIL, "job": "j"}]},
            {"key": "k", "group": [{"key": "a", "email": _EMAIL}]},
        ],
    )
    def test_what_is_malformed_is_refused(self, payload: dict[str, Any]) -> None:
        with pytest.raises(JobError, match="the message is malformed"):
            read_message(payload, "id")

    @pytest.mark.parametrize(
        "email", [{}, _EMAIL | {"to": []}, _EMAIL | {"to": "not an address"}, _EMAIL | {"subjct": "x"}]
    )
    def test_an_email_that_cannot_be_sent_is_refused(self, email: dict[str, Any]) -> None:
        with pytest.raises(EmailError):
            read_message({"email": email}, "id")

    @pytest.mark.parametrize("payload", [{"key": ""}, {"key": "a\nb"}, {"key": "x" * 256}])
    def test_a_key_that_cannot_be_one_is_refused(self, payload: dict[str, Any]) -> None:
        with pytest.raises(InvalidKey):
            read_message(payload | {"job": "j"}, "id")

    @pytest.mark.parametrize("message_id", ["", "x" * 256, "a\nb"])
    def test_so_is_a_message_id_that_would_have_to_be_one(self, message_id: str) -> None:
        with pytest.raises(InvalidKey):
            read_message({"job": "j"}, message_id)

    def test_a_job_as_json_holds_nothing_empty(self) -> None:
        message, _ = job_message("job", [], {}, "k")

        assert json.loads(message.encode())["kwargs"] == {"key": "k", "job": "job", "args": [], "kwargs": {}}
        assert Job(job="j").args == []
