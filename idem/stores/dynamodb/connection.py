"""One client of an AWS service for all threads of a process, with everything hidden turned off."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from idem.aws import CONNECT_SECONDS, Access, SharedClient, make_client
from idem.errors import LedgerUnusable
from idem.stores.dynamodb.exchange import check_answer
from idem.stores.dynamodb.signed import sign

_ANSWER_SECONDS = 5.0


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


class Connection(SharedClient):
    """The client of a region. A write that was applied, not answered and repeated would meet itself.

    `region` None leaves that to boto3's own chain, as credentials are. `signed` takes the hot calls of DynamoDB out of
    boto3's hands, which spends most of a worker's CPU time on them; without it, boto3 does all.
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
        access = Access(
            service=service,
            region=region,
            endpoint_url=endpoint_url,
            connections=connections,
            answer_seconds=_ANSWER_SECONDS,
        )
        finish = _checked_and_signed if signed and service == "dynamodb" else _checked
        super().__init__(lambda: make_client(access, LedgerUnusable, finish), client)


def _checked(client: Any, _: Any) -> Any:
    client.meta.events.register(f"after-call.{client.meta.service_model.service_name}", _check_answer)
    return client


def _checked_and_signed(client: Any, session: Any) -> Any:
    credentials = session.get_credentials()
    return sign(_checked(client, session), credentials, connect_seconds=CONNECT_SECONDS, answer_seconds=_ANSWER_SECONDS)


def _check_answer(http_response: Any, **_: Any) -> None:
    """With repetition off, botocore does not look at the checksum; and it takes any text for an empty answer."""
    check_answer(http_response.status_code, http_response.headers, lambda: http_response.content)
