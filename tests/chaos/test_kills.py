"""Real processes, killed for real; what is counted comes from the provider's log, not from our ledger."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from idem.send import Point
from workers.process import idem_command, start_process
from workers.settings import environ_without_settings

_LINES = 2_000

#: An application whose worker kills itself at the point that its environment names.
_CRASHING = """
import os, signal
from idem import Email
from workers import App, Settings

def reach(point):
    if point == os.environ.get("CRASH_AT"):
        os.kill(os.getpid(), signal.SIGKILL)

app = App(Settings.load(), reach=reach)

@app.job()
def report(number):
    return Email(from_="a@example.com", to="b@example.com", subject=f"Report {number}", text="built once")
"""


class Bench:
    """A directory, a sandbox, and commands that run in them."""

    def __init__(self, folder: Path, sandbox: str) -> None:
        self.folder = folder
        self.sandbox = sandbox
        self.environ = environ_without_settings() | {
            "IDEM_LETTERMINT_TOKEN": "lm_test",
            "IDEM_LETTERMINT_BASE_URL": f"{sandbox}/lettermint/v1",
            "IDEM_HTTP_TIMEOUT_SECONDS": "0.8",
            "IDEM_LEASE_SECONDS": "2",
            "IDEM_VISIBILITY_SECONDS": "2.5",
            "IDEM_SHUTDOWN_SECONDS": "5",
            "IDEM_BACKOFF_SECONDS": "0.1",
        }

    def idem(self, *args: str, status: int | None = 0, **environ: str) -> str:
        """Run a command to its end."""
        done = subprocess.run(
            idem_command(*args),
            cwd=self.folder,
            env=self.environ | environ,
            text=True,
            capture_output=True,
            timeout=120,
            check=False,
        )

        assert "Traceback" not in done.stderr
        assert status is None or done.returncode == status, done.stderr

        return done.stdout

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        """Start a command and leave it running."""
        return start_process(idem_command(*args), cwd=self.folder, env=self.environ, stderr=subprocess.DEVNULL)

    def call(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """Ask the sandbox."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.sandbox}{path}", data, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return json.load(response)

    def accepted(self) -> Counter[str]:
        """How often each subject was accepted."""
        return Counter(entry["subject"] for entry in self.call("/api/accepted"))

    def wait_until(self, condition: Callable[[], bool], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.1)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        process = start_process(idem_command("sandbox", "--port", "0"), stdout=subprocess.PIPE)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        yield Bench(tmp_path, process.stdout.readline().decode().split()[-1].rstrip("/"))


def test_two_workers_one_killed_every_second(bench: Bench) -> None:
    """2,000 lines, faults, a kill a second: each line is accepted once, and enqueueing the file again adds nothing."""
    lines = [
        {"from": "a@example.com", "to": f"user-{number}@example.com", "subject": f"Line {number}", "text": "x"}
        for number in range(1, _LINES + 1)
    ]
    (bench.folder / "mails.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for fault, rate in (("accept_then_drop", 0.03), ("accept_then_500", 0.02), ("503", 0.02), ("drop", 0.02)):
        bench.call("/api/faults", "POST", {"provider": "*", "fault": fault, "rate": rate, "times": None})
    bench.call("/api/faults", "POST", {"provider": "*", "fault": "delay", "delay_ms": 30, "times": None})
    bench.idem("enqueue", "mails.jsonl")

    kills = 0
    workers = [bench.start("worker", "--threads", "4") for _ in range(2)]
    try:
        while len(bench.accepted()) < _LINES:
            time.sleep(1)
            victim = workers.pop(0)
            victim.kill()
            victim.wait()
            workers.append(bench.start("worker", "--threads", "4"))
            kills += 1

            assert kills < 120, "the emails do not get through"
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    bench.idem("worker", "--until-empty")

    assert kills >= 3
    assert bench.accepted() == Counter({f"Line {number}": 1 for number in range(1, _LINES + 1)})

    status = json.loads(bench.idem("status", "--json"))

    assert status["queue"] == {"ready": 0, "delayed": 0, "in_flight": 0, "dead": 0}
    assert status["ledger"]["sent"] == _LINES
    assert status["ledger"]["in_doubt"] == status["ledger"]["rejected"] == 0

    again = bench.idem("enqueue", "mails.jsonl")

    assert again.strip() == f"enqueued 0, {_LINES:,} already sent"

    bench.idem("worker", "--until-empty")

    assert bench.accepted().total() == _LINES


def test_a_kill_at_every_crash_point(bench: Bench) -> None:
    """One worker after the other dies at its point with a job in hand; each job's email is accepted once."""
    (bench.folder / "crashing.py").write_text(_CRASHING, encoding="utf-8")
    produce = f"import crashing\nfor n in range({len(Point)}): crashing.report.send(n, key=f'report-{{n}}')"
    subprocess.run([sys.executable, "-c", produce], cwd=bench.folder, env=bench.environ, check=True)

    for point in Point:
        bench.idem("worker", "--app", "crashing:app", "--threads", "1", status=-9, CRASH_AT=point.value)
    bench.idem("worker", "--app", "crashing:app", "--until-empty")

    assert bench.accepted() == Counter({f"Report {number}": 1 for number in range(len(Point))})
    assert json.loads(bench.idem("status", "--json"))["ledger"]["sent"] == len(Point)
