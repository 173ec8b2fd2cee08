"""The stack, deployed where permissions are enforced: all runs under its roles, and misses every action of them."""

from __future__ import annotations

import base64
import gc
import json
import random
import subprocess
import sys
import time
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]  # ships no types
import pytest

from idem.clock import Deadline, SystemClock
from idem.errors import IdemError, LedgerUnusable
from idem.outcome import Accepted
from idem.protocol import State
from idem.providers.ses import SesProvider
from idem.stores.dynamodb import DynamoStore
from idem.stores.dynamodb.bodies import Bucket as FrozenBodies
from idem.stores.dynamodb.items import attention_keys
from tests import services
from tests.deploy.files import DEPLOY
from tests.deploy.stack import CALLS, POLICIES, SENDER, TEMPLATE, Stack
from tests.scene import Scene
from tests.workers.parts import make_email, wait_for
from tests.workers.webhooks.deliveries import WHSEC, post
from workers import App, Settings
from workers.brokers.sqs import Bucket as JobBodies
from workers.brokers.sqs import SqsBroker
from workers.process import idem_command, start_process
from workers.settings import environ_without_settings


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack()


def _mail(number: int) -> str:
    whole: dict[str, Any] = {"from": "shop@example.com", "to": [f"r{number}@example.com"], "subject": f"S {number}"}
    whole |= {"text": "T", "key": f"k{number}"}
    if number == 0:
        # Too large for a message.
        content = base64.b64encode(bytes(1_200_000)).decode()
        whole["attachments"] = [{"filename": "a.bin", "content": content, "content_type": "application/octet-stream"}]
    return json.dumps(whole)


def test_a_killed_workers_jobs_are_sent_once_under_the_roles_of_the_stack(scene: Scene, stack: Stack) -> None:
    own = scene.environ
    producer, worker, operator = (own | stack.acting_as(role) for role in ("Producer", "Worker", "Operator"))
    Path(scene.folder, "mails.jsonl").write_text("\n".join(map(_mail, range(12))), encoding="utf-8")
    scene.environ = producer
    scene.idem("enqueue", "mails.jsonl")
    scene.call("/api/faults", "POST", {"provider": "*", "fault": "accept_then_hang", "times": 4})
    scene.environ = worker
    assert f"goes to {stack.name}-default-dead for 14 days" in scene.idem("doctor")
    killed = scene.start("worker")
    wait_for(lambda: len(scene.accepted()) >= 4)
    killed.kill()
    killed.wait()

    scene.idem("worker", "--until-empty")

    assert scene.accepted() == {f"S {n}": 1 for n in range(12)}
    scene.environ = operator
    scene.idem("list", "--state", "sending")
    scene.idem("dead", "list")
    status = json.loads(scene.idem("status", "--json"))
    assert status["queue"] == {"ready": 0, "delayed": 0, "in_flight": 0, "dead": 0}


_APP = """
from datetime import timedelta
from idem import Email
from workers import App

app = App.from_env()

def email(subject):
    return Email(from_="shop@example.com", to="ann@example.com", subject=subject, text="T")

@app.schedule(every=timedelta(seconds=1), catch_up="all")
def beat(slot):
    return email("beat")

@app.webhook("stripe", "thing.happened")
def receipt(event):
    return email(f"receipt {event.id}")

@app.job()
def welcome(number):
    return email(f"welcome {number}")
"""
#: Threads that write at the same moment share one batch of statements.
_PRODUCE = """
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from sqlalchemy import create_engine
from shop import app, email, welcome
from workers import by_content

engine = create_engine("sqlite:///shop.db", hide_parameters=True)
app.outbox.metadata.create_all(engine)
with engine.begin() as connection:
    app.outbox.add(connection, email("order"), key="o1")
with ThreadPoolExecutor(40) as threads:
    list(threads.map(lambda number: welcome.send(number, key=f"w{number}", durable=True), range(40)))
app.cancel("w0")
for _ in range(2):
    app.enqueue(email("content"), key=by_content(within=timedelta(hours=1)))
"""


