"""The client that does the hot calls itself: signed as boto3 signs, once for each call, and wrong in no new way."""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]  # ships no types
import botocore.auth  # type: ignore[import-untyped]  # the same
import botocore.credentials  # type: ignore[import-untyped]  # the same
import botocore.exceptions  # type: ignore[import-untyped]  # the same
import pytest
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]  # the same
from hypothesis import given
from hypothesis import strategies as st

from idem.errors import LedgerError, LedgerUnavailable, LedgerUnusable
from idem.stores.dynamodb import Connection, DynamoStore, exchange
from idem.stores.dynamodb.signature import Credentials, Signer
from idem.stores.dynamodb.signed import SignedClient, sign
from tests import services
from tests.idem.providers.test_http import Script, Server
from tests.idem.stores.dynamodb.test_failures import CASES, error
from tests.records import make_record

_NOW = 1_800_000_000.0
_PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


@given(
    credentials=st.builds(Credentials, _PRINTABLE, st.text(min_size=1, max_size=40), st.none() | _PRINTABLE),
    body=st.binary(max_size=200),
    host=st.sampled_from(["dynamodb.eu-west-1.amazonaws.com", "127.0.0.1:8000", "[::1]:8000"]),
    now=st.integers(1_800_000_000, 1_800_300_000),
)
def test_the_signature_is_the_one_of_botocore(credentials: Credentials, body: bytes, host: str, now: float) -> None:
    """Its own signer, given the headers that we send, comes to the same `authorization`."""
    head, _, sent = Signer(host, "eu-west-1").request("PutItem", body, credentials, now).partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    ours = headers.pop("authorization")
    unsigned = {"content-length", "user-agent", "x-amz-date", "x-amz-security-token"}
    request = AWSRequest("POST", f"http://{host}/", {k: v for k, v in headers.items() if k not in unsigned}, sent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda: dt.datetime.fromtimestamp(now, dt.UTC))
        theirs = botocore.credentials.Credentials(*credentials)
        botocore.auth.SigV4Auth(theirs, "dynamodb", "eu-west-1").add_auth(request)

    assert sent == body
    assert ours == request.headers["Authorization"]


def test_another_set_of_credentials_is_signed_with_at_once() -> None:
    signer = Signer("localhost", "eu-west-1")
    first, second = Credentials("AK1", "s"), Credentials("AK1", "t")
    requests = [signer.request("GetItem", b"", each, _NOW) for each in (first, second, first)]

    assert requests[0] == requests[2] != requests[1]


@pytest.mark.parametrize("credentials", [Credentials("AK\n", "s"), Credentials("AK", "s", "t\r\nx: y")])
def test_credentials_that_would_break_the_head_are_refused(credentials: Credentials) -> None:
    with pytest.raises(LedgerUnusable, match="AWS credentials hold"):
        Signer("localhost", "eu-west-1").request("GetItem", b"", credentials, _NOW)


def http(content: bytes, status: int = 200, **headers: str) -> bytes:
    """An answer of Amazon's; a header that is empty is left out."""
    given = {"content_length": str(len(content)), "x_amzn_requestid": "1", "x_amz_crc32": str(zlib.crc32(content))}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in (given | headers).items() if value]
    return f"HTTP/1.1 {status} Said\r\n{''.join(lines)}\r\n".encode() + content


def answering(*answers: bytes, then: Callable[[Server], None] = lambda _: None) -> Script:
    """One connection: an answer to each request, and `then` before it is closed."""

    def script(server: Server, connection: socket.socket) -> None:
        for answer in answers:
            if server.read_request(connection):
                connection.sendall(answer)
        then(server)

    return script


def until_stopped(server: Server) -> None:
    server.stopped.wait(30)


@contextlib.contextmanager
def client_of(*scripts: Script, answer_seconds: float = 5.0) -> Iterator[tuple[DynamoStore, Server]]:
    """A store that writes alone through the signed client, and the server that answers it by the scripts."""
    with Server(*scripts) as server:
        plain = services.connect("dynamodb", f"http://127.0.0.1:{server.port}").client
        credentials = boto3.session.Session().get_credentials()
        client = sign(plain, credentials, connect_seconds=2.0, answer_seconds=answer_seconds)
        assert isinstance(client, SignedClient)
        store = DynamoStore(Connection("dynamodb", client=client), "orders", grouped=False)
        try:
            yield store, server
        finally:
            store.close()


