"""The stack says what `idem init` makes, and gives everybody what their code asks for, no more."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from idem.stores.dynamodb.bodies import Bucket as FrozenBodies
from idem.stores.dynamodb.table import INDEX, _definition
from tests.deploy.files import BIN, DEPLOY, load_yaml
from tests.deploy.stack import POLICIES, ROLES
from workers.brokers.sqs import Bucket as JobBodies
from workers.brokers.sqs import Names
from workers.brokers.sqs.bodies import LARGEST
from workers.brokers.sqs.setup import _RETENTION_SECONDS, MAX_RECEIVES
from workers.settings import PROVIDERS, Settings
from workers.wiring import contract_of

_TEMPLATE = load_yaml("stack.yaml")
_PARAMETERS: dict[str, Any] = _TEMPLATE["Parameters"]
_DAY = 86_400


def _properties(name: str) -> dict[str, Any]:
    found: dict[str, Any] = _TEMPLATE["Resources"][name]["Properties"]
    return dict(found)


def _actions(policy: str) -> Iterator[str]:
    for statement in _properties(policy)["PolicyDocument"]["Statement"]:
        assert statement["Action"] == sorted(statement["Action"])
        yield from statement["Action"]


def test_cfn_lint_finds_nothing() -> None:
    command = [str(BIN / "cfn-lint"), "--format", "json", str(DEPLOY / "stack.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert json.loads(done.stdout or "[]") == []
    assert done.returncode == 0, done.stderr


def test_the_table_is_the_one_that_init_creates() -> None:
    properties = _properties("Ledger")

    assert properties.pop("TimeToLiveSpecification") == {"AttributeName": "ttl", "Enabled": True}
    assert properties.pop("PointInTimeRecoverySpecification") == {"PointInTimeRecoveryEnabled": True}
    assert properties.pop("SSESpecification") == {"SSEEnabled": True}
    assert properties.pop("TableName") == {"Ref": "TableName"}

    expected = _definition("any")
    del expected["TableName"]

    assert properties == expected


def test_the_queues_are_those_that_init_creates() -> None:
    """`test_roles.py` has the broker look at them as well."""
    common = {"MessageRetentionPeriod": _RETENTION_SECONDS, "MaximumMessageSize": LARGEST, "SqsManagedSseEnabled": True}
    names = Names("eu-west-1", "${Prefix}")

    assert _properties("DeadLetters") == common | {"QueueName": {"Fn::Sub": names.dead}}
    jobs = _properties("Jobs")
    assert jobs.pop("RedrivePolicy")["maxReceiveCount"] == MAX_RECEIVES
    assert jobs == common | {"QueueName": {"Fn::Sub": names.jobs}, "VisibilityTimeout": {"Ref": "VisibilitySeconds"}}
    assert _PARAMETERS["VisibilitySeconds"]["Default"] == Settings().visibility_seconds
    assert Names.parse(f"eu-west-1/{_PARAMETERS['Prefix']['Default']}")


def test_bodies_are_kept_for_longer_than_what_names_them() -> None:
    """An emulator does not apply lifecycle rules: this is all that is tested of them."""
    rules = {
        rule["Prefix"]: rule["ExpirationInDays"] for rule in _properties("Bodies")["LifecycleConfiguration"]["Rules"]
    }
    frozen, jobs = (inspect.signature(kind).parameters["prefix"].default for kind in (FrozenBodies, JobBodies))

    assert set(rules) == {frozen, jobs}
    assert rules[frozen] == {"Ref": "BodyDays"}
    assert _PARAMETERS["BodyDays"]["MinValue"] * _DAY > Settings().retention_seconds
    assert rules[jobs] * _DAY > 2 * _RETENTION_SECONDS + Settings().give_up_seconds


@pytest.mark.parametrize("name", ["Ledger", "Jobs", "DeadLetters", "Bodies"])
def test_what_holds_the_promise_outlives_the_stack(name: str) -> None:
    resource = _TEMPLATE["Resources"][name]

    assert (resource["DeletionPolicy"], resource["UpdateReplacePolicy"]) == ("Retain", "Retain")


def test_nobody_may_delete_records_or_make_anything_and_only_a_person_may_scan() -> None:
    """A person writes what a worker writes: `idem resolve` and `idem reopen` are transitions like any other."""
    allowed = {policy: set(_actions(policy)) for policy in POLICIES}
    everything = set().union(*allowed.values())

    assert [action for action in everything if re.search(r"\*|:(Create|Update|Set|Purge|Tag)", action)] == []
    assert [action for action in everything if "Delete" in action] == ["sqs:DeleteMessage"]
    assert [policy for policy in POLICIES if "dynamodb:Scan" in allowed[policy]] == ["OperatorPolicy"]


def test_who_does_not_send_cannot_change_what_the_ledger_knows_unless_told_to() -> None:
    """Who may write there could make an email go out twice, or never."""
    enqueues = {"s3:PutObject", "sqs:GetQueueUrl", "sqs:SendMessage"}

    assert set(_actions("ReceiverPolicy")) == enqueues
    assert set(_actions("ProducerPolicy")) == enqueues | {"dynamodb:GetItem", "s3:GetObject"}
    assert (_PARAMETERS["Durable"]["Default"], _PARAMETERS["Durable"]["AllowedValues"]) == ("off", ["on", "off"])
    assert _TEMPLATE["Resources"]["DurablePolicy"]["Condition"] == "IsDurable"
    assert set(_actions("RelayPolicy")) == enqueues | {"sqs:GetQueueAttributes"}
    assert ROLES["ReceiverRole"] == ["ReceiverPolicy", "DurablePolicy"]
    assert ROLES["ReaderRole"] == ["ReaderPolicy"]
    assert set(_actions("ReaderPolicy")) <= {
        "dynamodb:BatchGetItem", "dynamodb:GetItem", "dynamodb:Query", "s3:GetObject",
        "sqs:GetQueueAttributes", "sqs:GetQueueUrl",
    }  # fmt: skip


def test_only_workers_send_and_only_by_the_identities_that_are_named() -> None:
    """By whatever call: https://github.com/anymail/django-anymail/issues/384."""
    (statement,) = _properties("SesPolicy")["PolicyDocument"]["Statement"]

    assert statement["Action"] == ["ses:SendEmail", "ses:SendRawEmail"]
    assert statement["Resource"] == {"Fn::Split": [",", {"Ref": "SesIdentityArns"}]}
    assert [role for role, policies in ROLES.items() if "SesPolicy" in policies] == ["WorkerRole"]


def test_a_worker_queries_the_index_and_nothing_else() -> None:
    statements = _properties("WorkerPolicy")["PolicyDocument"]["Statement"]
    (resource,) = (found["Resource"] for found in statements if "dynamodb:Query" in found["Action"])

    assert resource == {"Fn::Sub": f"${{Ledger.Arn}}/index/{INDEX}"}


def test_the_alarm_on_doubts_waits_for_the_slowest_look_up() -> None:
    lags = [contract.lookup.lag_seconds for contract in map(contract_of, PROVIDERS) if contract.lookup is not None]

    assert _PARAMETERS["InDoubtSeconds"]["Default"] > 2 * max(lags)
    assert _PARAMETERS["InDoubtSeconds"]["Default"] > Settings().evidence_seconds


def test_every_alarm_names_a_chapter_of_the_runbook() -> None:
    runbook = (DEPLOY / "RUNBOOK.md").read_text(encoding="utf-8")
    alarms = [r["Properties"] for r in _TEMPLATE["Resources"].values() if r["Type"] == "AWS::CloudWatch::Alarm"]

    assert len(alarms) == 3
    for alarm in alarms:
        assert f"\n## {alarm['AlarmDescription'].partition('RUNBOOK: ')[2]}\n" in runbook
