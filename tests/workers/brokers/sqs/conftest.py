"""Fixtures for the tests of the SQS broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import services
from tests.workers.brokers.sqs.parts import NO_WAIT, Proxy, Side


@pytest.fixture(autouse=True)
def _short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*NO_WAIT)


@pytest.fixture
def endpoint(request: pytest.FixtureRequest) -> str:
    """An emulator: ministack, or the one that a test names."""
    found: str = getattr(services, getattr(request, "param", "ministack"))()
    return found


@pytest.fixture
def side(endpoint: str) -> Iterator[Side]:
    made = Side(endpoint)
    yield made
    made.close()


@pytest.fixture(scope="session")
def _shared_proxy() -> Iterator[Proxy]:
    made = Proxy(services.ministack())
    yield made
    made.close()


@pytest.fixture
def proxy(_shared_proxy: Proxy) -> Iterator[Proxy]:
    """An endpoint in front of ministack, without a fault."""
    _shared_proxy.reset()
    yield _shared_proxy
    _shared_proxy.reset()


@pytest.fixture
def faulty(proxy: Proxy) -> Iterator[Side]:
    """A side whose requests go through the proxy."""
    made = Side(proxy.endpoint)
    proxy.reset(only=made.names.prefix)
    yield made
    proxy.mend()
    made.close()
