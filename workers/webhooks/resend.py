"""Resend: Svix's scheme."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from workers.webhooks import standard

SCHEME: Final = replace(
    standard.SCHEME, title="Resend", source="https://resend.com/docs/dashboard/webhooks/verify-webhooks-requests"
)
