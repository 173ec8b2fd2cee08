"""What SQS costs and how much is in flight, beside stock dramatiq-sqs: `python -m tests.bench.sqs`.

Each row is one worker process on ministack, which runs on the same machine: its CPU competes with ours, and its latency
is not Amazon's. A job sleeps for as long as a provider takes. Requests are those of boto3, the producer's included:
that sends what is there at once by tens (`enqueue_many`), and at a trickle one by one. `resident` is the memory of the
worker after a tenth of the jobs and at the end. Stock dramatiq-sqs is put into an environment of its own for this run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from tests import services

_STOCK = "dramatiq-sqs==0.4.4"

#: Runs in both environments, so it imports nothing of ours but in the part that is ours.
_WORKER = r"""
import collections, json, os, sys, threading, time
import botocore.client, dramatiq

side, place, region, endpoint = sys.argv[1:5]
jobs, threads, latency, pause = int(sys.argv[5]), int(sys.argv[6]), float(sys.argv[7]), float(sys.argv[8])
counts, made, lock = collections.Counter(), botocore.client.BaseClient._make_api_call, threading.Lock()

def counted(self, operation, request):
    with lock:
        counts[operation] += 1
    return made(self, operation, request)

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmRSS"))

done, running, most, early = 0, 0, 0, 0
finished = threading.Event()

def work():
    global done, running, most, early
    with lock:
        running += 1
        most = max(most, running)
    time.sleep(latency)
    with lock:
        running -= 1
        done += 1
        if done == max(1, jobs // 10):
            early = resident()
        if done == jobs:
            finished.set()

if side == "ours":
    from dramatiq.middleware import CurrentMessage
    from workers.brokers.base import Acknowledge, dispose
    from workers.brokers.sqs import Client, Names, SqsBroker
    from workers.jobs import ACTOR, QUEUE, job_message
    broker = SqsBroker(Client("sqs", region, endpoint, connections=64), Names(region, place), visibility_seconds=90)
    broker.create()
    def idem(**_):
        work()
        dispose(CurrentMessage.get_current_message(), Acknowledge())
    dramatiq.actor(broker=broker, actor_name=ACTOR, queue_name=QUEUE)(idem)
    make = lambda number: job_message("j", [number], {}, None)[0]
    def send_all():
        for start in range(0, jobs, 10):
            assert not any(broker.enqueue_many([make(number) for number in range(start, min(jobs, start + 10))]))
    send_one = lambda number: broker.enqueue(make(number))
else:
    from dramatiq_sqs import SQSBroker
    broker = SQSBroker(namespace=place, region_name=region, endpoint_url=endpoint)
    def job(number):
        work()
    actor = dramatiq.actor(broker=broker)(job)
    send_one = lambda number: actor.send(number)
    def send_all():
        for number in range(jobs):
            send_one(number)

botocore.client.BaseClient._make_api_call = counted
if not pause:
    send_all()
worker = dramatiq.Worker(broker, worker_threads=threads, worker_timeout=100)
started = time.monotonic()
worker.start()
if pause:
    for number in range(jobs):
        send_one(number)
        time.sleep(pause)
finished.wait(600)
seconds = time.monotonic() - started
last = resident()
worker.stop(30_000)
print(json.dumps({"jobs": done, "seconds": seconds, "most": most, "early": early, "last": last, "counts": counts}))
"""


def main() -> None:
    """Run every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2_560)
    options = parser.parse_args()
    endpoint = services.ministack()
    with tempfile.TemporaryDirectory() as name:
        pythons = {"ours": sys.executable}
        stock = stock_python(Path(name))
        if stock is not None:
            pythons["stock"] = stock
        _say(f"{'':<34}{'jobs/s':>8}{'in flight':>11}{'resident MB':>13}{'requests an email':>19}")
        for title, jobs, threads, pause in (
            ("256 threads, 200 ms, at depth", options.jobs, 256, 0.0),
            ("8 threads, 200 ms, at depth", options.jobs // 8, 8, 0.0),
            ("8 threads, 200 ms, 5 a second", 60, 8, 0.2),
        ):
            for side, python in pythons.items():
                _row(f"{title}, {side}", python, [side, f"b{uuid.uuid4().hex[:12]}", services.REGION, endpoint,
                     str(jobs), str(threads), "0.2", str(pause)])  # fmt: skip


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _row(title: str, python: str, arguments: list[str]) -> None:
    environ = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": services.REGION,
    }
    done = subprocess.run([python, "-c", _WORKER, *arguments], env=environ, text=True, capture_output=True, check=False)
    if done.returncode:
        _say(f"{title:<34}failed: {done.stderr.strip().splitlines()[-1]}")
        return
    found = json.loads(done.stdout.splitlines()[-1])
    counts = {name: count / found["jobs"] for name, count in sorted(found["counts"].items())}
    rate = found["jobs"] / found["seconds"]
    _say(
        f"{title:<34}{rate:>8.0f}{found['most']:>11}{found['early']:>8} ->{found['last']:>3}"
        f"{sum(counts.values()):>19.3f}   " + ", ".join(f"{name} {count:.3f}" for name, count in counts.items())
    )


def stock_python(folder: Path) -> str | None:
    """The Python of an environment with stock dramatiq-sqs; None when it cannot be had."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    done = subprocess.run([python, "-m", "pip", "install", "-q", _STOCK], capture_output=True, check=False)
    if done.returncode:
        _say(f"{_STOCK} does not install here: no row for it")
        return None
    return str(python)


if __name__ == "__main__":
    main()
