"""What all services of AWS have in common: how a client of one is made, and what its refusals amount to.

Each service that is used says in a table of its own what its codes mean, and which errors of this project they become.
No message repeats Amazon's: theirs may hold a key, or a part of an email.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Generic, Literal, TypeVar

import boto3  # type: ignore[import-untyped]  # ships no types
from botocore.config import Config  # type: ignore[import-untyped]  # the same
from botocore.exceptions import (  # type: ignore[import-untyped]  # the same; only these are told apart
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)

from idem.errors import IdemError

E = TypeVar("E", bound=IdemError)

#: How long one waits for a connection, of every service.
CONNECT_SECONDS: Final = 2.0
_SERVER_ERROR = 500
_ACTION = re.compile(r"perform: ([a-z0-9-]+:[A-Za-z0-9]+)")
_EXISTS = frozenset({"PreconditionFailed", "412"})
_GONE = frozenset({"NoSuchKey", "404"})


class Kind(Enum):
    """What is to be done about a failure."""

    BUSY = auto()
    """Nothing but waiting."""
    EXPIRED = auto()
    """The credentials have to be renewed, which usually happens by itself."""
    DENIED = auto()
    """An administrator has to grant an action."""
    STRANGER = auto()
    """The credentials are wrong, or the clock is."""
    SKEWED = auto()
    """This machine's clock is wrong, by more than AWS lets pass."""
    MISSING = auto()
    """The table, the queue or the bucket has to be created."""
    STALE = auto()
    """The message was given to somebody else, or is gone: SQS knows this receipt no more."""
    TOO_LARGE = auto()
    """It will never fit."""
    WRONG = auto()
    """The table or the queue is not one of ours, or the program has an error."""


#: What every service says, by Amazon's code as `code_of` has it.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
#: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
CODES: Final[Mapping[str, Kind]] = {
    "InternalFailure": Kind.BUSY,
    "InternalServerError": Kind.BUSY,
    "ServiceUnavailable": Kind.BUSY,
    "SlowDown": Kind.BUSY,
    "Throttling": Kind.BUSY,
    "ThrottlingError": Kind.BUSY,
    "ExpiredToken": Kind.EXPIRED,
    "AccessDenied": Kind.DENIED,
    "UnauthorizedOperation": Kind.DENIED,
    "IncompleteSignature": Kind.STRANGER,
    "InvalidAccessKeyId": Kind.STRANGER,
    "InvalidClientTokenId": Kind.STRANGER,
    "InvalidSignature": Kind.STRANGER,
    "MissingAuthenticationToken": Kind.STRANGER,
    "SignatureDoesNotMatch": Kind.STRANGER,
    "UnrecognizedClient": Kind.STRANGER,
    "NoSuchBucket": Kind.MISSING,
}

#: What mends itself; a person has to mend the rest.
_PASSING: Final = frozenset({Kind.BUSY, Kind.EXPIRED, Kind.STALE})

