"""Contributions that are shown at the same time: one commit for many, and each answered rightly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from artel.protocol import round_state
from artel.protocol.errors import ResourceError
from artel.protocol.net import wire
from artel.protocol.round_state import Phase
from desk_world import Member, Office, run_of

MEMBERS = 8


@pytest_asyncio.fixture
async def revealing(tmp_path: Path) -> AsyncIterator[tuple[Office, list[Member]]]:
    """A round whose members have committed, and put what they have."""
    office = Office(tmp_path, *run_of(tmp_path, {"min_nodes": MEMBERS}, {"topology": "gather"}))
    await office.open()
    members = [Member(office, f"{number}") for number in range(MEMBERS)]
    members[1].vector = np.array(members[0].vector)  # a copy
    for member in members:
        await member.hello()
        await member.beat()
    for member in members:
        await member.commit()
    for member in members:
        if member is not members[1]:  # whose content is here already
            await member.put()
    assert office.core.state.phase is Phase.REVEALING
    yield office, members
    office.close()


async def test_what_is_shown_at_once_shares_commits_and_a_copy_is_found_among_them(
    revealing: tuple[Office, list[Member]], monkeypatch: pytest.MonkeyPatch
) -> None:
    office, members = revealing
    commits: list[int] = []
    append = office.core.ledger.store.append

    def counted(entries: Sequence[Any], *rest: Any) -> Any:
        commits.append(len(entries))
        return append(entries, *rest)

    monkeypatch.setattr(office.core.ledger.store, "append", counted)
    said = await asyncio.gather(*(one.reveal() for one in members), return_exceptions=True)
    refused = [error for error in said if isinstance(error, wire.Refused)]
    assert [error.code for error in refused] == [round_state.COPIED]
    assert office.core.state.phase is Phase.APPLYING
    assert len(office.accepted()) == MEMBERS - 1
    # The last of them is the end of the round.
    assert sum(commits) == MEMBERS - 1 + 1
    assert len(commits) < MEMBERS / 2


async def test_a_disk_that_fails_is_told_to_all_who_wait(
    revealing: tuple[Office, list[Member]], monkeypatch: pytest.MonkeyPatch
) -> None:
    office, members = revealing

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(office.core.ledger.store, "append", full)
    said = await asyncio.wait_for(
        asyncio.gather(*(one.reveal() for one in members), return_exceptions=True), 30
    )
    assert all(isinstance(error, Exception) for error in said)
    with pytest.raises(ResourceError, match="the disk is full"):
        await office.core.drive()
    assert not office.core.state.revealed
