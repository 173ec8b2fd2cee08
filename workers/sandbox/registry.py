"""The providers that the sandbox speaks for."""

from __future__ import annotations

from workers.sandbox import lettermint, ses, smtp
from workers.sandbox.dialect import Dialect

DIALECTS: tuple[Dialect, ...] = (lettermint.DIALECT, ses.DIALECT, *smtp.DIALECTS)
