"""The inbox page: one file, nothing from elsewhere, and a policy under which nothing in an email can run."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from starlette.responses import Response

_SCRIPT = re.compile("<script>(.*?)</script>", re.DOTALL)


def load_inbox() -> Response:
    """The page, whose policy allows its own script only, by its digest.

    Styles are allowed inline because the policy also governs the previews of HTML emails, which have no others. Remote
    images are not loaded: a preview tells nobody that the email was read.
    """
    page = files("workers.sandbox").joinpath("inbox.html").read_text(encoding="utf-8")
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in _SCRIPT.findall(page))
    policy = [
        "default-src 'none'",
        "script-src " + " ".join(f"'sha256-{digest}'" for digest in digests),
        "style-src 'unsafe-inline'",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(page, media_type="text/html", headers=headers)
