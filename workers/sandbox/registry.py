"""The providers that the sandbox speaks for."""

from __future__ import annotations

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
