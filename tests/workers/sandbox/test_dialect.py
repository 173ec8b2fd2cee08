"""What a dialect can be: each class of memory, each place of a key, other bodies, look-ups, on an invented provider."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from idem.providers.base import Keeps, Key, Lookup, Memory, Place
from idem.providers.lettermint import CONTRACT
from workers.sandbox.app import build_app, running
from workers.sandbox.bodies import read_form
from workers.sandbox.dialect import Call, Dialect, Endpoint, Keyed, Mail, Refused, Reply, Search, Shown, Taken

KEY = Key(place=Place.HEADER, name="Key", window_seconds=60.0, shortest=2)
LOOKUP = Lookup(handle="tag", source="https://example.com", lag_seconds=10.0, horizon_seconds=100.0)


def mail_of(fields: Mapping[str, Any]) -> Mail:
    return Mail(sender="a@b.c", to=("x@y.z",), subject=str(fields.get("subject")), headers=fields.get("headers", {}))


def read_one(call: Call) -> list[Mail] | Reply:
    assert isinstance(call.parsed, dict)
    return [mail_of(call.parsed)] if call.parsed.get("subject") else Reply(422, {"error": "no subject"})


def read_each(call: Call) -> list[Mail | Keyed | Refused]:
    """Read a list of subjects by their keys; an empty subject is refused."""
    assert isinstance(call.parsed, dict)
    return [
        Keyed(mail_of({"subject": subject}), key, subject) if subject else Refused("empty")
        for key, subject in call.parsed.items()
    ]


def read_uploads(call: Call) -> list[Mail]:
    assert isinstance(call.parsed, dict)
    (subject,) = call.parsed["subject"]
    return [Mail(sender=call.parts["domain"], to=("x@y.z",), subject=str(subject))]


def say(results: Sequence[Taken | Refused]) -> Reply:
    return Reply(200, [[one.id, one.replayed] if isinstance(one, Taken) else one.why for one in results])


def search(call: Call, shown: Sequence[Shown]) -> Reply:
    return Reply(200, [one.mail.subject for one in shown if call.asked("subject") in {None, one.mail.subject}])


INVENTED = Dialect(
    contract=replace(CONTRACT, name="invented", memory=Memory.REPLAYS, key=KEY, lookup=LOOKUP),
    endpoints={
        "/send": Endpoint(read_one, say),
        "/exact": Endpoint(read_one, say, exact=True),
        "/each": Endpoint(read_each, say, method="PUT", clash=lambda index: Reply(409, {"index": index})),
        "/v3/{domain}/messages": Endpoint(read_uploads, say, parse=read_form),
    },
    searches={"/send": Search(search, account=lambda headers: headers.get("team"))},
    account=lambda headers: headers.get("token"),
    refusal=lambda status, message: Reply(status, f"{status} {message}"),
    invalid_key=Reply(400, {"error": "invalid"}),
    mismatch=lambda _: Reply(409, {"error": "mismatch"}),
    known=Reply(400, {"error": "duplicate"}),
)


@contextmanager
def sandbox(dialect: Dialect = INVENTED, **contract: Any) -> Iterator[httpx.Client]:
    """A sandbox of this dialect, its contract changed."""
    served = replace(dialect, contract=replace(dialect.contract, **contract))
    with (
        running(build_app(dialects=[served])) as url,
        httpx.Client(base_url=f"{url}/invented", headers={"token": "t", "team": "t"}) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def shared() -> Iterator[httpx.Client]:
    with sandbox() as client:
        yield client


def send(client: httpx.Client, key: str | None, subject: str = "Hi", path: str = "/send") -> httpx.Response:
    return client.post(path, json={"subject": subject}, headers={} if key is None else {"Key": key})


def api(client: httpx.Client, path: str, body: Any = None) -> Any:
    url = client.base_url.join(f"/api{path}")
    answer = httpx.get(url) if body is None else httpx.post(url, json=body)
    assert answer.is_success, answer.text
    return answer.json()


def count(client: httpx.Client) -> int:
    return len(api(client, "/accepted"))


def test_a_provider_that_replays_any_body() -> None:
    """Another body under an old key is dropped in silence."""
    with sandbox(memory=Memory.REPLAYS_ANY_BODY) as client:
        assert send(client, "key").json() == send(client, "key", "Other").json()
        assert [entry["subject"] for entry in api(client, "/accepted")] == ["Hi"]


def test_a_provider_that_refuses() -> None:
    """A repetition is refused, whatever its body, and says no id; a refused body leaves the key free."""
    with sandbox(memory=Memory.REFUSES) as client:
        assert send(client, "key", "").status_code == 422
        assert send(client, "key").status_code == 200
        for subject in ("Hi", "Other"):
            refused = send(client, "key", subject)
            assert (refused.status_code, refused.json()) == (400, {"error": "duplicate"})
        assert count(client) == 1
        api(client, "/clock", {"advance": 60})
        assert send(client, "key").status_code == 200


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        (replace(KEY, place=Place.BODY, name="headers.key"), lambda key: {"headers": {"key": key}}),
        (
            replace(KEY, place=Place.MESSAGE_HEADER, name="Idempotency-Key"),
            lambda key: {"headers": {"IDEMPOTENCY-key": key}},
        ),
    ],
)
def test_a_key_elsewhere(key: Key, fields: Callable[[str], dict[str, Any]]) -> None:
    """In a field of the body, and in a header of the message: it is found, checked and remembered."""
    with sandbox(key=key) as client:
        first, second = (client.post("/send", json={"subject": "Hi"} | fields("key-1")) for _ in range(2))
        assert first.json() == second.json()
        assert client.post("/send", json={"subject": "Hi"} | fields("k")).json() == {"error": "invalid"}
        assert [entry["key"] for entry in api(client, "/accepted")] == ["key-1"]
        assert [seen["key"] for seen in api(client, "/requests")] == ["key-1", "key-1", "k"]
        assert client.post("/send", json={"subject": "Hi"}, headers={"Key": "key-1"}).json() != first.json()


def test_each_email_of_a_request_has_a_key(shared: httpx.Client) -> None:
    """What is known is not accepted again, what is refused is alone in that, and a clash refuses the whole."""
    first = shared.put("/each", json={"each-1": "One", "each-2": "", "each-3": "Three"}).json()
    assert first[1] == "empty"
    again = shared.put("/each", json={"each-0": "Zero", "each-1": "One", "each-3": "Three"}).json()
    assert [one[1] for one in again] == [False, True, True]
    assert [again[1][0], again[2][0]] == [first[0][0], first[2][0]]
    clash = shared.put("/each", json={"each-9": "Nine", "each-1": "Other"})
    assert (clash.status_code, clash.json()) == (409, {"index": 1})
    assert shared.put("/each", json={"each-1": "One", "x": "Too short"}).json() == {"error": "invalid"}
    keys = [entry["key"] for entry in api(shared, "/accepted") if (entry["key"] or "").startswith("each")]
    assert keys == ["each-1", "each-3", "each-0"]


def test_the_key_of_a_request_is_not_that_of_an_email_in_one(shared: httpx.Client) -> None:
    """Nothing documents that they are one: who relies on it would send twice."""
    assert send(shared, "both", "Both").json()[0][1] is False
    assert shared.put("/each", json={"both": "Both"}).json()[0][1] is False


def test_an_answer_that_is_kept_says_so_with_all_its_emails(shared: httpx.Client) -> None:
    """A request under a key is replayed as a whole, what it refused included."""
    bodies = [shared.put("/each", json={"w-1": "One", "w-2": ""}, headers={"Key": "whole"}).json() for _ in range(2)]
    assert bodies[0] == bodies[1]
    assert bodies[0][1] == "empty"


def test_the_bytes_or_the_form_are_compared(shared: httpx.Client) -> None:
    """By default white space is no difference; where the bytes count, it is."""
    for path, status in (("/send", 200), ("/exact", 409)):
        for body in (b'{"subject":"a"}', b'{"subject": "a"}'):
            answer = shared.post(path, content=body, headers={"Key": f"bytes{path}"})
        assert answer.status_code == status


def test_forms(shared: httpx.Client) -> None:
    """URL-encoded and multipart are the same body in another order; the path has parts, and a broken one is refused."""
    path, headers = "/v3/example.com/messages", {"Key": "form"}
    files: Any = [("subject", (None, "Hé")), ("file", ("a.bin", b"\x00\r\n--x\r\n\xff", "application/pdf"))]
    first = shared.post(path, files=files, headers=headers)
    assert first.json() == shared.post(path, files=files[::-1], headers=headers).json()
    files[1] = ("file", ("a.bin", b"other", "application/pdf"))
    assert shared.post(path, files=files, headers=headers).status_code == 409
    encoded = shared.post(path, data={"subject": "Hé", "b": ["1", "2"]}, headers={"Key": "encoded"})
    assert encoded.status_code == 200
    assert api(shared, f"/accepted/{encoded.json()[0][0]}")["from"] == "example.com"
    assert (
        shared.post(path, data={"b": ["1", "2"], "subject": "Hé"}, headers={"Key": "encoded"}).json() == encoded.json()
    )
    assert shared.post(path, data={"b": ["2", "1"], "subject": "Hé"}, headers={"Key": "encoded"}).status_code == 409


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("application/x-www-form-urlencoded", b"a=%FF", 400),
        ("application/x-www-form-urlencoded", b"a=\xff", 400),
        ("multipart/form-data", b"--x\r\n", 415),
        ("multipart/form-data; boundary=x", b"", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nhalf", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\nb\r\n--x--", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\xff\r\n--x--", 400),
    ],
)
def test_what_is_no_form(shared: httpx.Client, kind: str, body: bytes, status: int) -> None:
    """It is refused in the provider's words."""
    answer = shared.post("/v3/example.com/messages", content=body, headers={"content-type": kind})
    assert (answer.status_code, answer.text[:4]) == (status, f"{status} ")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_an_answer_without_a_body_is_cut_in_its_head() -> None:
    """There is no half of nothing: a client must not take it for the whole."""
    silent = replace(INVENTED, endpoints={"/send": Endpoint(read_one, lambda _: Reply(202))})
    with sandbox(silent) as client:
        assert (send(client, None).status_code, send(client, None).content) == (202, b"")
        api(client, "/faults", {"fault": "accept_then_truncate"})
        with pytest.raises(httpx.RemoteProtocolError):
            send(client, None)
        assert count(client) == 3


