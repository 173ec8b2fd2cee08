"""Every fault: what the client sees of it, and what the log of acceptances says."""

from __future__ import annotations

import random
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from workers.sandbox.faults import BadFault, Fault, Faults, Kind, parse_fault

EMAIL = {"from": "shop@example.com", "to": ["ann@example.com"], "subject": "Hello", "text": "Hi"}

#: What the client sees, how many emails are accepted, and which status is logged.
ON_THE_WIRE = [
    ("accept_then_drop", httpx.RemoteProtocolError, 1, None),
    ("accept_then_hang", httpx.ReadTimeout, 1, None),
    ("accept_then_truncate", httpx.RemoteProtocolError, 1, 202),
    ("drop", httpx.RemoteProtocolError, 0, None),
    ("hang", httpx.ReadTimeout, 0, None),
]
STATUSES = ("400", "401", "402", "403", "404", "408", "413", "422", "429", "500", "502", "503")
AS_AN_ANSWER = [
    ("accept_then_500", 1, 500),
    *((status, 0, int(status)) for status in STATUSES),
    ("in_progress", 0, 409),
    ("conflict", 0, 422),
]


def order(client: httpx.Client, fault: str, **fields: Any) -> None:
    answer = client.post("/api/faults", json={"provider": "lettermint", "fault": fault, **fields})
    assert answer.status_code == 201, answer.text


def send(client: httpx.Client, key: str | None = "key-1", patience: float = 10, **changes: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return client.post(
        "/lettermint/v1/send", json={**EMAIL, **changes}, headers=headers, timeout=httpx.Timeout(10, read=patience)
    )


def accepted(client: httpx.Client) -> int:
    return len(client.get("/api/accepted").json())


def last(client: httpx.Client) -> dict[str, Any]:
    entry: dict[str, Any] = client.get("/api/requests").json()[-1]
    return entry


@pytest.mark.parametrize(("fault", "error", "accepts", "status"), ON_THE_WIRE)
def test_fault_on_the_wire(
    client: httpx.Client, fault: str, error: type[Exception], accepts: int, status: int | None
) -> None:
    """The client sees a broken exchange; the log says whether the email was accepted."""
    order(client, fault, times=1)
    with pytest.raises(error):
        send(client, patience=0.5 if error is httpx.ReadTimeout else 10)
    assert accepted(client) == accepts
    seen = last(client)
    assert (seen["fault"], seen["status"], seen["replayed"]) == (fault, status, False)
    assert (seen["id"] is not None) is bool(accepts)
    again = send(client)
    assert again.status_code == 202
    assert accepted(client) == 1
    assert last(client)["replayed"] is bool(accepts)


@pytest.mark.parametrize(("fault", "accepts", "status"), AS_AN_ANSWER)
def test_fault_as_an_answer(client: httpx.Client, fault: str, accepts: int, status: int) -> None:
    """The client sees an error in the provider's shape; the log says whether the email was accepted."""
    order(client, fault, times=1)
    answer = send(client)
    assert answer.status_code == status
    assert answer.json().keys() == {"message"}
    assert "retry-after" not in answer.headers
    assert accepted(client) == accepts
    assert (last(client)["fault"], last(client)["status"]) == (fault, status)
    assert send(client).status_code == 202
    assert accepted(client) == 1


def test_every_fault_is_tested() -> None:
    """A fault that is added is added to the tests above."""
    tested = {*(case[0] for case in ON_THE_WIRE), *(case[0] for case in AS_AN_ANSWER), "delay", "late", "missing"}
    assert tested == set(Kind)


@pytest.mark.parametrize(("fault", "retry_after", "header"), [("429", 7, "7"), ("503", 0.5, "0.5"), ("500", 0, "0")])
def test_retry_after(client: httpx.Client, fault: str, retry_after: float, header: str) -> None:
    """`retry_after` becomes the header of the answer."""
    order(client, fault, retry_after=retry_after)
    assert send(client).headers["retry-after"] == header


def test_drop_sends_not_one_byte(client: httpx.Client) -> None:
    """A drop is the end of the TCP connection, and no HTTP at all."""
    order(client, "drop")
    assert raw_exchange(client, b"{}") == b""


def test_truncate_announces_more_than_it_sends(client: httpx.Client) -> None:
    """A truncated answer has its whole head, and half of its body."""
    order(client, "accept_then_truncate")
    head, _, body = raw_exchange(client, b"{}").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 422 ")
    announced = int(next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))[15:])
    assert len(body) == announced // 2 > 0


