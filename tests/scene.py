"""A directory with settings, a sandbox, and commands that run as processes: the stage of the end-to-end tests."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from workers.process import idem_command, start_process
from workers.settings import environ_without_settings


class Scene:
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
        """Start a command and leave it running; what it says is not listened to."""
        unheard = subprocess.DEVNULL
        return start_process(idem_command(*args), cwd=self.folder, env=self.environ, stdout=unheard, stderr=unheard)

    def call(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """Ask the sandbox."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.sandbox}{path}", data, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return json.load(response)

    def accepted(self) -> Counter[str]:
        """How often each subject was accepted."""
        return Counter(entry["subject"] for entry in self.call("/api/accepted"))


@contextmanager
def open_scene(folder: Path) -> Iterator[Scene]:
    """A scene in `folder`; its sandbox stops with it."""
    with ExitStack() as stack:
        process = start_process(idem_command("sandbox", "--port", "0"), stdout=subprocess.PIPE)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        yield Scene(folder, process.stdout.readline().decode().split()[-1].rstrip("/"))