def test_methods(shared: httpx.Client) -> None:
    """One path may send and look up; what it does not take is refused by name."""
    assert shared.get("/send", headers={"team": ""}).status_code == 200
    assert httpx.get(shared.base_url.join("/invented/send"), headers={"token": "t"}).status_code == 401
    refused = shared.delete("/send")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, POST")
    assert shared.post("/v3/a/b/messages").status_code == 404


def test_a_lookup_shows_what_is_old_enough_and_not_too_old() -> None:
    """After the contract's lag and until its horizon, newest first; clearing the log takes nothing from it."""
    with sandbox() as client:
        send(client, None, "One")
        assert client.get("/send").json() == []
        assert api(client, "/clock", {"advance": 10})["advanced"] == 10.0
        send(client, None, "Two")
        assert client.get("/send").json() == ["One"]
        api(client, "/clock", {"advance": 10})
        httpx.delete(client.base_url.join("/api/accepted"))
        assert client.get("/send").json() == ["Two", "One"]
        assert client.get("/send?subject=One").json() == ["One"]
        api(client, "/clock", {"advance": 85})
        assert client.get("/send").json() == ["Two"]


@pytest.mark.parametrize(("fault", "status", "shows"), [("missing", 200, []), ("500", 500, None), ("429", 429, None)])
def test_faults_of_lookups(fault: str, status: int, shows: object) -> None:
    """They strike no sends, and those of sends strike no look-up."""
    with sandbox() as client:
        api(client, "/faults", {"fault": "503"})
        api(client, "/faults", {"fault": fault, "on": "lookup", "times": 1, "retry_after": 2})
        assert send(client, None, "One").status_code == 503
        httpx.delete(client.base_url.join("/api/faults"))
        send(client, None, "One")
        api(client, "/faults", {"fault": fault, "on": "lookup", "times": 1})
        api(client, "/clock", {"advance": 10})
        answer = client.get("/send")
        assert answer.status_code == status
        assert shows is None or answer.json() == shows
        assert client.get("/send").json() == ["One"]


