"""Mailgun in the sandbox: `POST /mailgun/v3/DOMAIN/messages` as a form, and the Events API of that domain.

Answers are those of its pages as of `CONTRACT.checked`; the wording of its validation errors is not documented, and
ours. Any domain is known. A form's `h:`, `o:` and `v:` fields are read; other `o:` fields than tags change nothing.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from idem.providers.mailgun import CONTRACT
from workers.sandbox.bodies import Upload, read_form
from workers.sandbox.dialect import Attachment, Call, Dialect, Endpoint, Mail, Refused, Reply, Search, Shown, Taken
from workers.sandbox.parts import Invalid, bare, listed

_MAX_TAGS, _MAX_TAG, _MAX_OPTIONS, _MAX_LIMIT = 10, 128, 16_000, 300


class _Page(msgspec.Struct, array_like=True):
    """Where a list of events goes on: its parameters, and how many were shown."""

    begin: float
    end: float | None
    ascending: bool
    limit: int
    event: str | None
    recipient: str | None
    skip: int = 0


_PAGES = msgspec.json.Decoder(_Page)


class _Form:
    """A request's fields; files are apart."""

    def __init__(self, parsed: Mapping[str, Sequence[str | Upload]]) -> None:
        self._parsed = parsed

    def texts(self, name: str) -> list[str]:
        """All values of a field."""
        return [value for value in self._parsed.get(name, ()) if isinstance(value, str)]

    def text(self, name: str) -> str | None:
        """The first value of a field."""
        return next(iter(self.texts(name)), None)

    def addresses(self, name: str) -> tuple[str, ...]:
        """Addresses, in several fields or between commas."""
        found: list[str] = []
        for value in self.texts(name):
            given = listed(value)
            if given is None:
                raise Invalid("", f"{name} parameter is not a valid address. please check documentation")
            found.extend(given)
        return tuple(found)

    def options(self, prefix: str) -> dict[str, str]:
        """The fields that begin so, by the rest of their name."""
        found = {name.removeprefix(prefix): self.text(name) for name in self._parsed if name.startswith(prefix)}
        return {name: value for name, value in found.items() if value is not None}

    def option_bytes(self) -> int:
        """The size of all options."""
        return sum(
            len(name.encode()) + len(value.encode())
            for name in self._parsed
            if name.startswith(("h:", "o:", "v:"))
            for value in self.texts(name)
        )

    def files(self) -> Iterator[Attachment]:
        """The files, inline ones too."""
        for name in ("attachment", "inline"):
            for value in self._parsed.get(name, ()):
                if isinstance(value, Upload):
                    yield Attachment(value.filename, value.content_type, len(value.content))


def _read_messages(call: Call) -> tuple[Mail, ...] | Reply:
    try:
        return (_mail(_Form(call.parsed if isinstance(call.parsed, dict) else {})),)
    except Invalid as invalid:
        return _refusal(400, str(invalid))


def _mail(form: _Form) -> Mail:
    for name in ("from", "to"):
        if not form.addresses(name):
            raise Invalid("", f"{name} parameter is missing")
    if form.text("text") is None and form.text("html") is None:
        raise Invalid("", "Need at least one of 'text' or 'html' parameters specified")
    if form.option_bytes() > _MAX_OPTIONS:
        raise Invalid("", "Sending options (h:, o:, v:) are limited to 16 KB in total")
    tags, headers = form.texts("o:tag"), form.options("h:")
    if len(tags) > _MAX_TAGS or any(len(tag) > _MAX_TAG or not tag.isascii() for tag in tags):
        raise Invalid("", "o:tag parameter is invalid: at most 10 tags of at most 128 ASCII characters")
    reply_to = next((headers.pop(name) for name in list(headers) if name.lower() == "reply-to"), "")
    return Mail(
        sender=form.addresses("from")[0],
        to=tuple(bare(one) or "" for one in form.addresses("to")),
        cc=form.addresses("cc"),
        bcc=form.addresses("bcc"),
        reply_to=listed(reply_to) or (),
        subject=form.text("subject") or "",
        text=form.text("text"),
        html=form.text("html"),
        headers=headers,
        tags=tuple(tags),
        metadata=form.options("v:"),
        attachments=tuple(form.files()),
    )


