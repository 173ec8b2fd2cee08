"""`idem preview`: what would be sent, in the terminal, in files and in a real browser."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from tests.scene import Scene
from workers.cli import run

_APP = """
import pathlib
from idem import Attachment, Email
from workers import App, Event, Slot

app = App.from_env()
WHO = {"from_": "Shop <a@example.com>", "to": "Ann <ann@example.com>"}
CHART = Attachment(filename="../../chart.png", content=b"PNG", content_type="image/png", content_id="chart")
HOSTILE = "<script>document.title = 'taken over'</script><img src='cid:chart'><p>Sales</p>"

@app.job()
def order(number, note=""):
    return Email(**WHO, subject=f"Order {number}", text=f"Thank you. {note}", cc=["Bob <bob@example.com>"])

@app.job()
def report():
    table = Attachment.csv("sales.csv", [["day", "total"], ["Monday", 3]])
    mail = Email(**WHO, subject="<script>document.title = 'taken over'</script>", text="Sales", html=HOSTILE,
                 attachments=[CHART, table])
    return [mail, Email(**WHO, subject="Second", html="<p>only HTML</p>")]

@app.job()
def nothing(): ...

@app.job()
def junk():
    return "no email"

@app.job()
def broken():
    raise KeyError("total")

@app.schedule("0 7 * * *", tz="Europe/Amsterdam")
def daily(slot: Slot):
    return Email(**WHO, subject=f"{slot.local:%Y-%m-%d %H:%M}", text="x")

@app.webhook("stripe", "payment_intent.succeeded", "payment_intent.failed")
def receipt(event: Event):
    return Email(**WHO, subject=f"{event.source} {event.id} {event.type} {event.data['amount']}", text="x")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop_to_preview.py").write_text(_APP, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    # Another test's directory, another module.
    monkeypatch.delitem(sys.modules, "shop_to_preview", raising=False)
    return tmp_path


def preview(*args: str) -> int:
    return run(["preview", "shop_to_preview:app", *args])


def test_what_it_shows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preview("order", '[1234, "Soon."]') == 0
    shown = capsys.readouterr().out
    assert shown.splitlines() == [
        "email 1 of 1",
        "  From:        Shop <a@example.com>",
        "  To:          Ann <ann@example.com>",
        "  Cc:          Bob <bob@example.com>",
        "  Subject:     Order 1234",
        "",
        "Thank you. Soon.",
        "",
    ]
    assert preview("order", '{"number": 5}') == 0
    assert "Order 5" in capsys.readouterr().out
    assert not (folder / ".idem").exists(), "nothing is opened"


def test_schedules_and_webhooks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preview("daily") == 0
    assert " 07:00" in capsys.readouterr().out
    assert preview("daily", "--slot", "2026-03-29T05:00:00Z") == 0
    assert "2026-03-29 07:00" in capsys.readouterr().out
    (folder / "event.json").write_text('{"id": "evt_1", "type": "payment_intent.failed", "amount": 3}')
    assert preview("receipt", "--event", "event.json") == 0
    assert "stripe evt_1 payment_intent.failed 3" in capsys.readouterr().out
    (folder / "event.json").write_text('{"amount": 4}')
    assert preview("receipt", "--event", "event.json") == 0
    assert "stripe preview payment_intent.succeeded 4" in capsys.readouterr().out


