"""The README and the runbook are run: every block of them, in its order, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from idem.providers.base import Contract, Memory
from tests.ports import free_port
from workers import Event
from workers.settings import PROVIDERS, SETTINGS
from workers.wiring import contract_of

_ROOT = Path(__file__).parent.parent
_README = (_ROOT / "README.md").read_text(encoding="utf-8")
_BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", _README, re.MULTILINE | re.DOTALL)
_SHORT = {
    "IDEM_BACKOFF_SECONDS": "0.1",
    "IDEM_HTTP_TIMEOUT_SECONDS": "2",
    "IDEM_LEASE_SECONDS": "5",
    "IDEM_VISIBILITY_SECONDS": "6",
}


def _blocks(language: str, start: str = "") -> list[str]:
    return [text for found, text in _BLOCKS if found == language and text.startswith(start)]


def _run(script: str, folder: Path) -> str:
    """Run a block of shell as it stands, with this interpreter's environment in place of .venv."""
    (folder / ".venv").symlink_to(sys.prefix)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IDEM_")}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}"],
        cwd=folder,
        env=kept | _SHORT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout

    return done.stdout


@pytest.fixture
def port() -> int:
    return free_port()


def test_first_command_ends_in_the_demo_and_the_promise_is_kept(tmp_path: Path) -> None:
    """The set-up in front of it is run by whoever clones; here the demo itself runs."""
    (block,) = _blocks("sh", "# 1.")
    setup, _, demo = block.splitlines()[1].rpartition(" && ")

    assert setup == "python3 -m venv .venv && .venv/bin/pip install -q -e '.[local]'"

    printed = _run(demo, tmp_path)

    assert "Every email was accepted exactly once" in printed
    assert re.search(r"kills +([2-9]\d|\d{3,})", printed)