def drip(server: Server, connection: socket.socket) -> None:
    """A byte at a time, which never lets a single wait run out."""
    server.read_request(connection)
    for byte in http(b"{}"):
        connection.sendall(bytes([byte]))
        if server.stopped.wait(0.02):
            return


def close_unanswered(server: Server, connection: socket.socket) -> None:
    server.read_request(connection)


BAD = {
    "no answer": close_unanswered,
    "never answered": answering(b"", then=until_stopped),
    "a byte at a time": drip,
    "cut off in its head": answering(http(b"{}")[:20]),
    "cut off in its content": answering(http(b"{}")[:-1]),
    "not HTTP": answering(b"SSH-2.0-x\r\n\r\n"),
    "no status": answering(b"HTTP/1.1 OK\r\n\r\n"),
    "a head without an end": answering(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000, then=until_stopped),
    "no length": answering(http(b"{}", content_length="")),
    "a length that is none": answering(http(b"{}", content_length="-2")),
    "too long": answering(http(b"{}", content_length="99999999999")),
    "a chunk that is none": answering(http(b"x\r\n{}", transfer_encoding="chunked", content_length="")),
    "no request id": answering(http(b"{}", x_amzn_requestid="")),
    "a wrong checksum": answering(http(b"{}", x_amz_crc32="1")),
    "a checksum that is none": answering(http(b"{}", x_amz_crc32="x")),
    "not JSON": answering(http(b"<html>")),
    "empty": answering(http(b"")),
    "not an object": answering(http(b"[]")),
    "not base64": answering(http(b'{"Item": {"b": {"B": "!"}}}')),
    "a redirect": answering(http(b"", status=301, location="http://127.0.0.1:9/")),
    "a proxy's error": answering(http(b"<html>", status=502, x_amzn_requestid="")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_no_answer(name: str) -> None:
    """Nor is the request made again: it may have been applied."""
    said = pytest.raises(LedgerUnavailable, match="the DynamoDB table orders")
    with client_of(BAD[name], answer_seconds=0.3) as (store, server), said:
        store.swap(None, make_record())
    assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "code", "expected", "said"), CASES)
def test_each_error_of_aws_is_the_one_that_boto3_would_bring(
    status: int, code: str, expected: type[LedgerError], said: str
) -> None:
    with client_of(answering(http(error(code), status))) as (store, server), pytest.raises(expected, match=said):
        store.swap(None, make_record())
    assert len(server.requests) == 1


def test_a_refusal_brings_the_stored_item_and_its_bytes() -> None:
    with client_of(
        answering(http(b'{"__type":"x#ConditionalCheckFailedException","Item":{"b":{"B":"AP8="}}}', 400))
    ) as (
        store,
        _,
    ):
        client: Any = store._client
        with pytest.raises(botocore.exceptions.ClientError) as raised:
            client.put_item(TableName="orders", Item={})
    response: Any = raised.value.response

    assert response["Error"]["Code"] == "ConditionalCheckFailedException"
    assert response["Item"] == {"b": {"B": b"\x00\xff"}}
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_a_chunked_answer_is_read() -> None:
    chunked = http(
        b"1;x=y\r\n{\r\n1\r\n}\r\n0\r\nx: y\r\n\r\n", transfer_encoding="chunked", content_length="", x_amz_crc32=""
    )
    with client_of(answering(chunked, chunked)) as (store, server):
        assert store.read("k") is None
        assert store.read("k") is None
    assert server.connections == 1


OK = http(b"{}")


def test_a_connection_is_kept() -> None:
    with client_of(answering(OK, OK, OK)) as (store, server):
        for _ in range(3):
            assert store.swap(None, make_record()) is None
    assert server.connections == 1


