"""What each provider posts about an email that it accepted, and how it signs that: one entry a provider.

The schemes are those of the providers' own pages and SDKs; the bodies have the fields by which an email is recognised
(its id, its tags and metadata, which bring the derived key back) and little else. SendGrid's are signed
only for an order with a private key, as they are not by default. Amazon SES tells through a topic of Amazon SNS, and
the private key of an order is that of the certificate at `SES_CERTIFICATE`, which whoever verifies has to be given.
SMTP tells nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from workers.sandbox.asymmetric import sign_ec, sign_rsa
from workers.sandbox.dialect import Mail

#: The topic that the sandbox's Amazon SES publishes to, and where its certificate would be.
SES_TOPIC: Final = "arn:aws:sns:eu-west-1:123456789012:idem-sandbox"
SES_CERTIFICATE: Final = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-sandbox.pem"


class Event(StrEnum):
    """What can happen to an email, in our words."""

    ACCEPTED = "accepted"
    DELIVERED = "delivered"
    BOUNCED = "bounced"
    COMPLAINED = "complained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """One event that is posted: `id` names the event, `at` (Unix seconds) is when it is signed.

    `name` is what the provider calls it, `message_id` the id that it gave the email.
    """

    event: Event
    name: str
    id: str
    message_id: str
    recipient: str
    mail: Mail
    at: float
    secret: str

    @property
    def time(self) -> str:
        """`at` as ISO 8601."""
        return datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def pick(self, **by_event: Any) -> Any:
        """The value for this event, where a provider has another one for each; None for those without."""
        return by_event.get(self.event.value)


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a provider tells: its names for events, the JSON that it posts, and the headers that sign those bytes."""

    names: Mapping[Event, str]
    body: Callable[[Posting], object]
    sign: Callable[[Posting, bytes], Mapping[str, str]]

    def write(self, posting: Posting) -> tuple[dict[str, str], bytes]:
        """The headers and the body of a request."""
        body = msgspec.json.encode(self.body(posting))
        return {"Content-Type": "application/json", **self.sign(posting, body)}, body


def _names(accepted: str, delivered: str, bounced: str, complained: str) -> dict[Event, str]:
    return dict(zip(Event, (accepted, delivered, bounced, complained), strict=True))


def _hex(secret: str | bytes, *parts: str | bytes) -> str:
    return _hmac(secret, *parts).hexdigest()


def _hmac(secret: str | bytes, *parts: str | bytes) -> hmac.HMAC:
    encoded = [part.encode() if isinstance(part, str) else part for part in (secret, *parts)]
    return hmac.new(encoded[0], b"".join(encoded[1:]), hashlib.sha256)


def _pairs(posting: Posting) -> dict[str, str]:
    """Tags with a name and a value, as the dialects note them."""
    return dict(tag.split("=", 1) for tag in posting.mail.tags if "=" in tag)


def _lettermint(posting: Posting) -> object:
    named = _pairs(posting)
    return {
        "id": posting.id,
        "event": posting.name,
        "timestamp": posting.time,
        "data": {
            "message_id": posting.message_id,
            "recipient": posting.recipient,
            "subject": posting.mail.subject,
            "tag": next((tag for tag in posting.mail.tags if "=" not in tag), None),
            "tags": [{"name": name, "value": value} for name, value in named.items()],
            "metadata": posting.mail.metadata,
        },
    }


def _sign_lettermint(posting: Posting, body: bytes) -> dict[str, str]:
    """The secret with its `whsec_`, and the delivery's instant once more beside the signature."""
    at = f"{posting.at:.0f}"
    return {
        "X-Lettermint-Signature": f"t={at},v1={_hex(posting.secret, at, '.', body)}",
        "X-Lettermint-Delivery": at,
        "X-Lettermint-Event": posting.name,
        "X-Lettermint-Attempt": "1",
    }


def _email_event(posting: Posting) -> object:
    """The common shape: a type, and the email in `data`."""
    return {
        "id": posting.id,
        "type": posting.name,
        "created_at": posting.time,
        "data": {
            "id": posting.message_id,
            "email_id": posting.message_id,
            "from": posting.mail.sender,
            "to": [posting.recipient],
            "subject": posting.mail.subject,
            "tags": _pairs(posting),
            "metadata": posting.mail.metadata,
        },
    }


