"""What a user declares and adds to: one email for each recipient and window, under the key of the window's slot."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from dramatiq import Message

from idem.clock import Clock
from idem.email import Email
from idem.errors import InvalidKey, JobError, ScheduleError
from idem.keys import check_key
from idem.protocol import InDoubt
from idem.stores.base import Store
from workers.digest.pages import ITEM_BYTES, Item, Items
from workers.jobs import job_message
from workers.schedule.slots import CatchUp, Rule, Schedule, Slot, read_instant, write_instant

DigestFunction = Callable[[str, list[Any], Slot], Email | Sequence[Email] | None]

#: What stands for the longest keys of a digest: of its name, this many characters are left for.
_LONGEST_NAME = 140


class Digest:
    """A digest of an application: called, its function; `add` is what everybody else calls.

    `ask` is given a message and the instant from which it may run; it asks for it durably, if nobody has, and says
    whether it is still to run.
    """

    def __init__(  # noqa: PLR0913 - its parts
        self,
        name: str,
        rule: Rule,
        function: DigestFunction,
        in_doubt: InDoubt | None,
        *,
        store: Callable[[], Store],
        ask: Callable[[Message[None], str, int], bool],
        clock: Clock,
    ) -> None:
        _check_function(name, function)
        self.name = name
        self._rule = rule
        self._function = function
        self._in_doubt = in_doubt
        self._store = store
        self._ask = ask
        self._clock = clock

    def __call__(self, recipient: str, items: list[Any], slot: Slot) -> Email | Sequence[Email] | None:
        """Build the email here and now, without sending it: for tests and previews."""
        return self._function(recipient, items, slot)

    def add(self, recipient: str, item: Any, *, key: str) -> str:
        """Have an item, a JSON value, in the next email to a recipient; the key of that email.

        `key` names the event that the item is for: added again under it, even after the email, it changes nothing.
        `recipient` is any text that tells recipients apart, an address or the number of a customer; the function is
        given the same. Raises `JobError` for what is no item, and `LedgerUnavailable` or `BrokerUnavailable` when it is
        not known whether it was added: then add it again.
        """
        _check(recipient, key, item)
        return self._key(recipient, self._items(recipient).add(Item(key, item)))

    def run(self, recipient: str, instant: str) -> Email | Sequence[Email] | None:
        """The job that closes a window: build the email of what is in it. An empty one is none."""
        try:
            slot = read_instant(instant)
        except ScheduleError as error:
            raise JobError(str(error)) from error
        items = self._items(recipient).close(slot)
        schedule = Schedule(self.name, self._rule, CatchUp.of("all"))
        return self._function(recipient, items, schedule.slot(slot, self._clock.now())) if items else None

    def _items(self, recipient: str) -> Items:
        return Items(
            self._store(),
            self._stem(recipient),
            self.name,
            self._rule,
            self._clock,
            lambda slot: self._ask_for(recipient, slot),
        )

    def _ask_for(self, recipient: str, slot: int) -> bool:
        arguments = [recipient, write_instant(slot)]
        message, key = job_message(self.name, arguments, {}, self._key(recipient, slot), self._in_doubt)
        return self._ask(message, key, slot)

    def _key(self, recipient: str, slot: int) -> str:
        return f"{self._stem(recipient)}/{write_instant(slot)}"

    def _stem(self, recipient: str) -> str:
        """Keys are shown and logged, and a recipient may be an address: 128 bits of a hash stand for it."""
        return f"{self.name}/{hashlib.sha256(recipient.encode()).hexdigest()[:32]}"


def _check_function(name: str, function: Callable[..., Any]) -> None:
    if len(name) > _LONGEST_NAME:
        raise JobError(f"digest {name[:20]}...: its name has {len(name)} characters; it may have {_LONGEST_NAME}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise JobError("write @app.digest(...) above a plain function; coroutines are not awaited")
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError as error:
        raise JobError(f"digest {name}: its function takes the recipient, the items and the slot: {error}") from error


def _check(recipient: str, key: str, item: Any) -> None:
    try:
        check_key(recipient)
    except InvalidKey as error:
        raise JobError("a recipient is text of 1 to 255 printable characters") from error
    check_key(key)
    try:
        size = len(msgspec.json.encode(item))
    except (TypeError, ValueError, RecursionError) as error:
        raise JobError(f"an item is a JSON value: {error}") from error
    if size > ITEM_BYTES:
        raise JobError(f"an item has {size:,} bytes; it may have {ITEM_BYTES:,}: add what it takes to look it up")