@pytest.mark.parametrize(("fault", "error"), [("drop", httpx.RemoteProtocolError), ("hang", httpx.ReadTimeout)])
def test_faults_of_lookups_on_the_wire(fault: str, error: type[Exception]) -> None:
    """A look-up can be without an answer, too."""
    with sandbox() as client:
        api(client, "/faults", {"fault": fault, "on": "lookup", "times": 1})
        with pytest.raises(error):
            client.get("/send", timeout=0.3)
        assert client.get("/send").json() == []


def overlap(client: httpx.Client, fault: str) -> tuple[httpx.Response, httpx.Response]:
    """The answers to a request that is held up, and to the same one meanwhile."""
    api(client, "/faults", {"fault": fault, "delay_ms": 400, "times": 1})
    answers = []
    slow = threading.Thread(target=lambda: answers.append(send(client, "key")))
    slow.start()
    while api(client, "/faults"):
        pass
    meanwhile = send(client, "key")
    slow.join()
    return answers[0], meanwhile


def test_a_request_in_progress() -> None:
    """While the key is in use the provider says so; then the answer is there to be replayed."""
    with sandbox(replace(INVENTED, in_progress=Reply(409, {"error": "running"}))) as client:
        slow, meanwhile = overlap(client, "delay")
        assert (meanwhile.status_code, meanwhile.json()) == (409, {"error": "running"})
        assert send(client, "key").json() == slow.json()
        assert count(client) == 1


