"""`idem enqueue`: the good lines go, the bad ones are named, and running it again adds nothing that was sent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from idem.protocol import State
from tests.workers.parts import Ran, RunIdem, Sandbox, StartIdem, make_email, wait_for
from workers import App, Settings
from workers.process import idem_command


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[App]:
    """A look into the queue and the ledger."""
    app = App(Settings.load(environ, tmp_path))
    yield app
    app.close()


def _line(number: int, **parts: Any) -> str:
    return json.dumps(make_email(number).as_dict() | parts) + "\n"


def _keys(app: App) -> list[str]:
    """The keys in the queue, in order; looking puts them back."""
    consumer = app.broker.consume("default", prefetch=10_000, timeout=10)
    found = []
    while (message := next(consumer)) is not None:
        found.append(message)
    consumer.requeue(found)
    return [message.kwargs["key"] for message in found]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _work(run_idem: RunIdem) -> None:
    assert run_idem("worker", "--until-empty").status == 0


class TestFormats:
    def test_json_lines(self, app: App, tmp_path: Path, call_idem: RunIdem) -> None:
        file = tmp_path / "mails.jsonl"
        file.write_text(_line(1) + "\n" + _line(2, key="own") + _line(3))

        ran = call_idem("enqueue", file)

        assert (ran.status, ran.out, ran.err) == (0, "enqueued 3\n", "")
        assert _keys(app) == [f"{_digest(file)}/1", "own", f"{_digest(file)}/4"]

    def test_csv(self, app: App, tmp_path: Path, call_idem: RunIdem) -> None:
        file = tmp_path / "mails.csv"
        file.write_text('from,to,subject,text,key\na@example.com,b@example.com,S,"two\nlines",\na@b.c,d@e.f,S,T,own\n')

        assert call_idem("enqueue", file).out == "enqueued 2\n"
        assert _keys(app) == [f"{_digest(file)}/2", "own"]

    def test_messages(self, app: App, tmp_path: Path, call_idem: RunIdem) -> None:
        first, second = tmp_path / "first.eml", tmp_path / "second.eml"
        first.write_text("From: a@example.com\nTo: b@example.com\nSubject: S\n\nText\n")
        second.write_text("From: a@example.com\nTo: b@example.com\nSubject: S\nIdempotency-Key: own\n\nText\n")

        assert call_idem("enqueue", first, second).out == "enqueued 2\n"
        assert _keys(app) == [f"{_digest(first)}/1", "own"]

    def test_standard_input(self, app: App, call_idem: RunIdem) -> None:
        lines = _line(1) + _line(2)

        assert call_idem("enqueue", "-", stdin=lines).out == "enqueued 2\n"
        digest = hashlib.sha256(lines.encode()).hexdigest()
        assert _keys(app) == [f"{digest}/1", f"{digest}/2"]

    def test_a_format_that_the_name_does_not_tell(self, app: App, tmp_path: Path, call_idem: RunIdem) -> None:
        (tmp_path / "mails.txt").write_text(_line(1))

        assert call_idem("enqueue", "mails.txt").status == 2
        assert call_idem("enqueue", "--format", "jsonl", "mails.txt").out == "enqueued 1\n"
        assert len(_keys(app)) == 1

    def test_what_is_enqueued_is_what_is_sent(
        self, tmp_path: Path, sandbox: Sandbox, call_idem: RunIdem, run_idem: RunIdem
    ) -> None:
        (tmp_path / "mails.jsonl").write_text(_line(1) + _line(2) + _line(3))

        assert call_idem("enqueue", "mails.jsonl").status == 0
        _work(run_idem)

        assert sorted(sandbox.recipients()) == ["r1@example.com", "r2@example.com", "r3@example.com"]


class TestBadLines:
    def test_they_are_named_by_number_and_the_good_ones_go(self, app: App, tmp_path: Path, call_idem: RunIdem) -> None:
        lines = [
            _line(1),
            "not JSON\n",
            _line(3, to="canary-address-without-at"),
            _line(4),
            _line(5, subjct="x"),
            _line(6, key=""),
            _line(7, tags=["a", "b"]),
            _line(8),
        ]
        (tmp_path / "mails.jsonl").write_text("".join(lines))

        ran = call_idem("enqueue", "mails.jsonl")

        assert ran.status == 1
        assert ran.out == "enqueued 3, refused 5\n"
        starts = [line.split(": ")[1] for line in ran.err.splitlines()]
        assert starts == [f"mails.jsonl line {number}" for number in (2, 3, 5, 6, 7)]
        assert [key.rpartition("/")[2] for key in _keys(app)] == ["1", "4", "8"]

    def test_no_line_shows_an_address_or_content(self, tmp_path: Path, call_idem: RunIdem) -> None:
        bad: list[Mapping[str, Any]] = [
            {"to": "canary@example.com\nBcc: canary@example.com"},
            {"to": ["canary@@example.com"]},
            {"canary@example.com": 1},
            {"headers": {"canary: x": "canary"}},
            {"text": None, "html": None, "subject": "canary@example.com"},
            {"key": "canary@example.com\n"},
        ]
        (tmp_path / "mails.jsonl").write_text("".join(_line(number, **parts) for number, parts in enumerate(bad)))

        ran = call_idem("enqueue", "--json", "mails.jsonl")

        assert ran.status == 1
        assert len(ran.err.splitlines()) == len(bad)
        assert "canary" not in ran.err + ran.out

    def test_one_bad_file_does_not_stop_the_others(self, app: App, tmp_path: Path, call_idem: RunIdem) -> None:
        (tmp_path / "good.jsonl").write_text(_line(1))

        ran = call_idem("enqueue", "missing.jsonl", "good.jsonl")

        assert ran.status == 2
        assert ran.out == "enqueued 1, refused 1\n"
        assert ran.problem == "idem: missing.jsonl does not exist; check the path"
        assert len(_keys(app)) == 1

    @pytest.mark.parametrize("name", ["missing.jsonl", "folder.jsonl", "empty.jsonl", "mails.pdf", "\udcff.jsonl"])
    def test_a_file_that_cannot_be_read_is_status_2(self, tmp_path: Path, call_idem: RunIdem, name: str) -> None:
        (tmp_path / "folder.jsonl").mkdir()
        (tmp_path / "empty.jsonl").touch()
        (tmp_path / "mails.pdf").write_text("x")

        for flags in ([], ["--json"]):
            ran = call_idem("enqueue", *flags, name)

            assert ran.status == 2
            assert ran.problem.startswith("idem: ")


class TestAgain:
    def test_running_it_again_adds_nothing_that_was_sent(
        self, app: App, tmp_path: Path, sandbox: Sandbox, call_idem: RunIdem, run_idem: RunIdem
    ) -> None:
        (tmp_path / "mails.jsonl").write_text(_line(1) + _line(2, key="own"))
        call_idem("enqueue", "mails.jsonl")
        _work(run_idem)

        again = call_idem("enqueue", "mails.jsonl")

        assert (again.status, again.out) == (0, "enqueued 0, 2 already sent\n")
        assert _keys(app) == []
        assert len(sandbox.accepted()) == 2

    def test_running_it_again_before_anything_was_sent_sends_once(
        self, tmp_path: Path, sandbox: Sandbox, call_idem: RunIdem, run_idem: RunIdem
    ) -> None:
        (tmp_path / "mails.jsonl").write_text(_line(1) + _line(2))
        for _ in range(3):
            assert call_idem("enqueue", "mails.jsonl").out == "enqueued 2\n"

        _work(run_idem)

        assert sorted(sandbox.recipients()) == ["r1@example.com", "r2@example.com"]

    def test_another_batch_is_another_intention(
        self, app: App, tmp_path: Path, sandbox: Sandbox, call_idem: RunIdem, run_idem: RunIdem
    ) -> None:
        (tmp_path / "mails.jsonl").write_text(_line(1))
        for batch in ("monday", "tuesday", "monday"):
            assert call_idem("enqueue", "--batch", batch, "mails.jsonl").status == 0

        assert _keys(app) == ["monday/1", "tuesday/1", "monday/1"]
        _work(run_idem)
        assert len(sandbox.accepted()) == 2

    def test_several_files_in_one_batch_do_not_get_in_each_others_way(
        self, app: App, tmp_path: Path, call_idem: RunIdem
    ) -> None:
        one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
        one.write_text(_line(1))
        two.write_text(_line(2))
        call_idem("enqueue", "--batch", "b", one, two)
        there = _keys(app)
        call_idem("enqueue", "--batch", "b", two, one)

        assert there == [f"b/{_digest(one)[:16]}/1", f"b/{_digest(two)[:16]}/1"]
        assert sorted(_keys(app)) == sorted(there * 2)

    @pytest.mark.parametrize("batch", ["", "x" * 256, "a\nb", "\udcff"])
    def test_a_batch_that_is_no_key(self, tmp_path: Path, call_idem: RunIdem, batch: str) -> None:
        (tmp_path / "mails.jsonl").write_text(_line(1))

        ran = call_idem("enqueue", "--batch", batch, "mails.jsonl")

        assert ran.status == 2
        assert ran.problem.startswith("idem: a key ")

    def test_a_key_that_was_sent_for_another_email_is_a_bad_line(
        self, tmp_path: Path, sandbox: Sandbox, call_idem: RunIdem, run_idem: RunIdem
    ) -> None:
        (tmp_path / "first.jsonl").write_text(_line(1, key="own"))
        (tmp_path / "second.jsonl").write_text(_line(2, key="own") + _line(3, key="other"))
        call_idem("enqueue", "first.jsonl")
        _work(run_idem)

        ran = call_idem("enqueue", "second.jsonl")

        assert (ran.status, ran.out) == (1, "enqueued 1, refused 1\n")
        assert ran.problem == (
            "idem: second.jsonl line 1: its key already stands for another email; "
            "give it another key, or another --batch"
        )
        _work(run_idem)
        assert sandbox.recipients() == ["r1@example.com", "r3@example.com"]

    def test_stopped_in_the_middle_and_run_again_each_email_is_sent_once(
        self, app: App, tmp_path: Path, sandbox: Sandbox, start_idem: StartIdem, run_idem: RunIdem
    ) -> None:
        count = 300
        (tmp_path / "mails.jsonl").write_text("".join(_line(number) for number in range(count)))
        running = start_idem("enqueue", "mails.jsonl")
        wait_for(lambda: app.broker.backlog().ready >= 10)
        running.signal(signal.SIGINT)
        assert running.wait() == 130
        before = app.broker.backlog().ready
        assert 10 <= before < count

        assert run_idem("enqueue", "mails.jsonl").out == "enqueued 300\n"

        assert len(set(_keys(app))) == count
        assert app.broker.backlog().ready == before + count
        assert sandbox.accepted() == []


class TestReport:
    def test_as_json(self, tmp_path: Path, call_idem: RunIdem, run_idem: RunIdem) -> None:
        (tmp_path / "mails.jsonl").write_text(_line(1) + "{}\n")
        call_idem("enqueue", "mails.jsonl")
        _work(run_idem)

        ran: Ran = call_idem("enqueue", "--json", "mails.jsonl", "missing.csv")

        assert ran.status == 2
        assert ran.json == {
            "enqueued": 0,
            "ended": {"sent": 1},
            "refused": [
                {"file": "mails.jsonl", "line": 2, "error": "from: is missing"},
                {"file": "missing.csv", "line": None, "error": "missing.csv does not exist; check the path"},
            ],
        }

    def test_a_rejected_email_is_reported_as_such(
        self, app: App, tmp_path: Path, call_idem: RunIdem, run_idem: RunIdem
    ) -> None:
        """A foreign producer enqueued what the provider does not take; the file has the same email."""
        email = make_email(1, metadata={"a": "1"})
        app.enqueue(email, key="own")
        (tmp_path / "mails.jsonl").write_text(json.dumps(email.as_dict() | {"key": "own"}))
        _work(run_idem)
        record = app.ledger.read("own")
        assert record is not None

        state = "sent" if record.state is State.SENT else "rejected"
        assert call_idem("enqueue", "mails.jsonl").out == f"enqueued 0, 1 already {state}\n"


_STOPPED = "idem: stopped; run the same command again to go on"

#: A signal that comes in a finalizer, where Python forgets what its handler raises, at the third line.
_IN_A_FINALIZER = """
import os, signal, sys
from workers.cli import enqueue, run

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def enqueue_line(batch, line, naming):
    if line.number == 3:
        Last()
    true(batch, line, naming)

