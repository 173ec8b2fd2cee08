"""The receiver of webhooks: `python -m tests.bench.webhooks [--events N] [--deliveries N] [--seconds S] [--fuzz N]`.

Durable requests per second: one receiver process, one Valkey server that syncs every write before it answers, distinct
genuine events over 32 kept connections. The storm: deliveries of a tenth as many events from four sources, one in
twenty forged, one in ten posted again after all others, the receiver killed (SIGKILL) twice meanwhile; whoever posts
does so until it is answered, as senders do, and two workers send what comes. Fuzz: genuine requests of every sender,
each damaged at random, straight into the ASGI application. Exit status 1 if an effect is missing, double or forged, or
an answer is not a 4xx where it must be one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

from idem.clock import SystemClock
from tests.ports import free_port
from tests.scene import Scene, open_scene
from tests.valkey import DURABLE, Server, wait_for
from tests.workers.webhooks.deliveries import SECRETS, Posted, post, sign
from workers.webhooks.app import Receiver, build_app
from workers.webhooks.declared import Declared
from workers.webhooks.sources import open_sources

_SOURCES: Final = ("stripe", "github", "standard", "lettermint")
_CONNECTIONS: Final = 32
_APP: Final = """
from idem import Email
from workers import App, Event

app = App.from_env()

def email(event: Event) -> Email:
    return Email(from_="shop@example.com", to=event.data["to"], subject=event.id, text="x")

for source in ("stripe", "github", "standard", "lettermint"):
    app.webhook(source, "thing.happened", name=f"from_{source}")(email)
