"""One process of a comparison: our brokers or stock dramatiq's, on Redis or SQS. `tests/bench/broker.py` starts it.

It runs in the environment of either side, so that it imports nothing of ours but where the side is ours. Its arguments
are a role, a side, a place (`redis://...`, or `ENDPOINT#PREFIX` for SQS), the visibility timeout in seconds, and the
role's own. `send` reads a job a line and says when a broker has it; the others say when they begin one, and who they
are.
"""

# ruff: noqa: PLC0415 - the environment of one side has not got what the other one imports

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# One message in hand beside the one that is worked on, where the side knows of that: read at dramatiq's import.
if "victims" in sys.argv[1:2]:
    os.environ["dramatiq_queue_prefetch"] = "1"  # noqa: SIM112 - the name is dramatiq's

import dramatiq
from dramatiq import Message
from dramatiq.middleware import CurrentMessage

QUEUE = "default"
REGION = "us-east-1"

_REFUSED_EVERY = 50
#: Of ours, ten retries share a request of SQS.
_REFUSED_BATCH_EVERY = 5


def open_broker(side: str, place: str, visibility_seconds: float, **options: Any) -> Any:
    """A broker, ready to enqueue."""
    if side == "stock":
        return _stock(place, visibility_seconds, **options)
    broker = (
        _ours_on_redis(place, visibility_seconds)
        if place.startswith("redis")
        else _ours_on_sqs(place, visibility_seconds)
    )
    broker.declare_queue(QUEUE)
    return broker


def _ours_on_redis(place: str, visibility_seconds: float) -> Any:
    from workers.brokers.redis import RedisBroker
    from workers.brokers.servers import connect

    return RedisBroker(connect(place), namespace="bench", visibility_seconds=visibility_seconds)


def _ours_on_sqs(place: str, visibility_seconds: float) -> Any:
    from workers.brokers.sqs import Client, Names, SqsBroker

    endpoint, _, prefix = place.partition("#")
    client = Client("sqs", REGION, endpoint)
    broker = SqsBroker(client, Names(REGION, prefix), visibility_seconds=visibility_seconds)
    broker.create()
    return broker


def _stock(place: str, visibility_seconds: float, **options: Any) -> Any:
    if place.startswith("redis"):
        from dramatiq.brokers.redis import RedisBroker

        return RedisBroker(url=place, heartbeat_timeout=int(visibility_seconds * 1000), **options)
    from dramatiq_sqs import SQSBroker  # type: ignore[import-untyped]  # stock's environment has it

    endpoint, _, prefix = place.partition("#")
    broker = SQSBroker(
        namespace=prefix, region_name=REGION, endpoint_url=endpoint, visibility_timeout=int(visibility_seconds)
    )
    broker.declare_queue(QUEUE)
    return broker


def send(broker: Any) -> None:
    """Enqueue what the lines of the input name: an id, an actor, and how many attempts fail."""
    for line in sys.stdin:
        name, actor, failures = line.split()
        enqueue(broker, name, actor, int(failures))
        _say("sent")


def enqueue(broker: Any, name: str, actor: str = "job", failures: int = 0) -> None:
    """Enqueue one job."""
    kwargs = {"name": name, "failures": failures}
    broker.enqueue(Message(queue_name=QUEUE, actor_name=actor, args=(), kwargs=kwargs, options={}))


def work(side: str, broker: Any, *, threads: int, hold: bool) -> None:
    """Work for ever; `hold` never ends a job."""
    finish, fail = (_finish, _fail) if side == "ours" else (_nothing, _raise)

    def job(name: str, failures: int) -> None:
        message = CurrentMessage.get_current_message()
        assert message is not None
        if message.options.get("tries" if side == "ours" else "retries", 0) < failures:
            fail(message)
            return
        _say(f"{name} {os.getpid()} {time.monotonic_ns()}")
        if hold:
            threading.Event().wait()
        finish(message)

    options: dict[str, Any] = {}
    if side == "stock":
        broker.add_middleware(CurrentMessage())
        options = {"max_retries": 50, "min_backoff": 1, "max_backoff": 2}
    dramatiq.actor(broker=broker, actor_name="job", queue_name=QUEUE, **options)(job)
    # What both wait before they try again to say what became of a message: only so that the run is shorter.
    vars(sys.modules["dramatiq.worker"])["POST_PROCESS_MESSAGE_RETRY_DELAY_SECS"] = 0.05
    # How often a consumer is asked whether it should stop: as `idem worker` and `dramatiq` have it.
    timeout_ms = 100 if side == "ours" else 1_000
    dramatiq.Worker(broker, worker_threads=threads, worker_timeout=timeout_ms).start()
    _say("ready")
    signal.pause()


def _finish(message: Any) -> None:
    from workers.brokers.base import Acknowledge, dispose

    dispose(message, Acknowledge())


def _fail(message: Any) -> None:
    from workers.brokers.base import Retry, dispose

    dispose(message, Retry(0.001))


def _nothing(_: Any) -> None:
    pass


def _raise(_: Any) -> None:
    raise RuntimeError("fails")


def refuse_some(side: str, broker: Any, place: str) -> None:
    """The server is gone at the instant of some retries, as in a restart."""
    if side == "stock":
        _refuse(broker, "enqueue", ConnectionError("refused"), lambda given: given.get("delay") is not None)
    elif place.startswith("redis"):
        import redis

        refused = redis.ConnectionError("Connection refused")
        _refuse(broker, "move", refused, lambda given: given["args"][0] == "retry")
    else:
        from idem.errors import BrokerUnavailable

        _refuse(broker.jobs, "hide", BrokerUnavailable("refused"), lambda _: True, _REFUSED_BATCH_EVERY)


def _refuse(
    owner: Any, name: str, error: Exception, concerned: Callable[[dict[str, Any]], bool], every: int = _REFUSED_EVERY
) -> None:
    call, calls = getattr(owner, name), iter(range(1, 1_000_000_000))

    def refusing(*args: Any, **kwargs: Any) -> Any:
        if concerned({"args": args, **kwargs}) and next(calls) % every == 0:
            raise error
        return call(*args, **kwargs)

    setattr(owner, name, refusing)


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def main() -> None:
    """Play a role."""
    logging.disable(logging.CRITICAL)
    role, side, place, visibility, *rest = sys.argv[1:]
    if role == "victims":
        # Each has its broker made after the fork: sockets are not for sharing.
        while (left := int(rest[0])) and os.fork():
            rest[0] = str(left - 1)
        if left == 0:
            signal.pause()
    broker = open_broker(side, place, float(visibility))
    if role == "send":
        send(broker)
    elif role == "victims":
        work(side, broker, threads=1, hold=True)
    else:
        if "refuse" in rest:
            refuse_some(side, broker, place)
        work(side, broker, threads=int(rest[0]), hold=False)


if __name__ == "__main__":
    main()
