"""Every error this package raises, in one tree.

    IdemError
    ├── EmailError            (ValueError) an email or a part of it cannot be accepted
    │   └── UnsupportedEmail  the email is valid, but this provider cannot express it
    ├── InvalidKey            (ValueError) a key that no store and no provider could hold
    ├── InputError            a file of emails that cannot be read, or that has a part nobody can place
    ├── JobError              a job that is unknown, or that does not return emails
    ├── ScheduleError         (ValueError) a schedule that cannot be, or an instant that is not one of its slots
    ├── TemplateError         a template of an email that is missing, is malformed, or needs what it was not given
    ├── SettingsError         a setting is missing, unknown, malformed or breaks a rule
    ├── MissingExtra          an optional driver is not installed
    ├── LedgerError
    │   ├── LedgerUnavailable it does not answer: nothing may be sent
    │   ├── BodyTooLarge      it cannot freeze what a job built
    │   └── LedgerUnusable    it answers, but cannot be trusted: damaged, or of a newer version
    ├── BrokerError
    │   ├── BrokerUnavailable it does not answer: nothing was enqueued or acknowledged
    │   └── JobTooLarge       it can hold no message as large as this job's
    └── OutboxError           the outbox's database is not as the relay needs it
        └── OutboxUnavailable it does not answer: rows wait

Each message says what failed, where, and what to do; none holds an address or a secret.
"""

from __future__ import annotations


class IdemError(Exception):
    """Raised when idem-workers cannot do what it was asked to do."""


class EmailError(IdemError, ValueError):
    """Raised when an email cannot be accepted; `field` names the part at fault."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class UnsupportedEmail(EmailError):
    """Raised when a valid email asks for something that the provider does not offer."""


class InvalidKey(IdemError, ValueError):
    """Raised when a key is empty, too long, or holds characters that do not print."""


class InputError(IdemError):
    """Raised when a file of emails cannot be read at all; the message says what to do about it."""


class JobError(IdemError):
    """Raised when a job is unknown, is called wrongly, or returns something that is not an email."""


class ScheduleError(IdemError, ValueError):
    """Raised when a schedule is declared wrongly, is not known, or has no slot at an instant."""


class TemplateError(IdemError):
    """Raised when a template cannot become an email; the message names it and its line."""


class SettingsError(IdemError):
    """Raised when a setting is missing, unknown or malformed, or breaks a rule with another one."""


class MissingExtra(IdemError, ImportError):
    """Raised when an optional driver is needed and not installed; the message names the extra."""

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the extra '{extra}': pip install 'idem-workers[{extra}]'")
        self.extra = extra


class LedgerError(IdemError):
    """Raised when the ledger cannot do its work."""


class LedgerUnavailable(LedgerError):
    """Raised when the ledger does not answer; whether a write was applied is not known."""


class LedgerUnusable(LedgerError):
    """Raised when the ledger is damaged, or was written by a version that this one does not know."""


class BodyTooLarge(LedgerError):
    """Raised when a job built an email that the ledger cannot freeze; nothing was written, and it cannot be sent."""


class BrokerError(IdemError):
    """Raised when the broker cannot do its work."""


class BrokerUnavailable(BrokerError):
    """Raised when the broker does not answer; whether a job was enqueued is not known."""


class JobTooLarge(BrokerError):
    """Raised when the broker can hold no message as large as a job's; others go."""


class OutboxError(IdemError):
    """Raised when the database of the outbox is not as the relay needs it."""


class OutboxUnavailable(OutboxError):
    """Raised when the database of the outbox does not answer; whether a write was applied is not known."""