def test_whoever_enqueues_and_who_only_looks_works_under_a_role_of_the_stack(scene: Scene, stack: Stack) -> None:
    own = scene.environ | {"IDEM_NAMESPACE": "shop", "IDEM_STRIPE_WEBHOOK_SECRET": WHSEC}
    own |= {"IDEM_OUTBOX_URL": "sqlite:///shop.db"}
    (scene.folder / "shop.py").write_text(_APP, encoding="utf-8")

    scene.environ = own | stack.acting_as("Producer")
    subprocess.run([sys.executable, "-c", _PRODUCE], cwd=scene.folder, env=scene.environ, check=True)
    durable = own | {"IDEM_DURABLE": "on"}
    scene.environ = durable | stack.acting_as("Relay")
    scene.idem("relay", "--until-empty")
    scene.environ = durable | stack.acting_as("Receiver")
    with _running(scene, "webhooks", "--port", "0") as receiver:
        assert receiver.stdout is not None
        posted = post("stripe", at=int(time.time()))
        request = urllib.request.Request(  # noqa: S310 - our own server
            receiver.stdout.readline().decode().strip(), posted.body, {**posted.headers}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the same
            assert answer.status < 300
    scene.environ = durable | stack.acting_as("Scheduler")
    with _running(scene, "scheduler"):
        scene.environ = own | stack.acting_as("Reader")
        wait_for(lambda: json.loads(scene.idem("status", "--json"))["queue"]["ready"] > 44)
    scene.environ = own | stack.acting_as("Worker")
    scene.idem("worker", "--app", "shop:app", "--until-empty")

    accepted = scene.accepted()
    assert accepted.pop("beat") >= 1
    assert accepted == {"receipt evt_1": 1, "order": 1, "content": 1} | {
        f"welcome {number}": 1 for number in range(1, 40)
    }
    scene.environ = own | stack.acting_as("Reader")
    assert json.loads(scene.idem("explain", "w0", "--json"))["state"] == "cancelled"
    assert json.loads(scene.idem("explain", "w1", "--json"))["state"] == "sent"
    scene.idem("list", "--state", "in_doubt")


@pytest.mark.parametrize("role", ["Producer", "Relay", "Receiver", "Scheduler"])
def test_whoever_enqueues_what_is_durable_may_do_so_again(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, role: str
) -> None:
    """The record that is there by then is read, with its email, which may be in the bucket."""
    large = make_email(text=random.randbytes(350_000).hex())
    with closing(_acting(stack.acting_as(role), monkeypatch, tmp_path)) as app:
        for _ in range(2):
            app.enqueue(large, key=role, durable=True)

        record = app.ledger.read(role)
        assert record is not None
        assert record.state is State.PENDING


@contextmanager
def _running(scene: Scene, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command of the application, until the block ends."""
    process = start_process(
        idem_command(*command, "--app", "shop:app"), cwd=scene.folder, env=scene.environ, stdout=subprocess.PIPE
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def test_how_long_an_email_is_in_doubt_reaches_the_alarm(tmp_path: Path, stack: Stack) -> None:
    environ = environ_without_settings() | stack.acting_as("Worker")

    done = _publish(environ, tmp_path)

    assert done.returncode == 0, done.stderr
    watch = stack.client("cloudwatch")
    (alarm,) = watch.describe_alarms(AlarmNames=[stack.made["InDoubt"]])["MetricAlarms"]
    (metric,) = watch.list_metrics(Namespace=alarm["Namespace"])["Metrics"]
    assert (metric["MetricName"], metric["Dimensions"]) == (alarm["MetricName"], alarm["Dimensions"])


def _publish(environ: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(DEPLOY / "in_doubt_age.py")]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


def _published(app: App) -> None:
    """In this process, under the credentials of its environment; a process takes a second."""
    found: dict[str, Any] = {"__name__": "in_doubt_age"}
    exec((DEPLOY / "in_doubt_age.py").read_text(encoding="utf-8"), found)  # noqa: S102 - a file of this repository
    found["_publish"](app, 0.0)


def _broker(app: App) -> SqsBroker:
    assert isinstance(app.broker, SqsBroker)
    return app.broker


def _bucket(app: App) -> JobBodies:
    found = _broker(app).bucket
    assert found is not None
    return found


def _frozen(app: App) -> FrozenBodies:
    assert isinstance(app._store, DynamoStore)
    found = app._store._bucket
    assert found is not None
    return found


def _statements(app: App) -> None:
    """What writers do who write at the same moment."""
    assert isinstance(app._store, DynamoStore)
    app._store._table._try_statements()


def _ask_in_bucket(app: App) -> None:
    """A durable job that fits no item: of random bytes, as they cannot be compressed."""
    app.enqueue(make_email(text=random.randbytes(600_000).hex()), durable=True)


def _send_by_ses(app: App, **parts: Any) -> None:
    # A connection ends with its thread, which here is that of the tests: it is collected at once, and may say so.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        outcome = SesProvider(app.settings.aws_endpoint_url).send(
            make_email(**parts), "key-0001", Deadline.after(SystemClock(), 20)
        )
        gc.collect()
    if not isinstance(outcome, Accepted):
        raise IdemError(str(outcome))


#: The emulator does not know that raw content needs an action of its own, and would never miss it.
_UNSEEN = {"ses:SendRawEmail"}

_ENTRY = {"MessageBody": "{}"}
_NO_RECEIPT = "bm9uZQ=="

#: What of ours needs the action, by what it is on in the template.
_OPERATIONS: dict[tuple[str, str], Callable[[App], object]] = {
    ("Ledger", "dynamodb:BatchGetItem"): lambda app: list(app.ledger.list(State.IN_DOUBT, 1)),
    ("Ledger", "dynamodb:DescribeTable"): lambda app: app.ledger.check(),
    ("Ledger", "dynamodb:GetItem"): lambda app: app.ledger.read("k"),
    ("Ledger", "dynamodb:PartiQLInsert"): _statements,
    ("Ledger", "dynamodb:PartiQLUpdate"): _statements,
    ("Ledger", "dynamodb:PutItem"): lambda app: app.cancel("k"),
    ("Ledger/index/attention", "dynamodb:Query"): lambda app: app.ledger.count(),
    ("Ledger", "dynamodb:Scan"): lambda app: list(app.ledger.list(State.SENDING, 1)),
    ("Jobs", "sqs:ChangeMessageVisibility"): lambda app: _broker(app).jobs.hide({_NO_RECEIPT: 1}),
    ("Jobs", "sqs:DeleteMessage"): lambda app: _broker(app).jobs.delete([_NO_RECEIPT]),
    ("Jobs", "sqs:GetQueueAttributes"): lambda app: app.broker.backlog(),
    ("Jobs", "sqs:GetQueueUrl"): lambda app: _broker(app).jobs.url(),
    ("Jobs", "sqs:ReceiveMessage"): lambda app: _broker(app).jobs.receive(1, hidden_seconds=0, wait_seconds=0),
    ("Jobs", "sqs:SendMessage"): lambda app: app.enqueue(make_email()),
    ("DeadLetters", "sqs:ChangeMessageVisibility"): lambda app: _broker(app).dead.hide({_NO_RECEIPT: 1}),
    ("DeadLetters", "sqs:DeleteMessage"): lambda app: _broker(app).dead.delete([_NO_RECEIPT]),
    ("DeadLetters", "sqs:GetQueueAttributes"): lambda app: app.broker.backlog(),
    ("DeadLetters", "sqs:GetQueueUrl"): lambda app: _broker(app).dead.url(),
    ("DeadLetters", "sqs:ReceiveMessage"): lambda app: list(app.broker.dead_letters()),
    ("DeadLetters", "sqs:SendMessage"): lambda app: _broker(app).dead.send([_ENTRY]),
    ("Bodies", "s3:ListBucket"): lambda app: app.broker.check(),
    ("Bodies/*", "s3:GetObject"): lambda app: _bucket(app).get("0" * 64),
    ("Bodies/*", "s3:PutObject"): lambda app: _bucket(app).put("{}"),
    ("Bodies/idem/*", "s3:GetObject"): lambda app: _frozen(app).get("idem/0/0"),
    ("Bodies/idem/*", "s3:PutObject"): _ask_in_bucket,
    ("Bodies/idem-jobs/*", "s3:PutObject"): lambda app: _bucket(app).put("{}"),
    ("*", "cloudwatch:PutMetricData"): _published,
    ("SesIdentityArns", "ses:SendEmail"): _send_by_ses,
}


def _resource(statement: Mapping[str, Any]) -> str:
    """The template's own name of what a statement is about."""
    match statement["Resource"]:
        case {"Fn::GetAtt": [name, "Arn"]}:
            return str(name)
        case {"Fn::Sub": text}:
            return str(text).removeprefix("${").replace(".Arn}", "")
        case {"Fn::Split": [_, {"Ref": name}]}:
            return str(name)
        case other:
            return str(other)


@dataclass(frozen=True)
class Case:
    """One action of one statement of a policy."""

    policy: str
    number: int
    action: str
    resource: str

    def __str__(self) -> str:
        return f"{self.policy}-{self.resource}-{self.action}"


def _cases() -> Iterator[Case]:
    for policy in POLICIES:
        statements = TEMPLATE["Resources"][policy]["Properties"]["PolicyDocument"]["Statement"]
        for number, statement in enumerate(statements):
            for action in sorted(set(statement["Action"]) - _UNSEEN):
                yield Case(policy, number, action, _resource(statement))


def test_whatever_needs_an_action_has_it_and_no_action_is_there_for_nothing() -> None:
    """A worker without Query would only warn: it is this that finds an action gone from the template."""
    assert {(case.resource, case.action) for case in _cases()} == set(_OPERATIONS)


def _acting(environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> App:
    """An application whose process has that environment; boto3 looks there for credentials."""
    whole = {**environ, "IDEM_LETTERMINT_TOKEN": "lm_test", "AWS_REGION": services.REGION}
    for name, value in whole.items():
        monkeypatch.setenv(name, value)
    # What other tests have used would be used again.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    return App(Settings.load(whole, folder))


def test_a_worker_sends_by_ses(stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Content of both kinds."""
    stack.client("sesv2").create_email_identity(EmailIdentity=SENDER)
    with closing(_acting(stack.acting_as("Worker"), monkeypatch, tmp_path)) as app:
        _send_by_ses(app)
        _send_by_ses(app, headers={"X-Shop": "1"})


def test_unless_told_to_no_producer_writes_to_the_ledger_and_nobody_sends_by_ses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = Stack(durable="off", sender="")
    producer, worker = plain.acting_as("Producer"), plain.acting_as("Worker")

    with (
        closing(_acting(producer, monkeypatch, tmp_path)) as app,
        pytest.raises(LedgerUnusable, match="may not do dynamodb:PutItem; allow them that action"),
    ):
        app.enqueue(make_email(), durable=True)
    with (
        closing(_acting(worker, monkeypatch, tmp_path)) as app,
        pytest.raises(IdemError, match="ses:SendEmail"),
    ):
        _send_by_ses(app)


@pytest.fixture
def in_doubt(stack: Stack) -> str:
    """A namespace of whose emails one is in the index, so that it is looked for in the table."""
    namespace = uuid.uuid4().hex
    item = {"pk": "k", "ap": attention_keys(namespace, State.IN_DOUBT)[0]}
    attributes = {name: {"S": value} for name, value in item.items()} | {"at": {"N": str(time.time())}}
    stack.client("dynamodb").put_item(TableName=stack.outputs["LedgerUrl"].rpartition("/")[2], Item=attributes)
    return namespace


@pytest.mark.parametrize("case", list(_cases()), ids=str)
def test_without_an_action_it_is_named(
    stack: Stack, in_doubt: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: Case
) -> None:
    """Here the emulator names it, by the call; at Amazon it is Amazon, and our own word where it does not."""
    role = stack.role(stack.less(case.policy, case.number, case.action))
    app = _acting(stack.acting(role) | {"IDEM_NAMESPACE": in_doubt}, monkeypatch, tmp_path)

    with pytest.raises(IdemError, match=CALLS.get(case.action, case.action)):
        _OPERATIONS[case.resource, case.action](app)
    app.close()
