"""The sandbox as a process: it says where it is, stays quiet, and ends when it is told to, whatever hangs."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from workers.sandbox.app import build_app, running, serve

EMAIL = {"from": "shop@example.com", "to": ["ann@example.com"], "subject": "Hello", "text": "Hi"}
DELAYS = {"delay": 60_000}
SEND = b"POST /lettermint/v1/send HTTP/1.1\r\nhost: x\r\nx-lettermint-token: t\r\n"
PROGRAM = """
from workers.sandbox.app import serve
serve("127.0.0.1", 0, ready=lambda port, _smtp: print(port, flush=True))
print("served", flush=True)
"""


@contextlib.contextmanager
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as child:
        try:
            assert child.stdout is not None
            yield child, f"http://127.0.0.1:{int(child.stdout.readline())}"
        finally:
            child.kill()


def wait_for_requests(url: str, count: int) -> None:
    deadline = time.monotonic() + 5
    while len(httpx.get(f"{url}/api/requests").json()) < count:
        assert time.monotonic() < deadline, "the requests did not arrive"
        time.sleep(0.01)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_within_two_seconds(sig: signal.Signals) -> None:
    """Hanging and delayed requests end without an answer; the process returns from `serve` and says nothing else."""
    errors: list[Exception] = []

    def send(url: str, patience: float) -> None:
        timeout, headers = httpx.Timeout(30, read=patience), {"x-lettermint-token": "t"}
        try:
            httpx.post(f"{url}/lettermint/v1/send", json=EMAIL, headers=headers, timeout=timeout)
        except httpx.HTTPError as error:
            errors.append(error)

    with process() as (child, url):
        threads = []
        for count, (fault, patience) in enumerate(
            (("delay", 30), ("delay", 0.2), ("hang", 30), ("accept_then_hang", 30)), 1
        ):
            httpx.post(f"{url}/api/faults", json={"fault": fault, "times": 1, "delay_ms": DELAYS.get(fault, 0)})
            threads.append(threading.Thread(target=send, args=(url, patience)))
            threads[-1].start()
            wait_for_requests(url, count)
        threads[1].join()
        started = time.monotonic()
        child.send_signal(sig)
        stdout, stderr = child.communicate(timeout=5)
        assert time.monotonic() - started < 2
    for thread in threads:
        thread.join()
    assert (child.returncode, stdout, stderr) == (0, "served\n", "")
    assert sorted(type(error).__name__ for error in errors) == ["ReadTimeout", *["RemoteProtocolError"] * 3]


def test_it_says_nothing_about_its_clients() -> None:
    """Clients that leave in the middle of a request, or speak no HTTP, leave no trace in the output."""
    with process() as (child, url):
        for start in (
            SEND + b"content-length: 100\r\n\r\n{",
            SEND + b"transfer-encoding: chunked\r\n\r\n5\r\n",
            b"\x16\x03\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), timeout=5) as connection:
                connection.sendall(start)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
        wait_for_requests(url, 2)
        child.terminate()
        assert child.communicate(timeout=5) == ("served\n", "")


def test_a_killed_sandbox_leaves_its_clients_without_an_answer() -> None:
    """A process that is killed closes its connections; nobody waits forever."""
    with process() as (child, url), httpx.Client(base_url=url) as client:
        assert client.get("/").status_code == 200
        child.kill()
        child.wait()
        with pytest.raises(httpx.TransportError):
            client.get("/")


def test_a_port_that_is_taken() -> None:
    """It is an `OSError` at once."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        serve("127.0.0.1", taken.getsockname()[1])


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_ipv6() -> None:
    """An IPv6 address works like any other."""
    with running(build_app(), host="::1") as url:
        assert url.startswith("http://[::1]:")
        assert httpx.get(url).status_code == 200


def test_answers_do_not_wait_for_acknowledgements(client: httpx.Client) -> None:
    """Small answers leave at once: with Nagle's algorithm on, each would take 40 ms."""
    started = time.monotonic()
    for _ in range(50):
        client.get("/api/faults")
    assert time.monotonic() - started < 1.5
