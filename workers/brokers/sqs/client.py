"""One client of an AWS service for all threads of a process, with everything hidden turned off."""

from __future__ import annotations

import threading
from typing import Any, Literal

import boto3  # type: ignore[import-untyped]  # ships no types
from botocore.config import Config  # type: ignore[import-untyped]  # the same

from idem.errors import BrokerError

_CONNECT_SECONDS = 2.0
#: Longer than the longest poll.
_READ_SECONDS = 15.0


class Client:
    """A boto3 client that is made at its first use, so that a process that forks before has none to share.

    Credentials come by boto3's own chain. It never repeats a request by itself: a repeated send is a second message,
    and a repeated receive hides what the first one was given.
    """

    def __init__(
        self, service: Literal["sqs", "s3"], region: str, endpoint_url: str | None = None, *, connections: int = 64
    ) -> None:
        self.region = region
        self._service = service
        self._endpoint_url = endpoint_url
        self._connections = connections
        self._made: Any = None
        self._lock = threading.Lock()

    @property
    def calls(self) -> Any:
        """The client; boto3's clients may be shared between threads, its sessions may not.

        https://docs.aws.amazon.com/boto3/latest/guide/clients.html
        """
        made = self._made
        if made is None:
            with self._lock:
                if self._made is None:
                    self._made = self._make()
                made = self._made
        return made

    def close(self) -> None:
        """Close the sockets, if there are any; a later use opens new ones."""
        with self._lock:
            if self._made is not None:
                self._made.close()
                self._made = None

    def _make(self) -> Any:
        config = Config(
            retries={"mode": "standard", "total_max_attempts": 1},
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            max_pool_connections=self._connections,
            tcp_keepalive=True,
        )
        try:
            return boto3.session.Session().client(
                self._service, region_name=self.region, endpoint_url=self._endpoint_url, config=config
            )
        except Exception as error:
            # No request has been made: an unknown region or profile, an endpoint that is none.
            raise BrokerError(
                f"AWS ({self._service}) cannot be reached with these settings ({type(error).__name__}): "
                "check the region, the profile and the endpoint"
            ) from error
