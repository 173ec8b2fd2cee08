"""What DynamoDB charges for: read off the answers of a client."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

_READS = frozenset({"get_item", "batch_get_item", "query", "scan"})
_WRITES = frozenset({"put_item", "batch_execute_statement"})


class Units:
    """A client that counts its calls, and the units that its engine reports.

    A refused write is charged as well, one unit for each KB that stood in its way, and reports none: `refused` counts.
    """

    def __init__(self, client: Any) -> None:
        self.calls: Counter[str] = Counter()
        self.write = 0.0
        self.read = 0.0
        self.index = 0.0
        self.refused = 0
        self._client = client
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Start over."""
        with self._lock:
            self.calls.clear()
            self.write = self.read = self.index = 0.0
            self.refused = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        return self._counted(name, call) if name in _READS | _WRITES else call

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(**request: Any) -> Any:
            try:
                answer = call(**request, ReturnConsumedCapacity="INDEXES")
            except ClientError as error:
                with self._lock:
                    self.calls[name] += 1
                    self.refused += error.response["Error"]["Code"] == "ConditionalCheckFailedException"
                raise
            self._count(name, answer.get("ConsumedCapacity", ()))
            return answer

        return counted

    def _count(self, name: str, found: Any) -> None:
        with self._lock:
            self.calls[name] += 1
            for capacity in [found] if isinstance(found, dict) else found:
                units = float(capacity["CapacityUnits"])
                parts = capacity.get("GlobalSecondaryIndexes", {}).values()
                if name in _READS:
                    self.read += units
                else:
                    self.write += units
                    self.index += sum(float(part["CapacityUnits"]) for part in parts)
