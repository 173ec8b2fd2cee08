"""What the receiver does with events of email providers, beside their jobs: notes, and the suppression list."""

from __future__ import annotations

from typing import Final

from idem.errors import EmailError
from idem.events import EventNotes, Happened
from idem.suppression import Reason, Suppression
from workers.webhooks.event import Event
from workers.webhooks.happened import Told, told

_REASONS: Final = {Happened.BOUNCED: Reason.BOUNCED, Happened.COMPLAINED: Reason.COMPLAINED}


class Hearing:
    """Takes what events tell of emails; `suppression` is None where no list is kept. Safe to share between threads."""

    def __init__(self, notes: EventNotes, suppression: Suppression | None) -> None:
        self._notes = notes
        self._suppression = suppression

    def hear(self, event: Event) -> bool:
        """Take an event; False when it tells nothing of an email of ours. Twice is once. Raises `LedgerError`."""
        found = told(event)
        if found is None:
            return False
        self._suppress(event, found)
        if found.provider_key is None:
            return False
        self._notes.add(
            found.provider_key,
            found.happened,
            source=event.source,
            event_id=event.id,
            message_id=found.message_id,
        )
        return True

    def _suppress(self, event: Event, found: Told) -> None:
        reason = _REASONS.get(found.happened)
        # Of several who may have complained, SES names them all, as it does not know who did.
        unsure = reason is Reason.COMPLAINED and len(found.recipients) > 1
        if self._suppression is None or reason is None or unsure:
            return
        for recipient in found.recipients:
            try:
                self._suppression.add(recipient, reason, source=f"{event.source}/{event.id}")
            except EmailError:
                # A list's or a route's own spelling of an address, which no email of ours can be for.
                continue
