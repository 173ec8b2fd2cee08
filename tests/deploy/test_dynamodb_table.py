"""The template for the table says what `idem init` creates, and gives a worker what its code asks for, no more."""

from __future__ import annotations

import json
from pathlib import Path

from idem.stores.dynamodb.table import INDEX, _definition

_TEMPLATE = json.loads((Path(__file__).parents[2] / "deploy" / "dynamodb-table.json").read_text(encoding="utf-8"))


def test_the_table_is_the_one_that_init_creates() -> None:
    properties = dict(_TEMPLATE["Resources"]["Ledger"]["Properties"])

    assert properties.pop("TimeToLiveSpecification") == {"AttributeName": "ttl", "Enabled": True}
    assert properties.pop("PointInTimeRecoverySpecification") == {"PointInTimeRecoveryEnabled": True}
    assert properties.pop("SSESpecification") == {"SSEEnabled": True}
    assert properties.pop("TableName") == {"Ref": "TableName"}

    expected = _definition("any")
    del expected["TableName"]

    assert properties == expected


def test_a_worker_may_neither_delete_nor_scan() -> None:
    (statement,) = _TEMPLATE["Resources"]["WorkerPolicy"]["Properties"]["PolicyDocument"]["Statement"]

    assert statement["Action"] == sorted(statement["Action"])
    assert set(statement["Action"]) == {
        f"dynamodb:{action}" for action in ("DescribeTable", "GetItem", "PartiQLInsert", "PartiQLUpdate", "PutItem")
    }


def test_a_person_may_look_and_write_nothing() -> None:
    """Whoever runs `idem status`, `explain` and `list`: only there is the table scanned."""
    (statement,) = _TEMPLATE["Resources"]["OperatorPolicy"]["Properties"]["PolicyDocument"]["Statement"]

    assert statement["Action"] == [f"dynamodb:{action}" for action in ("BatchGetItem", "GetItem", "Query", "Scan")]
    assert statement["Resource"][1] == {"Fn::Sub": f"${{Ledger.Arn}}/index/{INDEX}"}