@pytest.mark.parametrize(("fault", "words"), [("delay", None), ("late", Reply(409, {"error": "running"}))])
def test_a_request_that_is_overtaken(fault: str, words: Reply | None) -> None:
    """By the same one, where the provider has no such answer, or has not seen the first yet: one acceptance."""
    with sandbox(replace(INVENTED, in_progress=words)) as client:
        slow, meanwhile = overlap(client, fault)
        assert slow.json() == meanwhile.json()
        assert [seen["replayed"] for seen in api(client, "/requests")] == [True, False]


@pytest.mark.parametrize("fault", ["500", "503", "accept_then_500", "422"])
def test_errors_that_stick(fault: str) -> None:
    """Where a key stays bound to failures and refusals, the same key is answered so for ever."""
    with sandbox(key=replace(KEY, keeps=frozenset(Keeps))) as client:
        api(client, "/faults", {"fault": fault, "times": 1})
        first = send(client, "key")
        again = send(client, "key")
        assert (first.status_code, first.text) == (again.status_code, again.text)
        assert send(client, "other").status_code == 200
        assert count(client) == 1 + fault.startswith("accept")


@pytest.mark.parametrize("fault", ["401", "403", "404", "429", "conflict"])
def test_errors_that_never_stick(fault: str) -> None:
    """What comes before a provider looks at the key is not bound to it."""
    with sandbox(key=replace(KEY, keeps=frozenset(Keeps))) as client:
        api(client, "/faults", {"fault": fault, "times": 1})
        assert send(client, "key").status_code != 200
        assert send(client, "key").status_code == 200


def test_faults_that_a_provider_has_no_words_for(shared: httpx.Client) -> None:
    """They do not strike it."""
    api(shared, "/faults", {"fault": "in_progress"})
    assert send(shared, "words", "Words").status_code == 200
    httpx.delete(shared.base_url.join("/api/faults"))


@pytest.mark.parametrize(("needs", "memory"), [("invalid_key", "none"), ("mismatch", "replays"), ("known", "refuses")])
def test_a_dialect_says_what_its_contract_has_it_say(needs: str, memory: str) -> None:
    """Without the words, there is no such dialect."""
    changes: Any = {"contract": replace(INVENTED.contract, memory=Memory(memory)), needs: None}
    with pytest.raises(TypeError, match=f"invented needs {needs}"):
        replace(INVENTED, **changes)


@pytest.mark.parametrize(
    "order", [{}, {"advance": -1}, {"advance": True}, {"advance": 1, "x": 1}, [], {"advance": 1e300}]
)
def test_orders_that_no_clock_takes(shared: httpx.Client, order: object) -> None:
    """Time goes forward only."""
    answer = httpx.post(shared.base_url.join("/api/clock"), json=order)
    assert (answer.status_code, list(answer.json())) == (422, ["message"])