def _answer_messages(results: Sequence[Taken | Refused]) -> Reply:
    (taken,) = results
    assert isinstance(taken, Taken)
    return Reply(200, {"id": taken.id, "message": "Queued. Thank you."})


def _first_page(call: Call, shown: Sequence[Shown]) -> Reply:
    """The events of a span of time; each page names the next one, which may be empty."""
    begin, end, limit = call.asked("begin"), call.asked("end"), call.asked("limit") or "100"
    order = call.asked("ascending")
    if order not in {None, "yes", "no"} or (end is None and order is None) or not limit.isdigit():
        return _refusal(400, "begin, end, ascending or limit is invalid")
    try:
        start, stop = float(begin or 0), None if end is None else float(end)
    except ValueError:
        return _refusal(400, "begin and end must be seconds since the epoch")
    ascending = order == "yes" or (order is None and stop is not None and stop >= start)
    asked = call.asked("event"), call.asked("recipient")
    return _page(_Page(start, stop, ascending, min(int(limit), _MAX_LIMIT), *asked), call, shown)


def _next_page(call: Call, shown: Sequence[Shown]) -> Reply:
    try:
        page = _PAGES.decode(base64.urlsafe_b64decode(call.parts["page"]))
    except (binascii.Error, msgspec.MsgspecError, UnicodeDecodeError):
        return _refusal(400, "invalid page")
    return _page(page, call, shown)


def _page(page: _Page, call: Call, shown: Sequence[Shown]) -> Reply:
    ordered = reversed(shown) if page.ascending else iter(shown)
    events = [event for one in ordered if _within(page, one.at) for event in _events(one)]
    found = [
        event
        for event in events
        if page.event in {None, event["event"]} and page.recipient in {None, event["recipient"]}
    ]
    items = found[page.skip : page.skip + page.limit]
    links = {"next": page.skip + len(items), "previous": max(0, page.skip - page.limit)}
    paging = {name: _link(call, msgspec.structs.replace(page, skip=skip)) for name, skip in links.items()}
    return Reply(200, {"items": items, "paging": paging})


def _within(page: _Page, at: float) -> bool:
    """From `begin` on, in the direction of the page."""
    first, last = (page.begin, page.end) if page.ascending else (page.end, page.begin)
    return (first is None or at >= first) and (last is None or at <= last)


def _events(one: Shown) -> Iterator[dict[str, Any]]:
    """That it was accepted, for each recipient."""
    mail = one.mail
    headers = {
        "to": ", ".join(mail.to),
        "from": mail.sender,
        "subject": mail.subject,
        "message-id": one.id.strip("<>"),
    }
    recipients = [*mail.to, *(bare(address) for address in (*mail.cc, *mail.bcc))]
    for recipient in recipients:
        yield {
            "event": "accepted",
            "timestamp": one.at,
            "recipient": recipient,
            "tags": mail.tags,
            "user-variables": mail.metadata,
            "method": "HTTP",
            "message": {"headers": headers, "recipients": recipients, "attachments": []},
        }


def _link(call: Call, page: _Page) -> str:
    token = base64.urlsafe_b64encode(msgspec.json.encode(page)).decode()
    domain = quote(unquote(call.parts["domain"]), safe="")
    return f"http://{call.headers.get('host', '')}/{CONTRACT.name}/v3/{domain}/events/{token}"


def _account(headers: Mapping[str, str]) -> str | None:
    """`api:KEY`, as Basic authentication has it."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    try:
        user, _, key = base64.b64decode(given, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return key if scheme.lower() == "basic" and user == "api" and key else None


def _refusal(status: int, message: str) -> Reply:
    """An object with a message; a refused key is told so in plain text."""
    return Reply(status, "Forbidden" if status == 401 else {"message": message})  # noqa: PLR2004 - HTTP's own number


DIALECT = Dialect(
    contract=CONTRACT,
    endpoints={"/v3/{domain}/messages": Endpoint(_read_messages, _answer_messages, parse=read_form)},
    searches={"/v3/{domain}/events": Search(_first_page), "/v3/{domain}/events/{page}": Search(_next_page)},
    account=_account,
    refusal=_refusal,
    new_id=lambda: f"<{secrets.token_hex(12)}@mailgun.sandbox.example>",
)
