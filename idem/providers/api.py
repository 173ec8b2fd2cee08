"""A provider behind an HTTP API: its contract, and the few functions in which one differs from another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import msgspec

from idem.address import parse_address
from idem.clock import Deadline
from idem.email import Email
from idem.errors import UnsupportedEmail
from idem.outcome import Outcome
from idem.providers.base import Batched, CannotTell, Contract, Place, Sighting
from idem.providers.http import Answer, HttpClient, NoAnswer
from idem.providers.reading import outcome

#: The name of the metadata, variable or argument that carries the derived key, for a look-up to find the email by.
HANDLE: Final = "idem_key"
#: What a tag with the derived key begins with, where tags are bare words.
AS_TAG: Final = f"{HANDLE}_"
#: How much earlier a look-up asks than it was told, for a provider's clock that is behind ours.
CLOCK_SKEW_SECONDS: Final = 300.0
_MAX_ANSWERS = 1_000


@dataclass(frozen=True, slots=True)
class Content:
    """A request's body and its media type: the same bytes for the same email, which is what a key is bound to."""

    data: bytes
    type: str = "application/json"


def as_json(parts: Mapping[str, Any] | Sequence[Any]) -> Content:
    """JSON with sorted names."""
    return Content(msgspec.json.encode(parts, order="sorted"))


def as_mailbox(address: str) -> dict[str, str]:
    """An address as many APIs want it: `email`, and `name` where it has one."""
    parsed = parse_address("address", address)
    return {"email": parsed.spec, "name": parsed.name} if parsed.name else {"email": parsed.spec}


def refuse_handle(email: Email) -> None:
    """Raise `UnsupportedEmail` for metadata under the name that the derived key needs, in any case."""
    if any(name.lower() == HANDLE for name in email.metadata):
        raise UnsupportedEmail(
            "metadata", f"has {HANDLE}, the name under which the email is looked up; take another one"
        )


def marked(email: Email, contract: Contract, provider_key: str) -> Email:
    """The email with the key where the provider's events bring it back, unless the adapter puts it there itself."""
    match contract.events.added_to if contract.events is not None else None:
        case "metadata":
            return email.with_mark(metadata={HANDLE: provider_key})
        case "tags":
            return email.with_mark(tags=(AS_TAG + provider_key,))
        case None:
            return email


def refuse_empty_parts(email: Email, title: str) -> None:
    """Raise `UnsupportedEmail` for a text or html part without content, where the API has no place for one."""
    for name, part in (("text", email.text), ("html", email.html)):
        if part == "":
            raise UnsupportedEmail(name, f"is empty, and {title} takes a part only with content; leave it out")


#: The name that a tag gets where tags have names and values.
_TAG: Final = "tag"


def named_tags(email: Email) -> list[dict[str, str]]:
    """Metadata and tags for an API whose tags have names: metadata under its own, tags all under `tag`."""
    pairs = [*sorted(email.metadata.items()), *((_TAG, tag) for tag in email.tags)]
    return [{"name": name, "value": value} for name, value in pairs]


def check_named_tags(email: Email, title: str) -> None:
    """Raise `UnsupportedEmail` where two would become one."""
    refuse_handle(email)
    if email.tags and _TAG in email.metadata:
        raise UnsupportedEmail(f"metadata.{_TAG}", f"is the name under which {title} gets the email's tags")


def _takes_all(_email: Email) -> None:
    """What `Limits` allows is supported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EachBatch:
    """Emails with their keys in one request, and the outcome of each from its answer.

    `read` gives None for several that were refused together, for the sake of one that the answer does not name.
    """

    encode: Callable[[Sequence[tuple[Email, str]]], Content]
    read: Callable[[Answer | NoAnswer, int], tuple[Outcome, ...] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeBatch:
    """Emails in one request under one key; `headers` go with it."""

    encode: Callable[[Sequence[Email]], Content]
    read: Callable[[Answer | NoAnswer, int], Batched]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Onward:
    """A look-up that is not over: what to ask next, as a path or as a URL of the same API."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A look-up: the path with its query for a derived key and a time, and what its answer shows."""

    path: Callable[[str, float], str]
    read: Callable[[Answer | NoAnswer, str], Sighting | Onward]


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """How one provider's API is spoken.

    `encode` makes the body for an email and its derived key (for a key in the body, or a tag to look it up by);
    `authorize` the headers for a token; `check` raises `UnsupportedEmail` for what neither `encode` nor the contract's
    limits can express.
    """

    contract: Contract
    path: str
    authorize: Callable[[str], Mapping[str, str]]
    encode: Callable[[Email, str], Content]
    check: Callable[[Email], None] = _takes_all
    each: EachBatch | None = None
    whole: WholeBatch | None = None
    search: Search | None = None


