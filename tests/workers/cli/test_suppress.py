"""`idem suppress`, and how an address comes onto the list by itself: from an event to the next email."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.workers.parts import RunIdem, Sandbox, StartIdem, wait_for

HOOKS = """
from idem import Email
from workers import App, Event

app = App.from_env()

@app.webhook("postmark", "Bounce")
def alert(event: Event) -> Email:
    return Email(from_="shop@example.com", to="desk@example.com", subject=event.data["Email"], text="x")
"""


def test_a_person_keeps_the_list(call_idem: RunIdem) -> None:
    assert call_idem("suppress", "check", "ann@example.com").status == 1
    added = call_idem("suppress", "add", "ann@example.com", "Bob <bob@example.com>")
    assert (added.status, added.out) == (0, "added 2 of 2\n")
    assert call_idem("suppress", "add", "ANN@example.com").out == "added 0 of 1\n"

    found = call_idem("suppress", "check", "ann@example.com", "--json").json
    assert found["reason"] == "said by a person"
    assert found["source"].startswith("by ")
    assert "said by a person" in call_idem("suppress", "check", "ann@example.com").out

    listed = call_idem("suppress", "list", "--json")
    assert len(listed.json) == 2
    assert "ann" not in listed.out
    assert len(call_idem("suppress", "list").out.splitlines()) == 2

    assert call_idem("suppress", "remove", "ann@example.com").out == "removed 1 of 1\n"
    assert call_idem("suppress", "remove", "ann@example.com").status == 1
    assert call_idem("suppress", "check", "ann@example.com", "--json").json is None


@pytest.mark.parametrize("arguments", [["add"], ["add", "nobody"], ["check", "a b@example.com"]])
def test_what_is_no_address_is_one_line(call_idem: RunIdem, arguments: list[str]) -> None:
    ran = call_idem("suppress", *arguments)

    assert ran.status == 2
    assert "nobody" not in ran.err.replace("idem:", "")


def test_a_bounce_keeps_the_next_email_back(
    tmp_path: Path, start_idem: StartIdem, run_idem: RunIdem, sandbox: Sandbox
) -> None:
    """By Postmark: the event is noted and shown, runs its job, and the address gets nothing until it is taken off."""
    (tmp_path / "hooks.py").write_text(HOOKS)
    env = {
        "IDEM_PROVIDER": "postmark",
        "IDEM_POSTMARK_TOKEN": "a-token",
        "IDEM_POSTMARK_BASE_URL": f"{sandbox.url}/postmark",
        "IDEM_POSTMARK_WEBHOOK_SECRET": "user:password",
        "IDEM_SUPPRESSION": "on",
    }

    def idem(*arguments: str, status: int = 0) -> str:
        ran = run_idem(*arguments, env=env)
        assert ran.status == status, ran.err
        return ran.out

    def send(key: str) -> None:
        email = {"from": "shop@example.com", "to": "gone@example.com", "subject": "Hi", "text": "Hi", "key": key}
        (tmp_path / f"{key}.jsonl").write_text(json.dumps(email) + "\n")
        idem("enqueue", f"{key}.jsonl")
        idem("worker", "--app", "hooks:app", "--until-empty")

    running = start_idem("webhooks", "--app", "hooks:app", "--port", "0", env=env)
    url = wait_for(lambda: "/postmark" in running.log and running.log.split()[-1])
    # Copies, as a provider repeats what was answered 503: the embedded queue may be stopping with the worker just then.
    sandbox.tell(
        provider="postmark", url=url, secret="user:password", events=["bounced"], times=1, copies=3, delay_ms=1_000
    )

    send("first")
    wait_for(lambda: 200 in sandbox.answers())
    (event,) = json.loads(idem("explain", "first", "--json"))["events"]
    assert (event["kind"], event["source"]) == ("bounced", "postmark")
    assert "kind bounced" in idem("explain", "first")

    send("second")
    assert sandbox.recipients() == ["gone@example.com", "desk@example.com"]
    second = json.loads(idem("explain", "second", "--json"))
    assert second["state"] == "rejected"
    assert second["reason"].startswith("suppressed: to[0] is on the suppression list (bounced")
    assert "second" in idem("list", "--state", "rejected")

    idem("suppress", "remove", "gone@example.com")
    assert idem("reopen", "second") == "enqueued again\n"
    idem("worker", "--app", "hooks:app", "--until-empty")
    assert sandbox.recipients() == ["gone@example.com", "desk@example.com", "gone@example.com"]
