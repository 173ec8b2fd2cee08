"""One client of an AWS service for all threads of a process, with everything hidden turned off."""

from __future__ import annotations

import threading
from typing import Any, Literal, Protocol

import boto3  # type: ignore[import-untyped]  # ships no types; the calls that are made are typed below
from botocore.config import Config  # type: ignore[import-untyped]  # the same

from idem.errors import LedgerUnusable
from idem.stores.dynamodb.exchange import check_answer
from idem.stores.dynamodb.signed import sign

_CONNECT_SECONDS = 2.0
_READ_SECONDS = 5.0


class DynamoClient(Protocol):
    """The calls that are made of a boto3 client for DynamoDB; requests and answers are Amazon's JSON."""

    def batch_execute_statement(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102 - named as at Amazon
    def batch_get_item(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102
    def create_table(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102
    def describe_continuous_backups(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102
    def describe_table(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102
    def describe_time_to_live(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102
    def get_item(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102
    def put_item(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102
    def query(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102
    def scan(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102
    def update_continuous_backups(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102
    def update_time_to_live(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class S3Client(Protocol):
    """The calls that are made of a boto3 client for S3."""

    def get_object(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102 - named as at Amazon
    def head_bucket(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102
    def put_object(self, **request: Any) -> dict[str, Any]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Connection:
    """A client that is made at its first use, so that a process that forks before has none to share.

    Credentials come by boto3's own chain. `region` None leaves that to the chain as well. The client never repeats a
    request by itself: a write that was applied and not answered would then meet itself. `signed` takes the hot calls of
    DynamoDB out of boto3's hands, which spends most of a worker's CPU time on them; without it, boto3 does all.
    """

    def __init__(  # noqa: PLR0913 - each is one thing that a deployment decides
        self,
        service: Literal["dynamodb", "s3"],
        region: str | None = None,
        endpoint_url: str | None = None,
        *,
        connections: int = 64,
        signed: bool = False,
        client: Any = None,
    ) -> None:
        self._service = service
        self._region = region
        self._endpoint_url = endpoint_url
        self._connections = connections
        self._signed = signed and service == "dynamodb"
        self._client = client
        self._lock = threading.Lock()

    @property
    def client(self) -> Any:
        """The client; boto3's clients may be shared between threads, its sessions may not.

        https://docs.aws.amazon.com/boto3/latest/guide/clients.html
        """
        if self._client is None:
            with self._lock:
                if self._client is None:
                    self._client = self._make()
        return self._client

    def close(self) -> None:
        """Close the sockets, if there are any; a later use opens new ones."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _make(self) -> Any:
        config = Config(
            retries={"mode": "standard", "total_max_attempts": 1},
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            max_pool_connections=self._connections,
            tcp_keepalive=True,
        )
        try:
            session = boto3.session.Session()
            client = session.client(
                self._service, region_name=self._region, endpoint_url=self._endpoint_url, config=config
            )
            client.meta.events.register(f"after-call.{self._service}", _check_answer)
            if not self._signed:
                return client
            return sign(
                client, session.get_credentials(), connect_seconds=_CONNECT_SECONDS, answer_seconds=_READ_SECONDS
            )
        except Exception as error:
            # No request has been made: a missing region, an unknown profile, an endpoint that is none.
            raise LedgerUnusable(
                f"AWS ({self._service}) cannot be reached with these settings ({type(error).__name__}): "
                "check the region, the profile and the endpoint"
            ) from error


def _check_answer(http_response: Any, **_: Any) -> None:
    """With repetition off, botocore does not look at the checksum; and it takes any text for an empty answer."""
    check_answer(http_response.status_code, http_response.headers, lambda: http_response.content)
