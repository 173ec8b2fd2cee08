"""What is asked for: the jobs, the events and the mistakes of those who enqueue; written down before it is sent."""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from idem import BrokerUnavailable, Email, LedgerUnavailable
from idem.keys import member_key, range_key
from tests.chaos.stage import LANES, Lane, Stage
from tests.workers.webhooks.deliveries import WHSEC, post
from workers.jobs import job_message
from workers.timing import Timing

_PAUSE_SECONDS = 0.05
#: How far the producer may run ahead of the kills, so that a worker that is killed has something in hand.
_LEAD = 100
_FORGED: Final = WHSEC[:-8] + "AAAAAAA="


class Form(StrEnum):
    """How a job is asked for."""

    READY = "ready"
    LATER = "later"
    BUILT = "built"
    TWO = "two"
    BULK = "bulk"
    EXPIRING = "expiring"
    RESEND = "resend"


#: How many of all are asked for in each form.
_SHARES: Final = {
    Form.READY: 0.5, Form.LATER: 0.1, Form.BUILT: 0.2, Form.TWO: 0.05,
    Form.BULK: 0.05, Form.EXPIRING: 0.05, Form.RESEND: 0.05,
}  # fmt: skip
#: How many emails are asked for together.
_TOGETHER: Final = {Form.TWO: 2, Form.BULK: 3}


@dataclass(frozen=True, slots=True)
class Intention:
    """One job: its key, and how it is enqueued."""

    lane: Lane
    key: str
    form: Form
    durable: bool
    again: bool
    """Enqueued a second time."""

    def effects(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The subject of each email that is intended, with the keys of the records that may speak of it."""
        count = _TOGETHER.get(self.form)
        if count is None:
            yield self.key, (self.key,)
            return
        for number in range(1, count + 1):
            # A provider that takes several emails in one request has a record for the range of them, until it settles.
            yield f"{self.key}/{number}", (member_key(self.key, number), range_key(self.key, 1, count))


def plan(jobs: int, dice: random.Random) -> list[Intention]:
    """So many jobs, the lanes and the forms mixed by their shares."""
    lanes = dice.choices(LANES, [lane.share for lane in LANES], k=jobs)
    forms = dice.choices(list(_SHARES), list(_SHARES.values()), k=jobs)
    return [
        Intention(lane, f"{lane.name}-{number}", form, dice.random() < 0.1, dice.random() < 0.05)
        for number, (lane, form) in enumerate(zip(lanes, forms, strict=True))
    ]


@dataclass(slots=True)
class Progress:
    """What those who ask share with those who break things."""

    goal: Callable[[], float]
    """How far the chaos has come, 0 to 1."""
    enqueued: int = 0
    repeats: int = 0
    conflicts: set[tuple[Lane, str]] = field(default_factory=set)
    events: list[str] = field(default_factory=list)
    redelivered: int = 0
    forged: int = 0
    forged_answers: set[int] = field(default_factory=set)
    enqueued_at: dict[str, float] = field(default_factory=dict)


class Producer(threading.Thread):
    """Enqueues the plan; what it does not know to be enqueued, it enqueues again under the same key."""

    def __init__(self, stage: Stage, intentions: list[Intention], progress: Progress, dice: random.Random) -> None:
        super().__init__(name="producer", daemon=True)
        self._stage = stage
        self._intentions = intentions
        self._progress = progress
        self._dice = dice
        self._ready = {intention.key: intention for intention in intentions if intention.form is Form.READY}

    def run(self) -> None:
        total = len(self._intentions)
        for number, intention in enumerate(self._intentions):
            while number > self._progress.goal() * total + _LEAD:
                time.sleep(_PAUSE_SECONDS)
            for subject, _ in intention.effects():
                self._progress.enqueued_at[subject] = time.time()
            for _ in range(1 + intention.again):
                self._insist(lambda: self._enqueue(intention))  # noqa: B023 - called before the next one
            self._progress.enqueued += 1
            if self._dice.random() < 0.01:
                self._contradict()

    def _enqueue(self, intention: Intention) -> None:
        app, key, durable = self._stage.apps[intention.lane], intention.key, intention.durable
        email = _email(key, "as intended")
        match intention.form:
            case Form.BUILT | Form.TWO:
                message, _ = job_message(intention.form, (key,), {}, key)
                app.ask(message, Timing(), durable=durable)
            case Form.BULK:
                emails = [_email(subject, "as intended") for subject, _ in intention.effects()]
                app.enqueue_bulk(emails, key=key, durable=durable)
            case Form.LATER:
                app.enqueue(email, key=key, delay=self._dice.uniform(0.2, 2.0), durable=durable)
            case Form.EXPIRING:
                # So soon that many of them are too late.
                app.enqueue(email, key=key, expires=self._dice.uniform(0.5, 4.0), durable=durable)
            case Form.RESEND:
                app.enqueue(email, key=key, in_doubt="resend", durable=durable)
            case Form.READY:
                app.enqueue(email, key=key, durable=durable)

    def _contradict(self) -> None:
        """Another email under the key of one that was accepted: it must be buried."""
        accepted = self._stage.sandbox.accepted
        if not accepted:
            return
        intention = self._ready.get(self._dice.choice(accepted[-200:])["subject"])
        if intention is None:
            return
        app, key = self._stage.apps[intention.lane], intention.key
        self._insist(lambda: app.enqueue(_email(f"conflict {key}", "another one"), key=key, durable=False))
        self._progress.conflicts.add((intention.lane, key))

    def _insist(self, enqueue: Callable[[], Any]) -> None:
        while True:
            try:
                enqueue()
            except (BrokerUnavailable, LedgerUnavailable):
                self._progress.repeats += 1
                time.sleep(_PAUSE_SECONDS)
            else:
                return


class Poster(threading.Thread):
    """Posts events until they are answered, some of them again, and forged ones between them."""

    def __init__(self, port: int, events: int, progress: Progress, dice: random.Random) -> None:
        super().__init__(name="poster", daemon=True)
        self._port = port
        self._events = events
        self._progress = progress
        self._dice = dice

    def run(self) -> None:
        for number in range(self._events):
            while number > self._progress.goal() * self._events:
                time.sleep(_PAUSE_SECONDS)
            event_id = f"evt-{number}"
            self._progress.events.append(event_id)
            copies = 1 + (self._dice.random() < 0.3)
            for _ in range(copies):
                while self._post(event_id, WHSEC) != http.HTTPStatus.OK:
                    time.sleep(_PAUSE_SECONDS)
            self._progress.redelivered += copies - 1
            if self._dice.random() < 0.2:
                self._forge(f"forged-{number}")

    def _forge(self, event_id: str) -> None:
        while (status := self._post(event_id, _FORGED)) is None:
            time.sleep(_PAUSE_SECONDS)
        self._progress.forged += 1
        self._progress.forged_answers.add(status)

    def _post(self, event_id: str, secret: str) -> int | None:
        """The status; None when nobody answered."""
        delivery = post("standard", secret=secret, event_id=event_id, at=int(time.time()))
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/standard", delivery.body, dict(delivery.headers))
            return connection.getresponse().status
        return None


def _email(subject: str, text: str) -> Email:
    return Email(from_="shop@example.com", to="customer@example.com", subject=subject, text=text)
