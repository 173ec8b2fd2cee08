"""What an email provider tells of an email that it accepted, in one vocabulary.

A provider's event is an event like any other: it can have jobs of its own. One that brings back the key that we derived
proves an acceptance, and so ends a doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from idem.events import Happened
from idem.keys import is_provider_key
from idem.providers.api import AS_TAG, HANDLE
from workers.webhooks.event import Event
from workers.webhooks.sources import sender_of

#: https://resend.com/docs/dashboard/webhooks/event-types, https://getmailer.co/docs/webhooks,
#: https://nuntly.com/docs/guides/integrate-webhooks
_EMAIL: Final[Mapping[str, Happened]] = {
    "email.sent": Happened.ACCEPTED,
    "email.delivered": Happened.DELIVERED,
    "email.delivery_delayed": Happened.DEFERRED,
    "email.bounced": Happened.BOUNCED,
    "email.complained": Happened.COMPLAINED,
    "email.opened": Happened.OPENED,
    "email.clicked": Happened.CLICKED,
    "email.failed": Happened.DROPPED,
    "email.suppressed": Happened.DROPPED,
}
#: https://lettermint.co/docs/platform/webhooks/events
_MESSAGE: Final[Mapping[str, Happened]] = {
    "message.created": Happened.ACCEPTED,
    "message.sent": Happened.ACCEPTED,
    "message.delivered": Happened.DELIVERED,
    "message.soft_bounced": Happened.DEFERRED,
    "message.hard_bounced": Happened.BOUNCED,
    "message.spam_complaint": Happened.COMPLAINED,
    "message.opened": Happened.OPENED,
    "message.clicked": Happened.CLICKED,
    "message.unsubscribed": Happened.UNSUBSCRIBED,
    "message.failed": Happened.DROPPED,
    "message.suppressed": Happened.DROPPED,
    "message.policy_rejected": Happened.DROPPED,
}
#: https://postmarkapp.com/developer/webhooks/webhooks-overview. A bounce is for good only if its type is.
_POSTMARK: Final[Mapping[str, Happened]] = {
    "Delivery": Happened.DELIVERED,
    "Bounce": Happened.DEFERRED,
    "SpamComplaint": Happened.COMPLAINED,
    "Open": Happened.OPENED,
    "Click": Happened.CLICKED,
}
#: https://postmarkapp.com/developer/api/bounce-api#bounce-types
_POSTMARK_FOR_GOOD: Final = frozenset({"HardBounce", "BadEmailAddress", "ManuallyDeactivated"})
#: https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-contents.html. A bounce is for good only if
#: it is `Permanent`, and no matter of the account's own list of addresses.
_SES: Final[Mapping[str, Happened]] = {
    "Send": Happened.ACCEPTED,
    "Delivery": Happened.DELIVERED,
    "DeliveryDelay": Happened.DEFERRED,
    "Bounce": Happened.DEFERRED,
    "Complaint": Happened.COMPLAINED,
    "Open": Happened.OPENED,
    "Click": Happened.CLICKED,
    "Reject": Happened.DROPPED,
    "Rendering Failure": Happened.DROPPED,
}
#: https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event. Of `bounce`, the type `blocked` passes.
_SENDGRID: Final[Mapping[str, Happened]] = {
    "processed": Happened.ACCEPTED,
    "delivered": Happened.DELIVERED,
    "deferred": Happened.DEFERRED,
    "bounce": Happened.BOUNCED,
    "spamreport": Happened.COMPLAINED,
    "open": Happened.OPENED,
    "click": Happened.CLICKED,
    "unsubscribe": Happened.UNSUBSCRIBED,
    "group_unsubscribe": Happened.UNSUBSCRIBED,
    "dropped": Happened.DROPPED,
}
#: https://documentation.mailgun.com/docs/mailgun/user-manual/events/event-structure. `failed` is for good only if its
#: severity is `permanent`, and a server said so: other reasons are Mailgun's own.
_MAILGUN: Final[Mapping[str, Happened]] = {
    "accepted": Happened.ACCEPTED,
    "delivered": Happened.DELIVERED,
    "failed": Happened.DEFERRED,
    "complained": Happened.COMPLAINED,
    "opened": Happened.OPENED,
    "clicked": Happened.CLICKED,
    "unsubscribed": Happened.UNSUBSCRIBED,
}
#: https://developers.brevo.com/docs/transactional-webhooks
_BREVO: Final[Mapping[str, Happened]] = {
    "request": Happened.ACCEPTED,
    "delivered": Happened.DELIVERED,
    "deferred": Happened.DEFERRED,
    "soft_bounce": Happened.DEFERRED,
    "hard_bounce": Happened.BOUNCED,
    "invalid_email": Happened.BOUNCED,
    "spam": Happened.COMPLAINED,
    "opened": Happened.OPENED,
    "unique_opened": Happened.OPENED,
    "proxy_open": Happened.OPENED,
    "unique_proxy_open": Happened.OPENED,
    "click": Happened.CLICKED,
    "unsubscribed": Happened.UNSUBSCRIBED,
    "blocked": Happened.DROPPED,
    "error": Happened.DROPPED,
}


@dataclass(frozen=True, slots=True)
class Told:
    """What was told; `provider_key` is the derived key where the event brings one back.

    `recipients` are those to whom it happened, as far as the event says so.
    """

    happened: Happened
    provider: str
    message_id: str | None
    recipients: tuple[str, ...]
    provider_key: str | None


def told(event: Event) -> Told | None:
    """What an event tells of an email; None for one of another sender, or of another kind."""
    sender = sender_of(event.source) or ""
    if sender not in _READERS:
        return None
    words, read = _READERS[sender]
    happened = words.get(event.type)
    return read(sender, happened, event.data) if happened is not None else None


def _in_data(sender: str, happened: Happened, data: Mapping[str, Any]) -> Told | None:
    """The common shape: the email is in `data`."""
    email = data.get("data")
    if not isinstance(email, dict):
        return None
    # Resend says of a bounce whether it is for good: https://resend.com/docs/dashboard/emails/email-bounces
    if happened is Happened.BOUNCED and _object(email.get("bounce")).get("type") in {"Transient", "Undetermined"}:
        happened = Happened.DEFERRED
    return Told(
        happened,
        sender,
        _first(email.get("message_id"), email.get("email_id"), email.get("id")),
        _texts(email.get("recipient")) or _alone(email.get("to")),
        _key(email.get("metadata"), email.get("tags"), email.get("headers")),
    )


def _postmark(sender: str, happened: Happened, data: Mapping[str, Any]) -> Told:
    if data.get("RecordType") == "Bounce" and data.get("Type") in _POSTMARK_FOR_GOOD:
        happened = Happened.BOUNCED
    recipients = _texts(data.get("Recipient")) or _texts(data.get("Email"))
    return Told(happened, sender, _first(data.get("MessageID")), recipients, _key(data.get("Metadata")))


def _ses(sender: str, happened: Happened, data: Mapping[str, Any]) -> Told:
    mail, bounce, complaint = (_object(data.get(name)) for name in ("mail", "bounce", "complaint"))
    # By its own list of addresses, SES bounces what it has not even tried.
    own = bounce.get("bounceSubType") in {"Suppressed", "OnAccountSuppressionList"}
    if happened is Happened.DEFERRED and bounce.get("bounceType") == "Permanent" and not own:
        happened = Happened.BOUNCED
    named = bounce.get("bouncedRecipients") or complaint.get("complainedRecipients")
    addresses = [_object(item).get("emailAddress") for item in named] if isinstance(named, list) else []
    recipients = _texts(addresses) or _alone(mail.get("destination"))
    return Told(happened, sender, _first(mail.get("messageId")), recipients, _key(mail.get("tags")))


def _sendgrid(sender: str, happened: Happened, data: Mapping[str, Any]) -> Told:
    if happened is Happened.BOUNCED and data.get("type") == "blocked":
        happened = Happened.DEFERRED
    # Ours is what is before the first dot: the answer to the send has no more.
    message_id = (_first(data.get("sg_message_id")) or "").partition(".")[0] or None
    return Told(happened, sender, message_id, _texts(data.get("email")), _key(data))


def _mailgun(sender: str, happened: Happened, data: Mapping[str, Any]) -> Told:
    event = _object(data.get("event-data"))
    permanent = event.get("severity") == "permanent" and event.get("reason") not in {"suppress-bounce", "old"}
    if happened is Happened.DEFERRED and permanent:
        happened = Happened.BOUNCED
    message_id = _first(_object(_object(event.get("message")).get("headers")).get("message-id"))
    shown = f"<{message_id}>" if message_id is not None else None
    return Told(happened, sender, shown, _texts(event.get("recipient")), _key(event.get("user-variables")))


def _brevo(sender: str, happened: Happened, data: Mapping[str, Any]) -> Told:
    """The derived key is the last tag: those of the email come before it."""
    key = next((tag for tag in reversed(_texts(data.get("tags"))) if is_provider_key(tag)), None)
    return Told(happened, sender, _first(data.get("message-id")), _texts(data.get("email")), key)


_Read = Callable[[str, Happened, Mapping[str, Any]], Told | None]
_READERS: Final[Mapping[str, tuple[Mapping[str, Happened], _Read]]] = {
    "lettermint": (_MESSAGE, _in_data),
    "getmailer": (_EMAIL, _in_data),
    "nuntly": (_EMAIL, _in_data),
    "resend": (_EMAIL, _in_data),
    "postmark": (_POSTMARK, _postmark),
    "ses": (_SES, _ses),
    "sendgrid": (_SENDGRID, _sendgrid),
    "mailgun": (_MAILGUN, _mailgun),
    "brevo": (_BREVO, _brevo),
}


def _key(*places: object) -> str | None:
    """The first of our keys in these places; what only has its name is somebody else's."""
    return next((key for place in places for key in _under_handle(place) if is_provider_key(key)), None)


def _under_handle(named: object) -> tuple[str, ...]:
    """Our value among names and values: an object, a list of `{"name", "value"}`, or texts `name=value`."""
    if isinstance(named, dict):
        return _texts(named.get(HANDLE))
    pairs = named if isinstance(named, list) else []
    values = [pair.get("value") for pair in pairs if isinstance(pair, dict) and pair.get("name") == HANDLE]
    return (*_texts(values), *(text.removeprefix(AS_TAG) for text in _texts(pairs) if text.startswith(AS_TAG)))


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: object) -> tuple[str, ...]:
    """The texts in a list, or the one text that there is."""
    return tuple(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str) and item)


def _alone(value: object) -> tuple[str, ...]:
    """The one recipient of an email; of several, none: which of them it happened to is not told."""
    found = _texts(value)
    return found if len(found) == 1 else ()


def _first(*values: object) -> str | None:
    return next(iter(_texts(list(values))), None)
