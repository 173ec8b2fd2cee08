"""Who runs: how each is started and given jobs, and what it still holds at the end."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import boto3  # type: ignore[import-untyped]  # ships no types
import redis

from tests import services
from tests.peers.wired import parts
from workers.process import idem_command, start_process
from workers.settings import environ_without_settings

_THREADS: Final = 8
_LISTED: Final = 1_000_000
_SQS_BATCH: Final = 10
#: Until what a killed worker had in hand is seen again, and room to spare.
_SQS_HIDDEN_SECONDS: Final = parts.SQS_VISIBILITY_SECONDS + 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run takes place: the sandbox, a Valkey server that is empty, a directory, and the provider's name."""

    sandbox: str
    redis_url: str
    folder: Path
    provider: str


@dataclass(frozen=True, slots=True)
class Held:
    """What is left: how many jobs in the queue and dead letters, and the subjects whose keys were never decided."""

    waiting: int
    dead: int
    undecided: frozenset[str]


class Contestant(ABC):
    """One way to send emails from a queue. `held_means` says what an undecided key of it is for its user."""

    name: str
    held_means: str = ""
    #: How many threads of one process can have a request at the provider at the same time.
    most_in_flight: int = sys.maxsize

    def __init__(self, place: Place) -> None:
        self.place = place
        self.environ = environ_without_settings() | services.CREDENTIALS

    @abstractmethod
    def enqueue(self, count: int) -> None:
        """Put jobs 0 to `count` - 1 into the queue."""

    @abstractmethod
    def command(self, threads: int, processes: int) -> list[str]:
        """What starts a worker with so many threads in each of so many processes."""

    @abstractmethod
    def held(self) -> Held:
        """What it still holds."""

    @abstractmethod
    def queued(self) -> set[str]:
        """The subjects of all messages and dead letters, when no worker runs any more."""

    def look_up(self, later: float) -> subprocess.Popen[bytes] | None:
        """Ask the provider about the undecided keys, so many seconds from now, and start a worker for what it says.

        None where nobody asks.
        """
        del later
        return None

    def start(self, threads: int = _THREADS, processes: int = 1) -> subprocess.Popen[bytes]:
        """A worker in a process group of its own."""
        return self.spawn(self.command(threads, processes))

    def spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        """A process that stays, in a process group of its own."""
        return start_process(
            command,
            cwd=self.place.folder,
            env=self.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def run(self, command: list[str]) -> str:
        """The output of a command that ends by itself."""
        done = subprocess.run(
            command, cwd=self.place.folder, env=self.environ, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2_000:]}")
        return done.stdout


class Stock(Contestant):
    """Dramatiq by its own command, with the module of that name under `wired`."""

    module: str

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.jobs = 0
        self.environ |= {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PEERS_PROVIDER": place.provider,
            "PEERS_SANDBOX": place.sandbox,
            "PEERS_REDIS_URL": place.redis_url,
        }

    def enqueue(self, count: int) -> None:
        self.jobs = count
        script = "import sys, importlib; send = importlib.import_module(sys.argv[1]).email.send\n"
        script += "for number in range(int(sys.argv[2])): send(number=number)"
        self.run([sys.executable, "-c", script, self.path, str(count)])

    def command(self, threads: int, processes: int) -> list[str]:
        shape = ("--processes", str(processes), "--threads", str(threads))
        return [sys.executable, "-m", "dramatiq", self.path, *shape]

    def held(self) -> Held:
        with redis.Redis.from_url(self.place.redis_url) as client:
            waiting, dead = (sum(int(client.hlen(name)) for name in names) for names in (_WAITING, _DEAD))
            return Held(waiting, dead, frozenset(self.undecided(client)))

    def queued(self) -> set[str]:
        with redis.Redis.from_url(self.place.redis_url) as client:
            return {_subject(message) for name in _WAITING + _DEAD for message in client.hvals(name)}

    def undecided(self, client: redis.Redis) -> Iterable[str]:
        """The subjects whose keys are in the store without a result."""
        del client
        return ()

    @property
    def path(self) -> str:
        """Its module."""
        return f"tests.peers.wired.{self.module}"


