"""Keys: the names of intended effects, and the provider keys derived from them.

Priority: an explicit key (an argument, or an `Idempotency-Key` header in the email) beats a derived one; one that is
made from the content (`idem.content`) is asked for where an explicit one could be, and a header beats it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from functools import lru_cache

from idem.email import Email
from idem.errors import InvalidKey

MAX_KEY = 255
_PROVIDER_KEY = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_RANGE = re.compile(r".+/(?P<first>[0-9]{1,10})-(?P<last>[0-9]{1,10})")
_MAX_STEM = MAX_KEY - len("/1000000000-1000000000")
_KEY_HEADER = "idempotency-key"


def check_key(key: object) -> str:
    """Return `key` if it is 1 to 255 printable characters; raise `InvalidKey` saying why it is not."""
    if not isinstance(key, str):
        raise InvalidKey(f"a key is {type(key).__name__}; it must be a string")
    if not 1 <= len(key) <= MAX_KEY:
        raise InvalidKey(f"a key has {len(key)} characters; it must have 1 to {MAX_KEY}")
    if not key.isprintable():
        raise InvalidKey("a key holds a character that does not print")
    return key


def take_explicit(email: Email, key: str | None) -> tuple[Email, str | None]:
    """The email without its `Idempotency-Key` header, and the explicit key: the argument's, else the header's."""
    header = next((value for name, value in email.headers.items() if name.lower() == _KEY_HEADER), None)
    if header is not None:
        email = email.without_header(_KEY_HEADER)
    explicit = key if key is not None else header
    return email, None if explicit is None else check_key(explicit)


def slot_key(job: str, slot: datetime) -> str:
    """The key of a scheduled run, by its nominal time: whoever computes the slot, on whatever clock, gets this key.

    To the second, as the instants are that Amazon EventBridge Scheduler puts into a message
    (https://docs.aws.amazon.com/scheduler/latest/UserGuide/managing-schedule-context-attributes.html).
    """
    return f"{job}/{slot.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def content_key(digest: str, at: float) -> str:
    """The key of a content (its SHA-256 in hexadecimal) that was first enqueued at an instant, to the microsecond."""
    return f"content/{digest[:32]}/{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def range_key(key: str, first: int, last: int) -> str:
    """The key of the emails `first` to `last` (from 1) of a bulk, which may go out in one request."""
    return f"{_stem(key)}/{first}-{last}"


def member_key(key: str, number: int) -> str:
    """The key of the `number`-th email (from 1) of a list, however it goes out; stable, and never too long."""
    return f"{_stem(key)}/{number}"


def event_key(source: str, event_id: str, purpose: str) -> str:
    """The key of what one event of a source is to do: `<source>/<event id>/<purpose>`.

    Two different events never share one: a slash in the id is written `%2F`, and a key that would be too long has the
    SHA-256 of the id in its place.
    """
    if len(source) + len(event_id) + len(purpose) + 2 <= MAX_KEY:
        key = f"{source}/{event_id.replace('%', '%25').replace('/', '%2F')}/{purpose}"
        if len(key) <= MAX_KEY:
            return check_key(key)
    return check_key(f"{source}/{hashlib.sha256(event_id.encode()).hexdigest()}/{purpose}")


def is_range(key: str, count: int) -> bool:
    """Whether `range_key` could have made this key for that many emails."""
    found = _RANGE.fullmatch(key)
    return found is not None and int(found["first"]) >= 1 and int(found["last"]) - int(found["first"]) + 1 == count


def split_range(key: str) -> tuple[str, int]:
    """What a key of `range_key` was made from: the bulk's key and the number of the first email."""
    stem, _, numbers = key.rpartition("/")
    return stem, int(numbers.partition("-")[0])


def _stem(key: str) -> str:
    """The bulk's key, short enough for what is put behind it; applied twice, it changes nothing."""
    return key if len(key) <= _MAX_STEM else hashlib.sha256(key.encode()).hexdigest()


# Asked for at the claim of an email, its request and each look-up.
@lru_cache(maxsize=1_024)
def provider_key(namespace: str, key: str, generation: int) -> str:
    """The key that the provider sees: 43 characters of `[A-Za-z0-9_-]`, which every provider takes.

    The namespace keeps two applications with one provider account apart; the generation moves on when a definite
    rejection is corrected and sent again (rule 9).
    """
    parts = b"\0".join([b"idem-workers/1", namespace.encode(), key.encode(), str(generation).encode()])
    return base64.urlsafe_b64encode(hashlib.sha256(parts).digest()).rstrip(b"=").decode("ascii")


def is_provider_key(text: str) -> bool:
    """Whether `provider_key` could have made this text."""
    return _PROVIDER_KEY.fullmatch(text) is not None
