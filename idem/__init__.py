"""What is true about one email: that it is accepted at most once, and that what became of it can be looked up.

For every idempotency key, the provider accepts the email at most once, and every job ends in a durable state that a
person can look up: sent, rejected, or in doubt. Nothing is lost, nothing is sent twice, nothing is guessed.

    (absent) ──claim──▶ SENDING ──settle──▶ SENT | REJECTED | RETRY | UNSURE | IN_DOUBT
    RETRY    ──claim──▶ SENDING             nothing was sent
    UNSURE   ──claim──▶ SENDING             same bytes, same key, while the provider remembers it
             ──claim──▶ IN_DOUBT            afterwards, and for a provider without keys
    IN_DOUBT ──evidence──▶ SENT             a look-up, an event, a person, or a worker that was thought dead
             ──resolve──▶ RETRY | DROPPED   it was not sent, or its job chose
    (absent) ──claim──▶ RENDERING ──freeze──▶ SENDING, or SPLIT into several emails
             a job that takes long to build its email: ──renew──▶ RENDERING
    (absent) ──ask────▶ PENDING             a producer wrote it down first; claimed as if it were absent
    where nothing was sent: ──claim──▶ EXPIRED, too late to begin; ──cancel──▶ CANCELLED

The words, one meaning each: an **effect** is one email accepted by a provider. A **key** is the name of one intended
effect; its **fingerprint** is the SHA-256 of the canonical email, and the same key with another one is a **conflict**.
A **record** is the ledger's item for a key. A **claim** is the right to make the next attempt: a claim id, a version,
and a **lease** that ends. An **attempt** is one call of the provider, its **outcome** what it is known to have done:
`Accepted`, `Rejected`, `NotSent` or `Unknown`. To **settle** is to write the outcome, conditional on the claim; to
**reconcile**, to find out about an `Unknown`. The **window** is how long the provider remembers a key, a **slot** the
nominal instant of a scheduled run.
"""

from idem.email import Attachment, Email
from idem.errors import (
    BrokerError,
    BrokerUnavailable,
    EmailError,
    IdemError,
    InvalidKey,
    JobError,
    LedgerError,
    LedgerUnavailable,
    LedgerUnusable,
    MissingExtra,
    SettingsError,
    UnsupportedEmail,
)
from idem.outcome import Accepted, NotSent, Outcome, Rejected, Unknown
from idem.protocol import Record, State

__all__ = [
    "Accepted",
    "Attachment",
    "BrokerError",
    "BrokerUnavailable",
    "Email",
    "EmailError",
    "IdemError",
    "InvalidKey",
    "JobError",
    "LedgerError",
    "LedgerUnavailable",
    "LedgerUnusable",
    "MissingExtra",
    "NotSent",
    "Outcome",
    "Record",
    "Rejected",
    "SettingsError",
    "State",
    "Unknown",
    "UnsupportedEmail",
]
