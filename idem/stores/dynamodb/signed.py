"""The hot calls of a boto3 client without boto3's work: the same answers and errors, for a fraction of the CPU time.

What boto3 decides is asked of it: the endpoint, the region, the certificates, and, for every request, the credentials,
which its own chain finds and renews. Every other call is boto3's. `tests.bench.ledger` measures what that saves.
"""

from __future__ import annotations

import base64
import json
import ssl
import time
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import msgspec
from botocore.exceptions import (  # type: ignore[import-untyped]  # ships no types
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
)
from botocore.httpsession import get_cert_path  # type: ignore[import-untyped]  # the same
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]  # the same
from botocore.utils import get_environ_proxies  # type: ignore[import-untyped]  # the same

from idem.stores.dynamodb.exchange import Answer, Exchanger, Server, check_answer
from idem.stores.dynamodb.signature import Credentials, Signer

_PORTS: Final = {"http": 80, "https": 443}

# Bytes become base64, as Amazon wants them.
_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder()


class SignedClient:
    """A boto3 client for DynamoDB whose `put_item`, `get_item` and `batch_execute_statement` are done here.

    May be shared between threads, and by a process that forks with its child. Requests and answers are boto3's, less
    what is never used of them: no parameter is checked, `ResponseMetadata` has the status only, and sets of binary
    values stay in base64.
    """

    def __init__(self, client: Any, credentials: Any, signer: Signer, exchanger: Exchanger) -> None:
        self._client = client
        self._credentials = credentials
        self._signer = signer
        self._exchanger = exchanger

    def put_item(self, **request: Any) -> dict[str, Any]:
        """See boto3."""
        return self._call("PutItem", request)

    def get_item(self, **request: Any) -> dict[str, Any]:
        """See boto3."""
        return self._call("GetItem", request)

    def batch_execute_statement(self, **request: Any) -> dict[str, Any]:
        """See boto3."""
        return self._call("BatchExecuteStatement", request)

    def close(self) -> None:
        """Close the sockets, boto3's as well."""
        self._exchanger.close()
        self._client.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def _call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        body = _ENCODER.encode(request)
        signed = self._signer.request(operation, body, self._current_credentials(), time.time())
        answer = self._exchanger.exchange(signed)
        check_answer(answer.status, answer.headers, lambda: answer.content)
        content = _parse(answer)
        if answer.status != HTTPStatus.OK:
            failure: Any = _failure(answer.status, content)
            raise ClientError(failure, operation)
        return content

    def _current_credentials(self) -> Credentials:
        if self._credentials is None:
            raise NoCredentialsError
        try:
            # Renewed here when they are about to expire; all parts of one set.
            found = self._credentials.get_frozen_credentials()
        except RuntimeError as error:
            # botocore's way to say that what it was given anew is over as well.
            raise CredentialRetrievalError(provider="AWS", error_msg="expired") from error
        return Credentials(found.access_key, found.secret_key, found.token)


def sign(client: Any, credentials: Any, *, connect_seconds: float, answer_seconds: float) -> Any:
    """The boto3 client with its hot calls done here; the client itself where only boto3 does what is set.

    Which is: a proxy, a path in the endpoint, an endpoint by account, and another form of signature.
    """
    url, config = urlsplit(client.meta.endpoint_url), client.meta.config
    if (
        get_environ_proxies(client.meta.endpoint_url).get(url.scheme)
        or url.scheme not in _PORTS
        or url.path not in {"", "/"}
        or config.signature_version != "v4"
        or getattr(config, "account_id_endpoint_mode", None) == "required"
    ):
        return client
    try:
        # A setting, a profile or one of two variables: boto3 has found out, and tells it nowhere else.
        certificates = client._endpoint.http_session._verify  # noqa: SLF001 - see above; a test holds it in place
    except AttributeError:
        return client
    tls = _tls(certificates) if url.scheme == "https" else None
    server = Server(url.hostname or "", url.port or _PORTS[url.scheme], tls, connect_seconds, answer_seconds)
    return SignedClient(client, credentials, Signer(_host(url), client.meta.region_name), Exchanger(server))


def _tls(certificates: Any) -> ssl.SSLContext:
    """Names and certificates are checked, against the authorities of boto3: those of a path, or, if True, its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False
    context.load_verify_locations(get_cert_path(certificates))
    return context


def _host(url: SplitResult) -> str:
    """As in the header, where a port that goes without saying is left out."""
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname or ""
    return host if url.port in {None, _PORTS[url.scheme]} else f"{host}:{url.port}"


def _parse(answer: Answer) -> dict[str, Any]:
    try:
        # Only frozen bodies are binary; the decoder that looks at every object is the slower one.
        binary = b'"B"' in answer.content
        content = json.loads(answer.content, object_hook=_unpack) if binary else _DECODER.decode(answer.content)
    except (ValueError, RecursionError) as error:
        raise ResponseParserError("the answer is not JSON") from error
    if not isinstance(content, dict):
        raise ResponseParserError("the answer is not one of DynamoDB")
    return content


def _unpack(value: dict[str, Any]) -> dict[str, Any]:
    packed = value.get("B")
    return {"B": base64.b64decode(packed, validate=True)} if len(value) == 1 and isinstance(packed, str) else value


def _failure(status: int, content: dict[str, Any]) -> dict[str, Any]:
    """As boto3 has it: the code without its namespace, and beside it what came with it, such as a stored item."""
    code = str(content.get("__type", status)).rpartition("#")[2]
    message = str(content.get("message", content.get("Message", "")))
    rest = {name: value for name, value in content.items() if name not in {"__type", "message", "Message"}}
    return rest | {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
