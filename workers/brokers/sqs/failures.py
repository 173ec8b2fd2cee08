"""What SQS and S3 say when they do not do what they were asked, as errors of this project.

`BrokerUnavailable` is for what mends itself, and a send may have been done; `BrokerError` for what a person must mend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from idem.aws import CODES, Failures, Kind, Place, code_of
from idem.errors import BrokerError, BrokerUnavailable

__all__ = ["FAILURES", "KINDS", "Kind", "Place", "Unreadable", "code_of", "failure", "kind_of", "translated"]


class Unreadable(BrokerError):
    """Raised for a message that can never be read; says why."""


#: Whole calls and single entries alike.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html#API_SendMessage_Errors
KINDS: Final[Mapping[str, Kind]] = {
    **CODES,
    # The limit of messages in flight: about 120,000 a queue. The ones that are there have to be worked off first.
    "OverLimit": Kind.BUSY,
    "RequestThrottled": Kind.BUSY,
    "KmsThrottled": Kind.BUSY,
    "InternalError": Kind.BUSY,
    "RequestExpired": Kind.EXPIRED,
    "KmsAccessDenied": Kind.DENIED,
    "InvalidSecurity": Kind.STRANGER,
    "RequestTimeTooSkewed": Kind.STRANGER,
    "NonExistentQueue": Kind.MISSING,
    "QueueDoesNotExist": Kind.MISSING,
    "ReceiptHandleIsInvalid": Kind.STALE,
    "MessageNotInflight": Kind.STALE,
}

FAILURES: Final[Failures[BrokerError]] = Failures(
    root=BrokerError, unavailable=BrokerUnavailable, unusable=BrokerError, kinds=KINDS
)

translated = FAILURES.translated
failure = FAILURES.failure
kind_of = FAILURES.kind_of
