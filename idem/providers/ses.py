"""Amazon SES, by its API version 2: no keys, no look-up; a tag with the key comes back in its events.

boto3 makes the request: parameters, endpoint, credentials, signature. The request is then taken from it and sent by
`HttpClient`, since boto3 has no total time limit, repeats requests by itself unless told otherwise, and raises one
error for a connection that was refused and another that may be either. Of what it raises by itself, all comes before
anything is sent.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, Final, NoReturn

from idem.clock import Deadline
from idem.email import Email
from idem.errors import IdemError, MissingExtra, SettingsError, UnsupportedEmail
from idem.mime.headers import write_addresses
from idem.outcome import NotSent, Outcome, Unknown
from idem.privacy import redact
from idem.providers.base import USUAL, Contract, Events, Limits, Meaning, Memory, Reply, Row
from idem.providers.http import HttpClient
from idem.providers.message import bare, message_bytes, with_ascii_domains
from idem.providers.reading import outcome

#: The tag that carries the derived key.
KEY_TAG: Final = "idem_key"
_TAG: Final = "tag"
_TAG_TEXT = re.compile(r"[A-Za-z0-9_-]{1,256}")
_UTF8: Final = "UTF-8"


def _errors(*names: str) -> str:
    """Error codes as AWS writes them: bare, behind a namespace and `#`, or before a colon and a page."""
    return rf"(?:.*#)?(?:{'|'.join(names)})(?:Exception)?(?::.*)?"


CONTRACT: Final = Contract(
    name="ses",
    title="Amazon SES",
    sources=(
        "https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_SendEmail.html",
        "https://docs.aws.amazon.com/ses/latest/dg/event-publishing-send-email.html",
        "https://docs.aws.amazon.com/ses/latest/dg/quotas.html",
    ),
    checked=date(2026, 11, 22),
    base_url="",
    memory=Memory.NONE,
    key=None,
    table=(
        Row({400, 429}, Meaning.NOT_NOW, words=r"daily (message|sending) quota", pause_seconds=3_600.0),
        Row(range(400, 500), Meaning.NOT_NOW, code=_errors("SendingPaused", "LimitExceeded", "TooManyRequests")),
        Row(range(400, 504), Meaning.NOT_NOW, code=_errors("Throttling", "ThrottledException", "RequestLimitExceeded")),
        Row(range(400, 500), Meaning.FORBIDDEN, code=_errors("MailFromDomainNotVerified")),
        # These stop every email alike, and only a person can end them. So do all answers of 403: they are of AWS's
        # front door (signatures, clocks, policies), not about the email.
        Row(range(400, 500), Meaning.CREDENTIALS, code=_errors("AccountSuspended", "AccessDenied", "ExpiredToken")),
        Row({401, 403}, Meaning.CREDENTIALS),
        # It did not get the whole request in time, says the front door; what is behind it may have.
        Row({400}, Meaning.UNCLEAR, code=_errors("RequestTimeout")),
        *USUAL,
    ),
    reply=Reply(
        message_id=("MessageId",),
        code=("header:x-amzn-errortype", "__type", "code", "Code"),
        message=("message", "Message"),
    ),
    # 40 MB for the message, which is a third more when it is in the request.
    limits=Limits(recipients=50, tags=1, bytes=53 * 1024 * 1024),
    events=Events(
        handle=f"tag {KEY_TAG}",
        source="https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-contents.html",
    ),
    needs_token=False,
    contradictions=("what it accepts may never leave it (a virus, a suppressed recipient): its events say so",),
)


def parameters(email: Email, provider_key: str) -> dict[str, Any]:
    """What `SendEmail` is called with: a simple message, or a raw one for attachments and headers.

    The tags are the email's metadata, its tag under the name `tag`, and the key. SES adds Date and Message-ID itself.
    """
    email = with_ascii_domains(email)
    lists = {"ToAddresses": email.to, "CcAddresses": email.cc, "BccAddresses": email.bcc}
    tags = {**email.metadata, KEY_TAG: provider_key}
    if email.tags:
        tags[_TAG] = email.tags[0]
    found: dict[str, Any] = {
        "FromEmailAddress": _encoded([email.from_])[0],
        "Destination": {name: _encoded(items) for name, items in lists.items() if items},
        "EmailTags": [{"Name": name, "Value": value} for name, value in sorted(tags.items())],
    }
    if email.attachments or email.headers:
        return found | {"Content": {"Raw": {"Data": message_bytes(email, {})}}}
    if email.reply_to:
        found["ReplyToAddresses"] = _encoded(email.reply_to)
    return found | {"Content": {"Simple": _simple(email)}}


def _simple(email: Email) -> dict[str, Any]:
    bodies = {"Text": email.text, "Html": email.html}
    return {
        "Subject": {"Data": email.subject, "Charset": _UTF8},
        "Body": {name: {"Data": text, "Charset": _UTF8} for name, text in bodies.items() if text is not None},
    }


def _encoded(addresses: Iterable[str]) -> list[str]:
    """Each with its name as encoded words where that is not ASCII, on one line: SES takes 7-bit only."""
    return [write_addresses("To", [address]).replace("\r\n", "") for address in addresses]


def check(email: Email) -> None:
    """Raise `UnsupportedEmail` for what SES would refuse, replace or remove."""
    CONTRACT.limits.check(email, CONTRACT.title)
    email = with_ascii_domains(email)
    for field in ("to", "cc", "bcc", "reply_to"):
        _check_ascii(field, getattr(email, field))
    _check_ascii("from", [email.from_])
    for name in email.headers:
        if name.lower() == "message-id":
            raise UnsupportedEmail(f"headers.{name}", "is replaced by Amazon SES; leave it out")
        if name.lower().startswith("x-ses-"):
            raise UnsupportedEmail(f"headers.{name}", "is read and removed by Amazon SES; set it on the identity there")
    for name, value in email.metadata.items():
        if name in {KEY_TAG, _TAG}:
            raise UnsupportedEmail("metadata", f"{name} is the name of a tag that is set here; choose another")
        _check_tag("metadata", name)
        _check_tag(f"metadata.{name}", value)
    for tag in email.tags:
        _check_tag("tags", tag)


def _check_tag(field: str, text: str) -> None:
    if not _TAG_TEXT.fullmatch(text):
        raise UnsupportedEmail(field, "is a tag at Amazon SES, of 1 to 256 ASCII letters, digits, hyphens, underscores")


def _check_ascii(field: str, addresses: Iterable[str]) -> None:
    if not all(bare(address).isascii() for address in addresses):
        raise UnsupportedEmail(field, "Amazon SES takes only ASCII before the @ of an address")


class _Ready(Exception):
    """Raised out of boto3 with the request that it would have sent."""

    def __init__(self, request: Any) -> None:
        super().__init__("the request is ready")
        self.request = request


def _take(request: Any, **_: object) -> NoReturn:
    raise _Ready(request)


class SesProvider:
    """Sends through Amazon SES. Safe to share between threads, as boto3's clients are."""

    def __init__(self, endpoint_url: str | None = None, http: HttpClient | None = None) -> None:
        self._endpoint_url = endpoint_url
        self._http = http or HttpClient()
        self._client: Any = None
        self._lock = threading.Lock()

    @property
    def contract(self) -> Contract:
        """See `Provider.contract`."""
        return CONTRACT

    def check(self, email: Email) -> None:
        """See `Provider.check`."""
        check(email)

    def prepare(self) -> None:
        """See `Prepared.prepare`."""
        with self._lock:
            if self._client is None:
                self._client = _client(self._endpoint_url)

    def send(self, email: Email, provider_key: str, deadline: Deadline) -> Outcome:
        """See `Provider.send`."""
        try:
            request = self.signed(parameters(email, provider_key))
        except Exception as error:  # whatever it was, no credentials or no region: nothing was sent
            name = "" if isinstance(error, IdemError) else f"{type(error).__name__}: "
            return NotSent(redact(f"the request could not be made ({name}{error})"), credentials=True)
        if request is None:
            return Unknown("boto3 sent the request by itself: this release of it is not supported")
        headers = {name: _text(value) for name, value in request.headers.items()}
        return outcome(CONTRACT, self._http.post(request.url, headers, request.body, deadline))

    def signed(self, call: Mapping[str, Any]) -> Any:
        """The request, with its signature, that boto3 would send for this call of `SendEmail`; None if it did send it.

        `before-send` is where botocore lets others send for it:
        https://botocore.amazonaws.com/v1/documentation/api/latest/topics/events.html#before-send
        """
        self.prepare()
        try:
            self._client.send_email(**call)
        except _Ready as ready:
            return ready.request
        return None


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _client(endpoint_url: str | None) -> Any:
    """A client whose requests are taken from it; raises `MissingExtra`, or `SettingsError` when it knows no region."""
    try:
        import boto3  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra, which reading the contract must not need
        from botocore.config import Config  # type: ignore[import-untyped]  # noqa: PLC0415 - the same
        from botocore.exceptions import NoRegionError  # type: ignore[import-untyped]  # noqa: PLC0415 - the same
        from botocore.session import Session  # type: ignore[import-untyped]  # noqa: PLC0415 - the same
    except ImportError as error:
        raise MissingExtra("ses", "Amazon SES (IDEM_PROVIDER=ses)") from error
    # boto3 reads AWS_DEFAULT_REGION only; every other SDK, and Lambda, means AWS_REGION.
    core = Session(session_vars={"region": ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], None, None)})
    config = Config(retries={"mode": "standard", "total_max_attempts": 1})
    try:
        client = boto3.Session(botocore_session=core).client("sesv2", endpoint_url=endpoint_url, config=config)
    except NoRegionError as error:
        raise SettingsError("Amazon SES needs a region: set AWS_REGION, or name one in the AWS profile") from error
    client.meta.events.register("before-send.sesv2.SendEmail", _take)
    return client


def connect(token: str, base_url: str) -> SesProvider:  # noqa: ARG001 - credentials come by boto3's own chain
    """The adapter; `base_url` empty means Amazon's endpoint for the region, or `AWS_ENDPOINT_URL_SESV2`."""
    return SesProvider(base_url or None)
