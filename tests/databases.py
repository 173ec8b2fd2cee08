"""SQL databases that tests need: real servers, each started when first asked for, and stopped with the process.

What cannot be started here is a skip; where `CI=true`, it is a failure.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from tests import services
from tests.ports import free_port

Kind = Literal["sqlite", "postgresql", "mariadb"]
KINDS: tuple[Kind, ...] = ("sqlite", "postgresql", "mariadb")

_START_SECONDS = 60.0


def new_database(kind: Kind, folder: Path, *, durable: bool = False) -> str:
    """The URL of an empty database; `durable` has the server sync what it commits, as it would by its defaults."""
    if kind == "sqlite":
        return f"sqlite:///{folder}/shop-{uuid.uuid4().hex}.db"
    server = make_url(postgresql(durable=durable) if kind == "postgresql" else mariadb(durable=durable))
    name = f"shop_{uuid.uuid4().hex}"
    _execute(server, f"CREATE DATABASE {name}")
    return server.set(database=name).render_as_string(hide_password=False)


@functools.cache
def postgresql(*, durable: bool = False) -> str:
    """PostgreSQL; the URL of its first database. It runs as another user where this one is root, which it refuses."""
    programs, port, folder = _postgresql_programs(), free_port(), _folder()
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        shutil.chown(folder, "postgres", "postgres")
    data = folder / "data"
    initdb = [f"{programs}/initdb", "-D", str(data), "-U", "shop", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]
    _run([*initdb, "--no-instructions"], folder, **user)
    sync = "on" if durable else "off"
    command = [f"{programs}/postgres", "-D", str(data), "-p", str(port), "-k", str(folder), "-c", f"fsync={sync}"]
    # A fast shutdown: it does not wait for connections that tests have left open.
    _start([*command, "-c", "listen_addresses=127.0.0.1"], folder, signal.SIGINT, **user)
    return _await(URL.create("postgresql+psycopg", "shop", host="127.0.0.1", port=port, database="postgres"), folder)


@functools.cache
def mariadb(*, durable: bool = False) -> str:
    """MariaDB; the URL of its first database."""
    install, server = _program("mariadb-install-db"), _program("mariadbd")
    port, folder = free_port(), _folder()
    data = folder / "data"
    own = ["--no-defaults", f"--datadir={data}"] + ["--user=root"] * (os.geteuid() == 0)
    _run([install, *own, "--skip-test-db", "--auth-root-authentication-method=normal"], folder)
    where = [f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder}/socket", "--skip-grant-tables"]
    flush = f"--innodb-flush-log-at-trx-commit={int(durable)}"
    _start([server, *own, *where, flush, "--innodb-buffer-pool-size=32M"], folder, signal.SIGTERM)
    return _await(URL.create("mysql+pymysql", "root", host="127.0.0.1", port=port, database="mysql"), folder)


def _postgresql_programs() -> Path:
    """Debian keeps them out of the PATH, a folder for each version."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parent.parent.name))
    return folders[-1].parent if folders else services._missing("PostgreSQL")


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") or services._missing(name)


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="idem-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _run(command: Sequence[str], folder: Path, **user: Any) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, **user)
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-2_000:]


def _start(command: Sequence[str], folder: Path, stop: signal.Signals, **user: Any) -> None:
    with (folder / "log").open("wb") as log:
        server: subprocess.Popen[bytes] = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **user
        )
    atexit.register(_stop, server, stop)


def _stop(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    server.send_signal(number)
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _await(url: URL, folder: Path) -> str:
    patience = time.monotonic() + _START_SECONDS
    while True:
        try:
            _execute(url, "SELECT 1")
        except OperationalError:
            if time.monotonic() > patience:
                pytest.fail(f"it did not start: {(folder / 'log').read_text(errors='replace')[-2_000:]}")
            time.sleep(0.1)
        else:
            return url.render_as_string(hide_password=False)


def _execute(url: URL, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(statement))
    finally:
        engine.dispose()
