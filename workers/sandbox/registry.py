"""The providers that the sandbox speaks for."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from idem.providers.base import Contract
from workers.sandbox import brevo, getmailer, lettermint, mailgun, nuntly, postmark, resend, sendgrid, ses, smtp
from workers.sandbox.dialect import Dialect

DIALECTS: tuple[Dialect, ...] = (
    lettermint.DIALECT,
    getmailer.DIALECT,
    nuntly.DIALECT,
    resend.DIALECT,
    postmark.DIALECT,
    sendgrid.DIALECT,
    mailgun.DIALECT,
    brevo.DIALECT,
    ses.DIALECT,
    *smtp.DIALECTS,
)

#: Where a base URL has a part of one's own, such as a domain.
_OWN_PART = re.compile(r"{\w+}")


def place_of(contract: Contract, http: str, smtp: str | None) -> str | None:
    """The provider's base URL in a sandbox at these addresses; None for SMTP where that is not spoken."""
    parts = urlsplit(contract.base_url)
    if parts.scheme in {"smtp", "smtps"}:
        return smtp
    return f"{http}/{contract.name}{_OWN_PART.sub('example.com', parts.path)}"