@pytest.mark.parametrize(
    ("first", "used_once"),
    [
        (answering(OK), "the server closed it"),
        (answering(http(b"{}", connection="close"), then=until_stopped), "the server will"),
        (answering(OK.replace(b"HTTP/1.1", b"HTTP/1.0"), then=until_stopped), "an old server will"),
        (answering(OK + OK, then=until_stopped), "it holds what nobody asked for"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_stale_connection_is_not_used(first: Script, used_once: str) -> None:
    """And costs no request: neither a failed nor a second one."""
    with client_of(first, answering(OK)) as (store, server):
        assert store.swap(None, make_record()) is None
        if used_once == "the server closed it":
            client: Any = store._client
            (kept,) = client._exchanger._idle
            kept.sock.setblocking(True)  # noqa: FBT003 - a socket's own form
            assert kept.sock.recv(1, socket.MSG_PEEK) == b"", "the end has arrived"
        assert store.swap(None, make_record()) is None
    assert (len(server.requests), server.connections) == (2, 2)


@pytest.mark.parametrize("reason", ["idle for long", "of another process"])
def test_a_connection_that_cannot_be_trusted_is_not_used(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    with client_of(answering(OK, then=until_stopped), answering(OK)) as (store, server):
        assert store.swap(None, make_record()) is None
        if reason == "idle for long":
            monkeypatch.setattr(exchange, "_IDLE_SECONDS", -1.0)
        else:
            parent = os.getpid()
            monkeypatch.setattr("os.getpid", lambda: parent + 1)
        assert store.swap(None, make_record()) is None
    assert (len(server.requests), server.connections) == (2, 2)


def test_a_connection_that_ends_under_a_request_is_an_error_once() -> None:
    def serve(server: Server, connection: socket.socket) -> None:
        server.read_request(connection)
        connection.sendall(OK)
        server.read_request(connection)

    with client_of(serve, answering(OK)) as (store, server):
        assert store.swap(None, make_record()) is None
        with pytest.raises(LedgerUnavailable):
            store.swap(None, make_record())
        assert len(server.requests) == 2, "it was not made again"
        assert store.swap(None, make_record()) is None


def test_nothing_stays_open_after_close() -> None:
    """Also not the connection of a request that was under way."""
    with client_of(answering(OK, OK)) as (store, server):
        client: Any = store._client
        store.read("k")
        client.close()
        assert not client._exchanger._idle
        client.get_item(TableName="orders", Key={})
        assert not client._exchanger._idle
    assert server.connections == 2


def test_nothing_stays_open_when_nobody_closes() -> None:
    """A warning about an open socket would fail this test."""
    with Server(answering(OK)) as server:
        client = services.connect("dynamodb", f"http://127.0.0.1:{server.port}", signed=True).client
        client.get_item(TableName="orders", Key={})
        (kept,) = client._exchanger._idle
        client._client.close()
        del client
        gc.collect()
        assert kept.sock.fileno() == -1


def test_the_rare_calls_are_boto3s() -> None:
    client = services.connect("dynamodb", "http://127.0.0.1:9", signed=True).client

    assert client.meta.service_model.service_name == "dynamodb"
    assert client.query.__self__.meta is client.meta


@pytest.mark.parametrize(
    ("environ", "endpoint", "expected"),
    [
        ({}, "http://127.0.0.1:9", True),
        ({"HTTP_PROXY": "http://127.0.0.1:8"}, "http://127.0.0.1:9", False),
        ({"HTTPS_PROXY": "http://127.0.0.1:8"}, None, False),
        ({"HTTPS_PROXY": "http://127.0.0.1:8"}, "http://127.0.0.1:9", True),
        ({"HTTP_PROXY": "http://127.0.0.1:8", "NO_PROXY": "127.0.0.1"}, "http://127.0.0.1:9", True),
        ({}, "http://127.0.0.1:9/aws", False),
        ({"AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:9/aws"}, None, False),
        ({"AWS_ACCOUNT_ID_ENDPOINT_MODE": "required"}, None, False),
    ],
)
def test_what_only_boto3_does_is_left_to_it(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], endpoint: str | None, *, expected: bool
) -> None:
    services.connect("dynamodb", "http://127.0.0.1:9")
    _without_proxies(monkeypatch)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    client = Connection("dynamodb", "eu-west-1", endpoint, signed=True).client

    assert isinstance(client, SignedClient) is expected
    client.close()


def _without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("environ", "host", "region"),
    [
        ({}, "dynamodb.eu-west-1.amazonaws.com", "eu-west-1"),
        ({"AWS_USE_FIPS_ENDPOINT": "true"}, "dynamodb-fips.eu-west-1.amazonaws.com", "eu-west-1"),
        ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "dynamodb.eu-west-1.api.aws", "eu-west-1"),
        ({"AWS_ENDPOINT_URL": "http://[::1]:8000"}, "[::1]:8000", "eu-west-1"),
        ({"AWS_ENDPOINT_URL": "https://Example.com:443"}, "example.com", "eu-west-1"),
    ],
)
def test_the_endpoint_is_the_one_that_boto3_resolves(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], host: str, region: str
) -> None:
    services.connect("dynamodb", "http://127.0.0.1:9")
    _without_proxies(monkeypatch)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    client = Connection("dynamodb", "eu-west-1", signed=True).client

    assert (client._signer._host, client._signer._region) == (host, region)
    assert (client._exchanger._server.tls is not None) == client.meta.endpoint_url.startswith("https")
    client.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1 in one file."""
    if shutil.which("openssl") is None:
        assert os.environ.get("CI") != "true", "CI needs the openssl command"
        pytest.skip("needs the openssl command")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, certificate: Path) -> Callable[[str | None], None]:
    """Makes boto3 trust the certificate, by the setting that is named."""

    def trust(setting: str | None) -> None:
        services.connect("dynamodb", "http://127.0.0.1:9")
        for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
            monkeypatch.delenv(name, raising=False)
        if setting == "profile":
            (tmp_path / "config").write_text(f"[default]\nca_bundle = {certificate}.crt\n")
            monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        elif setting is not None:
            monkeypatch.setenv(setting, f"{certificate}.crt")

    return trust


@contextlib.contextmanager
def tls_store(certificate: Path, host: str) -> Iterator[tuple[DynamoStore, Server]]:
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate)
    with Server(answering(OK, OK), tls=theirs) as server:
        store = DynamoStore(Connection("dynamodb", "us-east-1", f"https://{host}:{server.port}", signed=True), "orders")
        try:
            yield store, server
        finally:
            store.close()


@pytest.mark.parametrize("setting", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "profile"])
def test_certificates_are_checked_against_what_boto3_goes_by(
    certificate: Path, trusting: Callable[[str | None], None], setting: str
) -> None:
    trusting(setting)
    with tls_store(certificate, "127.0.0.1") as (store, server):
        assert store.read("k") is None
        assert store.read("k") is None
    assert server.connections == 1


@pytest.mark.parametrize(("setting", "host"), [(None, "127.0.0.1"), ("AWS_CA_BUNDLE", "localhost")])
def test_a_stranger_is_told_nothing(
    certificate: Path, trusting: Callable[[str | None], None], setting: str | None, host: str
) -> None:
    """A certificate that nobody vouches for, and one for another name (which its CN, that does not count, would be)."""
    trusting(setting)
    with (
        tls_store(certificate, host) as (store, server),
        pytest.raises(LedgerUnavailable, match="SSLCertVerificationError"),
    ):
        store.read("k")
    assert server.requests == []


#: At Amazon, statements are allowed one by one (PartiQLInsert, PartiQLUpdate); ministack looks at the call.
_POLICY = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Action": [
                f"dynamodb:{action}" for action in ("DescribeTable", "PutItem", "GetItem", "BatchExecuteStatement")
            ],
            "Resource": "*",
        }
    ],
}


class Account:
    """A ministack that checks signatures, permissions and the time; a table, and users with keys."""

    def __init__(self) -> None:
        self.url = services.ministack_with_auth()
        self.table = services.table(self.url)
        self._iam = boto3.client("iam", endpoint_url=self.url, region_name=services.REGION)

    def add_user(self, *, allowed: bool = True) -> dict[str, str]:
        """A user's key, as a credential process prints it."""
        name = uuid.uuid4().hex
        self._iam.create_user(UserName=name)
        if allowed:
            self._iam.put_user_policy(UserName=name, PolicyName="worker", PolicyDocument=json.dumps(_POLICY))
        key = self._iam.create_access_key(UserName=name)["AccessKey"]
        return {"UserName": name, "AccessKeyId": key["AccessKeyId"], "SecretAccessKey": key["SecretAccessKey"]}

    def withdraw(self, key: dict[str, str]) -> None:
        self._iam.update_access_key(UserName=key["UserName"], AccessKeyId=key["AccessKeyId"], Status="Inactive")

    def close(self) -> None:
        self._iam.close()


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    account = Account()
    yield account
    account.close()


