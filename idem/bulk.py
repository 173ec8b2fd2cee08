"""Many emails as one job: how a list is cut into what goes out together, and what key each part has.

However a provider takes them, the caller finds each email under `<key>/<number>` and never sends it twice. Where the
provider has a key for each email, or takes one at a time, each is an effect of its own. Where one key stands for a
request, the request is the effect: its list is bound to the key `<key>/<first>-<last>`, and each email's own record is
written with the request's outcome. Which of the two it is, is decided once and durably, in the record of that range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from idem.email import Email
from idem.errors import EmailError
from idem.keys import member_key, range_key, split_range, take_explicit
from idem.protocol import InDoubt, Record, State
from idem.providers.base import Batch, BatchKeys, Provider

#: What goes together in one queue message at the most: fewer than any provider with batches takes, in as many bytes as
#: every queue and every ledger holds.
MOST = 100
MAX_BYTES = 200_000

#: Emails with keys of their own in one request. More would only hold their claims for longer.
MOST_EACH = 50


@dataclass(frozen=True, slots=True)
class Ready:
    """A message that carries its email. No first attempt begins after `expires_at` (Unix seconds)."""

    key: str
    email: Email
    in_doubt: InDoubt | None = None
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Bulk:
    """A message that carries a range of a bulk's emails, under the range's key."""

    key: str
    emails: tuple[Email, ...]
    in_doubt: InDoubt | None = None
    expires_at: float | None = None

    def members(self) -> Iterator[tuple[str, Email]]:
        """Each email with its own key."""
        stem, first = split_range(self.key)
        return ((member_key(stem, number), email) for number, email in enumerate(self.emails, first))


@dataclass(frozen=True, slots=True)
class Group:
    """A message that carries emails with keys of their own; they only travel together."""

    emails: tuple[Ready, ...]


Part = Ready | Bulk | Group


def cut(  # noqa: PLR0913 - what each of its parts has, and how they are cut
    key: str,
    emails: Sequence[Email],
    in_doubt: InDoubt | None = None,
    expires_at: float | None = None,
    *,
    first: int = 1,
    most: int = MOST,
) -> Iterator[Ready | Bulk]:
    """The parts of a bulk, in order: the same for the same list. An email with a key in its header goes by itself."""
    together: list[Email] = []
    size = 0

    def part(last: int) -> Ready | Bulk:
        if len(together) == 1:
            return Ready(member_key(key, last), together[0], in_doubt, expires_at)
        return Bulk(range_key(key, last - len(together) + 1, last), tuple(together), in_doubt, expires_at)

    for number, given in enumerate(emails, first):
        email, explicit = take_explicit(given, None)
        length = len(email.canonical()) if most > 1 else 0
        if together and (explicit is not None or len(together) >= most or size + length > MAX_BYTES):
            yield part(number - 1)
            together, size = [], 0
        if explicit is not None:
            yield Ready(explicit, email, in_doubt, expires_at)
            continue
        together.append(email)
        size += length
    if together:
        yield part(first + len(emails) - 1)


def encode(emails: Sequence[Email]) -> bytes:
    """A list as a record keeps it, and as its fingerprint is taken from."""
    return msgspec.json.encode([email.as_dict() for email in emails], order="sorted")


def decode(body: bytes) -> tuple[Email, ...]:
    """Read back what `encode` gave, or the canonical bytes of one email."""
    found: Any = msgspec.json.decode(body)
    return tuple(Email.from_dict(parts) for parts in (found if isinstance(found, list) else [found]))


def parts_of(record: Record) -> tuple[Ready | Bulk, ...]:
    """What a SPLIT record's list was cut into: an email each, or ranges of `record.cut`."""
    emails = decode(record.body or b"[]")
    # A bulk's own range is split further under the bulk's key; a job's list under the job's.
    stem, first = split_range(record.key) if record.job is None else (record.key, 1)
    return tuple(cut(stem, emails, record.in_doubt, record.expires_at, first=first, most=record.cut or 1))


def range_of(record: Record) -> Bulk | None:
    """The emails that go out under the record's one key; None where it is about one, or about nothing any more."""
    body = record.body or b""
    # One email is an object: it need not be read to see that it is not several.
    if record.job is not None or record.state is State.SPLIT or not body.startswith(b"["):
        return None
    emails = decode(body)
    return Bulk(record.key, emails) if len(emails) > 1 else None


def cut_for(provider: Provider, emails: Sequence[Email]) -> int | None:
    """Into ranges of how many a list should be cut for this provider; None for an email each."""
    batch = _whole(provider)
    if batch is None or not all(_fits(provider, batch, email) for email in emails):
        return None
    return min(batch.most, MOST)


def takes(provider: Provider, emails: Sequence[Email]) -> bool:
    """Whether the provider takes exactly these in one request under one key."""
    batch = _whole(provider)
    if batch is None or not 1 < len(emails) <= batch.most:
        return False
    return all(_fits(provider, batch, email) for email in emails)


def _whole(provider: Provider) -> Batch | None:
    """The provider's requests for several emails under one key, if it has such."""
    batch = provider.contract.batch
    return batch if batch is not None and batch.keys is BatchKeys.REQUEST else None


def takes_each(provider: Provider) -> bool:
    """Whether the provider takes several emails in one request, each under a key of its own."""
    batch = provider.contract.batch
    return batch is not None and batch.keys is BatchKeys.EACH and batch.most >= MOST_EACH


def _fits(provider: Provider, batch: Batch, email: Email) -> bool:
    if email.attachments and not batch.attachments:
        return False
    try:
        provider.check(email)
    except EmailError:
        return False
    return True


def packed(provider: Provider, parts: Sequence[Ready | Bulk]) -> tuple[Part, ...]:
    """The same, with those that the provider takes together under keys of their own in one message."""
    if not takes_each(provider):
        return tuple(parts)
    found: list[Part] = []
    together: list[Ready] = []
    size = 0
    for part in parts:
        length = len(part.email.canonical()) if isinstance(part, Ready) else 0
        full = len(together) >= MOST_EACH or size + length > MAX_BYTES
        if together and (full or isinstance(part, Bulk)):
            found.append(_together(together))
            together, size = [], 0
        if isinstance(part, Bulk):
            found.append(part)
        else:
            together.append(part)
            size += length
    return (*found, _together(together)) if together else tuple(found)


def _together(emails: Sequence[Ready]) -> Part:
    return emails[0] if len(emails) == 1 else Group(tuple(emails))