true, enqueue._enqueue_line = enqueue._enqueue_line, enqueue_line
sys.exit(run(sys.argv[1:]))
"""


class TestStopping:
    """Ctrl-C, wherever it comes."""

    def test_in_a_finalizer(self, app: App, tmp_path: Path, environ: dict[str, str]) -> None:
        (tmp_path / "mails.jsonl").write_text("".join(_line(number) for number in range(40)))
        command = [sys.executable, "-c", _IN_A_FINALIZER, "enqueue", "mails.jsonl"]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)

        assert (done.returncode, done.stderr.strip(), done.stdout) == (130, _STOPPED, "")
        assert app.broker.backlog().ready == 0

    @pytest.mark.parametrize("begun", [False, True])
    def test_while_standard_input_is_silent(self, tmp_path: Path, environ: dict[str, str], *, begun: bool) -> None:
        command = idem_command("enqueue", "-")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, cwd=tmp_path, env=environ, **pipes) as running:
            assert running.stdin is not None
            assert running.stderr is not None
            if begun:
                running.stdin.write(_line(1).encode())
                running.stdin.flush()
            wait_for(lambda: _reads(running.pid))
            running.send_signal(signal.SIGINT)

            assert running.wait(30) == 130
            assert running.stderr.read().decode().strip() == _STOPPED

    def test_while_nobody_writes_to_a_pipe(self, tmp_path: Path, start_idem: StartIdem) -> None:
        os.mkfifo(tmp_path / "mails.jsonl")
        running = start_idem("enqueue", "mails.jsonl")
        wait_for(lambda: _reads(running.pid))
        running.signal(signal.SIGINT)

        assert running.wait() == 130
        assert running.log.strip() == _STOPPED

    def test_a_pipe_is_read_to_its_end(self, app: App, tmp_path: Path, start_idem: StartIdem) -> None:
        """Its writer comes late."""
        os.mkfifo(tmp_path / "mails.jsonl")
        running = start_idem("enqueue", "mails.jsonl")
        wait_for(lambda: _reads(running.pid))
        with (tmp_path / "mails.jsonl").open("w") as pipe:
            pipe.write(_line(1))
            pipe.flush()
            pipe.write(_line(2))

        assert running.wait() == 0
        assert len(_keys(app)) == 2

    def test_at_a_terminal(self, tmp_path: Path, environ: dict[str, str]) -> None:
        ours, terminal = pty.openpty()
        script = (
            "import os, sys, fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        command = [sys.executable, "-c", script, *idem_command("enqueue", "--format", "jsonl", "-")]
        streams: dict[str, Any] = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
        with subprocess.Popen(command, cwd=tmp_path, env=environ, start_new_session=True, **streams) as running:
            os.close(terminal)
            os.write(ours, _line(1).encode())
            wait_for(lambda: _reads(running.pid))
            os.write(ours, b"\x03")

            assert running.wait(30) == 130
            assert _STOPPED in _rest(ours)


def _reads(pid: int) -> bool:
    """Whether a process has made the file that it copies its input to (Linux)."""
    with contextlib.suppress(FileNotFoundError):
        opened = [entry for entry in Path(f"/proc/{pid}/fd").iterdir() if int(entry.name) > 2]
        return any(str(entry.readlink()).endswith("(deleted)") for entry in opened)
    return False


def _rest(descriptor: int) -> str:
    found = b""
    while select.select([descriptor], [], [], 5)[0]:
        try:
            found += os.read(descriptor, 4096)
        except OSError:
            break
    os.close(descriptor)
    return found.decode()
