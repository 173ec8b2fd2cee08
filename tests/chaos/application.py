"""What the processes under chaos run: jobs of every trigger, and a worker that may kill itself at a named point."""

from __future__ import annotations

import os
import signal
import uuid
from datetime import timedelta

from idem import Email
from idem.send import Point
from workers import App, Event, Settings, Slot

_point, _, _times = os.environ.get("CRASH_AT", "").partition(":")
_left = int(_times or 0)


def _reach(point: Point) -> None:
    """Die at the n-th time that this process comes to the point that its environment names."""
    global _left  # noqa: PLW0603 - one countdown a process
    if point == _point:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


app = App(Settings.load(), reach=_reach)


def email(subject: str, text: str) -> Email:
    """An email whose subject says which intention it is."""
    return Email(from_="shop@example.com", to="customer@example.com", subject=subject, text=text)


@app.job()
def built(subject: str) -> Email:
    """Never the same twice: what is sent again must be what was frozen."""
    return email(subject, f"built as {uuid.uuid4()}")


@app.job()
def two(subject: str) -> list[Email]:
    """Two emails, each under a key of its own."""
    return [email(f"{subject}/{number}", f"built as {uuid.uuid4()}") for number in (1, 2)]


@app.schedule(every=timedelta(seconds=1), catch_up="all")
def beat(slot: Slot) -> Email:
    """One email a second, whichever scheduler is alive."""
    return email(f"beat {slot.instant:%Y-%m-%dT%H:%M:%SZ}", "on the second")


@app.webhook("standard", "thing.happened")
def heard(event: Event) -> Email:
    """One email an event, however often it is delivered."""
    return email(f"event {event.id}", "heard of it")
