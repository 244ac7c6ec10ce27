"""Who is named in an invite may hold the ledger and not take entries: the next one is asked."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from artel.protocol import messages
from artel.protocol.net import wire
from ledger_world import World, key
from party_world import Parties, Party, two_coordinators


@pytest.fixture(scope="module")
def world() -> World:
    return two_coordinators()


@pytest.fixture
async def three(tmp_path: Path, world: World) -> AsyncIterator[list[Party]]:
    async with AsyncExitStack() as stack:
        run = Parties(tmp_path, world, stack)
        leader = await run.coordinator()
        yield [leader, await run.party(world.standbys[0]), await run.party(key("another one"))]


HANDS_IN = """
import sys
from artel.ledger.sync.lightnode import PeerHolder
from artel.protocol.net.wire import Refused
run, statement, *ways = sys.argv[1:]
holder = PeerHolder(tuple(ways))
try:
    holder.send("submit", run, statement.encode())
    print(holder.name)
except Refused as refusal:
    print(refusal.message)
finally:
    holder.close()
"""


async def handed_in(parties: list[Party], statement: str) -> str:
    """Hand it in with an invite that names these, in this order; who has taken it, or why not.

    In a process of its own: py-libp2p and hivemind do not get on in one.
    """
    ways = [way for party in parties for way in await party.host.addresses()]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HANDS_IN, parties[0].world.run, statement, *ways),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return out.decode().strip()


@pytest.mark.parametrize("code", [messages.NOT_LEADING, messages.NOT_COORDINATOR])
async def test_who_takes_nothing_is_passed_over(three: list[Party], code: str) -> None:
    async def refuse(_: bytes) -> None:
        raise wire.Refused("not here", code=code)

    leader, *others = three
    for party in others:
        party.takes = refuse
    asked = await handed_in([*others, leader], "an entry")
    assert asked.endswith(leader.host.peer_id)
    assert [party.submitted for party in three] == [[b"an entry"]] * 3
    assert await handed_in(others, "another entry") == "not here"


async def test_who_says_no_is_believed(three: list[Party]) -> None:
    async def refuse(_: bytes) -> None:
        raise wire.Refused("it would change nothing", code="duplicate")

    leader, *others = three
    leader.takes = refuse
    assert await handed_in([leader, *others], "an entry") == "it would change nothing"
    assert [party.submitted for party in three] == [[b"an entry"], [], []]