_MESSAGES: Final[Mapping[Kind, str]] = {
    Kind.BUSY: "{place} does not take the request now ({code})",
    Kind.EXPIRED: "{place} refuses expired AWS credentials ({code}): renew them",
    Kind.DENIED: "{place}: the AWS credentials may not do {action}; allow them that action",
    Kind.STRANGER: "{place} refuses the AWS credentials ({code}): check them, and the clock",
    Kind.SKEWED: "{place} refuses the time of the request: set the clock of this machine",
    Kind.MISSING: "{place} does not exist in this region: {create}",
    Kind.STALE: "{place} has given the message to somebody else ({code})",
    Kind.TOO_LARGE: "{place} takes nothing that large; this was not written",
    Kind.WRONG: "{place} refuses the request ({code}): see whether it is the one that was meant",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call goes, for the messages: `the table orders`, and what creates it."""

    name: str
    create: str


def code_of(error: Mapping[str, Any]) -> str:
    """Amazon's code without its namespace (what stands before the last dot or `#`) and without `Exception`."""
    return re.split(r"[.#]", str(error.get("Code", "")))[-1].removesuffix("Exception")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures(Generic[E]):
    """What the failures of one service are raised as: decided in one table."""

    root: type[E]
    """All that is raised is one of these, and one that passes is not translated again."""
    unavailable: type[E]
    """For what mends itself, and what was asked for may have been done."""
    unusable: type[E]
    """For what a person must mend."""
    kinds: Mapping[str, Kind]
    """By code."""
    said: Sequence[tuple[re.Pattern[str], Kind]] = ()
    """By `CODE: MESSAGE`, where the code alone would mislead; before `kinds`."""
    too_large: tuple[type[E], str] | None = None
    """What never fits, and the message of it."""

    @contextlib.contextmanager
    def translated(self, place: Place, action: str) -> Iterator[None]:
        """Turn whatever boto3 raises into an error of this project; `action` is what a role needs to be allowed."""
        try:
            yield
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            raise self.failure(place, action, error.response.get("Error", {}), status) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise self.unusable(
                f"{place.name} cannot be reached: no AWS credentials were found ({type(error).__name__}); "
                "set them in the environment, in a profile, or as a role"
            ) from error
        except (CredentialRetrievalError, TokenRetrievalError) as error:
            raise self.unavailable(f"{place.name} does not answer: the AWS credentials could not be renewed") from error
        except self.root:
            raise
        except Exception as error:
            # Not only BotoCoreError: an answer that is not Amazon's makes botocore's parser trip in ways of its own.
            raise self.unavailable(f"{place.name} does not answer ({type(error).__name__})") from error

    def failure(self, place: Place, action: str, error: Mapping[str, Any], status: int = 0) -> E:
        """The error to raise for an `Error` of Amazon's, of a call or of one entry of a batch."""
        kind, denied = self.kind_of(error, status), _ACTION.search(str(error.get("Message", "")))
        raised, text = self.unavailable if kind in _PASSING else self.unusable, _MESSAGES[kind]
        if kind is Kind.TOO_LARGE and self.too_large is not None:
            raised, text = self.too_large
        named = denied[1] if denied else action
        return raised(text.format(place=place.name, create=place.create, code=code_of(error), action=named))

    def kind_of(self, error: Mapping[str, Any], status: int = 0) -> Kind:
        """What an `Error` of Amazon's amounts to."""
        code = code_of(error)
        line = f"{code}: {error.get('Message', '')}"
        for pattern, kind in self.said:
            if pattern.search(line):
                return kind
        # A code that is new to us: the server's own failures mend themselves, the others are ours.
        return self.kinds.get(code, Kind.BUSY if status >= _SERVER_ERROR or not code else Kind.WRONG)


class SharedClient:
    """A boto3 client for all threads, made at its first use, so that a process that forks before has none to share."""

    def __init__(self, make: Callable[[], Any], made: Any = None) -> None:
        self._make = make
        self._made = made
        self._lock = threading.Lock()

    @property
    def client(self) -> Any:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a service is reached. Credentials come by boto3's own chain; so does the region where it is None."""

    service: Literal["dynamodb", "s3", "sqs"]
    region: str | None
    endpoint_url: str | None
    connections: int
    answer_seconds: float


def make_client(
    access: Access, unusable: type[IdemError], finish: Callable[[Any, Any], Any] = lambda client, _: client
) -> Any:
    """A boto3 client that never repeats a request by itself: what was done and not answered would be done twice.

    `finish` gets the client and its session, and returns what is used in its place. Raises `unusable` for settings that
    lead nowhere.
    """
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=access.answer_seconds,
        max_pool_connections=access.connections,
        tcp_keepalive=True,
    )
    try:
        session = boto3.session.Session()
        client = session.client(
            access.service, region_name=access.region, endpoint_url=access.endpoint_url, config=config
        )
        return finish(client, session)
    except Exception as error:
        # No request has been made: a missing region, an unknown profile, an endpoint that is none.
        raise unusable(
            f"AWS ({access.service}) cannot be reached with these settings ({type(error).__name__}): "
            "check the region, the profile and the endpoint"
        ) from error


class Objects(Generic[E]):
    """Objects in one bucket of S3, by name."""

    def __init__(self, shared: SharedClient, name: str, create: str, failures: Failures[E]) -> None:
        self.place = Place(f"the S3 bucket {name}", create)
        self._shared = shared
        self._name = name
        self._failures = failures

    def put(self, key: str, data: bytes, *, once: bool = False) -> None:
        """Write an object; `once` leaves one that is there as it is. May be repeated after any failure."""
        options = {"IfNoneMatch": "*"} if once else {}
        with self._failures.translated(self.place, "s3:PutObject"):
            try:
                self._shared.client.put_object(Bucket=self._name, Key=key, Body=data, **options)
            except ClientError as error:
                if code_of(error.response["Error"]) not in _EXISTS:
                    raise

    def get(self, key: str) -> bytes | None:
        """Read an object; None when there is none."""
        with self._failures.translated(self.place, "s3:GetObject"):
            try:
                data: bytes = self._shared.client.get_object(Bucket=self._name, Key=key)["Body"].read()
            except ClientError as error:
                if code_of(error.response["Error"]) in _GONE:
                    return None
                raise
        return data

    def check(self) -> None:
        """Raise an error that says what to do when the bucket is missing or out of reach."""
        with self._failures.translated(self.place, "s3:ListBucket"):
            try:
                self._shared.client.head_bucket(Bucket=self._name)
            except ClientError as error:
                # An answer to HEAD has no body, and therefore no code but the status.
                status = {"404": "NoSuchBucket", "403": "AccessDenied"}
                found = error.response["Error"]
                error.response["Error"] = found | {"Code": status.get(found["Code"], found["Code"])}
                raise

    def close(self) -> None:
        """Close the connections."""
        self._shared.close()
