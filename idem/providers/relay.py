"""A provider behind SMTP: its contract read against replies, and the message that it is given.

A contract's table is about SMTP here: `statuses` are reply codes, and `code` is what the reply is to (`Stage`).
"""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final
from urllib.parse import urlsplit

from idem.clock import Deadline
from idem.email import Email
from idem.errors import SettingsError, UnsupportedEmail
from idem.outcome import Accepted, NotSent, Outcome, Unknown
from idem.privacy import redact
from idem.providers.base import Contract, Meaning, Row
from idem.providers.message import bare, domain_of, message_bytes, with_ascii_domains
from idem.providers.reading import unaccepted
from idem.providers.submission import Envelope, NoReply, Reply, Security, Server, Stage, Submitter

#: What replies mean by RFC 5321, 4.2.1: to one of 4yz or 5yz, "the requested action did not occur". A 421 is not about
#: an action but about the connection that ends with it, so after the message it says nothing. What comes before the
#: message cannot be about a key in it; and what comes before MAIL is about the server, or whoever logs in.
REPLIES: Final = (
    Row(range(200, 300), Meaning.ACCEPTED, code=Stage.END),
    Row({421}, Meaning.UNCLEAR, code=Stage.END),
    Row({530, 534, 535, 538}, Meaning.CREDENTIALS),
    Row(range(500, 600), Meaning.CREDENTIALS, code=Stage.AUTH),
    Row(range(500, 600), Meaning.FORBIDDEN, code=f"{Stage.MAIL}|{Stage.RCPT}|{Stage.DATA}"),
    Row(range(500, 600), Meaning.INVALID, code=Stage.END),
    Row(range(400, 500), Meaning.NOT_NOW),
    Row(range(-1, 1000), Meaning.NOT_NOW, code=f"(?!{Stage.END}).*"),
)

_PORTS: Final = {"smtp": 587, "smtps": 465}
#: How Postfix, Exim and Amazon SES name what they accepted, and most who imitate them.
_QUEUED = re.compile(r"(?:queued as|\bid=|\bok)\s*<?([\w.@+-]{6,200})", re.IGNORECASE)


def server_of(base_url: str, user: str, password: str) -> Server:
    """The server at `smtp://host:587` or `smtps://host:465`; raises `SettingsError` for another URL.

    `smtp` is STARTTLS, required and verified; only a server on this machine is spoken to in the clear.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/"):
        raise SettingsError("the base URL of an SMTP server is smtp://host:587 or smtps://host:465")
    secure = Security.TLS if parts.scheme == "smtps" else Security.STARTTLS
    if parts.scheme == "smtp" and _is_here(parts.hostname):
        secure = Security.CLEAR
    return Server(parts.hostname, parts.port or _PORTS[parts.scheme], secure, user, password)


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class SmtpProvider:
    """Sends through an SMTP server. Safe to share between threads."""

    def __init__(self, contract: Contract, submitter: Submitter) -> None:
        self._contract = contract
        self._submitter = submitter

    @property
    def contract(self) -> Contract:
        """See `Provider.contract`."""
        return self._contract

    def check(self, email: Email) -> None:
        """See `Provider.check`."""
        self._contract.limits.check(email, self._contract.title)
        with_ascii_domains(email)
        key = self._contract.key
        taken = next((name for name in email.headers if key is not None and name.lower() == key.name.lower()), None)
        if taken is not None:
            raise UnsupportedEmail(f"headers.{taken}", "is where the key goes; give the key as the email's key")

    def send(self, email: Email, provider_key: str, deadline: Deadline) -> Outcome:
        """See `Provider.send`."""
        email = with_ascii_domains(email)
        headers = self._headers(email, provider_key)
        everyone = dict.fromkeys(bare(address) for address in (*email.to, *email.cc, *email.bcc))
        envelope = Envelope(bare(email.from_), tuple(everyone), message_bytes(email, headers))
        # An email may bring its own; it is what the server's log and the recipient's mailbox know it by.
        message_id = headers.get("Message-ID") or next(v for k, v in email.headers.items() if k.lower() == "message-id")
        return outcome(self._contract, self._submitter.submit(envelope, deadline), message_id.strip("<> "))

    def _headers(self, email: Email, provider_key: str) -> dict[str, str]:
        """The headers of the sender: stable, so that a relay that compares messages finds the same one again.

        A relay with keys gets no Date, which would differ at each attempt; a submission server may add the one that is
        missing (RFC 6409, 8.2). What they compare is not documented, so this is the safe side: a conflict would lose an
        email. Others get the Date of the attempt; there is no second one to compare with.
        """
        headers = {}
        if not any(name.lower() == "message-id" for name in email.headers):
            headers["Message-ID"] = f"<{provider_key}@{domain_of(email.from_)}>"
        if self._contract.key is None:
            headers["Date"] = format_datetime(datetime.now(UTC))
        else:
            headers[self._contract.key.name] = provider_key
        return headers


def outcome(contract: Contract, found: Reply | NoReply, message_id: str) -> Outcome:
    """What the exchange proves. `message_id` is that of the message, for a server that names none of its own."""
    if isinstance(found, NoReply):
        return (Unknown if found.stage is Stage.END else NotSent)(redact(found.detail))
    meaning = contract.meaning(found.status, found.stage, found.text)
    if meaning in {Meaning.ACCEPTED, Meaning.KNOWN}:
        queued = _QUEUED.search(found.text)
        return Accepted(queued[1] if queued else message_id)
    return unaccepted(contract, meaning, redact(f"SMTP {found.status} to {found.stage}: {found.text or 'no text'}"))
