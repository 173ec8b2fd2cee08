"""Standard Webhooks, and Svix, which has other names for the headers: what is signed includes the event's id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from workers.webhooks.delivery import Delivery, Refused, Said, instant, named
from workers.webhooks.signatures import Scheme, Tolerance, decoded_key, in_base64, match


def _brand(delivery: Delivery) -> str:
    return "webhook" if "webhook-id" in delivery.headers else "svix"


def _check(delivery: Delivery, keys: Sequence[bytes], tolerance: Tolerance) -> None:
    brand = _brand(delivery)
    if "svix-id" not in delivery.headers and brand == "svix":
        raise Refused(400, "the header webhook-id is missing")
    at = tolerance.admit(delivery.header(f"{brand}-timestamp"))
    content = b".".join([delivery.header(f"{brand}-id").encode("latin-1"), at, delivery.body])
    signed = (part.partition(",") for part in delivery.header(f"{brand}-signature").split(" "))
    match([signature for version, _, signature in signed if version == "v1"], keys, content, in_base64)


def _read(delivery: Delivery, data: dict[str, Any]) -> Said:
    created = data.get("timestamp", data.get("created_at"))
    return Said(
        named("id", delivery.header(f"{_brand(delivery)}-id")), named("type", data.get("type")), instant(created)
    )


SCHEME: Final = Scheme(
    title="Standard Webhooks",
    source="https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md",
    check=_check,
    read=_read,
    key=decoded_key,
)
