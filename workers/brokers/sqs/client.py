"""One client of an AWS service for all threads of a process, with everything hidden turned off."""

from __future__ import annotations

from typing import Any, Literal

from idem.aws import Access, SharedClient, make_client
from idem.errors import BrokerError

#: Longer than the longest poll.
_ANSWER_SECONDS = 15.0


class Client(SharedClient):
    """The client of a region. A repeated send is a second message; a repeated receive hides what the first brought."""

    def __init__(
        self, service: Literal["sqs", "s3"], region: str, endpoint_url: str | None = None, *, connections: int = 64
    ) -> None:
        access = Access(
            service=service,
            region=region,
            endpoint_url=endpoint_url,
            connections=connections,
            answer_seconds=_ANSWER_SECONDS,
        )
        super().__init__(lambda: make_client(access, BrokerError))
        self.region = region

    @property
    def calls(self) -> Any:
        """What requests are made by."""
        return self.client
