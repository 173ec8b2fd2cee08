"""Lettermint in the sandbox: `POST /lettermint/v1/send` and `/send/batch`.

Answers are those of its idempotency page and of its OpenAPI description as of `CONTRACT.checked`. Not documented, and
decided here: what an in-progress answer looks like (that of its batch items), that a key that is too long is a
validation error, and how an email fails behind others in a batch (as one whose sender's domain is not verified).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from idem.providers.lettermint import CONTRACT
from workers.sandbox.dialect import Call, Dialect, Endpoint, Keyed, Mail, Refused, Reply, Taken
from workers.sandbox.forms import Form, is_unverified

_TOKEN = re.compile(r"[!-~]+")
_TAG_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_TAG_VALUE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_TAGS = 20
_MAX_BATCH = 500

_MISMATCH = (
    "This idempotency key has already been used on a request with a different payload. "
    "Retrying this request requires changing the idempotency key or payload."
)


def _read_send(call: Call) -> tuple[Mail, ...] | Reply:
    if not isinstance(call.parsed, dict):
        return _refusal(400, "The request body must be a JSON object.")
    form = Form(call.parsed)
    mail = _mail(form)
    if form.problems:
        return _invalid(form.problems)
    return _unverified([]) if is_unverified(mail.sender) else (mail,)


def _mail(form: Form) -> Mail:
    return Mail(
        sender=form.sender(),
        subject=form.text("subject", required=True) or "",
        to=form.recipients(),
        text=form.text("text"),
        html=form.text("html"),
        cc=form.addresses("cc"),
        bcc=form.addresses("bcc"),
        reply_to=form.addresses("reply_to"),
        headers=form.strings("headers"),
        tags=_tags(form),
        metadata=form.strings("metadata"),
        attachments=form.attachments(),
    )


def _tags(form: Form) -> tuple[str, ...]:
    """The legacy tag, and the named ones as `name=value`."""
    legacy = form.text("tag")
    if len(form.items("tags")) > _MAX_TAGS - (legacy is not None):
        form.blame("tags", f"must not have more than {_MAX_TAGS} items, the tag included")
    named = form.pairs("tags", _TAG_NAME, _TAG_VALUE)
    return named if legacy is None else (legacy, *named)


def _read_batch(call: Call) -> Sequence[Mail | Keyed | Refused] | Reply:
    """All are validated first; then they are accepted in order, up to the first that fails."""
    given = call.parsed
    if not isinstance(given, list) or not 1 <= len(given) <= _MAX_BATCH:
        return _refusal(422, f"The request body must be an array of 1 to {_MAX_BATCH} emails.")
    problems: dict[str, list[str]] = {}
    items: list[Mail | Keyed | Refused] = []
    for index, fields in enumerate(given):
        form = Form(fields if isinstance(fields, dict) else {})
        items.append(_item(form, fields))
        problems |= {f"{index}.{name}": found for name, found in form.problems.items()}
    problems |= _repeated(items)
    return _invalid(problems) if problems else _up_to_the_first_that_fails(items)


def _item(form: Form, fields: object) -> Mail | Keyed:
    mail, key = _mail(form), form.text("idempotency_key")
    if key is None or not isinstance(fields, dict):
        return mail
    return Keyed(mail, key, {name: value for name, value in fields.items() if name != "idempotency_key"})


def _repeated(items: Sequence[Mail | Keyed | Refused]) -> dict[str, list[str]]:
    times = Counter(item.key for item in items if isinstance(item, Keyed))
    return {
        f"{index}.idempotency_key": ["has a duplicate value"]
        for index, item in enumerate(items)
        if isinstance(item, Keyed) and times[item.key] > 1
    }


def _up_to_the_first_that_fails(items: Sequence[Mail | Keyed | Refused]) -> list[Mail | Keyed | Refused]:
    taken: list[Mail | Keyed | Refused] = []
    for item in items:
        mail = item.mail if isinstance(item, Keyed) else item
        if isinstance(mail, Mail) and is_unverified(mail.sender):
            return [*taken, Refused("unverified")]
        taken.append(item)
    return taken


def _answer_send(results: Sequence[Taken | Refused]) -> Reply:
    return Reply(202, _accepted(results)[0])


def _answer_batch(results: Sequence[Taken | Refused]) -> Reply:
    accepted = _accepted(results)
    if len(accepted) == len(results):
        return Reply(202, accepted)
    return _unverified([{"index": index, "message_id": one["message_id"]} for index, one in enumerate(accepted)])


def _accepted(results: Sequence[Taken | Refused]) -> list[dict[str, str]]:
    return [{"message_id": one.id, "status": "pending"} for one in results if isinstance(one, Taken)]


def _unverified(accepted: Sequence[Mapping[str, object]]) -> Reply:
    detail = {"code": "DOMAIN_NOT_VERIFIED", "message": "The domain of the sender is not verified."}
    return Reply(403, {"error": {**detail, "details": {"accepted": accepted}} if accepted else detail})


def _account(headers: Mapping[str, str]) -> str | None:
    token = headers.get("x-lettermint-token", "")
    return token if _TOKEN.fullmatch(token) else None


def _refusal(status: int, message: str) -> Reply:
    return Reply(status, {"message": message})


def _mismatch(headers: Mapping[str, str]) -> Reply:
    """Its page documents 422, its SDKs document 409: each client gets what its own documentation says."""
    return _refusal(409 if headers.get("user-agent", "").startswith("lettermint-") else 422, _MISMATCH)


def _clash(_index: int) -> Reply:
    """A batch in which one key stands for another email: nothing of it is sent."""
    return _refusal(409, _MISMATCH)


def _invalid(problems: Mapping[str, list[str]]) -> Reply:
    errors = {name: [f"The {name} field {problem}." for problem in found] for name, found in problems.items()}
    messages = [message for field in errors.values() for message in field]
    more = len(messages) - 1
    suffix = f" (and {more} more error{'s' if more > 1 else ''})" if more else ""
    return Reply(422, {"message": messages[0] + suffix, "errors": errors})


DIALECT = Dialect(
    contract=CONTRACT,
    endpoints={
        "/v1/send": Endpoint(_read_send, _answer_send),
        "/v1/send/batch": Endpoint(_read_batch, _answer_batch, clash=_clash),
    },
    account=_account,
    refusal=_refusal,
    invalid_key=_invalid({"Idempotency-Key": ["must have 1 to 255 characters"]}),
    mismatch=_mismatch,
    in_progress=_refusal(409, "A request with this idempotency key is still being processed."),
)
