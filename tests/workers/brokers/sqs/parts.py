"""A queue in an emulator, one consumer of it, and an endpoint in between that can fail."""

from __future__ import annotations

import functools
import http.client
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from dramatiq import Message
from dramatiq.broker import Consumer, MessageProxy

from tests import services
from tests.workers.parts import make_email
from workers.brokers.base import Disposition, dispose
from workers.brokers.sqs import Bucket, Client, Names, SqsBroker
from workers.brokers.sqs.broker import _Consumer
from workers.brokers.sqs.settling import Limits
from workers.jobs import QUEUE, email_message

VISIBILITY_SECONDS = 2
#: Deletes do not wait for company: a test looks at once.
LIMITS = Limits(linger_seconds=0.0)

#: An emulator is one server, of which one question finds all; Amazon's are many.
NO_WAIT = "workers.brokers.sqs.dead._WAIT_SECONDS", 0

#: They are by different people, and differ where AWS leaves room.
on_two_emulators = pytest.mark.parametrize("endpoint", ["ministack", "fauxqs"], indirect=True)
#: For what the broker contract shows on ministack.
on_the_other_emulator = pytest.mark.parametrize("endpoint", ["fauxqs"], indirect=True)

Answer = dict[str, Any]
Fault = Callable[[Answer], Answer | None]


@functools.cache
def client(endpoint: str) -> Client:
    """The client that a worker would have, with credentials that are worth nothing; all tests share one."""
    services.connect("dynamodb", endpoint)
    return Client("sqs", services.REGION, endpoint)


class Side:
    """A broker on queues of its own, and its consumer."""

    def __init__(self, endpoint: str, names: Names | None = None, limits: Limits = LIMITS, **options: Any) -> None:
        self.names = names or Names(services.REGION, f"t{uuid.uuid4().hex}")
        self.endpoint, self.client = endpoint, client(endpoint)
        options.setdefault("visibility_seconds", VISIBILITY_SECONDS)
        self.broker = SqsBroker(self.client, self.names, limits=limits, **options)
        self.broker.create()
        self.broker.declare_queue(QUEUE)
        self._consumer: Consumer | None = None

    @property
    def consumer(self) -> Consumer:
        if self._consumer is None:
            self._consumer = self.broker.consume(QUEUE, prefetch=4, timeout=50)
        return self._consumer

    def restart(self) -> None:
        """The consumer that comes after one that was closed."""
        self._consumer = None

    def use(self, consumer: Consumer) -> None:
        """Another consumer than the broker would make."""
        self._consumer = consumer
        self.broker._consumer = self.parts

    def enqueue(self, number: int = 1, *, delay: int | None = None) -> Message[None]:
        message, _ = email_message(make_email(number), f"key-{number}")
        return self.broker.enqueue(message, delay=delay)

    def send_raw(self, body: str, **attributes: str) -> str:
        """A message of somebody else's; its MessageId."""
        given = {f"idem-{name}": {"DataType": "String", "StringValue": value} for name, value in attributes.items()}
        answer = self.client.calls.send_message(
            QueueUrl=self.broker.jobs.url(), MessageBody=body, MessageAttributes=given
        )
        return str(answer["MessageId"])

    def take(self, seconds: float = 20.0) -> MessageProxy:
        """The next message."""
        found = self.look(seconds)
        if found is None:
            pytest.fail("no message came")
        return found

    def look(self, seconds: float) -> MessageProxy | None:
        """The next message, or None when none comes within that time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            message = next(self.consumer)
            if message is not None:
                return message
        return None

    def end(self, message: MessageProxy, disposition: Disposition) -> None:
        """What a worker's thread does."""
        dispose(message, disposition)
        self.consumer.ack(message)
        self.flush()

    def flush(self) -> None:
        """What the consumer's thread does when the time has come."""
        self.parts._settling.flush(overdue=True)

    @property
    def parts(self) -> _Consumer:
        assert isinstance(self.consumer, _Consumer)
        return self.consumer

    def counts(self) -> tuple[int, int, int, int]:
        seen = self.broker.backlog()
        return seen.ready, seen.delayed, seen.in_flight, seen.dead

    def close(self) -> None:
        """Without waiting for the last poll: nobody else has this queue."""
        self.broker.stop_receiving()
        if self._consumer is not None:
            self.parts._holding.stop()


class Proxy:
    """An endpoint that passes everything on, unless a test has it do something else."""

    def __init__(self, endpoint: str) -> None:
        self.requests: list[tuple[str, Answer]] = []
        #: Whose requests count and fail: a poll of the test before may still be under way.
        self.only = ""
        self._before: dict[str, Fault] = {}
        self._after: dict[str, Fault] = {}
        self._backend = urlsplit(endpoint).netloc
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self) -> Counter[str]:
        """How often each action was asked for."""
        return Counter(action for action, _ in self.requests)

    def answer(self, action: str, fault: Fault) -> None:
        """Give what `fault` gives in place of the emulator; where it gives None, the emulator answers."""
        self._before[action] = fault

    def change(self, action: str, fault: Fault) -> None:
        """Let the emulator do it, and answer something else; where `fault` gives None, nothing."""
        self._after[action] = fault

    def mend(self) -> None:
        self._before.clear()
        self._after.clear()

    def reset(self, only: str = "") -> None:
        self.mend()
        self.requests.clear()
        self.only = only

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body are written apart, and the second would wait for an acknowledgement.
            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
                """Be quiet."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                action = self.headers["X-Amz-Target"].rpartition(".")[2]
                asked = json.loads(body)
                mine = proxy.only in asked.get("QueueUrl", proxy.only)
                if mine:
                    proxy.requests.append((action, asked))
                before = proxy._before.get(action) if mine else None
                made = before(asked) if before else None
                if made is None:
                    made = proxy._forward(self.path, body, dict(self.headers))
                    if mine and action in proxy._after:
                        changed = proxy._after[action](made["json"])
                        if changed is None:
                            self.close_connection = True
                            return
                        made = {"status": 200, "json": changed}
                content = json.dumps(made["json"]).encode()
                status: Any = made["status"]
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.0")
                self.send_header("x-amzn-RequestId", str(uuid.uuid4()))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        return Handler

    def _forward(self, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        backend = http.client.HTTPConnection(self._backend, timeout=30)
        try:
            backend.request("POST", path, body, headers | {"Host": self._backend})
            response = backend.getresponse()
            return {"status": response.status, "json": json.loads(response.read())}
        finally:
            backend.close()


def refusal(code: str, message: str = "refused", status: int = 400) -> Fault:
    """An answer of AWS that refuses the whole request."""
    made = {"status": status, "json": {"__type": f"com.amazonaws.sqs#{code}", "message": message}}
    return lambda _: made


def times(count: int, fault: Fault) -> Fault:
    """A fault that goes away."""
    left = [count]

    def limited(asked: Answer) -> Answer | None:
        left[0] -= 1
        return fault(asked) if left[0] >= 0 else None

    return limited


@contextmanager
def opened(*args: Any, **options: Any) -> Iterator[Side]:
    """A side that is closed in the end."""
    side = Side(*args, **options)
    try:
        yield side
    finally:
        side.close()


def bucket(endpoint: str) -> Bucket:
    """A bucket of the test's own."""
    services.connect("s3", endpoint)
    made = Client("s3", services.REGION, endpoint)
    name = f"b{uuid.uuid4().hex}"
    made.calls.create_bucket(Bucket=name)
    return Bucket(made, name)
