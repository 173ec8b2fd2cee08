"""The providers that the sandbox speaks for."""

from __future__ import annotations

from workers.sandbox import getmailer, lettermint, nuntly, resend
from workers.sandbox.dialect import Dialect

DIALECTS: tuple[Dialect, ...] = (
    lettermint.DIALECT,
    getmailer.DIALECT,
    nuntly.DIALECT,
    resend.DIALECT,
)