def raw_exchange(client: httpx.Client, body: bytes) -> bytes:
    request = b"POST /lettermint/v1/send HTTP/1.1\r\nhost: x\r\nx-lettermint-token: t\r\ncontent-length: %d\r\n\r\n%s"
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=5) as connection:
        connection.sendall(request % (len(body), body))
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def test_delay(client: httpx.Client) -> None:
    """A delay holds the request up, and then it goes on as usual."""
    order(client, "delay", delay_ms=120)
    started = time.monotonic()
    assert send(client).status_code == 202
    assert time.monotonic() - started >= 0.12
    assert (last(client)["fault"], last(client)["status"]) == ("delay", 202)


def test_delays_add_up_before_another_fault(client: httpx.Client) -> None:
    """Every delay is applied, whatever stands before it, and the first other fault strikes after them."""
    order(client, "503", times=1)
    order(client, "delay", delay_ms=60)
    order(client, "500", delay_ms=60_000)
    order(client, "delay", delay_ms=70)
    started = time.monotonic()
    assert send(client).status_code == 503
    assert time.monotonic() - started >= 0.13
    assert last(client)["fault"] == "503"


def test_client_that_gives_up_during_a_delay(client: httpx.Client) -> None:
    """A request that has arrived can be accepted after its client stopped waiting for it."""
    order(client, "delay", delay_ms=600, times=1)
    with pytest.raises(httpx.ReadTimeout):
        send(client, patience=0.1)
    assert accepted(client) == 0
    deadline = time.monotonic() + 5
    while not accepted(client) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert accepted(client) == 1
    assert last(client)["status"] is None


@pytest.mark.parametrize("fault", ["accept_then_drop", "accept_then_truncate"])
def test_fault_on_a_replay(client: httpx.Client, fault: str) -> None:
    """A replay is replayed before things go wrong: no second acceptance."""
    first = send(client).json()["message_id"]
    order(client, fault)
    with pytest.raises(httpx.RemoteProtocolError):
        send(client)
    assert accepted(client) == 1
    assert (last(client)["replayed"], last(client)["id"]) == (True, first)


def test_fault_on_an_invalid_request(client: httpx.Client) -> None:
    """`accept_then_500` does not accept what the provider would refuse."""
    order(client, "accept_then_500")
    assert send(client, to=[]).status_code == 500
    assert accepted(client) == 0


def test_times_count_down(client: httpx.Client) -> None:
    """A fault strikes as often as ordered, then the next one in line does; the list says what is left."""
    order(client, "500", times=2)
    order(client, "503", times=1)
    assert [fault["times"] for fault in client.get("/api/faults").json()] == [2, 1]
    assert send(client).status_code == 500
    assert [fault["times"] for fault in client.get("/api/faults").json()] == [1, 1]
    assert [send(client).status_code for _ in range(3)] == [500, 503, 202]
    assert client.get("/api/faults").json() == []


def test_faults_of_every_provider_until_cleared(client: httpx.Client) -> None:
    """`*` means every provider, null means without end, and DELETE ends it."""
    order(client, "500", provider="*", times=None)
    assert [send(client).status_code for _ in range(3)] == [500] * 3
    assert client.get("/api/faults").json() == [
        {
            "provider": "*",
            "fault": "500",
            "on": "send",
            "times": None,
            "rate": 1.0,
            "delay_ms": 0.0,
            "retry_after": None,
        }
    ]
    assert client.delete("/api/faults").status_code == 204
    assert client.get("/api/faults").json() == []
    assert send(client).status_code == 202


def test_only_sends_draw_faults(client: httpx.Client) -> None:
    """Neither an unknown path nor another method uses a fault up."""
    order(client, "500", times=1)
    assert client.post("/lettermint/v1/other", json=EMAIL).status_code == 404
    assert client.get("/lettermint/v1/send").status_code == 405
    assert send(client).status_code == 500


