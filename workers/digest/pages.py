"""Where a digest's items are until they are sent: each in one window, whoever adds it, how often, and who dies at it.

    <digest>/<recipient>/<instant>/page-1    items of the window that ends then, in the order in which they came
    <digest>/<recipient>/item/<item>         the mark of an item: the page that it is for

A page is open until it is full, or until its window is closed. A sealed one never changes. An item is put only into the
page that its mark names, and a mark moves only from a page that was sealed without the item:

    add    no mark                    -> it names the first page of the window that is open now
           the page has the item      -> done, now or long ago
           no page                    -> the window's job is asked for, durably, before there is an item to be lost
           the page is open           -> it has the item; or is sealed as full, if there is no room
           it is sealed without it    -> the mark moves: to the next page where it is full, else to the next window
    close  from the first page on     -> sealed as closed; where it was full, on to the next

So an item is in one page at most, and one that was added is in a page of a window whose job is yet to close it. Each
arrow is one conditional write. Dying between two of them leaves what the next delivery of the event goes on from.

Pages and marks are records that have ended (SPLIT: what was asked for is sent under another key), as they must be as
durable as the records of emails, and be forgotten when those are.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeVar

import msgspec

from idem.clock import Clock
from idem.errors import JobError, LedgerUnusable
from idem.protocol import Record, State
from idem.stores.base import Store
from workers.schedule.slots import Rule, write_instant

#: Each item that is added writes its page anew. On DynamoDB, this is a write of 16 units at the most.
PAGE_BYTES: Final = 16_000
#: An item that is larger than a page has one of its own; in a record it may take twice the room, of 400 KB on DynamoDB.
ITEM_BYTES: Final = 100_000


class Seal(StrEnum):
    """Why nothing is added to a page any more."""

    FULL = "full"
    CLOSED = "closed"


class Item(msgspec.Struct, frozen=True, array_like=True):
    """What one event adds; `key` is the event's."""

    key: str
    value: Any


class Page(msgspec.Struct, frozen=True, omit_defaults=True):
    """Items of one window. No value is ever stored twice: each has an item or a seal more."""

    items: tuple[Item, ...] = ()
    seal: Seal | None = None


class Place(msgspec.Struct, frozen=True):
    """A page of the window that ends at `slot` (Unix seconds)."""

    slot: int
    page: int = 1


_T = TypeVar("_T", Page, Place)
_PAGES: msgspec.json.Decoder[Page] = msgspec.json.Decoder(Page)
_PLACES: msgspec.json.Decoder[Place] = msgspec.json.Decoder(Place)


@dataclass(frozen=True, slots=True)
class Items:
    """The items of one digest for one recipient, whose keys begin with `stem`.

    `rule` says when windows end. `ask` durably asks for the job that closes a window, if nobody has, and says whether
    it is still to run.
    """

    store: Store
    stem: str
    job: str
    rule: Rule
    clock: Clock
    ask: Callable[[int], bool]
    page_bytes: int = PAGE_BYTES
    new_id: Callable[[], str] = field(default=lambda: uuid.uuid4().hex)

    def add(self, item: Item) -> int:
        """Put an item into the window that is open now, unless it is in one; the instant at which that ends."""
        key = f"{self.stem}/item/{hashlib.sha256(item.key.encode()).hexdigest()}"
        record, place = self._read(key, _PLACES)
        while True:
            wanted = self._place_for(item, place) if place is not None else Place(self._next_slot(0))
            if wanted == place:
                return wanted.slot
            record, place = self._write(record, key, wanted, _PLACES)

    def close(self, slot: int) -> list[Any]:
        """Seal a window for good; its items. The same, whoever else closes it and however often."""
        values: list[Any] = []
        place = Place(slot)
        while (page := self._sealed(place)).seal is Seal.FULL:
            values += [item.value for item in page.items]
            place = _following(place)
        return values + [item.value for item in page.items]

    def _place_for(self, item: Item, place: Place) -> Place:
        """The same place once it has the item; another one to try when it is sealed without."""
        key = self._page_key(place)
        record, found = self._read(key, _PAGES)
        while True:
            page = found or Page()
            if any(each.key == item.key for each in page.items):
                return place
            if page.seal is not None:
                return _following(place) if page.seal is Seal.FULL else Place(self._next_slot(place.slot))
            changed = self._extended(page, item, place, is_new=record is None)
            record, found = self._write(record, key, changed, _PAGES)

    def _extended(self, page: Page, item: Item, place: Place, *, is_new: bool) -> Page:
        """The open page with the item, or sealed."""
        if is_new and place.page == 1 and not self.ask(place.slot):
            # Called back before it had an item: whatever is put into it would never be sent.
            return Page(seal=Seal.CLOSED)
        longer = Page((*page.items, item))
        has_room = not page.items or len(msgspec.json.encode(longer)) <= self.page_bytes
        return longer if has_room else Page(page.items, Seal.FULL)

    def _sealed(self, place: Place) -> Page:
        key = self._page_key(place)
        record, found = self._read(key, _PAGES)
        while (page := found or Page()).seal is None:
            record, found = self._write(record, key, Page(page.items, Seal.CLOSED), _PAGES)
        return page

    def _next_slot(self, after: int) -> int:
        slot = self.rule.next(max(after, int(self.clock.now())))
        if slot is None:
            raise JobError(f"digest {self.job}: its last window is over")
        return slot

    def _page_key(self, place: Place) -> str:
        return f"{self.stem}/{write_instant(place.slot)}/page-{place.page}"

    def _read(self, key: str, decoder: msgspec.json.Decoder[_T]) -> tuple[Record | None, _T | None]:
        record = self.store.read(key)
        return record, None if record is None else self._decoded(record, decoder)

    def _write(self, old: Record | None, key: str, value: _T, decoder: msgspec.json.Decoder[_T]) -> tuple[Record, _T]:
        """One conditional write; what is stored then, be it this value or that of one who was quicker."""
        now = self.clock.now()
        new = Record(
            key=key,
            state=State.SPLIT,
            version=1 if old is None else old.version + 1,
            claim_id=self.new_id(),
            created_at=now if old is None else old.created_at,
            updated_at=now,
            provider="",
            job=self.job,
            call=msgspec.json.encode(value).decode(),
        )
        stored = self.store.swap(old, new) or new
        return stored, self._decoded(stored, decoder)

    def _decoded(self, record: Record, decoder: msgspec.json.Decoder[_T]) -> _T:
        try:
            return decoder.decode(record.call or "")
        except msgspec.MsgspecError as error:
            raise LedgerUnusable(f"the ledger holds a record of digest {self.job} that cannot be read") from error


def _following(place: Place) -> Place:
    return Place(place.slot, place.page + 1)
