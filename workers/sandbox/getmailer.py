"""GetMailer in the sandbox: `POST /getmailer/api/emails`.

Answers are those of its idempotency, sending and rate limit pages as of `CONTRACT.checked`. Not documented, and decided
here: the status of a success (200), and the words of everything but a rate limit. It has no answer for a request that
is still running: of two under one key, the first that is through is accepted, and the other gets its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from idem.providers.getmailer import CONTRACT
from workers.sandbox.dialect import Call, Dialect, Endpoint, Mail, Refused, Reply, Taken
from workers.sandbox.forms import Form, bearer, is_unverified

_MAX_TAGS = 10


def _read(call: Call) -> tuple[Mail, ...] | Reply:
    if not isinstance(call.parsed, dict):
        return _refusal(400, "The request body must be a JSON object")
    form = Form(call.parsed, lone=True)
    reply_to = form.text("replyTo")
    mail = Mail(
        sender=form.sender(),
        to=form.recipients(),
        cc=form.addresses("cc"),
        bcc=form.addresses("bcc"),
        reply_to=() if reply_to is None else (reply_to,),
        subject=form.text("subject", required=True) or "",
        text=form.text("text"),
        html=form.text("html"),
        headers=form.strings("headers"),
        tags=_tags(form),
    )
    if mail.text is None and mail.html is None:
        form.blame("html", "or text is required")
    for name, problems in form.problems.items():
        return _refusal(400, f"{name} {problems[0]}")
    return _refusal(403, "Domain not verified") if is_unverified(mail.sender) else (mail,)


def _tags(form: Form) -> tuple[str, ...]:
    tags = form.items("tags")
    if len(tags) > _MAX_TAGS or not all(isinstance(tag, str) for tag in tags):
        form.blame("tags", f"must be at most {_MAX_TAGS} strings")
    return tuple(str(tag) for tag in tags)


def _answer(results: Sequence[Taken | Refused]) -> Reply:
    (taken,) = results
    assert isinstance(taken, Taken)
    mail = taken.mail
    shown = {"id": taken.id, "from": mail.sender, "to": mail.to, "subject": mail.subject}
    return Reply(200, {**shown, "status": "sent", "tags": mail.tags})


def _refusal(status: int, message: str) -> Reply:
    if status == 429:  # noqa: PLR2004 - HTTP's own number
        return Reply(status, {"error": "Rate limit exceeded", "retryAfter": 1})
    return Reply(status, {"error": message})


DIALECT = Dialect(
    contract=CONTRACT,
    endpoints={"/api/emails": Endpoint(_read, _answer)},
    account=bearer,
    refusal=_refusal,
    invalid_key=_refusal(400, "Invalid idempotency key: at most 255 alphanumeric characters, hyphens and underscores"),
    mismatch=lambda _headers: _refusal(409, "Idempotency key already used with a different request body"),
    new_id=lambda: f"c{uuid4().hex[:24]}",
)
