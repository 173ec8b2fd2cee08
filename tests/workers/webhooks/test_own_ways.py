"""Senders that have ways of their own: a password, a token, a signature in the body, a public key, a certificate."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from hypothesis import given, settings
from hypothesis import strategies as st

from idem.errors import SettingsError
from tests.workers.webhooks.deliveries import PLAIN
from tests.workers.webhooks.key_pairs import NOW, certificate, ec_key, private, public, rsa_key
from workers.sandbox.dialect import Mail
from workers.sandbox.webhooks import SCHEMES as SANDBOX
from workers.sandbox.webhooks import SES_CERTIFICATE, SES_TOPIC, Posting
from workers.sandbox.webhooks import Event as Posted
from workers.webhooks import ses
from workers.webhooks.delivery import Delivery, Refused
from workers.webhooks.event import Event
from workers.webhooks.ses import Fetch, Topics
from workers.webhooks.signatures import Scheme, Tolerance
from workers.webhooks.sources import SCHEMES, Source, open_sources

#: What the sandbox signs with, and what a source is given to verify it.
SIGNING = {
    "postmark": "user:password",
    "brevo": PLAIN,
    "mailgun": PLAIN,
    "sendgrid": private(ec_key()),
    "ses": private(rsa_key()),
}
VERIFYING = SIGNING | {"sendgrid": public(ec_key()), "ses": SES_TOPIC}
SENDERS = tuple(SIGNING)
MAIL = Mail(sender="shop@example.com", to=("ann@example.com",), subject="Hi", metadata={"a": "b"})
Headers = dict[str, str]


def serve(url: str) -> bytes | None:
    """What tests serve in place of AWS."""
    return certificate(rsa_key()) if url == SES_CERTIFICATE else None


def source(sender: str, fetch: Fetch = serve) -> Source:
    scheme: Scheme = ses.scheme(Topics(fetch)) if sender == "ses" else SCHEMES[sender]
    return Source(sender, scheme, scheme.keys([VERIFYING[sender]]))


def posted(sender: str, event: Posted = Posted.DELIVERED, secret: str | None = None) -> tuple[Headers, bytes]:
    """As the sandbox posts it."""
    posting = Posting(
        event=event,
        name=SANDBOX[sender].names[event],
        id="evt_1",
        message_id="id-1",
        recipient="ann@example.com",
        mail=MAIL,
        at=NOW,
        secret=SIGNING[sender] if secret is None else secret,
    )
    return SANDBOX[sender].write(posting)


def open_(sender: str, headers: Headers, body: bytes, *, now: float = NOW, fetch: Fetch = serve) -> tuple[Event, ...]:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return source(sender, fetch).open(Delivery.of(raw, body), Tolerance(now, 300.0))


def refusal(sender: str, headers: Headers, body: bytes, **options: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        open_(sender, headers, body, **options)
    return caught.value


@pytest.mark.parametrize("sender", SENDERS)
class TestEachSender:
    @pytest.mark.parametrize("kind", [Posted.DELIVERED, Posted.BOUNCED, Posted.COMPLAINED])
    def test_what_the_sandbox_posts_is_opened(self, sender: str, kind: Posted) -> None:
        """With the same name when it is posted again."""
        headers, body = posted(sender, kind)
        (event,) = open_(sender, headers, body)

        assert (event.source, event.type) == (sender, SANDBOX[sender].names[kind])
        assert event.id
        assert event.created == NOW
        assert open_(sender, headers, body) == (event,)

    def test_two_events_have_two_names(self, sender: str) -> None:
        headers, body = posted(sender)
        other = posted(sender, Posted.BOUNCED)
        if sender in {"postmark", "brevo"}:
            assert open_(sender, headers, body)[0].id != open_(sender, *other)[0].id
        else:
            assert open_(sender, headers, body)[0].id == "evt_1"

    def test_another_secret_is_forged(self, sender: str) -> None:
        keys = {"sendgrid": private(ec_key("other")), "ses": private(rsa_key("other"))}

        assert refusal(sender, *posted(sender, secret=keys.get(sender, "user:other-password"))).status == 401

    def test_no_secret_is_forged(self, sender: str) -> None:
        headers, body = posted(sender)
        stripped = {} if sender not in {"mailgun", "ses"} else headers
        emptied = b"{}" if sender in {"mailgun", "ses"} else body

        assert 400 <= refusal(sender, stripped, emptied).status < 500

    @pytest.mark.parametrize(
        "body", [b"", b"1", b"{", b"\xff{}", b'{"a": NaN}', b'{"a":' * 100_000, b"[[]]", b'"x"', b"{}", b"[7]"]
    )
    def test_what_is_no_event_is_refused(self, sender: str, body: bytes) -> None:
        headers, _ = posted(sender)

        assert 400 <= refusal(sender, headers, body).status < 500

    @given(data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_no_delivery_crashes_it(self, sender: str, data: st.DataObject) -> None:
        """A genuine body with one value replaced by any other is refused, or opened; nothing else is raised."""
        headers, body = posted(sender)
        document = json.loads(body)
        places = list(_places(document))
        path = data.draw(st.sampled_from(places))
        junk: object = data.draw(st.one_of(st.none(), st.integers(), st.text(max_size=20), st.just([]), st.just({})))
        _put(document, path, junk)
        with contextlib.suppress(Refused):
            open_(sender, headers, json.dumps(document).encode())


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (*path, name)
        yield from _places(inner, (*path, name))


def _put(document: Any, path: tuple[Any, ...], junk: object) -> None:
    for name in path[:-1]:
        document = document[name]
    document[path[-1]] = junk


@pytest.mark.parametrize("sender", ["sendgrid", "mailgun"])
def test_the_signed_instant_is_near(sender: str) -> None:
    for seconds in (-300, 300):
        assert open_(sender, *posted(sender), now=NOW + seconds)
    for seconds in (-301, 301):
        assert refusal(sender, *posted(sender), now=NOW + seconds).status == 401


@pytest.mark.parametrize("sender", ["sendgrid", "ses"])
def test_a_changed_body_is_forged(sender: str) -> None:
    headers, body = posted(sender)

    assert refusal(sender, headers, body.replace(b"ann@", b"bob@")).status == 401


def test_a_delivery_of_sendgrid_has_many_events() -> None:
    """All of them, or none: one without an id could not be told from another."""
    listed = [{"sg_event_id": f"e{number}", "event": "open", "timestamp": NOW} for number in range(3)]

    assert [event.id for event in _opened_by_sendgrid(listed)] == ["e0", "e1", "e2"]
    assert _opened_by_sendgrid([]) == ()
    with pytest.raises(Refused, match="sg_event_id"):
        _opened_by_sendgrid([*listed, {"event": "open"}])


def _opened_by_sendgrid(listed: list[dict[str, Any]]) -> tuple[Event, ...]:
    body = json.dumps(listed).encode()
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA  # noqa: PLC0415 - beside its only use

    signature = base64.b64encode(ec_key().sign(str(NOW).encode() + body, ECDSA(hashes.SHA256()))).decode()
    headers = {
        "x-twilio-email-event-webhook-signature": signature,
        "x-twilio-email-event-webhook-timestamp": str(NOW),
    }
    return open_("sendgrid", headers, body)


@pytest.mark.parametrize(
    ("sender", "secret"),
    [
        ("postmark", "no-colon-here"),
        ("brevo", "short"),
        ("sendgrid", "not Base64!"),
        ("sendgrid", base64.b64encode(b"no key at all").decode()),
        ("sendgrid", public(rsa_key())),
        ("ses", "a-secret-and-no-topic"),
        ("ses", "arn:aws:sqs:eu-west-1:123456789012:queue"),
        ("ses", SES_TOPIC + "/x"),
    ],
)
def test_a_secret_that_is_none_is_refused_at_once(sender: str, secret: str) -> None:
    with pytest.raises(SettingsError, match=f"IDEM_{sender.upper()}_WEBHOOK_SECRET") as caught:
        open_sources({sender: (secret,)})
    assert secret not in str(caught.value)


class TestEnvelopes:
    """Of Amazon SNS: what is believed, fetched and confirmed, and what is not."""

    def test_both_versions_of_the_signature(self) -> None:
        for version, algorithm in (("1", hashes.SHA1()), ("2", hashes.SHA256())):  # noqa: S303 - version 1 is this
            assert open_("ses", {}, signed(_notification(), version, algorithm))
        assert refusal("ses", {}, signed(_notification(), "3", hashes.SHA256())).status == 400
        assert refusal("ses", {}, signed(_notification(), "1", hashes.SHA256())).status == 401

    def test_a_subject_is_signed_where_there_is_one(self) -> None:
        body = signed(_notification() | {"Subject": "Amazon SES notification"})

        assert open_("ses", {}, body)
        assert refusal("ses", {}, body.replace(b"Amazon SES", b"Amazon SEX")).status == 401

    def test_the_older_notification_is_read_too(self) -> None:
        (event,) = open_("ses", {}, signed(_notification({"notificationType": "Bounce", "mail": {}})))

        assert (event.type, event.data) == ("Bounce", {"notificationType": "Bounce", "mail": {}})

    @pytest.mark.parametrize(
        "url",
        [
            "http://sns.eu-west-1.amazonaws.com/SimpleNotificationService-x.pem",
            "https://sns.eu-west-1.amazonaws.com.evil.example/SimpleNotificationService-x.pem",
            "https://evil.example/sns.eu-west-1.amazonaws.com/SimpleNotificationService-x.pem",
            "https://sns.eu-west-1.amazonaws.com@evil.example/SimpleNotificationService-x.pem",
            "https://sns.eu-west-1.amazonaws.com:8443/SimpleNotificationService-x.pem",
            "https://bucket.s3.eu-west-1.amazonaws.com/SimpleNotificationService-x.pem",
            "https://sns.eu-west-1.amazonaws.com/?Action=GetSomething&x=.pem",
            "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-x.pem\n",
            "https://sns.eu-west-1.amazonaws.com/a/../SimpleNotificationService-x.pem",
            "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-x.pem",
        ],
    )
    def test_a_certificate_of_anybody_else_is_not_even_fetched(self, url: str) -> None:
        fetched: list[str] = []
        body = signed(_notification() | {"SigningCertURL": url})

        assert refusal("ses", {}, body, fetch=_remembering(fetched)).status == 403
        assert fetched == []

    def test_a_topic_that_is_not_named_is_refused_before_anything_is_fetched(self) -> None:
        fetched: list[str] = []
        for topic in (SES_TOPIC + "2", "arn:aws:sns:eu-west-1:999999999999:idem-sandbox"):
            body = signed(_notification() | {"TopicArn": topic})
            assert refusal("ses", {}, body, fetch=_remembering(fetched)).status == 403
        assert fetched == []

    def test_raw_delivery_is_refused(self) -> None:
        body = signed(_notification())

        assert "raw" in refusal("ses", {"x-amz-sns-rawdelivery": "true"}, body).reason

    def test_a_certificate_is_fetched_once(self) -> None:
        fetched: list[str] = []
        opening = source("ses", _remembering(fetched))
        for _ in range(3):
            opening.open(Delivery.of([], signed(_notification())), Tolerance(NOW, 300.0))

        assert fetched == [SES_CERTIFICATE]

    def test_one_that_cannot_be_fetched_is_posted_again_and_not_fetched_each_time(self) -> None:
        fetched: list[str] = []
        opening = source("ses", fetched.append)
        for now in (NOW, NOW + 5, NOW + 11):
            with pytest.raises(Refused, match="cannot be fetched") as caught:
                opening.open(Delivery.of([], signed(_notification())), Tolerance(now, 300.0))
            assert caught.value.status == 503

        assert len(fetched) == 2

    @pytest.mark.parametrize(
        ("pem", "status"),
        [
            (b"<html>", 503),
            (certificate(ec_key()), 403),
            (certificate(rsa_key(), at=NOW - 86_400 * 800), 403),
            (certificate(rsa_key(), at=NOW + 86_400 * 800), 403),
            (certificate(rsa_key("other")), 401),
        ],
    )
    def test_what_is_fetched_must_be_a_certificate_that_fits(self, pem: bytes, status: int) -> None:
        assert refusal("ses", {}, signed(_notification()), fetch=lambda _url: pem).status == status

    def test_a_subscription_to_a_named_topic_is_confirmed(self) -> None:
        fetched: list[str] = []
        assert open_("ses", {}, signed(_confirmation()), fetch=_remembering(fetched)) == ()

        assert fetched == [SES_CERTIFICATE, _confirmation()["SubscribeURL"]]

    @pytest.mark.parametrize(
        "url",
        [
            "https://evil.example/?Action=ConfirmSubscription&Token=x",
            "http://169.254.169.254/?Action=ConfirmSubscription&Token=x",
            "https://sns.eu-west-1.amazonaws.com/?Action=DeleteTopic&Token=x",
        ],
    )
    def test_no_other_url_is_asked_to_confirm(self, url: str) -> None:
        fetched: list[str] = []
        body = signed(_confirmation() | {"SubscribeURL": url})

        assert refusal("ses", {}, body, fetch=_remembering(fetched)).status == 403
        assert fetched == [SES_CERTIFICATE]

    def test_a_forged_confirmation_confirms_nothing(self) -> None:
        fetched: list[str] = []
        body = signed(_confirmation()).replace(b"Token=abc", b"Token=xyz")

        assert refusal("ses", {}, body, fetch=_remembering(fetched)).status == 401
        assert fetched == [SES_CERTIFICATE]

    def test_what_ends_a_subscription_is_no_event(self) -> None:
        assert open_("ses", {}, signed(_confirmation() | {"Type": "UnsubscribeConfirmation"})) == ()


def _remembering(fetched: list[str]) -> Callable[[str], bytes | None]:
    def fetch(url: str) -> bytes | None:
        fetched.append(url)
        return serve(url) or b"<ConfirmSubscriptionResponse/>"

    return fetch


def _notification(message: object = None) -> dict[str, str]:
    message = {"eventType": "Delivery", "mail": {}} if message is None else message
    return _envelope("Notification") | {"Message": json.dumps(message)}


def _confirmation() -> dict[str, str]:
    url = f"https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn={SES_TOPIC}&Token=abc"
    said = {"Message": "You have chosen to subscribe", "SubscribeURL": url, "Token": "abc"}
    return _envelope("SubscriptionConfirmation") | said


def _envelope(kind: str) -> dict[str, str]:
    return {
        "Type": kind,
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": SES_TOPIC,
        "Timestamp": "2027-01-15T08:00:00.000Z",
        "SigningCertURL": SES_CERTIFICATE,
    }


def signed(envelope: dict[str, str], version: str = "2", algorithm: Any = None) -> bytes:
    """The envelope with its signature, over the fields that its page names, in the order of their names."""
    named = ["Message", "MessageId", "Subject", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"]
    content = "".join(f"{name}\n{envelope[name]}\n" for name in named if name in envelope).encode()
    signature = rsa_key().sign(content, PKCS1v15(), algorithm or hashes.SHA256())
    whole = envelope | {"SignatureVersion": version, "Signature": base64.b64encode(signature).decode()}
    return json.dumps(whole).encode()


def test_the_known_answer_of_sendgrids_own_library() -> None:
    """https://github.com/sendgrid/sendgrid-nodejs, packages/eventwebhook: its key, its signature."""
    key = (
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEDr2LjtURuePQzplybdC+u4CwrqDqBaWjcMMsTbhdbcwHBcepxo7yAQGhHPTnlvFYPAZFceEu/"
        "1FwCM/QmGUhA=="
    )
    headers = {
        "x-twilio-email-event-webhook-signature": (
            "MEUCIQCtIHJeH93Y+qpYeWrySphQgpNGNr/U+UyUlBkU6n7RAwIgJTz2C+8a8xonZGi6BpSzoQsbVRamr2nlxFDWYNH2j/0="
        ),
        "x-twilio-email-event-webhook-timestamp": "1588788367",
    }
    body = b'{"category":"example_payload","event":"test_event","message_id":"message_id"}'
    scheme = SCHEMES["sendgrid"]
    delivery = Delivery.of([(name.encode(), value.encode()) for name, value in headers.items()], body)

    scheme.check(delivery, scheme.keys([key]), Tolerance(1_588_788_367, 300.0))