def test_hanging_requests_do_not_hold_up_others(client: httpx.Client) -> None:
    """Many requests can hang while others are answered."""
    order(client, "hang", times=8)
    threads = [threading.Thread(target=hang, args=(client,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    while client.get("/api/faults").json():
        time.sleep(0.01)
    assert send(client).status_code == 202
    for thread in threads:
        thread.join()
    assert accepted(client) == 1


def hang(client: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        send(client, key=None, patience=0.5)


def test_dice_are_seeded() -> None:
    """The same seed strikes the same requests, about as many as the rate says."""

    def strikes(seed: int) -> list[bool]:
        faults = Faults(random.Random(seed))
        faults.post(Fault(provider="*", kind=Kind.DROP, rate=0.3))
        return [faults.draw("lettermint").fault is not None for _ in range(2000)]

    assert strikes(7) == strikes(7) != strikes(8)
    assert 500 < sum(strikes(7)) < 700


def test_a_die_that_does_not_fall_passes_to_the_next() -> None:
    """A fault that does not strike is not used up, and the next in line gets its chance."""
    faults = Faults(random.Random(0))
    faults.post(Fault(provider="*", kind=Kind.DROP, rate=0.0, times=1))
    faults.post(Fault(provider="other", kind=Kind.HANG))
    faults.post(Fault(provider="lettermint", kind=Kind.UNAVAILABLE, times=1))
    drawn = faults.draw("lettermint")
    assert drawn.name == "503"
    assert [fault.kind for fault in faults.active()] == [Kind.DROP, Kind.HANG]
    assert faults.draw("lettermint").fault is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not valid JSON"),
        (b"{", "the body is not valid JSON"),
        (b"[" * 100_000, None),
        (b"[]", "a fault is a JSON object"),
        (b"{}", "fault is missing; known: accept_then_drop, accept_then_500, accept_then_hang"),
        (b'{"fault": "explode"}', "unknown fault 'explode'; known: accept_then_drop, "),
        (b'{"fault": ["drop"]}', "unknown fault ['drop']; known: "),
        (b'{"fault": "drop", "provider": "nobody"}', "unknown provider 'nobody'; known: lettermint, "),
        (b'{"fault": "drop", "provider": null}', "unknown provider None; known: lettermint, "),
        (b'{"fault": "drop", "rate": 1.01}', "rate is 1.01: it must be a number from 0 to 1"),
        (b'{"fault": "drop", "rate": -1}', "rate is -1: it must be a number from 0 to 1"),
        (b'{"fault": "drop", "rate": true}', "rate is True: it must be a number from 0 to 1"),
        (b'{"fault": "drop", "times": 0}', "times is 0: it must be a whole number of at least 1"),
        (b'{"fault": "drop", "times": 1.5}', "times is 1.5: it must be a whole number of at least 1"),
        (b'{"fault": "delay"}', "delay needs a delay_ms of more than 0"),
        (b'{"fault": "delay", "delay_ms": -1}', "delay_ms is -1: it must be a number from 0 to 86400000"),
        (b'{"fault": "429", "retry_after": "soon"}', "retry_after is 'soon': it must be a number of seconds"),
        (b'{"fault": "429", "retry_after": -1}', "retry_after is -1: it must be a number of seconds"),
        (b'{"fault": "drop", "time": 1}', "unknown field 'time'; known: provider, fault, on, times"),
    ],
)
def test_bad_orders(client: httpx.Client, body: bytes, message: str | None) -> None:
    """An order that cannot be is refused with one message that says why, and changes nothing."""
    answer = client.post("/api/faults", content=body)
    if message is None:
        assert answer.status_code in {413, 422}
    else:
        assert answer.status_code == 422
        assert answer.json().keys() == {"message"}
        assert message in answer.json()["message"]
    assert client.get("/api/faults").json() == []


def test_order_reads_what_it_writes() -> None:
    """An order survives being written as JSON and read again."""
    fault = Fault(provider="lettermint", kind=Kind.DELAY, times=3, rate=0.5, delay_ms=20.0, retry_after=1.0)
    assert parse_fault(fault.order(), ["lettermint"]) == fault
    assert parse_fault({"fault": 503}, []) == Fault(provider="*", kind=Kind.UNAVAILABLE)
    with pytest.raises(BadFault, match="unknown fault 418"):
        parse_fault({"fault": 418}, [])
