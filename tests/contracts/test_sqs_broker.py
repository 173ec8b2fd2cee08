"""The broker contract, run on an emulator of Amazon SQS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import services
from tests.contracts.brokers import BrokerContract
from tests.contracts.sqs_harness import SqsHarness
from tests.workers.brokers.sqs.parts import NO_WAIT


class TestMinistack(BrokerContract):
    @pytest.fixture
    def harness(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqsHarness]:
        monkeypatch.setattr(*NO_WAIT)
        harness = SqsHarness(services.ministack())
        yield harness
        harness.close()