_WAITING: Final = ("dramatiq:default.msgs", "dramatiq:default.DQ.msgs")
_DEAD: Final = ("dramatiq:default.XQ.msgs",)


def _subject(message: bytes | str) -> str:
    """Of the email that a message of dramatiq asks for."""
    return f"job-{json.loads(message)['kwargs']['number']}"


class Plain(Stock):
    """See `wired.plain`."""

    name, module = "dramatiq", "plain"


class Powertools(Stock):
    """See `wired.powertools`."""

    name, module, held_means = "dramatiq + Powertools", "powertools", "locked out"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._table = f"peers-{uuid.uuid4().hex}"
        url = services.dynamodb_local()
        self.environ |= {"PEERS_TABLE": self._table, "PEERS_DYNAMODB_URL": url}
        self._client: Any = _aws("dynamodb", url)
        self._client.create_table(
            TableName=self._table,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )

    def undecided(self, client: redis.Redis) -> Iterator[str]:
        del client
        hashed = {_md5(str(number)): f"job-{number}" for number in range(self.jobs)}
        for page in self._client.get_paginator("scan").paginate(TableName=self._table):
            for item in page["Items"]:
                if item["status"]["S"] == "INPROGRESS":
                    yield hashed[item["id"]["S"].rpartition("#")[2]]


