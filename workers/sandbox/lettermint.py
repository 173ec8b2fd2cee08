"""Lettermint in the sandbox: `POST /lettermint/v1/send`.

Answers are those of its idempotency page and of its OpenAPI description as of `CONTRACT.checked`. Not documented, and
decided here: what an in-progress answer looks like (that of its batch items), and that a key that is too long is a
validation error.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence

from idem.providers.lettermint import CONTRACT
from workers.sandbox.dialect import Attachment, Call, Dialect, Endpoint, Mail, Refused, Reply, Taken

_TOKEN = re.compile(r"[!-~]+")
_ADDRESS = re.compile(r'(?:[^\s<>@"(),:;\\]+|"[^"\r\n]+")@[^\s<>@"(),:;\\]+')
_TAG_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_TAG_VALUE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_TAGS = 20

_MISMATCH = (
    "This idempotency key has already been used on a request with a different payload. "
    "Retrying this request requires changing the idempotency key or payload."
)


class _Form:
    """A request's JSON object, read field by field; `errors` collects what is wrong, as the API reports it."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = fields
        self.errors: dict[str, list[str]] = {}

    def blame(self, name: str, problem: str) -> None:
        """Note one error, worded as the API does."""
        self.errors.setdefault(name, []).append(f"The {name} field {problem}.")

    def text(self, name: str, *, required: bool = False) -> str | None:
        """A string; an empty one counts as absent."""
        value = self._fields.get(name)
        if value is not None and not isinstance(value, str):
            self.blame(name, "must be a string")
            return None
        if required and not (value or "").strip():
            self.blame(name, "is required")
        return value or None

    def items(self, name: str, *, required: bool = False) -> list[object]:
        """A list; absent counts as empty."""
        value = self._fields.get(name)
        if value is not None and not isinstance(value, list):
            self.blame(name, "must be an array")
            return []
        if required and not value:
            self.blame(name, "is required")
        return value or []

    def addresses(self, name: str, *, required: bool = False) -> tuple[str, ...]:
        """A list of addresses, as they were given; each may carry a display name."""
        found = []
        for index, value in enumerate(self.items(name, required=required)):
            if isinstance(value, str) and _bare(value):
                found.append(value)
            else:
                self.blame(f"{name}.{index}", "must be a valid email address")
        return tuple(found)

    def strings(self, name: str) -> dict[str, str]:
        """An object whose values are strings; PHP clients write an empty one as an empty list."""
        value = self._fields.get(name)
        if not value:
            return {}
        if not isinstance(value, dict):
            self.blame(name, "must be an object")
            return {}
        for field, content in value.items():
            if not isinstance(content, str):
                self.blame(f"{name}.{field}", "must be a string")
        return value

    def tags(self) -> tuple[str, ...]:
        """The legacy tag, and the named ones as `name=value`."""
        legacy = self.text("tag")
        named = self.items("tags")
        if len(named) > _MAX_TAGS - (legacy is not None):
            self.blame("tags", f"must not have more than {_MAX_TAGS} items, the tag included")
        found = [legacy] if legacy else []
        for index, tag in enumerate(named):
            name, value = (tag.get("name"), tag.get("value")) if isinstance(tag, dict) else (None, None)
            if _matches(_TAG_NAME, name) and _matches(_TAG_VALUE, value):
                found.append(f"{name}={value}")
            else:
                self.blame(f"tags.{index}", "format is invalid")
        return tuple(found)

    def attachments(self) -> tuple[Attachment, ...]:
        """The attachments, their content decoded for its size only."""
        found = []
        for index, item in enumerate(self.items("attachments")):
            attachment = _attachment(item)
            if attachment is None:
                self.blame(f"attachments.{index}", "must have a filename and base64 content")
            else:
                found.append(attachment)
        return tuple(found)


def _bare(address: str) -> str | None:
    """The address without its display name; None when it does not look like one."""
    bare = address.strip()
    if bare.endswith(">"):
        bare = bare[:-1].rpartition("<")[2].strip()
    return bare if _ADDRESS.fullmatch(bare) else None


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _attachment(item: object) -> Attachment | None:
    if not isinstance(item, dict):
        return None
    filename, content, content_type = item.get("filename"), item.get("content"), item.get("content_type")
    if not (isinstance(filename, str) and filename and isinstance(content, str)):
        return None
    try:
        size = len(base64.b64decode(content, validate=True))
    except binascii.Error:
        return None
    return Attachment(filename, content_type if isinstance(content_type, str) else None, size)


def _read_send(call: Call) -> tuple[Mail, ...] | Reply:
    if not isinstance(call.parsed, dict):
        return _refusal(400, "The request body must be a JSON object.")
    form = _Form(call.parsed)
    sender, subject = form.text("from", required=True), form.text("subject", required=True)
    if sender and not _bare(sender):
        form.blame("from", "must be a valid email address")
    to, text, html = form.addresses("to", required=True), form.text("text"), form.text("html")
    mail = Mail(
        sender=sender or "",
        to=tuple(_bare(address) or "" for address in to),
        cc=form.addresses("cc"),
        bcc=form.addresses("bcc"),
        reply_to=form.addresses("reply_to"),
        subject=subject or "",
        text=text,
        html=html,
        headers=form.strings("headers"),
        tags=form.tags(),
        metadata=form.strings("metadata"),
        attachments=form.attachments(),
    )
    return _invalid(form.errors) if form.errors else (mail,)


def _answer_send(results: Sequence[Taken | Refused]) -> Reply:
    (taken,) = results
    assert isinstance(taken, Taken)
    return Reply(202, {"message_id": taken.id, "status": "pending"})


def _account(headers: Mapping[str, str]) -> str | None:
    token = headers.get("x-lettermint-token", "")
    return token if _TOKEN.fullmatch(token) else None


def _refusal(status: int, message: str) -> Reply:
    return Reply(status, {"message": message})


def _mismatch(headers: Mapping[str, str]) -> Reply:
    """Its page documents 422, its SDKs document 409: each client gets what its own documentation says."""
    return _refusal(409 if headers.get("user-agent", "").startswith("lettermint-") else 422, _MISMATCH)


def _invalid(errors: Mapping[str, list[str]]) -> Reply:
    messages = [message for field in errors.values() for message in field]
    more = len(messages) - 1
    suffix = f" (and {more} more error{'s' if more > 1 else ''})" if more else ""
    return Reply(422, {"message": messages[0] + suffix, "errors": errors})


DIALECT = Dialect(
    contract=CONTRACT,
    endpoints={"/v1/send": Endpoint(_read_send, _answer_send)},
    account=_account,
    refusal=_refusal,
    invalid_key=_invalid({"Idempotency-Key": ["The Idempotency-Key must have 1 to 255 characters."]}),
    mismatch=_mismatch,
    in_progress=_refusal(409, "A request with this idempotency key is still being processed."),
)