def _getmailer(posting: Posting) -> object:
    """Its tags are bare words."""
    body: Any = _email_event(posting)
    body["data"]["tags"] = list(posting.mail.tags)
    return body


def _nuntly(posting: Posting) -> object:
    return {
        "id": posting.id,
        "type": posting.name,
        "createdAt": posting.time,
        "data": {
            "id": posting.message_id,
            "from": posting.mail.sender,
            "to": [posting.recipient],
            "subject": posting.mail.subject,
            "headers": posting.mail.headers,
            "tags": [{"name": name, "value": value} for name, value in _pairs(posting).items()],
        },
    }


def _sign_nuntly(posting: Posting, body: bytes) -> dict[str, str]:
    """The secret without its `whsec_`, as text; seconds in the signature, milliseconds beside it."""
    at = f"{posting.at:.0f}"
    return {
        "webhook-timestamp": f"{posting.at * 1000:.0f}",
        "webhook-signature": f"t={at},v0={_hex(posting.secret.removeprefix('whsec_'), at, '.', body)}",
    }


def _sign_svix(posting: Posting, body: bytes) -> dict[str, str]:
    """The secret without its `whsec_`, from base64."""
    at = f"{posting.at:.0f}"
    try:
        secret = base64.b64decode(posting.secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise ValueError("the secret of a Svix signature is whsec_ and base64") from None
    digest = base64.b64encode(_hmac(secret, posting.id, ".", at, ".", body).digest()).decode()
    return {"svix-id": posting.id, "svix-timestamp": at, "svix-signature": f"v1,{digest}"}


def _postmark(posting: Posting) -> object:
    at = posting.pick(delivered="DeliveredAt", bounced="BouncedAt", complained="BouncedAt")
    return {
        "RecordType": posting.name,
        "MessageStream": "outbound",
        "MessageID": posting.message_id,
        posting.pick(delivered="Recipient") or "Email": posting.recipient,
        at: posting.time,
        **(posting.pick(bounced={"Type": "HardBounce", "TypeCode": 1}, complained={"Type": "SpamComplaint"}) or {}),
        "Tag": next(iter(posting.mail.tags), ""),
        "Metadata": posting.mail.metadata,
    }


def _basic(posting: Posting, _body: bytes) -> dict[str, str]:
    """The secret is `user:password`, as one would write it in the URL."""
    return {"Authorization": "Basic " + base64.b64encode(posting.secret.encode()).decode()} if posting.secret else {}


def _sendgrid(posting: Posting) -> object:
    return [
        {
            **posting.mail.metadata,
            "email": posting.recipient,
            "timestamp": int(posting.at),
            "event": posting.name,
            "category": list(posting.mail.tags),
            "sg_event_id": posting.id,
            "sg_message_id": f"{posting.message_id}.recvd-0",
        }
    ]


def _sign_sendgrid(posting: Posting, body: bytes) -> dict[str, str]:
    if not posting.secret:
        return {}
    at = f"{posting.at:.0f}"
    return {
        "X-Twilio-Email-Event-Webhook-Timestamp": at,
        "X-Twilio-Email-Event-Webhook-Signature": sign_ec(posting.secret, at.encode() + body),
    }


def _ses(posting: Posting) -> object:
    """The envelope of Amazon SNS, in which the event is a text."""
    envelope = {
        "Type": "Notification",
        "MessageId": posting.id,
        "TopicArn": SES_TOPIC,
        "Message": msgspec.json.encode(_ses_event(posting)).decode(),
        "Timestamp": posting.time,
    }
    signed = ("Message", "MessageId", "Timestamp", "TopicArn", "Type")
    content = "".join(f"{name}\n{envelope[name]}\n" for name in signed)
    return envelope | {
        "SignatureVersion": "2",
        "Signature": sign_rsa(posting.secret, content.encode()),
        "SigningCertURL": SES_CERTIFICATE,
        "UnsubscribeURL": "https://sns.eu-west-1.amazonaws.com/?Action=Unsubscribe",
    }


def _ses_event(posting: Posting) -> dict[str, object]:
    recipients = [{"emailAddress": posting.recipient}]
    return {
        "eventType": posting.name,
        "mail": {
            "timestamp": posting.time,
            "source": posting.mail.sender,
            "messageId": posting.message_id,
            "destination": list(posting.mail.to),
            "tags": {name: [value] for name, value in posting.mail.metadata.items()},
        },
        posting.name.lower(): posting.pick(
            delivered={"timestamp": posting.time, "recipients": [posting.recipient]},
            bounced={"bounceType": "Permanent", "bounceSubType": "General", "bouncedRecipients": recipients},
            complained={"timestamp": posting.time, "complainedRecipients": recipients},
        )
        or {},
    }


def _sign_ses(posting: Posting, _body: bytes) -> dict[str, str]:
    """Nothing but what the envelope has; as Amazon SNS does, plain text is announced."""
    return {
        "Content-Type": "text/plain; charset=UTF-8",
        "x-amz-sns-message-type": "Notification",
        "x-amz-sns-message-id": posting.id,
        "x-amz-sns-topic-arn": SES_TOPIC,
    }


def _mailgun(posting: Posting) -> object:
    """The signature is in the body, and covers nothing of it."""
    at, token = f"{posting.at:.0f}", hashlib.sha256(posting.id.encode()).hexdigest()[:50]
    return {
        "signature": {"timestamp": at, "token": token, "signature": _hex(posting.secret, at, token)},
        "event-data": {
            "id": posting.id,
            "event": posting.name,
            "timestamp": posting.at,
            "recipient": posting.recipient,
            **({"severity": "permanent"} if posting.event is Event.BOUNCED else {}),
            "message": {"headers": {"message-id": posting.message_id.strip("<>"), "subject": posting.mail.subject}},
            "tags": list(posting.mail.tags),
            "user-variables": posting.mail.metadata,
        },
    }


def _brevo(posting: Posting) -> object:
    return {
        "event": posting.name,
        "email": posting.recipient,
        "id": 1,
        "ts": int(posting.at),
        "ts_event": int(posting.at),
        "ts_epoch": int(posting.at * 1000),
        "message-id": posting.message_id,
        "subject": posting.mail.subject,
        "tags": list(posting.mail.tags),
    }


def _bearer(posting: Posting, _body: bytes) -> dict[str, str]:
    return {"Authorization": f"Bearer {posting.secret}"} if posting.secret else {}


def _sign_getmailer(posting: Posting, body: bytes) -> dict[str, str]:
    """No timestamp: whoever has seen one can post it again."""
    return {"X-GetMailer-Signature": f"sha256={_hex(posting.secret, body)}"}


_USUAL_NAMES: Final = _names("email.sent", "email.delivered", "email.bounced", "email.complained")

SCHEMES: Final[Mapping[str, Scheme]] = {
    "lettermint": Scheme(
        _names("message.created", "message.delivered", "message.hard_bounced", "message.spam_complaint"),
        _lettermint,
        _sign_lettermint,
    ),
    "getmailer": Scheme(_USUAL_NAMES, _getmailer, _sign_getmailer),
    "nuntly": Scheme(_USUAL_NAMES, _nuntly, _sign_nuntly),
    "resend": Scheme(_USUAL_NAMES, _email_event, _sign_svix),
    # It tells nothing of an acceptance.
    "postmark": Scheme(
        {Event.DELIVERED: "Delivery", Event.BOUNCED: "Bounce", Event.COMPLAINED: "SpamComplaint"}, _postmark, _basic
    ),
    "sendgrid": Scheme(_names("processed", "delivered", "bounce", "spamreport"), _sendgrid, _sign_sendgrid),
    "ses": Scheme(_names("Send", "Delivery", "Bounce", "Complaint"), _ses, _sign_ses),
    "mailgun": Scheme(_names("accepted", "delivered", "failed", "complained"), _mailgun, lambda _posting, _body: {}),
    "brevo": Scheme(_names("request", "delivered", "hard_bounce", "spam"), _brevo, _bearer),
}
