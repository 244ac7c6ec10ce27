"""The run, the office and the members that tests of the coordinator share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from desk_world import Member, Office, run_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_of(tmp_path_factory.mktemp("run"))


@pytest_asyncio.fixture
async def office(run: Any, tmp_path: Path) -> AsyncIterator[Office]:
    office = await Office(tmp_path / "coordinator", *run).open()
    yield office
    office.close()


@pytest_asyncio.fixture
async def members(office: Office) -> list[Member]:
    """Three admitted nodes that have not said what they do yet."""
    three = [Member(office, name) for name in "abc"]
    for member in three:
        await member.hello()
    return three
