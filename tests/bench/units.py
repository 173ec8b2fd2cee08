"""What DynamoDB charges for: read off the answers of a client."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

_READS = frozenset({"GetItem", "BatchGetItem", "Query"})


class Units:
    """Counts the calls of one client, and the units that its engine reports.

    A refused write is charged as well, one unit for each KB that stood in its way, and reports none: `refused` counts.
    """

    def __init__(self, client: Any) -> None:
        self.calls: Counter[str] = Counter()
        self.write = 0.0
        self.read = 0.0
        self.index = 0.0
        self.refused = 0
        self._lock = threading.Lock()
        client.meta.events.register("provide-client-params.dynamodb", self._ask)
        client.meta.events.register("after-call.dynamodb", self._count)

    def reset(self) -> None:
        """Start over."""
        with self._lock:
            self.calls.clear()
            self.write = self.read = self.index = 0.0
            self.refused = 0

    def _ask(self, params: dict[str, Any], model: Any, **_: Any) -> dict[str, Any]:
        if "ReturnConsumedCapacity" not in model.input_shape.members:
            return params
        return params | {"ReturnConsumedCapacity": "INDEXES"}

    def _count(self, parsed: dict[str, Any], model: Any, **_: Any) -> None:
        found = parsed.get("ConsumedCapacity", ())
        with self._lock:
            self.calls[model.name] += 1
            self.refused += parsed.get("Error", {}).get("Code") == "ConditionalCheckFailedException"
            for capacity in [found] if isinstance(found, dict) else found:
                units = float(capacity["CapacityUnits"])
                parts = capacity.get("GlobalSecondaryIndexes", {}).values()
                if model.name in _READS:
                    self.read += units
                else:
                    self.write += units
                    self.index += sum(float(part["CapacityUnits"]) for part in parts)
