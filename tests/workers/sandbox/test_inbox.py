"""The inbox page in a real browser, with emails that would take it over if they could."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

HOSTILE = "<img src=x onerror=\"document.title='taken over'\"><script>document.title='taken over'</script>"


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser; without it, a skip here and a failure in CI."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("chromium is not installed, and CI must run these tests")
    return found or pytest.skip("chromium is not installed")


class Page(HTMLParser):
    """What a page shows: the texts of its elements by id and by class, their attributes by id, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: dict[str, dict[str, str | None]] = {}
        self._names: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        fields = dict(attrs)
        self._names = [name for name in (tag, fields.get("id"), *(fields.get("class") or "").split()) if name]
        for name in self._names:
            self.texts.setdefault(name, []).append("")
            self.attributes[name] = fields

    def handle_data(self, data: str) -> None:
        for name in self._names:
            self.texts[name][-1] += data

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - the parser's signature
        self._names = []


@pytest.fixture
def browse(chromium: str, client: httpx.Client, tmp_path: Path) -> Callable[[str], Page]:
    """Open the inbox at a fragment, let it run for a moment, and give what it shows."""

    def dump(fragment: str = "") -> Page:
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
        flags += " --disable-component-update --disable-sync --virtual-time-budget=1500 --dump-dom"
        command = [chromium, *flags.split(), f"--user-data-dir={tmp_path}", f"{client.base_url}/#{fragment}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return Page(done.stdout)

    return dump


def send(client: httpx.Client, key: str, **changes: str) -> str:
    email = {"from": "shop@example.com", "to": ["ann@example.com"], "subject": "Hello", "text": "Hi"} | changes
    answer = client.post("/lettermint/v1/send", json=email, headers={"Idempotency-Key": key})
    message_id: str = answer.json()["message_id"]
    return message_id


def test_an_empty_inbox_says_what_to_do(client: httpx.Client, browse: Callable[[str], Page]) -> None:
    """It shows a command that sends a first email to this very sandbox."""
    page = browse("")
    assert "row" not in page.texts
    assert "hidden" not in page.attributes["empty"]
    assert page.texts["try"][0].startswith(f"curl {client.base_url}/lettermint/v1/send")
    assert page.texts["accepted"] == ["0"]


def test_the_list(client: httpx.Client, browse: Callable[[str], Page]) -> None:
    """Accepted emails are listed, newest first, with the counts and the active faults."""
    for index in range(3):
        send(client, f"key-{index}", subject=f"Subject {index}")
    send(client, "key-0", subject="Subject 0")
    client.post("/api/faults", json={"fault": "drop", "times": 4})
    page = browse("")
    assert page.texts["subject"] == ["Subject 2", "Subject 1", "Subject 0"]
    assert page.texts["key"] == ["key-2", "key-1", "key-0"]
    assert page.texts["to"] == ["ann@example.com"] * 3
    assert page.texts["badge"] == ["lettermint"] * 3
    assert [page.texts[name] for name in ("accepted", "requests", "replays", "active")] == [["3"], ["4"], ["1"], ["1"]]
    assert "drop · * · 4 left" in page.texts["li"]
    assert "hidden" in page.attributes["empty"]


def test_an_email_cannot_take_the_page_over(client: httpx.Client, browse: Callable[[str], Page]) -> None:
    """Markup in a subject, a key or a body is shown as text; the HTML part has a frame that may do nothing."""
    html = f"<p>Fine</p>{HOSTILE.replace('document', 'parent.document')}"
    message_id = send(client, "<b>key</b>", subject=HOSTILE, text=HOSTILE, html=html)
    page = browse(message_id)
    assert page.texts["subject"] == page.texts["h2"][-1:] == page.texts["title"][-1:] == [HOSTILE]
    assert page.texts["text"] == [HOSTILE]
    assert page.texts["key"] == ["<b>key</b>"]
    assert page.texts["title"][0] == "idem sandbox"
    assert not {"img", "b"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert page.attributes["html"].items() >= {"sandbox": "", "srcdoc": html}.items()


def test_the_policy(client: httpx.Client) -> None:
    """Nothing comes from elsewhere, and only the page's own script runs."""
    answer = client.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"].startswith("'sha256-")
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(answer.text)
    assert (page.attributes["link"]["href"] or "").startswith("data:")
    assert "src" not in page.attributes["script"]