class Chain:
    """Credentials as boto3's chain has them from a process that prints what a file holds, to be renewed at any time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = folder / "credentials.json"
        (folder / "config").write_text(
            f"[default]\ncredential_process = {sys.executable} -c \"print(open('{self._path}').read())\"\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)

    def give(self, key: dict[str, str], **changes: str) -> None:
        """In five minutes they are over, so that boto3 asks for others each time."""
        over = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)
        self._path.write_text(json.dumps({"Version": 1, "Expiration": over.isoformat()} | key | changes))


@pytest.fixture
def store(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[DynamoStore, Chain]]:
    services.connect("dynamodb", account.url)
    chain = Chain(tmp_path, monkeypatch)
    connection = Connection("dynamodb", services.REGION, account.url, signed=True)
    store = DynamoStore(connection, account.table, namespace=uuid.uuid4().hex)
    yield store, chain
    store.close()


def test_a_signature_is_accepted_and_renewed_credentials_are_used(
    account: Account, store: tuple[DynamoStore, Chain]
) -> None:
    """A worker that runs for days: its key is replaced, the old one withdrawn, and nothing is restarted."""
    opened, chain = store
    first, second = account.add_user(), account.add_user()
    chain.give(first)
    assert opened.swap(None, make_record("a")) is None
    account.withdraw(first)
    with pytest.raises(LedgerUnusable, match="refuses the AWS credentials"):
        opened.swap(None, make_record("b"))
    chain.give(second)
    assert opened.swap(None, make_record("b")) is None
    assert opened.read("a") == make_record("a")
    opened.check()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SecretAccessKey": "wrong"}, r"refuses the AWS credentials \(InvalidSignature\)"),
        ({"AccessKeyId": "AKIAUNKNOWNUNKNOWN00"}, r"refuses the AWS credentials \(UnrecognizedClient\)"),
        ({"SessionToken": "made-up"}, "refuses the AWS credentials"),
        ({"Expiration": "2020-01-01T00:00:00Z"}, "credentials could not be renewed"),
    ],
    ids=str,
)
def test_wrong_credentials_are_a_clear_error(
    account: Account, store: tuple[DynamoStore, Chain], changes: dict[str, str], said: str
) -> None:
    opened, chain = store
    key = account.add_user()
    chain.give(key, **changes)
    with pytest.raises(LedgerError, match=said) as raised:
        opened.swap(None, make_record())
    assert key["SecretAccessKey"] not in str(raised.value)


def test_a_missing_permission_is_named(account: Account, store: tuple[DynamoStore, Chain]) -> None:
    opened, chain = store
    chain.give(account.add_user(allowed=False))
    with pytest.raises(LedgerUnusable, match="dynamodb:PutItem"):
        opened.swap(None, make_record())


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_clock_that_is_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, account: Account, store: tuple[DynamoStore, Chain], hours: int
) -> None:
    opened, chain = store
    chain.give(account.add_user())
    opened.read("k")
    client: Any = opened._client
    sign_at = client._signer.request
    monkeypatch.setattr(client._signer, "request", lambda *given: sign_at(*given[:3], time.time() + hours * 3_600))
    with pytest.raises(LedgerUnusable, match="clock of this machine"):
        opened.swap(None, make_record())


def test_without_credentials_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    services.connect("dynamodb", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    store = DynamoStore(Connection("dynamodb", "us-east-1", "http://127.0.0.1:9", signed=True), "orders")
    with pytest.raises(LedgerUnusable, match="no AWS credentials were found"):
        store.read("k")
    store.close()
