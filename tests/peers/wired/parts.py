"""What every peer is given alike: where things are, one client of the provider, and the timing of retries.

The client does what a careful user would write: no hidden retries, a total timeout below the lease, an exception for
every answer that is not a success. With the keyed provider the job's own name goes along as the provider's key.
"""

from __future__ import annotations

import os
from typing import Any, Final

import httpx

#: How long a worker may be silent before its job is another's, in seconds: the same for all that can be told.
LEASE_SECONDS: Final = 3.0
HTTP_TIMEOUT_SECONDS: Final = 2.0
#: Not the lease: up to ten messages wait inside a worker with their visibility running, and nothing extends it.
SQS_VISIBILITY_SECONDS: Final = 30
#: Delays between attempts, so that a run ends within minutes: the same for all.
RETRIES: Final[dict[str, Any]] = {"max_retries": 20, "min_backoff": 500, "max_backoff": 5_000}

KEYED: Final = os.environ.get("PEERS_PROVIDER") != "postmark"

_http = httpx.Client(base_url=os.environ.get("PEERS_SANDBOX", ""), timeout=HTTP_TIMEOUT_SECONDS)


def redis_options() -> dict[str, Any]:
    """How stock dramatiq notices dead workers soonest: it looks at every command, for a silence of a lease."""
    return {
        "url": os.environ["PEERS_REDIS_URL"],
        "heartbeat_timeout": int(LEASE_SECONDS * 1_000),
        "maintenance_chance": 1_000_000,
    }


def deliver(number: int) -> str:
    """Call the provider once; its id of the email. Anything but a success raises."""
    subject = f"job-{number}"
    if KEYED:
        response = _http.post(
            "/lettermint/v1/send",
            headers={"x-lettermint-token": "lm_test", "Idempotency-Key": subject},
            json={"from": "shop@example.com", "to": ["user@example.com"], "subject": subject, "text": "Thank you."},
        )
        response.raise_for_status()
        return str(response.json()["message_id"])
    response = _http.post(
        "/postmark/email",
        headers={"X-Postmark-Server-Token": "pm-test"},
        json={
            "From": "shop@example.com",
            "To": "user@example.com",
            "Subject": subject,
            "TextBody": "Thank you.",
            "Metadata": {"job": subject},
        },
    )
    response.raise_for_status()
    return str(response.json()["MessageID"])


def find(subject: str) -> str | None:
    """The provider's id of the email of that job, looked up by its metadata."""
    response = _http.get(
        "/postmark/messages/outbound",
        headers={"X-Postmark-Server-Token": "pm-test"},
        params={"count": 1, "offset": 0, "metadata_job": subject},
    )
    response.raise_for_status()
    found = response.json()["Messages"]
    return str(found[0]["MessageID"]) if found else None
