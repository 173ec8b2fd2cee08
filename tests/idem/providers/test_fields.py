"""Nothing is dropped in silence: every part of an email is in the request, or was refused before anything was sent."""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import importlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote_plus

import pytest

from idem.clock import Deadline, SystemClock
from idem.email import FIELDS, Email
from idem.errors import UnsupportedEmail
from idem.providers.base import Provider
from workers.settings import PROVIDERS

#: These carry a MIME message, which another reader is needed for; they still need one here.
CARRIERS = {"lettermint_smtp", "resend_smtp", "ses", "smtp"}
NAMES = [name for name in PROVIDERS if name not in CARRIERS]

BASE: dict[str, Any] = {
    "from": "base@example.com",
    "to": ["base@example.org"],
    "subject": "Base",
    "text": "Base text",
    "html": "<p>Base</p>",
}
ATTACHMENT = {"filename": "base.txt", "content": "", "content_type": "text/plain"}

#: What is changed in a plain email, and what must then be seen in the request.
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "from": ({"from": "Seen Name <seen-from@example.com>"}, ("Seen Name", "seen-from@example.com")),
    "to": ({"to": ["a <seen-to1@example.org>", "seen-to2@example.org"]}, ("seen-to1@example.org", "seen-to2@example")),
    "cc": ({"cc": ["seen-cc1@example.org", "seen-cc2@example.org"]}, ("seen-cc1@example.org", "seen-cc2@example.org")),
    "bcc": ({"bcc": ["seen-b1@example.org", "seen-b2@example.org"]}, ("seen-b1@example.org", "seen-b2@example.org")),
    "reply_to": ({"reply_to": ["seen-reply1@example.com"]}, ("seen-reply1@example.com",)),
    "reply_to, two": (
        {"reply_to": ["seen-reply1@example.com", "seen-reply2@example.com"]},
        ("seen-reply1@example.com", "seen-reply2@example.com"),
    ),
    "subject": ({"subject": "Seen subject Ü"}, ("Seen subject Ü",)),
    "text": ({"text": "Seen text Ü", "html": None}, ("Seen text Ü",)),
    "html": ({"html": "<p>Seen html Ü</p>", "text": None}, ("<p>Seen html Ü</p>",)),
    "headers": ({"headers": {"X-Seen": "seen-value"}}, ("X-Seen", "seen-value")),
    "headers, two": ({"headers": {"X-Seen1": "v1-seen", "X-Seen2": "v2-seen"}}, ("X-Seen1", "v1-seen", "v2-seen")),
    "tags": ({"tags": ["seen-tag1"]}, ("seen-tag1",)),
    "tags, two": ({"tags": ["seen-tag1", "seen-tag2"]}, ("seen-tag1", "seen-tag2")),
    "tags, odd": ({"tags": ["seen, Ü!"]}, ("seen, Ü!",)),
    "metadata": ({"metadata": {"seen-name1": "seen-value1"}}, ("seen-name1", "seen-value1")),
    "metadata, two": ({"metadata": {"seen-n1": "seen-v1", "seen-n2": "seen-v2"}}, ("seen-n1", "seen-v2")),
    "metadata, odd": ({"metadata": {"seen n": "seen, Ü!"}}, ("seen n", "seen, Ü!")),
    "metadata, and tags": ({"metadata": {"tag": "seen-value"}, "tags": ["seen-tag"]}, ("seen-value", "seen-tag")),
    "attachments": (
        {"attachments": [ATTACHMENT | {"filename": "seen.pdf", "content": "c2VlbiBjb250ZW50"}]},
        ("seen.pdf", "seen content"),
    ),
    "attachments, type": ({"attachments": [ATTACHMENT | {"content_type": "image/x-seen"}]}, ("image/x-seen",)),
    "attachments, inline": ({"attachments": [ATTACHMENT | {"content_id": "seen-cid"}]}, ("seen-cid",)),
}


class Recorder(ThreadingHTTPServer):
    """Takes every request and answers none of them well."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, self.bodies))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, bodies: list[bytes], *arguments: Any) -> None:
        self._bodies = bodies
        super().__init__(*arguments)

    def do_POST(self) -> None:
        self._bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that it overrides
        """Say nothing."""


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    with Recorder() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def connect(name: str, url: str) -> Provider:
    provider: Provider = importlib.import_module(f"idem.providers.{name}").connect("token", url)
    return provider


def refused_field(provider: Provider, email: Email) -> str | None:
    try:
        provider.check(email)
    except UnsupportedEmail as refused:
        return refused.field.partition(".")[0]
    return None


def seen(body: bytes) -> list[str]:
    """What a provider can read: the body, unquoted too, and every text in its JSON, decoded where it is base64."""
    text = body.decode()
    found = [text, unquote_plus(text)]
    with contextlib.suppress(ValueError):
        for leaf in _leaves(json.loads(text)):
            found.append(leaf)
            with contextlib.suppress(binascii.Error, ValueError):
                found.append(base64.b64decode(leaf, validate=True).decode())
    return found


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from _leaves([*value.keys(), *value.values()])
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield str(value)


def test_every_field_has_its_cases() -> None:
    """A field that is added to `Email` needs a place in every request, or a refusal."""
    assert {case.partition(",")[0] for case in CASES} == set(FIELDS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_it_is_sent_or_refused(recorder: Recorder, name: str, case: str) -> None:
    changes, expected = CASES[case]
    provider, email = connect(name, recorder.url), Email.from_dict(BASE | changes)
    refused = refused_field(provider, email)
    if refused is not None:
        assert refused == case.partition(",")[0]
        return
    provider.send(email, "a-key-of-some-length", Deadline.after(SystemClock(), 10))
    parts = seen(recorder.bodies[-1])
    assert [text for text in expected if not any(text in part for part in parts)] == []


@pytest.mark.parametrize("case", ["from", "to", "cc", "bcc", "reply_to", "subject", "text", "html", "headers"])
@pytest.mark.parametrize("name", NAMES)
def test_what_every_provider_takes(name: str, case: str) -> None:
    """To refuse everything would pass the test above."""
    connect(name, "http://127.0.0.1:1").check(Email.from_dict(BASE | CASES[case][0]))
