"""The stack, deployed where permissions are enforced: all runs under its roles, and misses every action of them."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]  # ships no types
import pytest

from idem.errors import IdemError
from idem.protocol import State
from idem.stores.dynamodb import DynamoStore
from idem.stores.dynamodb.bodies import Bucket as FrozenBodies
from idem.stores.dynamodb.items import attention_keys
from tests.deploy.files import DEPLOY
from tests.deploy.stack import CALLS, ROLES, TEMPLATE, Stack
from tests.scene import Scene
from tests.workers.parts import make_email, wait_for
from workers import App, Settings
from workers.brokers.sqs import Bucket as JobBodies
from workers.brokers.sqs import SqsBroker
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
    producer, worker, operator = (own | stack.acting(stack.outputs[f"{role}Arn"]) for role in ROLES)
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


def test_how_long_an_email_is_in_doubt_reaches_the_alarm(tmp_path: Path, stack: Stack) -> None:
    environ = environ_without_settings() | stack.acting(stack.outputs["WorkerRoleArn"])

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


_ENTRY = {"MessageBody": "{}"}
_NO_RECEIPT = "bm9uZQ=="

#: What of ours needs the action, by what it is on in the template.
_OPERATIONS: dict[tuple[str, str], Callable[[App], object]] = {
    ("Ledger", "dynamodb:BatchGetItem"): lambda app: list(app.ledger.list(State.IN_DOUBT, 1)),
    ("Ledger", "dynamodb:DescribeTable"): lambda app: app.ledger.check(),
    ("Ledger", "dynamodb:GetItem"): lambda app: app.ledger.read("k"),
    ("Ledger", "dynamodb:PartiQLInsert"): lambda app: app.ledger.check(),
    ("Ledger", "dynamodb:PartiQLUpdate"): lambda app: app.ledger.check(),
    ("Ledger", "dynamodb:PutItem"): lambda app: app.ledger.check(),
    ("Ledger/index/attention", "dynamodb:Query"): lambda app: app.ledger.count(),
    ("Ledger", "dynamodb:Scan"): lambda app: list(app.ledger.list(State.SENDING, 1)),
    ("Jobs", "sqs:ChangeMessageVisibility"): lambda app: _broker(app).jobs.hide({_NO_RECEIPT: 1}),
    ("Jobs", "sqs:DeleteMessage"): lambda app: _broker(app).jobs.delete([_NO_RECEIPT]),
    ("Jobs", "sqs:GetQueueAttributes"): lambda app: app.broker.check(),
    ("Jobs", "sqs:GetQueueUrl"): lambda app: _broker(app).jobs.url(),
    ("Jobs", "sqs:ReceiveMessage"): lambda app: _broker(app).jobs.receive(1, hidden_seconds=0, wait_seconds=0),
    ("Jobs", "sqs:SendMessage"): lambda app: app.enqueue(make_email()),
    ("DeadLetters", "sqs:ChangeMessageVisibility"): lambda app: _broker(app).dead.hide({_NO_RECEIPT: 1}),
    ("DeadLetters", "sqs:DeleteMessage"): lambda app: _broker(app).dead.delete([_NO_RECEIPT]),
    ("DeadLetters", "sqs:GetQueueAttributes"): lambda app: app.broker.check(),
    ("DeadLetters", "sqs:GetQueueUrl"): lambda app: app.broker.check(),
    ("DeadLetters", "sqs:ReceiveMessage"): lambda app: list(app.broker.dead_letters()),
    ("DeadLetters", "sqs:SendMessage"): lambda app: _broker(app).dead.send([_ENTRY]),
    ("Bodies", "s3:ListBucket"): lambda app: app.broker.check(),
    ("Bodies/*", "s3:GetObject"): lambda app: _bucket(app).get("0" * 64),
    ("Bodies/*", "s3:PutObject"): lambda app: _bucket(app).put("{}"),
    ("Bodies/idem/*", "s3:GetObject"): lambda app: _frozen(app).get("idem/0/0"),
    ("Bodies/idem-jobs/*", "s3:PutObject"): lambda app: _bucket(app).put("{}"),
    ("*", "cloudwatch:PutMetricData"): _published,
}


def _resource(statement: Mapping[str, Any]) -> str:
    """The template's own name of what a statement is about."""
    match statement["Resource"]:
        case {"Fn::GetAtt": [name, "Arn"]}:
            return str(name)
        case {"Fn::Sub": text}:
            return str(text).removeprefix("${").replace(".Arn}", "")
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
    for policy in ("ProducerPolicy", "WorkerPolicy", "OperatorPolicy"):
        statements = TEMPLATE["Resources"][policy]["Properties"]["PolicyDocument"]["Statement"]
        for number, statement in enumerate(statements):
            for action in statement["Action"]:
                yield Case(policy, number, action, _resource(statement))


def test_whatever_needs_an_action_has_it_and_no_action_is_there_for_nothing() -> None:
    """A worker without Query would only warn: it is this that finds an action gone from the template."""
    assert {(case.resource, case.action) for case in _cases()} == set(_OPERATIONS)


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
    environ = stack.acting(role) | {"IDEM_NAMESPACE": in_doubt, "IDEM_LETTERMINT_TOKEN": "lm_test"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    # What other tests have used would be used again.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    app = App(Settings.load(environ, tmp_path))

    with pytest.raises(IdemError, match=CALLS.get(case.action, case.action)):
        _OPERATIONS[case.resource, case.action](app)
    app.close()
