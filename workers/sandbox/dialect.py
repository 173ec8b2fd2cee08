"""The seam of a provider in the sandbox: its documented answers as data, and how it reads a request.

What all of them share (the memory of keys, the logs, the faults) is elsewhere, and is driven by a `Dialect`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from idem.providers.base import Contract


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer; `body` is sent as JSON."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attachment:
    """What the inbox shows of an attachment; the bytes are not kept here."""

    filename: str
    content_type: str | None
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One email as the provider understood it; `to` holds bare addresses, the other fields are as they were given."""

    sender: str
    to: tuple[str, ...]
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    reply_to: tuple[str, ...] = ()
    subject: str
    text: str | None = None
    html: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path that accepts emails by POST.

    `read` turns the parsed JSON into the emails to accept (several in a bulk request), or into the refusal. `answer`
    tells the client the ids that they were given, in the same order.
    """

    read: Callable[[object], tuple[Mail, ...] | Reply]
    answer: Callable[[Sequence[str]], Reply]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one provider speaks.

    `endpoints` are by path below `/<name>`. `account` names who is calling, from the request's headers (lower case), or
    is None for credentials that the provider would refuse; keys are remembered for each account. `refusal` words an
    error in the provider's shape, `mismatch` the answer to a key with another body, for the request with those headers.
    What it does with keys, its contract says.
    """

    contract: Contract
    endpoints: Mapping[str, Endpoint]
    account: Callable[[Mapping[str, str]], str | None]
    refusal: Callable[[int, str], Reply]
    invalid_key: Reply
    mismatch: Callable[[Mapping[str, str]], Reply]
    in_progress: Reply
