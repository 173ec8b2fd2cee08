"""Nuntly in the sandbox: `POST /nuntly/emails` and `/nuntly/emails/bulk`.

Answers are those of its idempotency guide and API reference as of `CONTRACT.checked`. Not documented, and decided here:
the codes of errors that are not about keys, and that an email without what it must have makes a bulk request invalid;
one from a domain that is not verified is rejected alone, as in the reference's example.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from uuid import uuid4

from idem.providers.nuntly import CONTRACT
from workers.sandbox.dialect import Call, Dialect, Endpoint, Mail, Refused, Reply, Taken
from workers.sandbox.forms import Form, bearer, is_unverified

_TEXT = re.compile(r".{1,}", re.DOTALL)
_MAX_BULK = 20
_NOT_VERIFIED = "The domain is not verified"


def _read_send(call: Call) -> tuple[Mail, ...] | Reply:
    form = _form(call.parsed)
    mail = _mail(form)
    if form.problems:
        return _invalid(form.problems)
    return _refusal(403, _NOT_VERIFIED) if is_unverified(mail.sender) else (mail,)


def _form(fields: object) -> Form:
    return Form(fields if isinstance(fields, dict) else {}, lone=True)


def _mail(form: Form) -> Mail:
    return Mail(
        sender=form.sender(),
        to=form.recipients(),
        cc=form.addresses("cc"),
        bcc=form.addresses("bcc"),
        reply_to=form.addresses("replyTo"),
        subject=form.text("subject", required=True) or "",
        text=form.text("text"),
        html=form.text("html"),
        headers=form.strings("headers"),
        tags=form.pairs("tags", _TEXT, _TEXT),
        attachments=form.attachments("contentType"),
    )


def _read_bulk(call: Call) -> Sequence[Mail | Refused] | Reply:
    given = call.parsed if isinstance(call.parsed, dict) else {}
    emails, fallback = given.get("emails"), given.get("fallback", {})
    if not isinstance(emails, list) or not 1 <= len(emails) <= _MAX_BULK or not isinstance(fallback, dict):
        return _refusal(400, f"emails must be 1 to {_MAX_BULK}")
    mails: list[Mail | Refused] = []
    for index, fields in enumerate(emails):
        form = _form({**fallback, **fields} if isinstance(fields, dict) else {})
        mail = _mail(form)
        if mail.attachments:
            form.blame("attachments", "are not taken in bulk")
        if form.problems:
            return _invalid({f"emails.{index}.{name}": found for name, found in form.problems.items()})
        mails.append(Refused(_NOT_VERIFIED) if is_unverified(mail.sender) else mail)
    return mails


def _answer_send(results: Sequence[Taken | Refused]) -> Reply:
    return Reply(201, {"data": _status(results[0])})


def _answer_bulk(results: Sequence[Taken | Refused]) -> Reply:
    return Reply(201, {"data": {"id": f"blk_{uuid4().hex[:26]}", "emails": [_status(one) for one in results]}})


def _status(result: Taken | Refused) -> dict[str, object]:
    if isinstance(result, Refused):
        return {"status": "rejected", "error": result.why}
    return {"id": result.id, "status": "queued"}


def _error(status: int, code: str, title: str) -> Reply:
    return Reply(status, {"error": {"status": status, "code": code, "title": title}})


def _refusal(status: int, message: str) -> Reply:
    return _error(status, HTTPStatus(status).phrase.lower().replace(" ", "_"), message)


def _invalid(problems: Mapping[str, Sequence[str]]) -> Reply:
    name, found = next(iter(problems.items()))
    return _error(400, "validation_error", f"{name} {found[0]}")


DIALECT = Dialect(
    contract=CONTRACT,
    endpoints={"/emails": Endpoint(_read_send, _answer_send), "/emails/bulk": Endpoint(_read_bulk, _answer_bulk)},
    account=bearer,
    refusal=_refusal,
    invalid_key=_error(400, "idempotency_key_invalid", "Invalid idempotency key"),
    mismatch=lambda _headers: _error(
        409, "idempotency_key_payload_mismatch", "Idempotency key reused with different payload"
    ),
    in_progress=_error(409, "idempotency_key_in_progress", "Idempotency key is already being processed"),
    new_id=lambda: f"em_{uuid4().hex[:26]}",
)