"""


class Stage:
    """A directory with the application, its broker and its ledger; the receiver is on one port, whoever serves it."""

    def __init__(self, scene: Scene, server: Server) -> None:
        (scene.folder / "shop.py").write_text(_APP)
        scene.environ |= {f"IDEM_{name.upper()}_WEBHOOK_SECRET": SECRETS[name] for name in _SOURCES}
        scene.environ |= {"IDEM_BROKER_URL": server.url, "IDEM_RATE_PER_SECOND": "100000"}
        self.scene = scene
        self.port = free_port()
        self._receiver = self._start()
        self._workers: list[subprocess.Popen[bytes]] = []

    def _start(self) -> subprocess.Popen[bytes]:
        process = self.scene.start("webhooks", "--app", "shop:app", "--port", str(self.port))
        wait_for(lambda: process.poll() is not None or self._listens())
        assert process.poll() is None, "the receiver ended"
        return process

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill_receiver(self) -> None:
        self._receiver.kill()
        self._receiver.wait()
        self._receiver = self._start()

    def start_workers(self, count: int) -> None:
        self._workers += [self.scene.start("worker", "--app", "shop:app") for _ in range(count)]

    def drain(self) -> None:
        self.scene.idem("worker", "--app", "shop:app", "--until-empty", status=0)

    def close(self) -> None:
        for process in (self._receiver, *self._workers):
            process.terminate()
            process.wait()


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="idem-bench-")))
        server = Server(folder / "valkey", *DURABLE)
        server.start()
        stack.callback(server.kill)
        scene = stack.enter_context(open_scene(folder))
        set_up = Stage(scene, server)
        stack.callback(set_up.close)
        yield set_up


@dataclass(frozen=True, slots=True)
class Storm:
    """What came of one; `answers` are the last ones to each delivery, `tries` all posts."""

    events: int
    deliveries: int
    effects: int
    distinct: int
    forged: int
    kills: int
    tries: int
    answers: Counter[tuple[bool, int]]

    @property
    def kept(self) -> bool:
        genuine = {status for good, status in self.answers if good}
        refused = {status for good, status in self.answers if not good}
        return self.effects == self.distinct == self.events and not self.forged and (genuine, refused) == ({200}, {401})


class Poster:
    """Posts from several threads, each delivery until it is answered and not by 503."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self.answers: Counter[tuple[bool, int]] = Counter()
        self.tries = 0

    @property
    def answered(self) -> int:
        with self._lock:
            return self.answers.total()

    def post(self, *rounds: Sequence[tuple[bool, str, Posted]]) -> None:
        for deliveries in rounds:
            self._post(deliveries)

    def _post(self, deliveries: Sequence[tuple[bool, str, Posted]]) -> None:
        waiting: SimpleQueue[tuple[bool, str, Posted]] = SimpleQueue()
        for delivery in deliveries:
            waiting.put(delivery)
        threads = [threading.Thread(target=self._work, args=(waiting,), daemon=True) for _ in range(_CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, waiting: SimpleQueue[tuple[bool, str, Posted]]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        with contextlib.suppress(Empty):
            while True:
                genuine, source, posted = waiting.get_nowait()
                status = self._until_answered(connection, source, posted)
                with self._lock:
                    self.answers[genuine, status] += 1
        connection.close()

    def _until_answered(self, connection: http.client.HTTPConnection, source: str, posted: Posted) -> int:
        while True:
            with self._lock:
                self.tries += 1
            try:
                connection.request("POST", f"/{source}", posted.body, dict(posted.headers))
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                time.sleep(0.05)
                continue
            if answer.status != 503:
                return answer.status
            time.sleep(0.05)


def storm(set_up: Stage, *, events: int, deliveries: int, kills: int = 2, seed: int = 1) -> Storm:
    dice = random.Random(seed)
    forged = [(False, *_forgery(dice, events)) for _ in range(deliveries // 20)]
    again = deliveries // 10
    first = [(True, *_genuine(number % events)) for number in range(deliveries - again - len(forged))]
    mixed = first + forged
    dice.shuffle(mixed)
    later = [(True, *_genuine(dice.randrange(events))) for _ in range(again)]
    poster = Poster(set_up.port)
    set_up.start_workers(2)
    posting = threading.Thread(target=poster.post, args=(mixed, later), daemon=True)
    posting.start()
    for kill in range(1, kills + 1):
        while posting.is_alive() and poster.answered < len(mixed) * kill // (kills + 1):
            time.sleep(0.01)
        set_up.kill_receiver()
    posting.join()
    set_up.drain()
    to = [entry["to"][0] for entry in set_up.scene.call("/api/accepted")]
    return Storm(
        events=events,
        deliveries=deliveries,
        effects=len(to),
        distinct=len(set(to)),
        forged=sum(address.startswith("forged") for address in to),
        kills=kills,
        tries=poster.tries,
        answers=poster.answers,
    )


def _genuine(number: int) -> tuple[str, Posted]:
    source = _SOURCES[number % len(_SOURCES)]
    return source, post(source, event_id=f"evt_{number}", at=int(time.time()), to=f"customer-{number}@example.com")


def _forgery(dice: random.Random, events: int) -> tuple[str, Posted]:
    """Another recipient under a genuine signature, or a whole event under a secret of the forger's own."""
    source, posted = _genuine(dice.randrange(events))
    if dice.random() < 0.5:
        return source, Posted(posted.headers, posted.body.replace(b"customer-", b"forged-"))
    secret = SECRETS[source][:-4] + "AAAA"
    to = f"forged-{dice.random()}@example.com"
    return source, post(source, secret=secret, event_id=f"evt_{dice.random()}", at=int(time.time()), to=to)


def durable_rate(set_up: Stage, seconds: float) -> float:
    """Genuine events answered 200, a second; each is in the queue, and synced, by then."""
    poster = Poster(set_up.port)
    poster.post([(True, *_genuine(number)) for number in range(200)])
    batch, done, started_at = 0, 0, time.monotonic()
    while time.monotonic() - started_at < seconds:
        batch += 1
        poster.post([(True, *_genuine(batch * 2_000 + number)) for number in range(2_000)])
        done += 2_000
    return done / (time.monotonic() - started_at)


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """How often each status was answered; `wrong` are the first requests whose answer may not be."""

    answers: Counter[int]
    wrong: Sequence[str]


def fuzz(times: int, seed: int = 1) -> Fuzzed:
    """Damage genuine requests. What is still signed may be taken; every other answer must be a 4xx."""
    return asyncio.run(_fuzz(times, random.Random(seed)))


async def _fuzz(times: int, dice: random.Random) -> Fuzzed:
    declared = Declared()
    enqueued: list[Any] = []
    for source in SECRETS:
        declared.add(source, ["thing.happened"], f"from_{source}", None)
    app = build_app(
        Receiver(
            open_sources({name: (secret,) for name, secret in SECRETS.items()}),
            declared,
            enqueued.append,
            clock=SystemClock(),
            tolerance_seconds=300.0,
            most_bytes=16_384,
        )
    )
    answers: Counter[int] = Counter()
    wrong: list[str] = []
    for _ in range(times):
        source = dice.choice(list(SECRETS))
        posted = post(source, event_id=f"evt_{dice.randrange(1_000)}", at=int(time.time()))
        raw, body = posted.raw(), posted.body
        how = [dice.choice(_DAMAGES) for _ in range(dice.randint(1, 3))]
        for damage in how:
            raw, body = damage(dice, raw, body)
        before = len(enqueued)
        status = await _ask(app, source, raw, body)
        answers[status] += 1
        genuine = body == posted.body and _signed(source, raw) == _signed(source, posted.raw())
        if not (400 <= status < 500 or (status == 200 and genuine)) or (status != 200 and len(enqueued) != before):
            wrong.append(f"{status} {source} {[damage.__name__ for damage in how]} {raw!r} {body[:200]!r}")
        enqueued.clear()
    return Fuzzed(answers, wrong[:5])


def _signed(source: str, raw: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What a signature covers outside of the body, in any order; Nuntly's instant is in the signature's own header."""
    if source == "nuntly":
        return []
    return sorted((name, value) for name, value in raw if name.endswith((b"webhook-id", b"svix-id", b"-timestamp")))


async def _ask(app: Any, source: str, raw: Sequence[tuple[bytes, bytes]], body: bytes) -> int:
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "method": "POST", "path": f"/{source}", "headers": list(raw), "query_string": b""}
    try:
        await app(scope, receive, send)
    except Exception:  # what escapes is what a server answers 500 to
        return 500
    return statuses[0]


Raw = list[tuple[bytes, bytes]]
Damage = Callable[[random.Random, Raw, bytes], tuple[Raw, bytes]]


def _flip_body(dice: random.Random, raw: Raw, body: bytes) -> tuple[Raw, bytes]:
    if not body:
        return raw, body
    at = dice.randrange(len(body))
    return raw, body[:at] + bytes([dice.randrange(256)]) + body[at + 1 :]


def _cut_body(dice: random.Random, raw: Raw, body: bytes) -> tuple[Raw, bytes]:
    return raw, body[: dice.randint(0, len(body))]


def _nest_body(dice: random.Random, raw: Raw, _body: bytes) -> tuple[Raw, bytes]:
    deep = dice.randint(1, 7_000)
    return raw, dice.choice([b"[" * deep, b'{"a":' * (deep // 4), b"[" * deep + b"]" * deep])


def _resign(dice: random.Random, _raw: Raw, body: bytes) -> tuple[Raw, bytes]:
    """Well formed, at another time or under another secret, of any bytes."""
    source = dice.choice(list(SECRETS))
    at = int(time.time()) + dice.choice([0, -301, 302, 10**9, -(10**9)])
    secret = SECRETS[source][:-4] + "AAAA"
    return sign(source, dice.choice([body, dice.randbytes(20)]), secret=secret, at=max(0, at)).raw(), body


def _flip_header(dice: random.Random, raw: Raw, body: bytes) -> tuple[Raw, bytes]:
    if not raw:
        return raw, body
    at = dice.randrange(len(raw))
    name, value = raw[at]
    spot = dice.randint(0, len(value))
    changed = value[:spot] + dice.randbytes(dice.randint(0, 3)) + value[spot + dice.randint(0, 2) :]
    return [*raw[:at], (name, changed), *raw[at + 1 :]], body


def _drop_header(dice: random.Random, raw: Raw, body: bytes) -> tuple[Raw, bytes]:
    at = dice.randint(0, len(raw))
    return raw[:at] + raw[at + 1 :], body


def _repeat_header(dice: random.Random, raw: Raw, body: bytes) -> tuple[Raw, bytes]:
    return [*raw, *dice.choices(raw, k=1)] if raw else raw, body


def _claim_length(dice: random.Random, raw: Raw, body: bytes) -> tuple[Raw, bytes]:
    claims = [b"-1", b"", b"9" * 5_000, b"16385", b"1e3", b"\xb2", dice.randbytes(4)]
    return [*raw, (b"content-length", dice.choice(claims))], body


def _fill_header(dice: random.Random, raw: Raw, body: bytes) -> tuple[Raw, bytes]:
    names = [name for name, _ in raw] or [b"x"]
    return [
        *raw[1:],
        (dice.choice(names), dice.choice([b"", b",", b"=", b"t=,v1=", b"v1," * 5_000, b"\xff" * 40])),
    ], body


_DAMAGES: Final[Sequence[Damage]] = (
    _flip_body,
    _cut_body,
    _nest_body,
    _resign,
    _flip_header,
    _drop_header,
    _repeat_header,
    _claim_length,
    _fill_header,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000)
    parser.add_argument("--deliveries", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the durable rate is measured")
    parser.add_argument("--fuzz", type=int, default=0, metavar="N", help="only send N damaged requests, in process")
    options = parser.parse_args()
    if options.fuzz:
        return _report_fuzz(options.fuzz)
    with stage() as set_up:
        sys.stdout.write(f"durable  {durable_rate(set_up, options.seconds):.0f} requests a second\n")
    return _report_storm(options.events, options.deliveries)


def _report_fuzz(times: int) -> int:
    started_at = time.monotonic()
    fuzzed = fuzz(times)
    seconds = time.monotonic() - started_at
    answers = ", ".join(f"{status}: {count}" for status, count in sorted(fuzzed.answers.items()))
    sys.stdout.write(f"fuzz     {times} requests in {seconds:.0f} s: {answers}; wrong: {len(fuzzed.wrong)}\n")
    sys.stdout.writelines(f"         {line}\n" for line in fuzzed.wrong)
    return 1 if fuzzed.wrong else 0


def _report_storm(events: int, deliveries: int) -> int:
    with stage() as set_up:
        started_at = time.monotonic()
        found = storm(set_up, events=events, deliveries=deliveries)
        seconds = time.monotonic() - started_at
    answers = {f"{'genuine' if good else 'forged'} {status}": times for (good, status), times in found.answers.items()}
    sys.stdout.write(
        f"storm    {found.deliveries} deliveries of {found.events} events in {seconds:.0f} s, {found.kills} kills, "
        f"{found.tries} tries, {json.dumps(answers)}\n"
        f"         {found.effects} effects, {found.distinct} distinct, {found.forged} forged: "
        f"{'kept' if found.kept else 'BROKEN'}\n"
    )
    return 0 if found.kept else 1


if __name__ == "__main__":
    sys.exit(main())
