"""`idem sandbox`: the command around the sandbox."""

from __future__ import annotations

import json
import signal
import smtplib
import socket
import urllib.request

import pytest

from tests.workers.parts import RunIdem, Running, StartIdem, wait_for
from workers.settings import PROVIDERS


def _url(running: Running, places: int) -> str:
    def said() -> bool:
        return len(running.log.splitlines()) == 1 + places

    wait_for(said)
    inbox, lettermint, *_ = running.log.splitlines()
    url = inbox.split()[-1].rstrip("/")
    assert inbox == f"inbox and log    {url}/"
    assert lettermint == f"Lettermint       IDEM_LETTERMINT_BASE_URL={url}/lettermint/v1"
    return url


def test_it_says_where_every_provider_is(start_idem: StartIdem) -> None:
    """The lines are settings, all of them with SMTP."""
    sandbox = start_idem("sandbox", "--port", "0", "--smtp-port", "0")
    url = _url(sandbox, len(PROVIDERS))
    settings = dict(line.split()[-1].split("=") for line in sandbox.log.splitlines()[1:])
    assert settings.keys() == {f"IDEM_{name.upper()}_BASE_URL" for name in PROVIDERS}
    assert settings["IDEM_MAILGUN_BASE_URL"] == f"{url}/mailgun/v3/example.com"
    assert settings["IDEM_SES_BASE_URL"] == f"{url}/ses"
    assert settings["IDEM_SMTP_BASE_URL"].startswith("smtp://127.0.0.1:")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_is_answers_there_and_ends_when_told(start_idem: StartIdem, number: int) -> None:
    sandbox = start_idem("sandbox", "--port", "0")
    said = sum("smtp" not in name for name in PROVIDERS)
    url = _url(sandbox, said)
    with urllib.request.urlopen(f"{url}/api/accepted") as answer:  # noqa: S310 - our own
        assert json.load(answer) == []

    sandbox.signal(number)

    assert sandbox.wait() == 0
    assert len(sandbox.log.splitlines()) == 1 + said


def test_it_says_where_it_speaks_smtp(start_idem: StartIdem) -> None:
    sandbox = start_idem("sandbox", "--port", "0", "--smtp-port", "0")
    wait_for(lambda: "IDEM_SMTP_BASE_URL=smtp://127.0.0.1:" in sandbox.log)
    port = int(sandbox.log.split()[-1].rpartition(":")[2])
    with smtplib.SMTP("127.0.0.1", port, local_hostname="localhost", timeout=10) as client:
        client.sendmail("a@example.com", ["b@example.com"], "Subject: Hello\r\n\r\nHi\r\n")

    sandbox.signal(signal.SIGTERM)

    assert sandbox.wait() == 0


def test_a_port_that_is_taken_is_one_line(call_idem: RunIdem) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = call_idem("sandbox", "--port", port)

    assert ran.status == 2
    assert ran.problem == (
        f"idem: cannot listen on 127.0.0.1 port {port} (Address already in use): choose another --port"
    )


def test_an_address_that_is_not_ours_is_one_line(call_idem: RunIdem) -> None:
    """192.0.2.1 is for documentation and nobody's."""
    ran = call_idem("sandbox", "--port", "0", "--host", "192.0.2.1")

    assert ran.status == 2
    assert ran.problem.startswith("idem: cannot listen on 192.0.2.1 port 0 (")


def test_a_name_that_is_no_address_is_one_line(call_idem: RunIdem) -> None:
    ran = call_idem("sandbox", "--port", "0", "--host", "no such host.invalid")

    assert ran.status == 2
    assert ran.problem.startswith("idem: cannot listen on no such host.invalid port 0 (")