Keyed = Sequence[tuple[Email, str]]


def in_halves(send: Callable[[Keyed], tuple[Outcome, ...] | None], emails: Keyed) -> tuple[Outcome, ...]:
    """Send emails together; where they are refused for one of them and nothing says for which, each half by itself.

    Nothing is sent twice by that: what is sent again was refused. One that poisons a batch holds up no other.
    """
    found = send(emails)
    if found is not None:
        return found
    half = len(emails) // 2
    return (*in_halves(send, emails[:half]), *in_halves(send, emails[half:]))


class HttpProvider:
    """Sends through an HTTP API. Safe to share between threads."""

    def __init__(self, api: Api, token: str, base_url: str, http: HttpClient | None = None) -> None:
        self._api = api
        self._base_url = base_url.rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": "idem-workers", **api.authorize(token)}
        self._http = http or HttpClient()

    @property
    def contract(self) -> Contract:
        """See `Provider.contract`."""
        return self._api.contract

    def check(self, email: Email) -> None:
        """See `Provider.check`."""
        self.contract.limits.check(email, self.contract.title)
        self._api.check(email)
        self._check_size(email)

    def _check_size(self, email: Email) -> None:
        most = self.contract.limits.bytes
        # No encoding makes eight bytes of one: small emails, which are most, are not encoded for this.
        if most is None or len(email.canonical()) * 8 <= most:
            return
        size = len(self._api.encode(email, "").data)
        if size > most:
            field = "attachments" if email.attachments else "text" if email.html is None else "html"
            raise UnsupportedEmail(field, f"makes a request of {size:,} bytes; {self.contract.title} takes {most:,}")

    def send(self, email: Email, provider_key: str, deadline: Deadline) -> Outcome:
        """See `Provider.send`."""
        content = self._api.encode(email, provider_key)
        return outcome(self.contract, self._post(self._api.path, content, provider_key, deadline))

    def send_each(self, emails: Sequence[tuple[Email, str]], deadline: Deadline) -> tuple[Outcome, ...]:
        """See `KeyedBatches.send_each`."""
        batch, each = self.contract.batch, self._api.each
        if each is None or batch is None:
            raise TypeError(f"{self.contract.title} has no batches with a key for each email")

        def send(some: Keyed) -> tuple[Outcome, ...] | None:
            return each.read(self._post(batch.path, each.encode(some), None, deadline), len(some))

        return in_halves(send, emails)

    def send_all(self, emails: Sequence[Email], provider_key: str, deadline: Deadline) -> Batched:
        """See `KeyedRequests.send_all`."""
        batch = self.contract.batch
        if self._api.whole is None or batch is None:
            raise TypeError(f"{self.contract.title} has no batches under one key")
        content = self._api.whole.encode(emails)
        answer = self._post(batch.path, content, provider_key, deadline, self._api.whole.headers)
        return self._api.whole.read(answer, len(emails))

    def find(self, provider_key: str, since: float, deadline: Deadline) -> Sighting:
        """See `Searchable.find`."""
        if self._api.search is None:
            raise TypeError(f"{self.contract.title} has no look-up")
        path = self._api.search.path(provider_key, since)
        for _ in range(_MAX_ANSWERS):
            answer = self._http.get(self._base_url + path, self._headers, deadline)
            seen = self._api.search.read(answer, provider_key)
            if not isinstance(seen, Onward):
                return seen
            path = seen.path.removeprefix(self._base_url)
            if not path.startswith("/"):
                # A URL that an answer names gets our credentials, so it must be one of this API.
                return CannotTell("the look-up goes on at another address")
        return CannotTell(f"the look-up was not over after {_MAX_ANSWERS} answers")

    def _post(
        self,
        path: str,
        content: Content,
        provider_key: str | None,
        deadline: Deadline,
        additional: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer | NoAnswer:
        headers = self._headers | {"Content-Type": content.type} | dict(additional)
        key = self.contract.key
        if provider_key is not None and key is not None and key.place is Place.HEADER:
            headers[key.name] = provider_key
        return self._http.post(self._base_url + path, headers, content.data, deadline)