def test_the_files_it_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them inside the directory, whatever an attachment is called."""
    assert preview("report", "--out", "shown") == 0
    assert "written to shown/index.html" in capsys.readouterr().out
    found = {str(path.relative_to(folder / "shown")) for path in (folder / "shown").rglob("*") if path.is_file()}
    assert found == {
        "index.html", "1/email.eml", "1/body.html", "1/body.txt", "1/1-.._.._chart.png", "1/2-sales.csv",
        "2/email.eml", "2/body.html",
    }  # fmt: skip
    whole = message_from_bytes((folder / "shown/1/email.eml").read_bytes(), policy=policy.default)
    assert [part.get_filename() for part in whole.walk() if part.get_filename()][1:] == ["sales.csv"]
    assert "<img src='1-.._.._chart.png'>" in (folder / "shown/1/body.html").read_text()


def test_the_page_in_a_browser(folder: Path, chromium: str) -> None:
    """What is in the email cannot take over the page that shows it."""
    assert preview("report", "--out", "shown") == 0
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=1500 --dump-dom"
    page = (folder / "shown/index.html").as_uri()
    command = [chromium, *flags.split(), f"--user-data-dir={folder / 'browser'}", page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "<title>&lt;script&gt;document.title = 'taken over'&lt;/script&gt;</title>" in done.stdout
    assert "only HTML" not in done.stdout, "it is in a frame of its own"
    assert done.stdout.count("<iframe sandbox=") == 2


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser; without it, a skip here and a failure in CI."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("chromium is not installed, and CI must run these tests")
    return found or pytest.skip("chromium is not installed")


def test_open_starts_the_browser(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def start(url: str) -> bool:
        opened.append(url)
        return len(opened) < 2

    monkeypatch.setattr("webbrowser.open", start)
    assert preview("order", "[1]", "--open", "--out", "shown") == 0
    assert opened == [(folder / "shown/index.html").as_uri()]
    capsys.readouterr()
    assert preview("order", "[1]", "--open") == 2
    assert "no browser can be started here: open " in capsys.readouterr().err
    shutil.rmtree(Path(opened[1].removeprefix("file://")).parent)


def test_no_email_is_a_negative_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert folder
    assert preview("nothing") == 1
    assert capsys.readouterr().err == "the job builds no email\n"


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["orders"], "no job is named 'orders'; there are broken, daily, junk, nothing, order, receipt, report"),
        (["order"], "job order: missing a required argument: 'number'"),
        (["order", "[1, 2, 3]"], "job order: too many positional arguments"),
        (["order", "1234"], "ARGS is neither a list nor an object: write '[1234]' or '{\"order_id\": 1234}'"),
        (["order", "[1"], "ARGS is not JSON (Input data was truncated): write '[1234]' or '{\"order_id\": 1234}'"),
        (["order", "[1]", "--slot", "2026-01-01T00:00:00Z"], "job order is no schedule: leave out --slot"),
        (["order", "[1]", "--event", "x"], "job order waits for no event: leave out --event"),
        (["daily", "[]"], "job daily takes no ARGS: it is called with its slot"),
        (
            ["daily", "--slot", "2026-01-01T00:00:00Z"],
            "schedule daily has no such slot: `idem schedule next` shows some",
        ),
        (["daily", "--slot", "tomorrow"], "'tomorrow' is no instant: write it with its offset"),
        (["receipt"], "job receipt waits for an event of stripe: give --event FILE, the body as it was posted"),
        (["receipt", "--event", "nope"], "nope cannot be read as an event (No such file or directory): it must be"),
        (["receipt", "--event", "list.json"], "list.json is no event: it must be the body, a JSON object"),
        (["junk"], "job junk returned str; it must return an Email, a list of them, or None"),
        (["broken"], "job broken raised KeyError at "),
        (["report", "--out", "list.json"], "'list.json' is a file."),
        (["report", "--out", "list.json/x"], "list.json/x cannot be written (Not a directory): give another"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], args: list[str], problem: str) -> None:
    (folder / "list.json").write_text("[]")
    assert preview(*args) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert "Traceback" not in said


def test_an_email_that_the_provider_cannot_express(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is shown all the same, and so is what the provider would say."""
    (folder / "tagged.py").write_text(
        "from idem import Email\nfrom workers import App\napp = App.from_env()\n"
        "@app.job()\ndef job():\n"
        "    return Email(from_='a@example.com', to='b@example.com', subject='s', text='x', tags=['a', 'b', 'c'])\n"
    )
    assert run(["preview", "tagged:app", "job"]) == 0
    assert "  lettermint cannot send it: " in capsys.readouterr().out


def test_nothing_is_claimed_enqueued_or_sent(scene: Scene) -> None:
    (scene.folder / "shop_to_preview.py").write_text(_APP, encoding="utf-8")
    scene.idem("preview", "shop_to_preview:app", "order", "[1]")
    assert not (scene.folder / ".idem").exists()
    assert scene.accepted().total() == 0
