"""The two queues of an application: what they are called, how they are made, and what they must be like."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

from idem.errors import BrokerError, SettingsError
from workers.brokers.sqs.bodies import LARGEST
from workers.brokers.sqs.client import Client
from workers.brokers.sqs.failures import Kind, kind_of
from workers.brokers.sqs.holding import whole
from workers.brokers.sqs.queue import Queue
from workers.jobs import QUEUE

#: The most that SQS allows; the arithmetic is in `settling.py`.
MAX_RECEIVES: Final = 1000
#: Below this, restarts and slow hours alone can make dead letters.
_LEAST_RECEIVES: Final = 100
#: The most that SQS allows: 14 days.
_RETENTION_SECONDS: Final = 14 * 86_400

_FIFO: Final = ".fifo"
_REGION = re.compile(r"[a-z0-9-]+")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,60}")


@dataclass(frozen=True, slots=True)
class Names:
    """The region, and the prefix of both queues' names."""

    region: str
    prefix: str
    fifo: bool = False

    @classmethod
    def parse(cls, place: str) -> Names:
        """Read `REGION/PREFIX` or `REGION/PREFIX.fifo`; `SettingsError` when it is neither."""
        region, _, rest = place.partition("/")
        prefix = rest.removesuffix(_FIFO)
        if not _REGION.fullmatch(region) or not _PREFIX.fullmatch(prefix):
            raise SettingsError(
                "IDEM_BROKER_URL names no queue: write sqs://REGION/PREFIX, or sqs://REGION/PREFIX.fifo for FIFO "
                "queues; a prefix has up to 60 letters, digits, hyphens and underscores"
            )
        return cls(region, prefix, rest.endswith(_FIFO))

    @property
    def jobs(self) -> str:
        """The name of the queue of jobs."""
        return f"{self.prefix}-{QUEUE}{_FIFO if self.fifo else ''}"

    @property
    def dead(self) -> str:
        """The name of the queue of dead letters."""
        return f"{self.prefix}-{QUEUE}-dead{_FIFO if self.fifo else ''}"

    @property
    def other(self) -> Names:
        """The same with the other type of queue."""
        return Names(self.region, self.prefix, not self.fifo)

    def __str__(self) -> str:
        return f"sqs://{self.region}/{self.prefix}{_FIFO if self.fifo else ''}"


def create(client: Client, names: Names, *, visibility_seconds: float) -> None:
    """Make the queues that are not there; one that is there stays as it is, and `check` looks at it."""
    common = {
        "MessageRetentionPeriod": str(_RETENTION_SECONDS),
        "MaximumMessageSize": str(LARGEST),
        "SqsManagedSseEnabled": "true",
    }
    if names.fifo:
        # High throughput: groups, of which every job is one of its own, do not share a limit.
        common |= {
            "FifoQueue": "true",
            "DeduplicationScope": "messageGroup",
            "FifoThroughputLimit": "perMessageGroupId",
        }
    dead = Queue(client, names.dead)
    _create(dead, common)
    arn = dead.attributes("QueueArn")["QueueArn"]
    redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": MAX_RECEIVES})
    hidden = {"VisibilityTimeout": str(whole(visibility_seconds)), "RedrivePolicy": redrive}
    _create(Queue(client, names.jobs), common | hidden)


def _create(queue: Queue, attributes: Mapping[str, str]) -> None:
    if not exists(queue):
        queue.call("sqs:CreateQueue", "create_queue", QueueName=queue.name, Attributes=attributes)


def exists(queue: Queue) -> bool:
    """Whether there is such a queue. Raises `BrokerError` when that cannot be said."""
    try:
        queue.url()
    except BrokerError as error:
        cause = error.__cause__
        if isinstance(cause, ClientError) and kind_of(cause.response["Error"]) is Kind.MISSING:
            return False
        raise
    return True


def check(client: Client, names: Names, *, visibility_seconds: float) -> Sequence[str]:
    """What the jobs in it can survive, in sentences. Raises `BrokerError` for queues that are not as they must be."""
    queue, dead = Queue(client, names.jobs), Queue(client, names.dead)
    if not exists(queue):
        _refuse_missing(client, names, queue)
    found = queue.attributes("All")
    if (found.get("FifoQueue") == "true") is not names.fifo:
        raise BrokerError(
            f"{queue.place.name} is {'no' if names.fifo else 'a'} FIFO queue, and its name says otherwise"
        )
    receives = max_receives(queue, found, names.dead)
    _check_least(queue, found, "VisibilityTimeout", whole(visibility_seconds), "IDEM_VISIBILITY_SECONDS")
    _check_least(queue, found, "MaximumMessageSize", LARGEST, "the size of a job")
    kept = {name: int(item.attributes("All").get("MessageRetentionPeriod", 0)) for name, item in
            (("jobs", queue), ("dead", dead))}  # fmt: skip
    if kept["dead"] < kept["jobs"]:
        raise BrokerError(
            f"{dead.place.name} keeps messages for {kept['dead']:,} s and {names.jobs} for {kept['jobs']:,} s: a dead "
            f"letter could be gone before anybody sees it; set its MessageRetentionPeriod to {_RETENTION_SECONDS:,}"
        )
    days = {name: f"{seconds / 86_400:g} days" for name, seconds in kept.items()}
    limits = (
        f"{queue.place.name} keeps a job for {days['jobs']}; one that was received {receives:,} times, or is buried, "
        f"goes to {names.dead} for {days['dead']}"
    )
    return (
        (limits,) if _encrypted(found) else (limits, f"{queue.place.name} is not encrypted: set SqsManagedSseEnabled")
    )


def max_receives(queue: Queue, attributes: Mapping[str, str], dead_name: str) -> int:
    """After how many receipts SQS makes a dead letter; `BrokerError` when it does not, or does so early."""
    policy = json.loads(attributes.get("RedrivePolicy") or "{}")
    if not policy:
        raise BrokerError(
            f"{queue.place.name} has no redrive policy: a job that kills its workers would go on for ever; set one "
            f"with the target {dead_name} and a maxReceiveCount of {MAX_RECEIVES:,}"
        )
    target = str(policy.get("deadLetterTargetArn", "")).rpartition(":")[2]
    if target != dead_name:
        raise BrokerError(f"{queue.place.name} sends its dead letters to {target}: make {dead_name} the target")
    receives = int(policy.get("maxReceiveCount", 0))
    if receives < _LEAST_RECEIVES:
        raise BrokerError(
            f"{queue.place.name} makes a dead letter after {receives} receipts, so that restarts alone could do it: "
            f"set maxReceiveCount to {MAX_RECEIVES:,}"
        )
    return receives


def _check_least(queue: Queue, attributes: Mapping[str, str], name: str, least: int, what: str) -> None:
    value = int(attributes.get(name, least))
    if value < least:
        raise BrokerError(f"{queue.place.name} has a {name} of {value:,}, less than {what}: set it to {least:,}")


def _encrypted(attributes: Mapping[str, str]) -> bool:
    return attributes.get("SqsManagedSseEnabled") == "true" or bool(attributes.get("KmsMasterKeyId"))


def _refuse_missing(client: Client, names: Names, queue: Queue) -> None:
    if exists(Queue(client, names.other.jobs)):
        kind = "standard" if names.fifo else "FIFO"
        raise BrokerError(
            f"{queue.place.name} does not exist, but a {kind} queue {names.other.jobs} does: write "
            f"IDEM_BROKER_URL={names.other}, or run idem init"
        )
    raise BrokerError(f"{queue.place.name} does not exist in {names.region}: run idem init")
