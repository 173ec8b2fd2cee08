"""The providers that the sandbox speaks for."""

from __future__ import annotations

from workers.sandbox import brevo, lettermint, mailgun, postmark, sendgrid
from workers.sandbox.dialect import Dialect

DIALECTS: tuple[Dialect, ...] = (
    lettermint.DIALECT,
    postmark.DIALECT,
    sendgrid.DIALECT,
    mailgun.DIALECT,
    brevo.DIALECT,
)
