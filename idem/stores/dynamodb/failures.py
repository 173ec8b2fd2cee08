"""What AWS says when it does not do what it was asked, as errors of this project: decided in one table.

Whatever is said, nothing is sent on account of it. `LedgerUnavailable` is for what mends itself, and the write may have
been applied; `LedgerUnusable` for what a person must mend. No message repeats Amazon's: theirs may hold a key.
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

from idem.errors import LedgerError, LedgerUnavailable, LedgerUnusable

#: The condition of a write did not hold: an answer, not a failure.
CONDITION_FAILED: Final = frozenset({"ConditionalCheckFailedException", "ConditionalCheckFailed", "DuplicateItem"})

_SERVER_ERROR = 500
_ACTION = re.compile(r"perform: ([a-z0-9-]+:[A-Za-z0-9]+)")


class Kind(Enum):
    """What is to be done about a failure."""

    BUSY = auto()
    """Nothing but waiting."""
    EXPIRED = auto()
    """The credentials have to be renewed, which usually happens by itself."""
    DENIED = auto()
    """An administrator has to grant an action."""
    STRANGER = auto()
    """The credentials are wrong."""
    SKEWED = auto()
    """This machine's clock is wrong, by more than AWS lets pass."""
    MISSING = auto()
    """The table or the bucket has to be created."""
    TOO_LARGE = auto()
    """The record will never fit."""
    WRONG = auto()
    """The table is not one of ours, or the program has an error."""


#: By Amazon's code, whole calls and single statements alike; `Exception` at the end is dropped before the look-up.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
#: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchStatementError.html
KINDS: Final[Mapping[str, Kind]] = {
    "ProvisionedThroughputExceeded": Kind.BUSY,
    "RequestLimitExceeded": Kind.BUSY,
    "LimitExceeded": Kind.BUSY,
    "Throttling": Kind.BUSY,
    "ThrottlingError": Kind.BUSY,
    "SlowDown": Kind.BUSY,
    "InternalServerError": Kind.BUSY,
    "InternalFailure": Kind.BUSY,
    "ServiceUnavailable": Kind.BUSY,
    "TransactionConflict": Kind.BUSY,
    "TransactionInProgress": Kind.BUSY,
    # A table with strong multi-region consistency answers so to one of two regions that write at the same moment.
    "ReplicatedWriteConflict": Kind.BUSY,
    # S3, of two conditional writes of one object at the same moment.
    "ConditionalRequestConflict": Kind.BUSY,
    "ResourceInUse": Kind.BUSY,
    "ExpiredToken": Kind.EXPIRED,
    "RequestExpired": Kind.SKEWED,
    "AccessDenied": Kind.DENIED,
    "UnauthorizedOperation": Kind.DENIED,
    "UnrecognizedClient": Kind.STRANGER,
    "InvalidSignature": Kind.STRANGER,
    "IncompleteSignature": Kind.STRANGER,
    "MissingAuthenticationToken": Kind.STRANGER,
    "InvalidClientTokenId": Kind.STRANGER,
    "InvalidAccessKeyId": Kind.STRANGER,
    "SignatureDoesNotMatch": Kind.STRANGER,
    "RequestTimeTooSkewed": Kind.SKEWED,
    "ResourceNotFound": Kind.MISSING,
    "TableNotFound": Kind.MISSING,
    "NoSuchBucket": Kind.MISSING,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call goes, for the messages: `the table orders`, and what creates it."""

    name: str
    create: str


def table_place(table: str) -> Place:
    """The table as messages call it."""
    return Place(f"the DynamoDB table {table}", "run idem init")


@contextlib.contextmanager
def translated(place: Place, action: str) -> Iterator[None]:
    """Turn whatever boto3 raises into an error of this project; `action` is what a role needs to be allowed."""
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise failure(place, action, error.response.get("Error", {}), status) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise LedgerUnusable(
            f"{place.name} cannot be reached: no AWS credentials were found ({type(error).__name__}); "
            "set them in the environment, in a profile, or as a role"
        ) from error
    except (CredentialRetrievalError, TokenRetrievalError) as error:
        raise LedgerUnavailable(f"{place.name} does not answer: the AWS credentials could not be renewed") from error
    except LedgerError:
        raise
    except Exception as error:
        # Not only BotoCoreError: an answer that is not Amazon's makes botocore's parser trip in ways of its own.
        raise LedgerUnavailable(f"{place.name} does not answer ({type(error).__name__})") from error


def code_of(error: Mapping[str, Any]) -> str:
    """Amazon's code without its namespace and ending."""
    return str(error.get("Code", "")).rpartition("#")[2].removesuffix("Exception")


#: What each kind is raised as, and says.
_MESSAGES: Final[Mapping[Kind, tuple[type[LedgerError], str]]] = {
    Kind.BUSY: (LedgerUnavailable, "{place} does not take the request now ({code})"),
    Kind.EXPIRED: (LedgerUnavailable, "{place} refuses expired AWS credentials ({code}): renew them"),
    Kind.DENIED: (LedgerUnusable, "{place}: the AWS credentials may not do {action}; allow them that action"),
    Kind.STRANGER: (LedgerUnusable, "{place} refuses the AWS credentials ({code}): check them, and the clock"),
    Kind.SKEWED: (LedgerUnusable, "{place} refuses the time of the request: set the clock of this machine"),
    Kind.MISSING: (LedgerUnusable, "{place} does not exist in this region: {create}"),
    Kind.TOO_LARGE: (LedgerError, "{place} takes no record of more than 400 KB; this one was not written"),
    Kind.WRONG: (LedgerUnusable, "{place} refuses the request ({code}): see whether it is the one that was meant"),
}


def failure(place: Place, action: str, error: Mapping[str, Any], status: int = 0) -> LedgerError:
    """The error that an `Error` of Amazon's, of a call or of one of its statements, amounts to."""
    code, message = code_of(error), str(error.get("Message", ""))
    raised, text = _MESSAGES[_kind(code, message, status)]
    denied = _ACTION.search(message)
    return raised(text.format(place=place.name, create=place.create, code=code, action=denied[1] if denied else action))


def _kind(code: str, message: str, status: int) -> Kind:
    if code in {"Validation", "ValidationError"} and "size has exceeded" in message:
        return Kind.TOO_LARGE
    if "Signature expired" in message or "Signature not yet current" in message:
        # Under the code of a wrong signature, which would send a person to look at the credentials.
        return Kind.SKEWED
    found = KINDS.get(code)
    if found is None:
        # A code that is new to us: the server's own failures mend themselves, the others are ours.
        return Kind.BUSY if status >= _SERVER_ERROR or not code else Kind.WRONG
    return found
