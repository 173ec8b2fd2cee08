"""Amazon SES, which tells through topics of Amazon SNS: what is signed is SNS's envelope, with a certificate of AWS's.

In place of a secret there are the ARNs of the topics that may post: anybody's topic has messages that AWS signs. Raw
delivery has no signature and is refused. A topic that is to be confirmed is, if it is one of these.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from importlib.util import find_spec
from typing import Any, Final

from idem.clock import Deadline, SystemClock
from idem.errors import MissingExtra
from idem.providers.http import Answer, HttpClient
from workers.webhooks.delivery import Delivery, Refused, Said, instant, named, parse
from workers.webhooks.signatures import Scheme, Tolerance

#: What is signed of each type, in this order, where it is there:
#: https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message-verify-message-signature.html
_OF_CONFIRMATIONS: Final = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
_SIGNED: Final = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": _OF_CONFIRMATIONS,
    "UnsubscribeConfirmation": _OF_CONFIRMATIONS,
}
_HOST: Final = r"https://sns\.[a-z0-9-]{1,40}\.amazonaws\.com(?:\.cn)?"
_CERTIFICATE: Final = re.compile(rf"{_HOST}/SimpleNotificationService-[A-Za-z0-9]{{1,64}}\.pem", re.ASCII)
_SUBSCRIBE: Final = re.compile(rf"{_HOST}/\?Action=ConfirmSubscription&[!-~]{{1,2048}}", re.ASCII)
_ARN: Final = re.compile(r"arn:aws(?:-[a-z]+)*:sns:[a-z0-9-]{1,40}:[0-9]{12}:[A-Za-z0-9_.-]{1,256}", re.ASCII)

_FETCH_SECONDS: Final = 5.0
#: AWS has one certificate a region at a time, and a new one every year or so.
_MOST_CERTIFICATES: Final = 16
#: For so long a URL that could not be fetched is not asked for again: a forger could have us do nothing else.
_PAUSE_SECONDS: Final = 10.0

Fetch = Callable[[str], bytes | None]


def fetch(url: str) -> bytes | None:
    """What a URL of AWS's answers with 200, within 5 s and 1 MiB; None for everything else. Follows nothing."""
    answer = HttpClient().get(url, {"User-Agent": "idem-workers"}, Deadline.after(SystemClock(), _FETCH_SECONDS))
    return answer.body if isinstance(answer, Answer) and answer.status == HTTPStatus.OK else None


class Topics:
    """Checks envelopes, and keeps the certificates that it fetched. Safe to share between threads."""

    def __init__(self, fetch: Fetch = fetch) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._keys: dict[str, Any] = {}
        self._failed: dict[str, float] = {}

    def check(self, delivery: Delivery, keys: Sequence[bytes], tolerance: Tolerance) -> None:
        """See `Scheme.check`; the instant is that of the first delivery, so that it does not bound the later ones."""
        if delivery.headers.get("x-amz-sns-rawdelivery", ("false",)) != ("false",):
            raise Refused(400, "raw delivery is not signed: turn it off for this subscription")
        envelope = parse(delivery.body)
        if _text(envelope, "TopicArn").encode(errors="replace") not in keys:
            raise Refused(403, "the topic is not one that may post here")
        self._check_signature(envelope, tolerance.now)
        if envelope["Type"] == "SubscriptionConfirmation":
            self._confirm(_text(envelope, "SubscribeURL"))

    def _check_signature(self, envelope: dict[str, Any], now: float) -> None:
        url, version = _text(envelope, "SigningCertURL"), _text(envelope, "SignatureVersion")
        region = _text(envelope, "TopicArn").split(":")[3]
        if not _CERTIFICATE.fullmatch(url) or not url.startswith(f"https://sns.{region}."):
            raise Refused(403, "the certificate's URL is not one of Amazon SNS in the topic's region")
        if version not in {"1", "2"}:
            raise Refused(400, "the signature's version is neither 1 nor 2")
        try:
            signature = base64.b64decode(_text(envelope, "Signature"), validate=True)
        except (binascii.Error, ValueError):
            raise Refused(400, "the signature is not Base64") from None
        if not _is_signed(self._key(url, now), signature, string_to_sign(envelope), version):
            raise Refused(401, "the signature is wrong")

    def _key(self, url: str, now: float) -> Any:
        """The public key of a certificate. One thread fetches; whoever has another certificate's key goes on."""
        if url in self._keys:
            return self._keys[url]
        with self._lock:
            if url in self._keys:
                return self._keys[url]
            if now < self._failed.get(url, 0.0):
                raise Refused(503, "the certificate of Amazon SNS cannot be fetched")
            pem = self._fetch(url)
            if pem is None:
                _keep(self._failed, url, now + _PAUSE_SECONDS)
                raise Refused(503, "the certificate of Amazon SNS cannot be fetched")
            key = _public_key(pem, now)
            _keep(self._keys, url, key)
            return key

    def _confirm(self, url: str) -> None:
        if not _SUBSCRIBE.fullmatch(url):
            raise Refused(403, "the URL to confirm by is not one of Amazon SNS")
        if self._fetch(url) is None:
            raise Refused(503, "the subscription cannot be confirmed")