def _md5(text: str) -> str:
    """What Powertools calls a key."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class ExactlyOnce(Stock):
    """See `wired.exactly_once`."""

    name, module, held_means = "dramatiq + exactly-once", "exactly_once", "in doubt"

    def undecided(self, client: redis.Redis) -> Iterator[str]:
        for key in client.scan_iter("eo:*", count=1_000):
            if client.hget(key, "state") == b"in_flight":
                yield key.decode().removeprefix("eo:")


class Idemkit(Stock):
    """See `wired.idemkit`."""

    name, module, held_means = "dramatiq + idemkit", "idemkit", "locked out"
    # Its function runs in the executor of an event loop, which has so many threads by default.
    most_in_flight = min(32, (os.cpu_count() or 1) + 4)

    def enqueue(self, count: int) -> None:
        super().enqueue(count)
        script = "import sys, importlib, json; engine = importlib.import_module(sys.argv[1]).email.fn.idemkit_engine\n"
        script += "subjects = {number: f'job-{number}' for number in range(int(sys.argv[2]))}\n"
        script += "print(json.dumps({engine.effective_key(number=number): of for number, of in subjects.items()}))"
        self._subjects: dict[str, str] = json.loads(self.run([sys.executable, "-c", script, self.path, str(count)]))

    def undecided(self, client: redis.Redis) -> Iterator[str]:
        for key in client.scan_iter("peers:*", count=1_000):
            record = client.get(key)
            if record is not None and json.loads(record)["state"] == "CLAIMED":
                yield self._subjects[key.decode().removeprefix("peers:")]


class Sqs(Stock):
    """See `wired.sqs`."""

    name, module = "dramatiq + dramatiq-sqs", "sqs"
    # What one process may have received and not yet deleted.
    most_in_flight = 10

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._namespace = f"peers-{uuid.uuid4().hex}"
        url = services.ministack()
        self.environ |= {"PEERS_SQS_URL": url, "PEERS_NAMESPACE": self._namespace}
        self._client: Any = _aws("sqs", url)

    def held(self) -> Held:
        return Held(self._messages("default"), self._messages("default_dlq"), frozenset())

    def queued(self) -> set[str]:
        return {subject for queue in ("default", "default_dlq") for subject in self._take(queue)}

    def _take(self, queue: str) -> Iterator[str]:
        """Of every message in a queue, and of those that a worker still hides as soon as they are seen again."""
        missing, deadline = self._messages(queue), time.monotonic() + _SQS_HIDDEN_SECONDS
        while missing > 0 and time.monotonic() < deadline:
            # Seen by nobody else after that, so that each comes once.
            asked = {"MaxNumberOfMessages": _SQS_BATCH, "VisibilityTimeout": 3_600, "WaitTimeSeconds": 1}
            received = self._client.receive_message(QueueUrl=self._url(queue), **asked).get("Messages", ())
            missing -= len(received)
            yield from (_subject(base64.b64decode(message["Body"])) for message in received)

    def _messages(self, queue: str) -> int:
        found = self._client.get_queue_attributes(QueueUrl=self._url(queue), AttributeNames=["All"])["Attributes"]
        return sum(int(found[f"ApproximateNumberOfMessages{part}"]) for part in ("", "Delayed", "NotVisible"))

    def _url(self, queue: str) -> str:
        return str(self._client.get_queue_url(QueueName=f"{self._namespace}_{queue}")["QueueUrl"])


class Ours(Contestant):
    """This project."""

    name, held_means = "idem-workers", "in doubt"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.environ |= {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "IDEM_BROKER_URL": place.redis_url,
            "IDEM_LEDGER_URL": f"dynamodb://us-east-1/peers-{uuid.uuid4().hex}",
            "IDEM_AWS_ENDPOINT_URL": services.dynamodb_local(),
            "IDEM_PROVIDER": place.provider,
            "IDEM_LETTERMINT_TOKEN": "lm_test",
            "IDEM_LETTERMINT_BASE_URL": f"{place.sandbox}/lettermint/v1",
            "IDEM_POSTMARK_TOKEN": "pm-test",
            "IDEM_POSTMARK_BASE_URL": f"{place.sandbox}/postmark",
            "IDEM_HTTP_TIMEOUT_SECONDS": str(parts.HTTP_TIMEOUT_SECONDS),
            "IDEM_LEASE_SECONDS": str(parts.LEASE_SECONDS),
            "IDEM_VISIBILITY_SECONDS": str(parts.LEASE_SECONDS + 0.5),
            "IDEM_SHUTDOWN_SECONDS": "5",
            "IDEM_BACKOFF_SECONDS": "0.5",
        }
        self.run(idem_command("init"))

    def enqueue(self, count: int) -> None:
        script = "import sys; from tests.peers.wired.ours import email\n"
        script += "for number in range(int(sys.argv[1])): email.send(number, key=f'job-{number}')"
        self.run([sys.executable, "-c", script, str(count)])

    def command(self, threads: int, processes: int) -> list[str]:
        return idem_command(*self._worker, "--threads", str(threads), "--processes", str(processes))

    def look_up(self, later: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.peers.wired.ours_later", str(later)]
        self.run([*command, "reconcile"])
        return self.spawn([*command, *self._worker, "--threads", str(_THREADS)])

    def held(self) -> Held:
        status = json.loads(self.run(idem_command("status", "--json")))
        queue = status["queue"]
        waiting = queue["ready"] + queue["delayed"] + queue["in_flight"]
        in_doubt = self._listed("list", "--state", "in_doubt") if status["ledger"]["in_doubt"] else ()
        return Held(waiting, queue["dead"], frozenset(in_doubt))

    def queued(self) -> set[str]:
        with redis.Redis.from_url(self.place.redis_url) as client:
            names = (f"{{idem:default}}:default.{part}" for part in ("msgs", "later.msgs"))
            messages = [json.loads(message) for name in names for message in client.hvals(name)]
        return {message["kwargs"]["key"] for message in messages} | set(self._listed("dead", "list"))

    def _listed(self, *command: str) -> list[str]:
        found = self.run(idem_command(*command, "--limit", str(_LISTED), "--json"))
        return [str(each["key"]) for each in json.loads(found)]

    _worker: Final = ("worker", "--app", "tests.peers.wired.ours:app")


def _aws(service: str, url: str) -> Any:
    client: Any = boto3.client  # overloaded by name in stubs that may be there
    return client(service, endpoint_url=url, region_name="us-east-1", **_KEYS)


_KEYS: Final[dict[str, Any]] = {
    "aws_access_key_id": services.CREDENTIALS["AWS_ACCESS_KEY_ID"],
    "aws_secret_access_key": services.CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
}

CONTESTANTS: Final[tuple[type[Contestant], ...]] = (Plain, Sqs, Powertools, ExactlyOnce, Idemkit, Ours)
