"""What tests with real hosts share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from artel.protocol.net import streams
from artel.protocol.net.host import Host
from delivery_world import acquainted


@pytest.fixture(autouse=True)
def _short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw streams of these tests never close first; nobody wants to wait for them."""
    monkeypatch.setattr(streams, "LINGER_S", 0.3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Host]]:
    """Four that know each other."""
    async with acquainted(tmp_path_factory.mktemp("hosts"), 4) as four:
        yield four