def _keep(kept: dict[str, Any], url: str, value: object) -> None:
    while len(kept) >= _MOST_CERTIFICATES:
        del kept[next(iter(kept))]
    kept[url] = value


def string_to_sign(envelope: dict[str, Any]) -> bytes:
    """The name and the value of each field that is signed, a line each."""
    names = _SIGNED.get(_text(envelope, "Type"))
    if names is None:
        raise Refused(400, "the envelope is of no type that Amazon SNS has")
    present = [name for name in names if name != "Subject" or envelope.get(name) is not None]
    return "".join(f"{name}\n{_text(envelope, name)}\n" for name in present).encode()


def _text(envelope: dict[str, Any], name: str) -> str:
    value = envelope.get(name)
    if not isinstance(value, str):
        raise Refused(400, f"the envelope has no {name}")
    return value


def _public_key(pem: bytes, now: float) -> Any:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415 - an extra
    from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415 - the same

    try:
        certificate = load_pem_x509_certificate(pem)
        key = certificate.public_key()
        begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    except Exception:  # of many kinds, for what is no certificate
        raise Refused(503, "what Amazon SNS serves is not a certificate") from None
    if not isinstance(key, RSAPublicKey) or not begins <= now <= ends:
        raise Refused(403, "the certificate is not valid now, or not one for RSA")
    return key


def _is_signed(key: Any, signature: bytes, content: bytes, version: str) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - the same
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15  # noqa: PLC0415 - the same

    algorithm = hashes.SHA1() if version == "1" else hashes.SHA256()  # noqa: S303 - what version 1 is, which AWS defaults to
    try:
        key.verify(signature, content, PKCS1v15(), algorithm)
    except InvalidSignature:
        return False
    return True


def _several(delivery: Delivery) -> Iterator[tuple[Said, dict[str, Any]]]:
    """The event in the envelope; what confirms a subscription has none. The envelope's id is the event's."""
    envelope = parse(delivery.body)
    if envelope["Type"] != "Notification":
        return
    data = parse(_text(envelope, "Message"))
    kind = data.get("eventType", data.get("notificationType"))
    at = instant(envelope.get("Timestamp"))
    yield Said(named("MessageId", envelope.get("MessageId")), named("eventType", kind), at), data


def _arn(text: str) -> bytes:
    if find_spec("cryptography") is None:
        raise MissingExtra("events", "webhooks of Amazon SES")
    if not _ARN.fullmatch(text):
        raise ValueError("it is the ARN of the topic, arn:aws:sns:REGION:ACCOUNT:NAME")
    return text.encode()


def scheme(topics: Topics) -> Scheme:
    """The scheme, by these certificates."""
    return Scheme(
        title="Amazon SES",
        source="https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html",
        check=topics.check,
        several=_several,
        key=_arn,
        waits=True,
    )


SCHEME: Final = scheme(Topics())
