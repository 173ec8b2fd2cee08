"""What DynamoDB and S3 say when they do not do what they were asked, as errors of this project.

Whatever is said, nothing is sent on account of it. `LedgerUnavailable` is for what mends itself, and the write may have
been applied; `LedgerUnusable` for what a person must mend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from idem.aws import CODES, Failures, Kind, Place, code_of
from idem.errors import LedgerError, LedgerUnavailable, LedgerUnusable

__all__ = ["CONDITION_FAILED", "FAILURES", "KINDS", "Kind", "Place", "code_of", "failure", "table_place", "translated"]

#: The condition of a write did not hold: an answer, not a failure.
CONDITION_FAILED: Final = frozenset({"ConditionalCheckFailedException", "ConditionalCheckFailed", "DuplicateItem"})

#: Whole calls and single statements alike.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
#: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchStatementError.html
KINDS: Final[Mapping[str, Kind]] = {
    **CODES,
    "ProvisionedThroughputExceeded": Kind.BUSY,
    "RequestLimitExceeded": Kind.BUSY,
    "LimitExceeded": Kind.BUSY,
    "TransactionConflict": Kind.BUSY,
    "TransactionInProgress": Kind.BUSY,
    # A table with strong multi-region consistency answers so to one of two regions that write at the same moment.
    "ReplicatedWriteConflict": Kind.BUSY,
    # S3, of two conditional writes of one object at the same moment.
    "ConditionalRequestConflict": Kind.BUSY,
    "ResourceInUse": Kind.BUSY,
    "RequestExpired": Kind.SKEWED,
    "RequestTimeTooSkewed": Kind.SKEWED,
    "ResourceNotFound": Kind.MISSING,
    "TableNotFound": Kind.MISSING,
}

FAILURES: Final[Failures[LedgerError]] = Failures(
    root=LedgerError,
    unavailable=LedgerUnavailable,
    unusable=LedgerUnusable,
    kinds=KINDS,
    said=(
        (re.compile(r"^Validation(Error)?: .*size has exceeded", re.DOTALL), Kind.TOO_LARGE),
        # Under the code of a wrong signature, which would send a person to look at the credentials.
        (re.compile(r"Signature expired|Signature not yet current"), Kind.SKEWED),
    ),
    too_large=(LedgerError, "{place} takes no record of more than 400 KB; this one was not written"),
)

translated = FAILURES.translated
failure = FAILURES.failure


def table_place(table: str) -> Place:
    """The table as messages call it."""
    return Place(f"the DynamoDB table {table}", "run idem init")