def test_second_command_is_what_ci_runs() -> None:
    (block,) = _blocks("sh", "# 2.")

    assert block.splitlines()[1].endswith("&& .venv/bin/pytest -q -n 3 --dist loadfile")
    assert "grep -m1 -A1 '^# 2\\.' README.md" in (_ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_what_a_user_writes_and_enqueues_is_sent_once(tmp_path: Path, port: int) -> None:
    """The Python block and the two blocks of commands after it, in one directory, against one sandbox."""
    (shop,) = _blocks("python", "# shop.py")
    (tmp_path / "shop.py").write_text(shop, encoding="utf-8")
    (trying,) = _blocks("sh", ".venv/bin/idem sandbox")
    (files,) = _blocks("sh", "cat > mails.jsonl")

    counting = f'echo; python3 -c "{_COUNT.format(port=port)}"'
    printed = _run(f"{trying}\n{files}\n{counting}".replace("8025", str(port)), tmp_path)

    assert "outcome Accepted" in printed
    assert "enqueued 3" in printed
    assert printed.splitlines()[-1] == "5 5"


#: Requests to each of the examples for the web, twice each.
_REQUESTS = {
    "web_fastapi": """
from fastapi.testclient import TestClient
from web_fastapi import app
client = TestClient(app)
for _ in range(2):
    answer = client.post("/signups?to=ann@example.com", headers={"Idempotency-Key": "r1"})
    assert (answer.status_code, answer.json()) == (202, {"key": "welcome/r1"}), answer.text
""",
    "web_flask": """
from web_flask import app
client = app.test_client()
for _ in range(2):
    answer = client.post("/orders/1234/confirmation", data={"to": "bob@example.com"})
    assert (answer.status_code, answer.json) == (202, {"key": "order-confirmation/1234"}), answer.text
""",
    "web_django": """
import django
from django.urls import path
django.setup()
from django.core.management import call_command
from django.test import Client
from web_django import confirm
urlpatterns = [path("orders/<order_id>/confirmation", confirm)]
call_command("check")
for _ in range(2):
    assert Client().post("/orders/5678/confirmation", {"to": "eve@example.com"}).status_code == 202
""",
}


def test_what_a_web_application_enqueues_is_sent_once(tmp_path: Path, port: int) -> None:
    """The three frameworks, against one sandbox, each with a request that comes twice."""
    (trying,) = _blocks("sh", ".venv/bin/idem sandbox")
    (settings,) = _blocks("python", "# settings.py")
    project = """
SECRET_KEY, ALLOWED_HOSTS, ROOT_URLCONF, USE_TZ = "x", ["testserver"], "__main__", True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "project.db"}}
"""
    (tmp_path / "settings.py").write_text(settings + project, encoding="utf-8")
    for name, requests in _REQUESTS.items():
        (block,) = _blocks("python", f"# {name}.py")
        (tmp_path / f"{name}.py").write_text(block, encoding="utf-8")
        (tmp_path / f"request_{name}.py").write_text(requests, encoding="utf-8")
    asked = "\n".join(f".venv/bin/python request_{name}.py" for name in _REQUESTS)
    start = "\n".join(trying.splitlines()[:2])
    counting = f'echo; python3 -c "{_COUNT.format(port=port)}"'
    script = (
        f"{start}\nexport DJANGO_SETTINGS_MODULE=settings\n{asked}\n.venv/bin/idem worker --until-empty\n{counting}"
    )
    printed = _run(script.replace("8025", str(port)), tmp_path)

    assert printed.splitlines()[-1] == "3 3"


def test_what_a_user_writes_for_webhooks_builds_its_email(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (hooks,) = _blocks("python", "# hooks.py")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(hooks, names)  # noqa: S102 - the README's own block
    intent = {"receipt_email": "ann@example.com"}
    event = Event(source="stripe", id="evt_1", type="t", created=None, data={"data": {"object": intent}})

    assert names["receipt"](event).to == ("ann@example.com",)


def test_what_a_transaction_adds_is_relayed_and_sent(tmp_path: Path, port: int) -> None:
    """The two blocks of the outbox, after the beginning of the block that starts a sandbox."""
    (orders,) = _blocks("python", "# orders.py")
    (tmp_path / "orders.py").write_text(orders, encoding="utf-8")
    (trying,) = _blocks("sh", ".venv/bin/idem sandbox")
    sandbox = "\n".join(trying.splitlines()[:2])
    (relaying,) = _blocks("sh", "export IDEM_OUTBOX_URL")
    counting = f'echo; python3 -c "{_COUNT.format(port=port)}"'
    printed = _run(f"{sandbox}\n{relaying}\n{counting}".replace("8025", str(port)), tmp_path)

    assert printed.splitlines()[-1] == "1 1"


def test_what_is_scheduled_is_shown(tmp_path: Path) -> None:
    (reports,) = _blocks("python", "# reports.py")
    (tmp_path / "reports.py").write_text(reports, encoding="utf-8")
    printed = _run(".venv/bin/idem schedule next daily_report --app reports:app", tmp_path)

    assert printed.count("T07:00:00+0") == 5


def test_what_a_user_writes_for_a_digest_takes_items_and_builds_its_email(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (comments,) = _blocks("python", "# comments.py")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(comments, names)  # noqa: S102 - the README's own block
    event = Event(source="github", id="e1", type="issue_comment", created=None, data={"comment": {"body": "Nice."}})
    names["app"].ledger.create()
    names["commented"](event)
    key = names["new_comments"].add("ann@example.com", "Very nice.", key="e2")
    built = names["new_comments"].run("ann@example.com", key.rpartition("/")[2])
    names["app"].close()

    assert (built.subject, built.text) == ("2 new comments", "Nice.\n\nVery nice.")


def test_a_report_is_previewed_and_sent(tmp_path: Path, port: int) -> None:
    """The schedule, its template and the commands, as they stand, against a sandbox."""
    (sales,) = _blocks("python", "# sales.py")
    (template,) = _blocks("html", "<!-- mails/daily.html -->")
    (commands,) = _blocks("sh", ".venv/bin/idem preview")
    (tmp_path / "mails").mkdir()
    (tmp_path / "mails" / "daily.html").write_text(template, encoding="utf-8")
    (tmp_path / "sales.py").write_text(sales, encoding="utf-8")
    starting = (
        f".venv/bin/idem sandbox --port {port} > sandbox.log &\nuntil grep -q http sandbox.log; do sleep 0.1; done\n"
        f"export IDEM_LETTERMINT_TOKEN=lm_x IDEM_LETTERMINT_BASE_URL=http://127.0.0.1:{port}/lettermint/v1\n"
    )
    printed = _run(f'{starting}{commands}\necho; python3 -c "{_COUNT.format(port=port)}"', tmp_path)

    assert "Tea | 12\nCoffee | 30\n\n42 sold" in printed
    assert printed.splitlines()[-1] == "1 1"
    assert (tmp_path / "preview" / "1" / "body.html").read_text().count("style=") == 5
    assert b"Coffee,30" in next((tmp_path / "preview" / "1").glob("1-sales-*.csv")).read_bytes()


_COUNT = (
    "import json, urllib.request as r; "
    "a = json.load(r.urlopen('http://127.0.0.1:{port}/api/accepted')); "
    "print(len(a), len({{e['key'] for e in a}}))"
)


def test_every_block_is_run_by_a_test() -> None:
    """The rights of an ACL user are in `workers/brokers/test_servers.py`."""
    assert len(_BLOCKS) == 18


def test_runbook(tmp_path: Path) -> None:
    """Its commands, where there is nothing to be seen, and where the PATH has `idem`."""
    runbook = (_ROOT / "deploy" / "RUNBOOK.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", runbook, re.MULTILINE | re.DOTALL)

    assert len(blocks) == 6

    setup = 'export PATH="$PWD/.venv/bin:$PATH" IDEM_LETTERMINT_TOKEN=lm_anything\n'
    printed = _run(setup + "".join(blocks), tmp_path)

    assert "in doubt" in printed


def test_every_link_of_the_runbook_has_its_heading() -> None:
    runbook = (_ROOT / "deploy" / "RUNBOOK.md").read_text(encoding="utf-8")
    headings = {line[3:].lower().replace(" ", "-") for line in runbook.splitlines() if line.startswith("## ")}

    assert set(re.findall(r"\(#([a-z-]+)\)", runbook)) <= headings


def test_settings_table_is_the_settings() -> None:
    """Paste what this expects between the two comments after a setting has changed."""
    rows = [f"| `{name}` | {_shown(default)} | {meaning} |" for name, default, meaning in SETTINGS]
    table = re.search(r"<!-- settings -->\n(.*?)<!-- /settings -->", _README, re.DOTALL)

    assert table is not None
    assert table[1].splitlines()[2:] == rows


def test_providers_table_is_the_contracts() -> None:
    """Paste what this expects between the two comments after a contract has changed."""
    table = re.search(r"<!-- providers -->\n(.*?)<!-- /providers -->", _README, re.DOTALL)

    assert table is not None
    assert table[1].splitlines()[2:] == provider_rows()


def provider_rows() -> list[str]:
    return [_provider_row(contract_of(name)) for name in PROVIDERS]


def _provider_row(contract: Contract) -> str:
    checked = f"[{contract.checked}]({contract.source})"
    events = contract.events.handle if contract.events is not None else "no"
    answers = (_keys(contract), _after_a_lost_answer(contract), _together(contract), events)
    columns = (f"`{contract.name}`", *answers, checked)
    return f"| {' | '.join(columns)} |"


def _keys(contract: Contract) -> str:
    key = contract.key
    if key is None:
        return "none"
    window = f"{key.window_seconds / 3_600:g} h" if key.window_seconds >= 3_600 else f"{key.window_seconds / 60:g} min"
    return f"`{key.name}` ({key.place}), {window}"


def _after_a_lost_answer(contract: Contract) -> str:
    searched = f", then looked up for {contract.lookup.horizon_seconds / 86_400:g} days" if contract.lookup else ""
    if contract.memory is not Memory.NONE:
        return f"repeated under its key{searched}"
    if contract.lookup is not None:
        return f"looked up (twice, {contract.lookup.lag_seconds / 60:g} min apart)"
    return "in doubt until an event or a person tells" if contract.events else "in doubt until a person tells"


def _together(contract: Contract) -> str:
    return "no" if contract.batch is None else f"{contract.batch.most}, a key for {contract.batch.keys}"


def _shown(default: object) -> str:
    if default is None:
        return ""
    return f"`{default:.10g}`" if isinstance(default, float) else f"`{default}`"
