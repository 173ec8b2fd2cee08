"""A client of DynamoDB on the standard library alone: what boto3's own work costs, measured by leaving it out.

For the benchmark only. It signs by hand, has one connection a thread, knows three calls, one set of credentials that
never expires, and no endpoints but the one that it is given.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import http.client
import json
import threading
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

_SIGNED = "content-type;host;x-amz-date;x-amz-target"
_TYPE = "application/x-amz-json-1.0"


class ThinClient:
    """The calls of a boto3 client that a claim and a settle make."""

    def __init__(self, endpoint: str, region: str, access_key: str, secret_key: str) -> None:
        self._host = urlsplit(endpoint).netloc
        self._scope = f"{region}/dynamodb/aws4_request"
        self._access_key = access_key
        self._secret_key = secret_key.encode()
        self._local = threading.local()
        self._day = ("", b"")

    def put_item(self, **request: Any) -> dict[str, Any]:
        return self._call("PutItem", request)

    def get_item(self, **request: Any) -> dict[str, Any]:
        return self._call("GetItem", request)

    def batch_execute_statement(self, **request: Any) -> dict[str, Any]:
        return self._call("BatchExecuteStatement", request)

    def close(self) -> None:
        self._local = threading.local()

    def _call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(request, default=lambda value: base64.b64encode(value).decode()).encode()
        target = f"DynamoDB_20120810.{operation}"
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection(self._host, timeout=5)
        connection.request("POST", "/", body, self._headers(target, body))
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read(), object_hook=_decode)
        if response.status != http.HTTPStatus.OK:
            error = {"Code": answer["__type"].rpartition("#")[2], "Message": answer.get("message", "")}
            refused: Any = {"Error": error, "Item": answer.get("Item")}
            raise ClientError(refused, operation)
        return answer

    def _headers(self, target: str, body: bytes) -> dict[str, str]:
        """Signature version 4: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html."""
        now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
        day = now[:8]
        headers = f"content-type:{_TYPE}\nhost:{self._host}\nx-amz-date:{now}\nx-amz-target:{target}\n"
        canonical = f"POST\n/\n\n{headers}\n{_SIGNED}\n{hashlib.sha256(body).hexdigest()}"
        scope = f"{day}/{self._scope}"
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.new(self._signing_key(day), text.encode(), hashlib.sha256).hexdigest()
        return {
            "Content-Type": _TYPE,
            "X-Amz-Date": now,
            "X-Amz-Target": target,
            "Authorization": f"AWS4-HMAC-SHA256 Credential={self._access_key}/{scope}, "
            f"SignedHeaders={_SIGNED}, Signature={signature}",
        }

    def _signing_key(self, day: str) -> bytes:
        known, key = self._day
        if known != day:
            key = b"AWS4" + self._secret_key
            for part in (day, *self._scope.split("/")):
                key = hmac.new(key, part.encode(), hashlib.sha256).digest()
            self._day = (day, key)
        return key


def _decode(value: dict[str, Any]) -> dict[str, Any]:
    if len(value) == 1 and isinstance(value.get("B"), str):
        return {"B": base64.b64decode(value["B"])}
    return value
