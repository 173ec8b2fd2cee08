"""AWS Signature Version 4, for the one form of request that DynamoDB takes: `POST /` with JSON.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Final, NamedTuple

from idem.errors import LedgerUnusable

_TYPE: Final = "application/x-amz-json-1.0"
_SERVICE: Final = "dynamodb"


class Credentials(NamedTuple):
    """One set of credentials; `token` goes with those that expire."""

    access_key: str
    secret_key: str
    token: str | None = None


class _Day(NamedTuple):
    """What is signed with for a day, as long as the credentials stay."""

    date: str
    credentials: Credentials
    key: bytes


class Signer:
    """Signs requests for one host and region; may be shared between threads."""

    def __init__(self, host: str, region: str) -> None:
        self._host = host
        self._region = region
        self._day = _Day("", Credentials("", ""), b"")

    def request(self, operation: str, body: bytes, credentials: Credentials, now: float) -> bytes:
        """The whole request, signed at `now` (Unix seconds)."""
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        day = self._of_day(moment[:8], credentials)
        headers = {
            "content-type": _TYPE,
            "host": self._host,
            "x-amz-date": moment,
            **({"x-amz-security-token": credentials.token} if credentials.token else {}),
            "x-amz-target": f"DynamoDB_20120810.{operation}",
        }
        names = ";".join(headers)
        signed = "".join(f"{name}:{value}\n" for name, value in headers.items())
        canonical = f"POST\n/\n\n{signed}\n{names}\n{hashlib.sha256(body).hexdigest()}"
        scope = f"{day.date}/{self._region}/{_SERVICE}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(day.key, text.encode(), "sha256").hex()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"POST / HTTP/1.1\r\n{lines}user-agent: idem-workers\r\ncontent-length: {len(body)}\r\n"
            f"authorization: AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={names}, Signature={signature}\r\n\r\n"
        )
        return head.encode("ascii") + body

    def _of_day(self, date: str, credentials: Credentials) -> _Day:
        day = self._day
        if day.date != date or day.credentials != credentials:
            # One assignment of a whole: another thread sees the former day, or this one.
            day = self._day = self._begin_day(date, credentials)
        return day

    def _begin_day(self, date: str, credentials: Credentials) -> _Day:
        if not all("!" <= char <= "~" for char in credentials.access_key + (credentials.token or "")):
            # A line break in one of them, as a file's last one, would be read as the end of a header.
            raise LedgerUnusable("the AWS credentials hold a space or a character that is not ASCII: set them anew")
        key = f"AWS4{credentials.secret_key}".encode()
        for part in (date, self._region, _SERVICE, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return _Day(date, credentials, key)
