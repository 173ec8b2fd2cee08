"""A shop with an outbox, its relays and its workers, which are killed: for the end-to-end test and for the measurement.

What is counted comes from the provider's log and from the shop's own table of orders, not from our ledger.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass

from sqlalchemy import Column, Integer, MetaData, Table, create_engine, insert, select
from sqlalchemy.orm import Session

from idem.email import Email
from tests.scene import Scene
from workers import App, Settings

_METADATA = MetaData()
_ORDERS = Table("orders", _METADATA, Column("id", Integer, primary_key=True, autoincrement=False))

#: Of three transactions, this one is rolled back.
_ROLLED_BACK = 2
_LIMIT_SECONDS = 120.0
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the provider's log says, against what was committed."""

    committed: int
    accepted: int
    duplicates: int
    missing: int
    uncommitted: int
    kills: int
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether the emails sent are exactly the committed ones."""
        return self.accepted == self.committed and not (self.duplicates or self.missing or self.uncommitted)


class Shop:
    """An application that takes orders in its database, and two relays and two workers beside it."""

    def __init__(self, scene: Scene, url: str) -> None:
        self.scene = scene
        scene.environ |= {
            "IDEM_OUTBOX_URL": url,
            "IDEM_OUTBOX_LEASE_SECONDS": "1",
            "IDEM_OUTBOX_POLL_SECONDS": "0.05",
        }
        self.url = url
        self.engine = create_engine(url, hide_parameters=True)
        # Nothing but the provider that it knows of: no queue, no ledger.
        self.outbox = App(Settings()).outbox
        _METADATA.create_all(self.engine)
        self.outbox.metadata.create_all(self.engine)
        self.kills = 0
        self._running: list[tuple[list[str], subprocess.Popen[bytes]]] = []

    def order(self, number: int) -> None:
        """One transaction: an order and its email, of which each third is rolled back."""
        with Session(self.engine) as session:
            session.execute(insert(_ORDERS), {"id": number})
            self.outbox.add(session, email_of(number), key=f"order-{number}")
            if number % 3 == _ROLLED_BACK:
                session.flush()
                session.rollback()
            else:
                session.commit()

    def committed(self) -> set[str]:
        with self.engine.connect() as connection:
            return {f"Order {number}" for number in connection.execute(select(_ORDERS.c.id)).scalars()}

    def start(self) -> None:
        for command in (["relay"], ["worker", "--threads", "4"]) * 2:
            self._running.append((command, self.scene.start(*command)))

    def kill(self, role: str) -> None:
        """SIGKILL to the oldest process of a role; another one takes its place."""
        found = next(running for running in self._running if running[0][0] == role)
        self._running.remove(found)
        command, process = found
        process.kill()
        process.wait()
        self.kills += 1
        self._running.append((command, self.scene.start(*command)))

    def stop(self) -> None:
        for _, process in self._running:
            process.terminate()
        for _, process in self._running:
            process.wait()
        self._running.clear()

    def close(self) -> None:
        self.stop()
        self.engine.dispose()


def email_of(number: int) -> Email:
    return Email(from_="shop@example.com", to=f"r{number}@example.com", subject=f"Order {number}", text="Thank you!")


def play(shop: Shop, *, transactions: int, threads: int, kills: int) -> Outcome:
    """Take all orders while relays and workers die in turn; go on until every email is there, and look for more.

    About so many kills, one for each so many emails: however slow the machine, there is some work between two.
    """
    begun = time.monotonic()
    shop.start()
    shares = [range(first, transactions, threads) for first in range(threads)]
    producers = [threading.Thread(target=_produce, args=[shop, share]) for share in shares]
    for producer in producers:
        producer.start()
    deadline, step = begun + _LIMIT_SECONDS + transactions / 20, transactions // 2 // kills
    while time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        accepted = len(shop.scene.accepted())
        if not any(producer.is_alive() for producer in producers) and accepted >= len(shop.committed()):
            break
        if accepted >= (shop.kills + 1) * step:
            shop.kill(("relay", "worker")[shop.kills % 2])
    seconds = time.monotonic() - begun
    for producer in producers:
        producer.join()
    shop.stop()
    # Whatever is still there, and would be one email too many.
    shop.scene.idem("relay", "--until-empty")
    shop.scene.idem("worker", "--until-empty")
    return _count(shop, seconds)


def _produce(shop: Shop, numbers: range) -> None:
    for number in numbers:
        shop.order(number)


def _count(shop: Shop, seconds: float) -> Outcome:
    accepted: Counter[str] = shop.scene.accepted()
    committed = shop.committed()
    return Outcome(
        committed=len(committed),
        accepted=len(accepted),
        duplicates=accepted.total() - len(accepted),
        missing=len(committed - accepted.keys()),
        uncommitted=len(accepted.keys() - committed),
        kills=shop.kills,
        seconds=seconds,
    )


def add_seconds(shop: Shop, count: int, *, with_email: bool, first: int) -> float:
    """How long so many transactions take, one after the other, with or without an email."""
    begun = time.perf_counter()
    for number in range(first, first + count):
        with Session(shop.engine) as session, session.begin():
            session.execute(insert(_ORDERS), {"id": number})
            if with_email:
                shop.outbox.add(session, email_of(number), key=f"order-{number}")
    return time.perf_counter() - begun
