"""The stack on an emulator that enforces permissions, and who acts in it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import boto3  # type: ignore[import-untyped]  # ships no types

from tests import services
from tests.deploy.files import DEPLOY, load_yaml
from tests.workers.parts import wait_for

TEMPLATE = load_yaml("stack.yaml")


def _made(kind: str) -> Iterator[str]:
    """The template's own names of what it makes of a kind."""
    return (name for name, found in TEMPLATE["Resources"].items() if found["Type"] == f"AWS::IAM::{kind}")


def _policy(reference: Mapping[str, Any]) -> str:
    """What a role refers to, also where it does so by a condition; here all conditions hold."""
    match reference:
        case {"Ref": name} | {"Fn::If": [_, {"Ref": name}, {"Ref": "AWS::NoValue"}]}:
            return str(name)
    raise AssertionError(reference)


POLICIES = tuple(_made("ManagedPolicy"))
#: The roles, with their policies.
ROLES = {
    role: [_policy(found) for found in TEMPLATE["Resources"][role]["Properties"]["ManagedPolicyArns"]]
    for role in _made("Role")
}
#: What is no use without another policy.
_BESIDE = {"DurablePolicy": "ReceiverPolicy", "OperatorPolicy": "WorkerPolicy"}

#: Whom emails are from.
SENDER = "example.com"

#: The emulator asks for a permission by the name of the call; at Amazon these calls need the action on the left.
#: https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonsqs.html
#: https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazondynamodb.html
CALLS = {
    "sqs:ChangeMessageVisibility": "sqs:ChangeMessageVisibilityBatch",
    "sqs:DeleteMessage": "sqs:DeleteMessageBatch",
    "sqs:SendMessage": "sqs:SendMessageBatch",
    "dynamodb:PartiQLInsert": "dynamodb:BatchExecuteStatement",
    "dynamodb:PartiQLUpdate": "dynamodb:BatchExecuteStatement",
}
_STATEMENTS = {"dynamodb:PartiQLInsert", "dynamodb:PartiQLUpdate"}


def _as_emulated(document: Mapping[str, Any]) -> dict[str, Any]:
    """A policy with the emulator's names beside Amazon's; a batch of statements needs both of its actions."""
    statements = []
    for statement in document["Statement"]:
        actions = set(statement["Action"])
        known = actions if actions >= _STATEMENTS else actions - _STATEMENTS
        called = {CALLS[action] for action in known if action in CALLS}
        # It does not know the condition on the metric's namespace,
        statements.append(statement | {"Action": sorted(actions | called), "Condition": {}})
        # nor see which table a batch of statements is about.
        # or which identity an email is from.
        blind = sorted((called | actions) & {"dynamodb:BatchExecuteStatement", "ses:SendEmail"})
        if blind:
            statements.append({"Effect": "Allow", "Action": blind, "Resource": "*"})
    return dict(document) | {"Statement": statements}


class Stack:
    """The stack on an emulator, under names of its own, and who acts in it."""

    def __init__(self, durable: str = "on", sender: str = SENDER) -> None:
        self.url = services.ministack_with_auth()
        services.connect("dynamodb", self.url)
        self.name = f"s{uuid.uuid4().hex}"
        given = {"TableName": self.name, "Prefix": self.name, "Durable": durable}
        given["SesIdentityArns"] = sender and f"arn:aws:ses:{services.REGION}:000000000000:identity/{sender}"
        self._make({"ParameterKey": name, "ParameterValue": value} for name, value in given.items())
        resources = self.client("cloudformation").describe_stack_resources(StackName=self.name)["StackResources"]
        self.made = {found["LogicalResourceId"]: found["PhysicalResourceId"] for found in resources}
        self.policies = {name: self._document(name) for name in POLICIES if name in self.made}
        for role, policies in ROLES.items():
            for policy in self.policies.keys() & set(policies):
                self._put_policy(self.made[role], policy, self.policies[policy])

    def client(self, service: Any) -> Any:
        """As the owner of the account, who may do anything."""
        return boto3.client(service, endpoint_url=self.url, region_name=services.REGION)

    def _make(self, parameters: Iterator[dict[str, str]]) -> None:
        formation = self.client("cloudformation")
        body = (DEPLOY / "stack.yaml").read_text(encoding="utf-8")
        formation.create_stack(
            StackName=self.name, TemplateBody=body, Parameters=list(parameters), Capabilities=["CAPABILITY_IAM"]
        )
        (made,) = wait_for(lambda: self._ended(formation))
        assert made["StackStatus"] == "CREATE_COMPLETE", made.get("StackStatusReason")
        self.outputs = {found["OutputKey"]: found["OutputValue"] for found in made["Outputs"]}

    def _ended(self, formation: Any) -> list[dict[str, Any]] | None:
        stacks: list[dict[str, Any]] = formation.describe_stacks(StackName=self.name)["Stacks"]
        return None if stacks[0]["StackStatus"].endswith("IN_PROGRESS") else stacks

    def _document(self, policy: str) -> dict[str, Any]:
        """As it was deployed: with the names of what was made."""
        iam, arn = self.client("iam"), self.made[policy]
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        found: dict[str, Any] = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
        return found

    def _put_policy(self, role: str, name: str, document: Mapping[str, Any]) -> None:
        text = json.dumps(_as_emulated(document))
        self.client("iam").put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=text)

    def less(self, policy: str, number: int, action: str) -> dict[str, Any]:
        """The policy without one action of one statement, and what belongs with it."""
        statements = [dict(found) for found in self.policies[policy]["Statement"]]
        statements[number]["Action"] = [found for found in statements[number]["Action"] if found != action]
        if policy in _BESIDE:
            statements += self.policies[_BESIDE[policy]]["Statement"]
        return self.policies[policy] | {"Statement": [found for found in statements if found["Action"]]}

    def role(self, document: Mapping[str, Any]) -> str:
        """A role with one policy, trusted by the account as those of the stack are; its ARN."""
        name, iam = f"r{uuid.uuid4().hex}", self.client("iam")
        trust = iam.get_role(RoleName=self.made["OperatorRole"])["Role"]["AssumeRolePolicyDocument"]
        made = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]
        self._put_policy(name, "less", document)
        return str(made["Arn"])

    def acting_as(self, who: str) -> dict[str, str]:
        """The environment of a process in that role of the stack."""
        return self.acting(self.outputs[f"{who}RoleArn"])

    def acting(self, role_arn: str) -> dict[str, str]:
        """The environment of a process that acts in that role, with the stack's outputs for settings."""
        found = self.client("sts").assume_role(RoleArn=role_arn, RoleSessionName="test")["Credentials"]
        return services.aws_environ(self.url) | {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": found["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": found["SecretAccessKey"],
            "AWS_SESSION_TOKEN": found["SessionToken"],
            "IDEM_BROKER_URL": self.outputs["BrokerUrl"],
            "IDEM_LEDGER_URL": self.outputs["LedgerUrl"],
            "IDEM_BODIES_BUCKET": self.outputs["BodiesBucket"],
        }
