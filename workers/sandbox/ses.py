"""Amazon SES in the sandbox: `POST /ses/v2/email/outbound-emails`, simple and raw.

Signatures must be there and well-formed; nobody has the secret to verify them with. Who signs with one access key id
is one account. Errors are worded as the API does: the code in a header, the message in the body.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from idem.errors import EmailError
from idem.mime.headers import read_text
from idem.providers.ses import CONTRACT
from workers.sandbox.dialect import Call, Dialect, Endpoint, Mail, Refused, Reply, Taken
from workers.sandbox.mime import bare, read_message

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([\w./=+-]+)/\d{8}/[a-z0-9-]+/ses/aws4_request, ?"
    r"SignedHeaders=[a-z0-9;-]*host[a-z0-9;-]*, ?Signature=[0-9a-f]{64}"
)
_TAG = re.compile(r"[A-Za-z0-9_-]{1,256}")
_LISTS: Final = ("ToAddresses", "CcAddresses", "BccAddresses")
_MAX_MESSAGE_BYTES: Final = 40 * 1000 * 1000
_CODES: Final = {
    401: (403, "UnrecognizedClientException"),
    403: (403, "AccessDeniedException"),
    404: (404, "NotFoundException"),
    405: (405, "MethodNotAllowedException"),
    413: (413, "RequestEntityTooLarge"),
    429: (429, "TooManyRequestsException"),
    500: (500, "InternalServiceErrorException"),
    503: (503, "ServiceUnavailableException"),
}


class _Bad(ValueError):
    """Raised for a request that is refused; the message is for the client."""


def _account(headers: Mapping[str, str]) -> str | None:
    found = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    return found[1] if found is not None and "x-amz-date" in headers else None


def _read(call: Call) -> Sequence[Mail] | Reply:
    try:
        return (_mail(_object(call.parsed, "The request")),)
    except _Bad as bad:
        return _refusal(400, str(bad))


def _mail(request: Mapping[str, Any]) -> Mail:
    lists = _destination(_object(request.get("Destination", {}), "Destination"))
    content = _object(request.get("Content"), "Content")
    tags = {tag["Name"]: tag["Value"] for tag in _tags(request.get("EmailTags", []))}
    if "Raw" in content:
        mail = _raw(_object(content["Raw"], "Raw"), lists)
    else:
        mail = _simple(request, _object(content.get("Simple"), "Content"), lists)
    return replace(mail, metadata=tags)


def _simple(request: Mapping[str, Any], simple: Mapping[str, Any], lists: Mapping[str, tuple[str, ...]]) -> Mail:
    if not any(lists.values()):
        raise _Bad("Missing final recipients")
    body = _object(simple.get("Body"), "Body")
    headers = [_object(item, "Headers") for item in simple.get("Headers") or ()]
    return Mail(
        sender=_address(request.get("FromEmailAddress")),
        to=tuple(bare(address) for address in lists["ToAddresses"]),
        cc=lists["CcAddresses"],
        bcc=lists["BccAddresses"],
        reply_to=tuple(map(_address, request.get("ReplyToAddresses") or ())),
        subject=_data(simple, "Subject") or "",
        text=_data(body, "Text"),
        html=_data(body, "Html"),
        headers={str(item.get("Name")): str(item.get("Value")) for item in headers},
    )


def _raw(raw: Mapping[str, Any], lists: Mapping[str, tuple[str, ...]]) -> Mail:
    try:
        data = base64.b64decode(raw.get("Data") or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise _Bad("Raw data is not base64") from None
    if not data or len(data) > _MAX_MESSAGE_BYTES:
        raise _Bad(f"Message length is {len(data)} bytes, it must be 1 to {_MAX_MESSAGE_BYTES}")
    return read_message(data, "", [bare(address) for items in lists.values() for address in items]).mail


def _destination(destination: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    lists = {name: tuple(map(_address, destination.get(name) or ())) for name in _LISTS}
    most = CONTRACT.limits.recipients or 0
    if sum(map(len, lists.values())) > most:
        raise _Bad(f"Recipient count exceeds {most}.")
    return lists


def _address(value: object) -> str:
    """An address as it was given, with its name decoded: 7-bit only, as SES has it."""
    try:
        if isinstance(value, str) and value.isascii() and bare(value):
            return read_text("to", value)
    except EmailError:
        pass
    raise _Bad("Illegal address")


def _tags(tags: object) -> list[Mapping[str, str]]:
    found = [_object(tag, "EmailTags") for tag in tags] if isinstance(tags, list) else []
    for tag in found:
        if not all(isinstance(tag.get(name), str) and _TAG.fullmatch(tag[name]) for name in ("Name", "Value")):
            raise _Bad("Invalid tag: only alphanumeric ASCII characters, '_', or '-' are allowed.")
    if len({tag["Name"] for tag in found}) < len(found):
        raise _Bad("Duplicate tag name")
    return found


def _data(parts: Mapping[str, Any], name: str) -> str | None:
    if name not in parts:
        return None
    data = _object(parts[name], name).get("Data")
    if not isinstance(data, str):
        raise _Bad(f"{name}.Data is missing")
    return data


def _object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Bad(f"{name} must be an object")
    return value


def _answer(taken: Sequence[Taken | Refused]) -> Reply:
    return Reply(200, {"MessageId": next(one.id for one in taken if isinstance(one, Taken))})


def _refusal(status: int, message: str) -> Reply:
    status, code = _CODES.get(status, (status, "BadRequestException"))
    return Reply(status, {"message": message}, {"x-amzn-ErrorType": code})


def _new_id() -> str:
    """As SES makes them: `0100018f...-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx-000000`."""
    digits = secrets.token_hex(24)
    return f"{digits[:16]}-{digits[16:24]}-{digits[24:28]}-{digits[28:32]}-{digits[32:36]}-{digits[36:]}-000000"


DIALECT: Final = Dialect(
    contract=CONTRACT,
    endpoints={"/v2/email/outbound-emails": Endpoint(_read, _answer)},
    account=_account,
    refusal=_refusal,
    new_id=_new_id,
)
