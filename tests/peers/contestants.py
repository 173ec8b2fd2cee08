"""Who runs: how each is started and given jobs, and what it still holds at the end."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from abc import ABC, abstractmethod
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run takes place: the sandbox, a Valkey server that is empty, a directory, and the provider's name."""

    sandbox: str
    redis_url: str
    folder: Path
    provider: str


@dataclass(frozen=True, slots=True)
class Held:
    """What is left when nothing moves any more: jobs in the queue, dead letters, and keys that were never decided."""

    waiting: int
    dead: int
    undecided: int


class Contestant(ABC):
    """One way to send emails from a queue. `held_means` says what an undecided key of it is for its user."""

    name: str
    held_means: str = ""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.environ = environ_without_settings() | services.CREDENTIALS

    @abstractmethod
    def enqueue(self, count: int) -> None:
        """Put jobs 0 to `count` - 1 into the queue."""

    @abstractmethod
    def command(self, threads: int) -> list[str]:
        """What starts a worker."""

    @abstractmethod
    def held(self) -> Held:
        """What it still holds."""

    def start(self, threads: int = _THREADS) -> subprocess.Popen[bytes]:
        """A worker in a process group of its own."""
        return start_process(
            self.command(threads),
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
        self.environ |= {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PEERS_PROVIDER": place.provider,
            "PEERS_SANDBOX": place.sandbox,
            "PEERS_REDIS_URL": place.redis_url,
        }

    def enqueue(self, count: int) -> None:
        script = "import sys, importlib; send = importlib.import_module(sys.argv[1]).email.send\n"
        script += "for number in range(int(sys.argv[2])): send(number=number)"
        self.run([sys.executable, "-c", script, self._path, str(count)])

    def command(self, threads: int) -> list[str]:
        return [sys.executable, "-m", "dramatiq", self._path, "--processes", "1", "--threads", str(threads)]

    def held(self) -> Held:
        with redis.Redis.from_url(self.place.redis_url) as client:
            waiting, dead = (_count(client, *names) for names in ((".msgs", ".DQ.msgs"), (".XQ.msgs",)))
            return Held(waiting, dead, self.undecided(client))

    def undecided(self, client: redis.Redis) -> int:
        """How many keys are in the store without a result."""
        del client
        return 0

    @property
    def _path(self) -> str:
        return f"tests.peers.wired.{self.module}"


def _count(client: redis.Redis, *ends: str) -> int:
    return sum(int(client.hlen(f"dramatiq:default{end}")) for end in ends)


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

    def undecided(self, client: redis.Redis) -> int:
        del client
        pages = self._client.get_paginator("scan").paginate(TableName=self._table)
        return sum(item["status"]["S"] == "INPROGRESS" for page in pages for item in page["Items"])


class ExactlyOnce(Stock):
    """See `wired.exactly_once`."""

    name, module, held_means = "dramatiq + exactly-once", "exactly_once", "in doubt"

    def undecided(self, client: redis.Redis) -> int:
        return sum(client.hget(key, "state") == b"in_flight" for key in client.scan_iter("eo:*", count=1_000))


class Idemkit(Stock):
    """See `wired.idemkit`."""

    name, module, held_means = "dramatiq + idemkit", "idemkit", "locked out"

    def undecided(self, client: redis.Redis) -> int:
        records = (client.get(key) for key in client.scan_iter("peers:*", count=1_000))
        return sum(record is not None and json.loads(record)["state"] == "CLAIMED" for record in records)


class Sqs(Stock):
    """See `wired.sqs`."""

    name, module = "dramatiq + dramatiq-sqs", "sqs"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._namespace = f"peers-{uuid.uuid4().hex}"
        url = services.ministack()
        self.environ |= {"PEERS_SQS_URL": url, "PEERS_NAMESPACE": self._namespace}
        self._client: Any = _aws("sqs", url)

    def held(self) -> Held:
        return Held(self._messages("default"), self._messages("default_dlq"), 0)

    def _messages(self, queue: str) -> int:
        url = self._client.get_queue_url(QueueName=f"{self._namespace}_{queue}")["QueueUrl"]
        found = self._client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        return sum(int(found[f"ApproximateNumberOfMessages{part}"]) for part in ("", "Delayed", "NotVisible"))


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

    def command(self, threads: int) -> list[str]:
        return idem_command("worker", "--app", "tests.peers.wired.ours:app", "--threads", str(threads))

    def held(self) -> Held:
        status = json.loads(self.run(idem_command("status", "--json")))
        queue = status["queue"]
        waiting = queue["ready"] + queue["delayed"] + queue["in_flight"]
        return Held(waiting, queue["dead"], status["ledger"]["in_doubt"])


def _aws(service: str, url: str) -> Any:
    client: Any = boto3.client  # overloaded by name in stubs that may be there
    return client(service, endpoint_url=url, region_name="us-east-1", **_KEYS)


_KEYS: Final[dict[str, Any]] = {
    "aws_access_key_id": services.CREDENTIALS["AWS_ACCESS_KEY_ID"],
    "aws_secret_access_key": services.CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
}

CONTESTANTS: Final[tuple[type[Contestant], ...]] = (Plain, Sqs, Powertools, ExactlyOnce, Idemkit, Ours)
