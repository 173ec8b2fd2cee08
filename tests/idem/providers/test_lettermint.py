"""Lettermint: the bytes that are sent, and what each of its answers proves."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idem.clock import Deadline, SystemClock
from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.outcome import Accepted, Ground, NotSent, Outcome, Unknown
from idem.providers.api import HttpProvider
from idem.providers.http import Answer, HttpClient, NoAnswer, Phase
from idem.providers.lettermint import API, CONTRACT, encode, encode_batch, read_batch
from tests import answers
from tests.answers import Expected, OneAnswer, answer
from tests.fakes import make_email

FULL: dict[str, Any] = {
    "from": "The Shop <shop@example.com>",
    "to": ["Ann <ann@example.com>", "bo@example.com"],
    "cc": ["cc@example.com"],
    "bcc": ["bcc@example.com"],
    "reply_to": ["help@example.com"],
    "subject": "Grüße 🙂",
    "text": "Hi",
    "html": "<p>Hi</p>",
    "headers": {"X-Campaign": "autumn", "X-A": "1"},
    "tags": ["receipt"],
    "metadata": {"order": "42", "a": "b"},
    "attachments": [{"filename": "a.pdf", "content": "aGVsbG8=", "content_type": "application/pdf"}],
}


def lettermint(token: str, base_url: str = CONTRACT.base_url, http: HttpClient | None = None) -> HttpProvider:
    return HttpProvider(API, token, base_url, http)


def payload(email: Email) -> bytes:
    return encode(email, "a-key").data


def say(status: int, body: object = b"", **headers: str) -> Outcome:
    return answers.say(CONTRACT, status, body, **headers)


# What is sent.


def test_the_payload_has_every_part_under_its_name() -> None:
    sent = json.loads(payload(Email.from_dict(FULL)))
    assert sent == {name: value for name, value in FULL.items() if name != "tags"} | {"tag": "receipt"}


def test_equal_emails_have_equal_bytes() -> None:
    """In whatever order their parts came: the key is bound to the bytes, and a replay must give the same ones."""
    turned = {name: FULL[name] for name in reversed(FULL)}
    turned["headers"] = dict(reversed(FULL["headers"].items()))
    turned["metadata"] = dict(reversed(FULL["metadata"].items()))
    bytes_sent = payload(Email.from_dict(FULL))
    assert payload(Email.from_dict(turned)) == bytes_sent
    assert payload(Email.from_canonical(Email.from_dict(FULL).canonical())) == bytes_sent


def test_the_bytes_never_change() -> None:
    """Spelt out: a release that encodes differently would turn the replays of its predecessor into conflicts."""
    assert payload(make_email(tags=["a"], metadata={"b": "2", "a": "é"})) == (
        '{"from":"shop@example.com","metadata":{"a":"é","b":"2"},"subject":"Hello","tag":"a","text":"Hi",'
        '"to":["ann@example.com"]}'.encode()
    )


@pytest.mark.parametrize("part", [name for name in FULL if name not in {"from", "to", "subject"}])
def test_every_part_counts(part: str) -> None:
    assert payload(Email.from_dict({**FULL, part: None})) != payload(Email.from_dict(FULL))


def test_one_request_with_the_key_and_the_token() -> None:
    http = OneAnswer(Answer(202, {}, b'{"message_id":"m1"}'))
    sent = lettermint("lm_secret", "https://api.example/v1/", http).send(
        make_email(), "the-key", Deadline.after(SystemClock(), 1)
    )
    assert sent == Accepted("m1")
    ((url, headers, body),) = http.asked
    assert url == "https://api.example/v1/send"
    assert headers["Idempotency-Key"] == "the-key"
    assert headers["x-lettermint-token"] == "lm_secret"
    assert headers["Content-Type"] == "application/json"
    assert body == payload(make_email())


@pytest.mark.parametrize("phase", Phase)
def test_no_answer_is_what_the_wire_says(phase: Phase) -> None:
    found = lettermint("t", http=OneAnswer(NoAnswer(phase, "why"))).send(
        make_email(), "k", Deadline.after(SystemClock(), 1)
    )
    assert found == (NotSent("why") if phase <= Phase.NOT_WRITTEN else Unknown("why"))


def test_more_than_one_tag_is_refused_before_anything_is_sent() -> None:
    """A part that has no place in the API is not dropped in silence."""
    provider = lettermint("t")
    provider.check(make_email())
    provider.check(make_email(tags=["a"]))
    with pytest.raises(UnsupportedEmail, match="at most 1") as caught:
        provider.check(make_email(tags=["a", "b"]))
    assert caught.value.field == "tags"


@pytest.mark.parametrize("tag", ["a/b", "ü", "a,b", "a\u00a0b"])
def test_a_tag_that_is_not_allowed_is_refused(tag: str) -> None:
    lettermint("t").check(make_email(tags=["Order Confirmation_20-26"]))
    with pytest.raises(UnsupportedEmail, match="letters, digits"):
        lettermint("t").check(make_email(tags=[tag]))


def test_the_token_is_in_no_representation() -> None:
    assert "lm_secret" not in repr(lettermint("lm_secret"))


def test_the_contract_is_of_a_provider_that_replays() -> None:
    assert (CONTRACT.memory, CONTRACT.window_seconds) == ("replays", 86_400.0)


# What answers prove.

_MISMATCHES = [
    "This idempotency key has already been used on a request with a different payload. Please use a new key.",
    "Idempotency-Key reused with a different body",
    "The IDEMPOTENCY key was used\nwith DIFFERENT parameters",
]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (202, {"message_id": "m1", "status": "pending"}, Accepted("m1")),
        (200, {"message_id": "m1"}, Accepted("m1")),
        (202, {"message_id": ""}, Unknown("HTTP 202: no message without an id")),
        (202, {"message_id": 7}, Unknown("HTTP 202: no message without an id")),
        (202, {"id": "m1"}, Unknown("HTTP 202: no message without an id")),
        (202, ["m1"], Unknown("HTTP 202: no message without an id")),
        (202, b"", Unknown("HTTP 202: no message without an id")),
        (204, b"", Unknown("HTTP 204: no message without an id")),
        (200, b"<html>Welcome to the hotel's network</html>", Unknown("HTTP 200: no message without an id")),
        *((409, {"message": text}, Ground.CONFLICT) for text in _MISMATCHES),
        *((422, {"message": text}, Ground.CONFLICT) for text in _MISMATCHES),
        (409, {"message": "A request with this key is in progress"}, Unknown),
        (409, b"", Unknown),
        (422, {"message": "The from field is required.", "errors": {"from": ["..."]}}, Ground.PAYLOAD),
        (422, b"", Ground.PAYLOAD),
        (400, {"message": "Bad request"}, Ground.PAYLOAD),
        (413, b"", Ground.PAYLOAD),
        (415, b"", Ground.PAYLOAD),
        (403, {"message": "Domain not verified"}, Ground.GATE),
        (401, {"message": "Unauthenticated."}, NotSent("HTTP 401: Unauthenticated.", credentials=True)),
        (402, b"", NotSent("HTTP 402: no message")),
        (404, b"", NotSent("HTTP 404: no message")),
        (405, b"", NotSent("HTTP 405: no message")),
        (429, {"message": "Too Many Attempts."}, NotSent("HTTP 429: Too Many Attempts.", limited=True)),
        *((status, b"", Unknown) for status in (100, 101, 301, 302, 307, 304, 406, 408, 410, 418, 423, 424, 425, 499)),
        *((status, b"<html>", Unknown) for status in (500, 501, 502, 503, 504, 520, 599, 600, 999)),
    ],
)
def test_the_outcome_table(status: int, body: object, expected: Expected) -> None:
    assert answers.is_as(say(status, body), expected)


@given(st.integers(100, 999), st.binary(max_size=200))
def test_no_answer_outside_the_table_proves_anything(status: int, body: bytes) -> None:
    """Accepted needs a 2xx with an id; not sent and rejected need a status that says so."""
    found = say(status, body)
    documented = {400, 401, 402, 403, 404, 405, 413, 415, 422, 429}
    assert isinstance(found, Unknown) or status in documented
    assert not isinstance(found, Accepted)


@pytest.mark.parametrize("status", [429, 503, 409])
def test_retry_after_is_obeyed(status: int) -> None:
    found = say(status, retry_after="17")
    assert isinstance(found, NotSent | Unknown)
    assert found.retry_after == 17.0
    junk = say(status, retry_after="soon")
    assert isinstance(junk, NotSent | Unknown)
    assert junk.retry_after is None


@pytest.mark.parametrize("status", [200, 202, 400, 401, 403, 409, 413, 422, 429, 500])
@pytest.mark.parametrize(
    "body",
    [
        {"message": "The address ann@example.com is suppressed; so is <Bo.Smith+x@mail.example.org>, see c@d.e"},
        {"message": "no", "errors": {"ann@example.com": ["invalid"], "to.0": ["bo@example.com is invalid"]}},
        {"message": "a" * 1_000_000 + "ann@example.com"},
        {"message": "line\r\nann@example.com\u2028\x00end"},
    ],
    ids=["in words", "in names", "behind a megabyte", "over lines"],
)
def test_no_address_gets_into_a_detail(status: int, body: object) -> None:
    found = say(status, body)
    assert not isinstance(found, Accepted)
    assert not re.search(r"ann|bo|smith|c@d", found.detail.lower())
    assert len(found.detail) < 400
    assert found.detail.isprintable()


@pytest.mark.parametrize("message", [None, 7, [], {}, "", True])
def test_a_message_that_is_no_message(message: object) -> None:
    found = say(500, {"message": message, "errors": message})
    assert isinstance(found, Unknown)
    assert found.detail.startswith("HTTP 500: ")


# Batches.


def test_a_batch_is_a_list_of_emails_with_their_keys() -> None:
    http = OneAnswer(
        answer(202, [{"message_id": "m1", "status": "pending"}, {"message_id": "m2", "status": "pending"}])
    )
    emails = [(make_email(tags=["t"]), "key-1"), (make_email("Second"), "key-2")]
    assert lettermint("t", http=http).send_each(emails, answers.soon()) == (Accepted("m1"), Accepted("m2"))
    ((url, headers, body),) = http.asked
    assert url == "https://api.lettermint.co/v1/send/batch"
    assert "Idempotency-Key" not in headers
    assert body == encode_batch(emails).data
    first, second = json.loads(body)
    assert (first.pop("idempotency_key"), second.pop("idempotency_key")) == ("key-1", "key-2")
    assert first == json.loads(payload(emails[0][0]))
    assert second == json.loads(payload(emails[1][0]))


def refusal(status: int, *accepted: int, **more: Any) -> Answer:
    listed = [{"index": index, "message_id": f"m{index}"} for index in accepted]
    return answer(status, {"error": {"code": "X", "message": "no", "details": {"accepted": listed}}, **more})


_MISMATCH = {"message": _MISMATCHES[0]}
_INVALID = {"message": "The 1.to field is required.", "errors": {"1.to": ["The 1.to field is required."]}}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (answer(202, [{"message_id": f"m{i}"} for i in range(3)]), [Accepted("m0"), Accepted("m1"), Accepted("m2")]),
        (answer(202, [{"message_id": "m0"}]), [Unknown] * 3),
        (answer(202, [{"message_id": "m0"}, {"message_id": ""}, {}]), [Unknown] * 3),
        (answer(202, {"message_id": "m0"}), [Unknown] * 3),
        (answer(202, b"<html>"), [Unknown] * 3),
        (answer(409, _MISMATCH), None),
        (answer(409, b""), None),
        (answer(422, _MISMATCH), None),
        (answer(422, _INVALID), [NotSent, Ground.PAYLOAD, NotSent]),
        (answer(422, {"message": "no", "errors": {"x": ["?"], "12x": [], "7.to": []}}), None),
        (answer(422, {"message": "at most 500", "errors": ["?"]}), None),
        (refusal(422, 0), [Accepted("m0"), Ground.PAYLOAD, NotSent]),
        (refusal(403, 0, 1), [Accepted("m0"), Accepted("m1"), Ground.GATE]),
        (refusal(403), [Ground.GATE, NotSent, NotSent]),
        (refusal(422, 0, 1, 2), None),
        (answer(403, {"message": "Forbidden"}), None),
        (refusal(429, 0), [Accepted("m0"), NotSent, NotSent]),
        (refusal(401), [NotSent("HTTP 401: X no", credentials=True)] * 3),
        (refusal(500, 0), [Accepted("m0"), Unknown, Unknown]),
        (refusal(500, 2, 9), [Unknown, Unknown, Accepted("m2")]),
        (answer(500, {"error": {"details": {"accepted": [{"index": "0", "message_id": "m"}]}}}), [Unknown] * 3),
        (answer(500, b"<html>"), [Unknown] * 3),
        (NoAnswer(Phase.WRITTEN, "why"), [Unknown] * 3),
        (NoAnswer(Phase.NOT_CONNECTED, "why"), [NotSent] * 3),
    ],
)
def test_what_a_batch_proves_of_each_email(found: Answer | NoAnswer, expected: list[Expected] | None) -> None:
    """Those before the one that failed are accepted; a batch refused as a whole (None) accuses nobody."""
    outcomes = read_batch(found, 3)
    assert (outcomes is None) == (expected is None)
    pairs = zip(outcomes or (), expected or (), strict=True)
    assert [index for index, (outcome, said) in enumerate(pairs) if not answers.is_as(outcome, said)] == [], outcomes


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (answer(409, _MISMATCH), Ground.CONFLICT),
        (answer(409, {"message": "still being processed"}), Unknown),
        (answer(422, {"message": "no"}), Ground.PAYLOAD),
        (answer(403, b""), Ground.GATE),
        (answer(202, [{"message_id": "m0"}]), Accepted("m0")),
    ],
)
def test_a_batch_of_one_is_told_the_reason(found: Answer, expected: Expected) -> None:
    (outcome,) = read_batch(found, 1) or ()
    assert answers.is_as(outcome, expected)


@given(st.integers(100, 599), st.binary(max_size=200), st.integers(1, 4))
def test_no_answer_to_a_batch_is_taken_for_more_than_it_says(status: int, body: bytes, count: int) -> None:
    outcomes = read_batch(Answer(status, {}, body), count)
    assert outcomes is None or len(outcomes) == count
    assert not any(isinstance(outcome, Accepted) for outcome in outcomes or ())
