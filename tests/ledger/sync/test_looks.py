"""What somebody shows who is not trusted yet is looked at within bounds, and holds up nobody."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from artel.ledger import entries
from artel.ledger.entries.records import Term
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync import looks
from artel.ledger.sync.leadership import said_by
from artel.ledger.sync.looks import Looks
from artel.ledger.sync.peers import PeerSource
from artel.ledger.sync.replica import Replica
from artel.ledger.sync.serving import Served
from artel.ledger.sync.source import TERMS_PATH, Holder
from artel.ledger.tlog.checkpoint import origin_of, sign_checkpoint
from artel.protocol import messages
from artel.protocol.errors import CheckFailed, Unreachable
from artel.protocol.net import wire
from host_world import until
from ledger_world import World, key
from log_world import replay
from party_world import HANDOVER_S, Parties, Party, after, two_coordinators


@pytest.fixture(scope="module")
def world() -> World:
    return two_coordinators()


@pytest.fixture
async def run(tmp_path: Path, world: World) -> AsyncIterator[Parties]:
    async with AsyncExitStack() as stack:
        yield Parties(tmp_path, world, stack)


async def drips(party: Party, run: str) -> list[str]:
    """Have a party show a head of a later term at once, and what is under it never; what it is
    asked for."""
    asked = list[str]()
    text = sign_checkpoint(party.host.identity, origin_of(run, 6), 10**6, os.urandom(32))
    note = text.encode()

    async def answer(peer: str, request: Any, stream: wire.ByteStream) -> None:
        assert isinstance(request, messages.Get)
        asked.extend(request.paths)
        for path in request.paths:
            if path == "checkpoint":
                await wire.write_message(stream, messages.File(size=len(note)))
                await stream.write(note)
            elif path in ("certified", "seal"):
                await wire.write_message(stream, messages.Refusal.of("not_here", "none"))
            else:
                await asyncio.sleep(300)

    await party.host.serve(wire.LEDGER, answer)
    return asked


async def test_who_shows_a_later_term_slowly_holds_up_no_seal_and_nobodys_copy(
    run: Parties, world: World
) -> None:
    leader = await run.coordinator()
    first, second = await run.elector(leader), await run.elector(leader, 1)
    asked = await drips(await run.party(key("a stranger")), world.run)
    await leader.add(after(world.leaves, world.opened(1)), world.coordinator)
    await second.follow(leader)
    await leader.host.close()
    await first.lose()
    first.clock.now += HANDOVER_S
    async with asyncio.timeout(30.0):  # a file of a copy that is trusted has 60 s
        await first.sealing.look()
        assert first.sealing.term == 0
        await until(lambda: len(asked) > 3, 20.0)  # it was looked at
        await first.follow(second)
    assert first.replica.store.size == second.replica.store.size


async def test_who_wasted_a_look_is_left_alone_for_a_while(
    run: Parties, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "LOOK_S", 0.5)
    leader = await run.coordinator()
    first, stranger = await run.elector(leader), await run.party(key("a stranger"))
    asked = await drips(stranger, world.run)
    async with asyncio.timeout(30.0):
        with pytest.raises(Unreachable):
            await first.follow(stranger)
    many = len(asked)
    with pytest.raises(Unreachable, match="not looked at now"):
        await first.follow(stranger)
    assert len(asked) == many


def test_looks_are_few_and_those_at_strangers_take_no_place_of_others() -> None:
    class Source:
        def __init__(self, peer: str) -> None:
            self.peer = self.name = peer
            self.seconds = 0.0

        def limit(self, seconds: float, bytes: float) -> None:
            self.seconds = seconds

    now = 0.0
    found = Looks(lambda: now)

    def look(peer: str, *, known: bool = False) -> tuple[Any, Source]:
        source = Source(peer)
        return found.at(cast(PeerSource, source), known=known), source

    with look("one")[0], look("other")[0]:
        with pytest.raises(Unreachable), look("third")[0]:
            raise AssertionError
        with (
            look("a member", known=True)[0],
            pytest.raises(Unreachable),
            look("a member", known=True)[0],
        ):
            raise AssertionError
    rests = list[float]()
    for times in range(3):
        at, source = look("one")
        with pytest.raises(CheckFailed), at:
            now += 5.0
            raise CheckFailed("nothing")
        assert source.seconds == looks.LOOK_S * 2**times
        ended = now
        while found.resting("one"):
            now += 1.0
        rests.append(now - ended)
    assert rests == [21.0, 42.0, 84.0]


async def test_a_handover_that_is_not_sealed_is_refused_before_anything_behind_it_is_read(
    world: World, tmp_path: Path
) -> None:
    led, liar, node = key("a liar's coordinator"), world.members[2], key("its node")
    said = entries.seal(liar, world.run, term=0, next=node.peer_id)
    seals = [entries.open_seal(said.encode())[1]]
    handed = entries.handover(led, world.run, term=1, seals=seals, node=node)
    junk = [entries.account(key(f"junk {number}"), world.run) for number in range(600)]
    leaves = [*world.leaves, handed.encode(), *(each.encode() for each in junk)]
    with LedgerStore.open(tmp_path / "liar" / DATABASE_NAME, create=True, run=world.run) as store:
        store.append(world.leaves, world.sign)
        store.begin_term(1)
        sign = lambda size, root: sign_checkpoint(led, origin_of(world.run, 1), size, root)  # noqa: E731
        for first in range(len(world.leaves), len(leaves), 256):
            store.append(leaves[first : first + 256], sign)
        heads = HeadStore(tmp_path / "liar" / HEADS_NAME)
        files = Served(store, heads, lambda: replay(leaves))
        asked = list[str]()

        class Liar:
            name = "the liar"

            def get(self, path: str, skip: int = 0) -> bytes:
                asked.append(path)
                if path == TERMS_PATH:
                    return said_by([Term(1, len(world.leaves), led.key)])
                return files.get(path, skip)

            def close(self) -> None:
                pass

        replica = Replica.open(tmp_path / "own" / DATABASE_NAME, world.run)
        head = world.head(world.leaves)
        await replica.add(world.leaves, world.sign(len(world.leaves), head.root))
        with pytest.raises(CheckFailed, match="not sealed by the electors"):
            await replica.take_from(cast(Holder, Liar()), world.run)
        assert replica.store.size == len(world.leaves)
        assert not [path for path in asked if path.startswith("tile/entries/001")]
        assert not [path for path in asked if path.startswith("tile/entries/002")]
        replica.store.close()
        heads.close()
