"""What AWS says when it does not do what it was asked, as errors of this project: decided in one table.

`BrokerUnavailable` is for what mends itself, and a send may have been done; `BrokerError` for what a person must mend.
No message repeats Amazon's: theirs may hold a part of an email.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from botocore.exceptions import (  # type: ignore[import-untyped]  # ships no types; only these are told apart
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)

from idem.errors import BrokerError, BrokerUnavailable

_SERVER_ERROR = 500
_ACTION = re.compile(r"perform: ([a-z0-9-]+:[A-Za-z0-9]+)")


class Unreadable(BrokerError):
    """Raised for a message that can never be read; says why."""


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
    MISSING = auto()
    """The queue or the bucket has to be created."""
    STALE = auto()
    """The message was given to somebody else, or is gone: SQS knows this receipt no more."""
    WRONG = auto()
    """The queue is not one of ours, or the program has an error."""


#: By Amazon's code, whole calls and single entries alike, without what stands before the last dot or `#`, and without
#: `Exception` at the end.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
KINDS: Final[Mapping[str, Kind]] = {
    # The limit of messages in flight: about 120,000 a queue. The ones that are there have to be worked off first.
    "OverLimit": Kind.BUSY,
    "RequestThrottled": Kind.BUSY,
    "Throttling": Kind.BUSY,
    "ThrottlingError": Kind.BUSY,
    "KmsThrottled": Kind.BUSY,
    "SlowDown": Kind.BUSY,
    "InternalError": Kind.BUSY,
    "InternalFailure": Kind.BUSY,
    "InternalServerError": Kind.BUSY,
    "ServiceUnavailable": Kind.BUSY,
    "ExpiredToken": Kind.EXPIRED,
    "RequestExpired": Kind.EXPIRED,
    "AccessDenied": Kind.DENIED,
    "KmsAccessDenied": Kind.DENIED,
    "UnauthorizedOperation": Kind.DENIED,
    "InvalidSecurity": Kind.STRANGER,
    "UnrecognizedClient": Kind.STRANGER,
    "InvalidSignature": Kind.STRANGER,
    "IncompleteSignature": Kind.STRANGER,
    "MissingAuthenticationToken": Kind.STRANGER,
    "InvalidClientTokenId": Kind.STRANGER,
    "InvalidAccessKeyId": Kind.STRANGER,
    "SignatureDoesNotMatch": Kind.STRANGER,
    "RequestTimeTooSkewed": Kind.STRANGER,
    "NonExistentQueue": Kind.MISSING,
    "QueueDoesNotExist": Kind.MISSING,
    "NoSuchBucket": Kind.MISSING,
    "ReceiptHandleIsInvalid": Kind.STALE,
    "MessageNotInflight": Kind.STALE,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call goes, for the messages: `the SQS queue mail-default`, and what creates it."""

    name: str
    create: str


@contextlib.contextmanager
def translated(place: Place, action: str) -> Iterator[None]:
    """Turn whatever boto3 raises into an error of this project; `action` is what a role needs to be allowed."""
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise failure(place, action, error.response.get("Error", {}), status) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise BrokerError(
            f"{place.name} cannot be reached: no AWS credentials were found ({type(error).__name__}); "
            "set them in the environment, in a profile, or as a role"
        ) from error
    except (CredentialRetrievalError, TokenRetrievalError) as error:
        raise BrokerUnavailable(f"{place.name} does not answer: the AWS credentials could not be renewed") from error
    except BrokerError:
        raise
    except Exception as error:
        # Not only BotoCoreError: an answer that is not Amazon's makes botocore's parser trip in ways of its own.
        raise BrokerUnavailable(f"{place.name} does not answer ({type(error).__name__})") from error


def kind_of(error: Mapping[str, Any], status: int = 0) -> Kind:
    """What an `Error` of Amazon's, of a call or of one entry of a batch, amounts to."""
    code = code_of(error)
    # A code that is new to us: the server's own failures mend themselves, the others are ours.
    return KINDS.get(code, Kind.BUSY if status >= _SERVER_ERROR or not code else Kind.WRONG)


def code_of(error: Mapping[str, Any]) -> str:
    """Amazon's code without its namespace and ending."""
    return re.split(r"[.#]", str(error.get("Code", "")))[-1].removesuffix("Exception")


#: What each kind is raised as, and says.
_MESSAGES: Final[Mapping[Kind, tuple[type[BrokerError], str]]] = {
    Kind.BUSY: (BrokerUnavailable, "{place} does not take the request now ({code})"),
    Kind.EXPIRED: (BrokerUnavailable, "{place} refuses expired AWS credentials ({code}): renew them"),
    Kind.DENIED: (BrokerError, "{place}: the AWS credentials may not do {action}; allow them that action"),
    Kind.STRANGER: (BrokerError, "{place} refuses the AWS credentials ({code}): check them, and the clock"),
    Kind.MISSING: (BrokerError, "{place} does not exist in this region: {create}"),
    Kind.STALE: (BrokerUnavailable, "{place} has given the message to somebody else ({code})"),
    Kind.WRONG: (BrokerError, "{place} refuses the request ({code}): see whether it is the one that was meant"),
}


def failure(place: Place, action: str, error: Mapping[str, Any], status: int = 0) -> BrokerError:
    """The error to raise for an `Error` of Amazon's."""
    raised, text = _MESSAGES[kind_of(error, status)]
    denied = _ACTION.search(str(error.get("Message", "")))
    named = denied[1] if denied else action
    return raised(text.format(place=place.name, create=place.create, code=code_of(error), action=named))
