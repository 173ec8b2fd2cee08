"""Resend in the sandbox: `POST /resend/emails` and `/resend/emails/batch`.

Answers are those of its API reference, its errors page and its page on batch validation as of `CONTRACT.checked`. Not
documented, and decided here: which of several problems is named (the first), and that files in a batch are one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus

from idem.providers.resend import CONTRACT
from workers.sandbox.dialect import Call, Dialect, Endpoint, Mail, Refused, Reply, Taken
from workers.sandbox.forms import UNVERIFIED, Form, bearer, is_unverified

_TAG = re.compile(r"[A-Za-z0-9_-]{1,256}")
_MAX_TO, _MAX_BATCH = 50, 100
_NAMES = {
    401: "missing_api_key",
    404: "not_found",
    405: "method_not_allowed",
    429: "rate_limit_exceeded",
    500: "application_error",
}


def _read_send(call: Call) -> tuple[Mail, ...] | Reply:
    found = _read(call.parsed)
    return found if isinstance(found, Reply) else (found,)


def _read(fields: object, *, in_batch: bool = False) -> Mail | Reply:
    form = Form(fields if isinstance(fields, dict) else {}, lone=True)
    mail = Mail(
        sender=form.sender(),
        to=form.recipients(),
        cc=form.addresses("cc"),
        bcc=form.addresses("bcc"),
        reply_to=form.addresses("reply_to"),
        subject=form.text("subject", required=True) or "",
        text=form.text("text"),
        html=form.text("html"),
        headers=form.strings("headers"),
        tags=form.pairs("tags", _TAG, _TAG),
        attachments=form.attachments(),
    )
    if mail.text is None and mail.html is None:
        form.blame("html", "is required")
    if len(mail.to) > _MAX_TO:
        form.blame("to", f"must have at most {_MAX_TO} items")
    if in_batch and mail.attachments:
        form.blame("attachments", "is not supported in a batch")
    for name, problems in form.problems.items():
        return _problem(name.partition(".")[0], problems[0])
    return _unverified() if is_unverified(mail.sender) else mail


def _problem(name: str, problem: str) -> Reply:
    if problem == "is required":
        return _error(422, "missing_required_field", f"Missing `{name}` field.")
    return _error(422, "validation_error", f"Invalid `{name}` field. It {problem}.")


def _unverified() -> Reply:
    return _error(
        403, "validation_error", f"The {UNVERIFIED} domain is not verified. Please, add and verify your domain."
    )


def _read_batch(call: Call) -> Sequence[Mail | Refused] | Reply:
    """Strict refuses all for the first that is invalid, permissive only those that are."""
    emails = call.parsed
    if not isinstance(emails, list) or not 1 <= len(emails) <= _MAX_BATCH:
        return _error(422, "validation_error", f"The request body must be an array of 1 to {_MAX_BATCH} emails.")
    found = [_read(fields, in_batch=True) for fields in emails]
    refused = [one for one in found if isinstance(one, Reply)]
    if refused and call.headers.get("x-batch-validation", "strict") != "permissive":
        return refused[0]
    return [Refused(one) if isinstance(one, Reply) else one for one in found]


def _answer_send(results: Sequence[Taken | Refused]) -> Reply:
    (taken,) = results
    assert isinstance(taken, Taken)
    return Reply(200, {"id": taken.id})


def _answer_batch(results: Sequence[Taken | Refused]) -> Reply:
    data = [{"id": one.id} for one in results if isinstance(one, Taken)]
    errors = [{"index": index, "message": _said(one)} for index, one in enumerate(results) if isinstance(one, Refused)]
    return Reply(200, {"data": data, "errors": errors} if errors else {"data": data})


def _said(refused: Refused) -> str:
    assert isinstance(refused.why, Reply)
    assert isinstance(refused.why.body, dict)
    return str(refused.why.body["message"])


def _error(status: int, name: str, message: str) -> Reply:
    return Reply(status, {"statusCode": status, "message": message, "name": name})


def _refusal(status: int, message: str) -> Reply:
    server = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return _error(status, _NAMES.get(status, "internal_server_error" if server else "validation_error"), message)


DIALECT = Dialect(
    contract=CONTRACT,
    endpoints={"/emails": Endpoint(_read_send, _answer_send), "/emails/batch": Endpoint(_read_batch, _answer_batch)},
    account=bearer,
    refusal=_refusal,
    invalid_key=_error(400, "invalid_idempotency_key", "The key must be between 1-256 chars."),
    mismatch=lambda _headers: _error(
        409, "invalid_idempotent_request", "Same idempotency key used with a different request payload."
    ),
    in_progress=_error(
        409,
        "concurrent_idempotent_requests",
        "Same idempotency key used while original request is still in progress.",
    ),
)
