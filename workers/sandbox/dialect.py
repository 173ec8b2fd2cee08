"""The seam of a provider in the sandbox: its documented answers as data, and how it reads a request.

What all of them share (the memory of keys, the logs, the faults) is elsewhere, and is driven by a `Dialect`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from idem.providers.base import Contract, Memory
from workers.sandbox.bodies import read_json


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer; `body` is sent as JSON, a text as plain text, and None not at all."""

    status: int
    body: object = None
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
class Keyed:
    """An email with a key of its own in a request with many; `content` is what the key gets bound to."""

    mail: Mail
    key: str
    content: object


@dataclass(frozen=True, slots=True)
class Refused:
    """An email that is refused inside a request that is not; `why` is for the endpoint's `answer`."""

    why: object


@dataclass(frozen=True, slots=True)
class Taken:
    """An email that was accepted (`at`, Unix seconds): now or, `replayed`, in an earlier request under its own key."""

    id: str
    mail: Mail
    at: float
    replayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request whose sender is known and whose body could be parsed.

    `parts` are the named parts of its path, `query` the values of each parameter; header names are in lower case.
    """

    account: str
    parts: Mapping[str, str]
    query: Mapping[str, Sequence[str]]
    headers: Mapping[str, str]
    parsed: object

    def asked(self, name: str) -> str | None:
        """The first value of a parameter of the query."""
        return next(iter(self.query.get(name, ())), None)


@dataclass(frozen=True, slots=True)
class Shown:
    """One acceptance as a look-up may show it; `key` is the one that came with the request, `at` in Unix seconds."""

    id: str
    key: str | None
    at: float
    mail: Mail


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path that accepts emails.

    `read` turns a request into the emails to accept (several in a bulk request), or into the refusal of the whole.
    `answer` tells the client what became of each, in the same order. `parse` makes of the headers and the body what two
    requests are compared by; it raises `BadBody`. With `exact`, the bytes are compared. `clash` words the refusal of a
    request in which the email at that index is not the one that its own key is bound to (else `Dialect.mismatch`).
    """

    read: Callable[[Call], Sequence[Mail | Keyed | Refused] | Reply]
    answer: Callable[[Sequence[Taken | Refused]], Reply]
    method: str = "POST"
    parse: Callable[[Mapping[str, str], bytes], object] = read_json
    exact: bool = False
    clash: Callable[[int], Reply] | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """One path that shows what was accepted.

    `answer` gets what the provider can show by now (the contract's lag and horizon are taken care of), newest first,
    and picks what the query asks for. `account` is the dialect's, unless a look-up needs other credentials.
    """

    answer: Callable[[Call, Sequence[Shown]], Reply]
    method: str = "GET"
    parse: Callable[[Mapping[str, str], bytes], object] = lambda _headers, _body: None
    account: Callable[[Mapping[str, str]], str | None] | None = None


def new_id() -> str:
    """An id as most providers make them."""
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one provider speaks.

    `endpoints` and `searches` are by path below `/<name>`, in which `{name}` stands for one part of any value.
    `account` names who is calling, from the request's headers (lower case), or is None for credentials that the
    provider would refuse; keys are remembered for each account. `refusal` words an error in the provider's shape.

    What it does with keys, its contract says; here is how it says so: `invalid_key` (needed with keys), `mismatch` to a
    key with another body, for the request with those headers (needed by REPLAYS), `known` to a key that was accepted
    before (needed by REFUSES), and `in_progress` while a request under the key runs. Without the latter two requests
    under one key do not wait for each other: the one that is through first is accepted, the other a repetition.
    """

    contract: Contract
    endpoints: Mapping[str, Endpoint]
    searches: Mapping[str, Search] = field(default_factory=dict)
    account: Callable[[Mapping[str, str]], str | None]
    refusal: Callable[[int, str], Reply]
    invalid_key: Reply | None = None
    mismatch: Callable[[Mapping[str, str]], Reply] | None = None
    known: Reply | None = None
    in_progress: Reply | None = None
    new_id: Callable[[], str] = new_id

    def __post_init__(self) -> None:
        for needed, name in (
            (self.contract.key is not None, "invalid_key"),
            (self.contract.memory is Memory.REPLAYS, "mismatch"),
            (self.contract.memory is Memory.REFUSES, "known"),
        ):
            if needed and getattr(self, name) is None:
                raise TypeError(f"the dialect of {self.contract.name} needs {name}: its contract has it answer so")
