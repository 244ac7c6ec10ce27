"""What somebody shows who is not trusted yet is looked at within bounds, and holds up nobody."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest

from artel.ledger import entries
from artel.ledger.entries.kinds.handover import candidate
from artel.ledger.entries.records import Term
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME, MAX_BATCH, LedgerStore
from artel.ledger.sync import looks, replica
from artel.ledger.sync.leadership import said_by
from artel.ledger.sync.looks import Looks, Taking
from artel.ledger.sync.peers import PeerSource
from artel.ledger.sync.replica import Replica
from artel.ledger.sync.serving import Served
from artel.ledger.sync.source import TERMS_PATH, Holder
from artel.ledger.tlog.checkpoint import origin_of, sign_checkpoint
from artel.ledger.tlog.tiles import ENTRIES, Tile, encode_bundle
from artel.node import link
from artel.node.link import Link
from artel.protocol import messages
from artel.protocol.errors import CheckFailed, Unreachable
from artel.protocol.identity import Identity
from artel.protocol.invite import Invite
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


async def drips(
    party: Party,
    run: str,
    note: str = "",
    gives: Mapping[str, bytes] = MappingProxyType({}),
    *,
    once: bool = False,
) -> list[str]:
    """Have a party show a head at once, and what is under it never; what it is asked for.

    :param note: "" for one of a later term that it made up
    :param gives: files that it gives beside
    :param once: who has seen its heads, and asks for one alone, gets nothing
    """
    asked = list[str]()
    made_up = sign_checkpoint(party.host.identity, origin_of(run, 6), 10**6, os.urandom(32))
    files = {"checkpoint": (note or made_up).encode(), **gives}

    async def answer(peer: str, request: Any, stream: wire.ByteStream) -> None:
        assert isinstance(request, messages.Get)
        asked.extend(request.paths)
        for path in request.paths:
            data = None if once and request.paths == ["checkpoint"] else files.get(path)
            if path in ("certified", "seal"):
                await wire.write_message(stream, messages.Refusal.of("not_here", "none"))
            elif data:
                await wire.write_message(stream, messages.File(size=len(data)))
                await stream.write(data)
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


@pytest.mark.parametrize("term", [0, 6])
async def test_a_coordinator_that_lies_is_looked_at_once_at_a_time_and_holds_up_nobody(
    run: Parties, world: World, monkeypatch: pytest.MonkeyPatch, term: int
) -> None:
    monkeypatch.setattr(link, "SEEK_S", 1.0)
    leader = await run.coordinator()
    first, liar = await run.elector(leader), await run.party(world.standbys[0])
    note = sign_checkpoint(liar.host.identity, origin_of(world.run, term), 10**6, os.urandom(32))
    asked = await drips(liar, world.run, note, once=True)
    async with asyncio.timeout(15.0):  # a look at a coordinator has 20 s
        for _ in range(3):
            assert await first.link.seek() == 2
        assert len([path for path in asked if path == "seal"]) == 3
        assert len([path for path in asked if path == "checkpoint"]) == 4
        await leader.add(after(world.leaves, world.opened(1)), world.coordinator)
        await first.follow(leader)
    assert first.replica.store.size == leader.replica.store.size


async def test_who_leads_and_gives_nothing_under_its_head_gives_way_to_who_has_the_same(
    run: Parties, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "TURN_S", 0.5)
    leader = await run.coordinator()
    first, second = await run.elector(leader), await run.elector(leader, 1)
    await leader.add(after(world.leaves, world.opened(1)), world.coordinator)
    await second.follow(leader)
    asked = await drips(leader, world.run, leader.replica.store.latest_note)
    async with asyncio.timeout(20.0):
        following = asyncio.create_task(first.follow(leader))
        await until(lambda: len(asked) > 1)
        await asyncio.sleep(3.0)
        assert not following.done()  # nobody else has what it shows
        await first.follow(second)
        with pytest.raises(Unreachable, match="did not give its ledger in time"):
            await following
    assert first.replica.store.size == second.replica.store.size


def test_who_gives_at_a_pace_goes_on_though_others_wait() -> None:
    def late(after: float, *, gave: int, more: int = 1, proven: bool = True) -> bool:
        """Whether it has to go then, having given as much as is asked for in so many seconds."""
        came = gave * looks.PACE
        known = {"taken": came} if proven else {"taken": 2 * came, "known": came}
        return Taking(more, proven=proven, **known).late(after)

    for proven in (True, False):
        assert not late(looks.TURN_S, gave=0, proven=proven)
        assert late(looks.TURN_S + 0.1, gave=0, proven=proven)
        assert not late(100.0, gave=100, proven=proven)
        assert late(16.0, gave=10, proven=proven)
        assert not late(160.0, gave=10, more=4, proven=proven)  # which was not done in time before
    doubted = Taking(1, taken=100 * looks.PACE, doubted=time.monotonic() - looks.TURN_S - 0.1)
    assert doubted.late(0.0)


async def test_a_copy_that_holds_nothing_is_held_up_by_no_stranger(
    run: Parties, world: World
) -> None:
    """Neither by those who show what nobody signed, nor by one that gives nothing under a head that
    was."""
    leader = await run.coordinator()
    first = await run.elector(leader)
    await leader.host.close()
    strangers = [await run.party(key(f"a stranger {number}")) for number in range(3)]
    bundle = Tile(ENTRIES, 0, 1)
    gives = {bundle.path: encode_bundle(world.leaves[:1])}
    await drips(strangers[0], world.run, leader.replica.store.latest_note, gives)
    for stranger in strangers[1:]:
        await drips(stranger, world.run)
    newcomer = await run.party(key("a newcomer"))
    newcomer.watches(key("its account"))
    for party in (*strangers, first):
        assert await newcomer.host.connect(party.host.peer_id, await party.host.addresses())
    began = time.monotonic()
    async with asyncio.timeout(60.0):
        await newcomer.link.seek()
        await until(lambda: newcomer.replica.store.size > 0, 60.0)
    assert time.monotonic() - began < 25.0  # a file that is trusted has 60 s
    assert newcomer.replica.store.root == first.replica.store.root


async def test_who_has_the_manifest_is_asked_beside_who_is_slow(
    run: Parties, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "open_manifest", lambda leaf: (None, leaf))  # this one says little
    leader, stranger = await run.coordinator(), await run.party(key("a stranger"))
    await drips(stranger, world.run)
    newcomer = await run.party(key("a newcomer"))
    ways = [(await party.host.addresses())[0] for party in (stranger, leader)]
    async with asyncio.timeout(3 * link.NEXT_S):
        _, first = await Link(newcomer.host, Invite(world.run, tuple(ways))).fetch_manifest()
    assert first == world.leaves[0]


async def test_who_may_lead_is_looked_at_once_at_a_time_too_and_waited_for() -> None:
    found, order = Looks(), list[int]()
    source = cast(PeerSource, Source("a leader"))

    async def look(number: int) -> None:
        async with found.at(source, known=True, trusted=True):
            order.append(number)
            await asyncio.sleep(0)
            order.append(number)
            raise Unreachable("too slow")

    await asyncio.gather(*map(look, range(3)), return_exceptions=True)
    assert order == [0, 0, 1, 1, 2, 2]


class Source:
    def __init__(self, peer: str) -> None:
        self.peer = self.name = peer
        self.seconds = 0.0

    def limit(self, seconds: float, bytes: float) -> None:
        self.seconds = seconds


async def test_looks_are_few_and_those_at_strangers_take_no_place_of_others() -> None:
    now = 0.0
    found = Looks(lambda: now)

    def look(peer: str, *, known: bool = False) -> tuple[Any, Source]:
        source = Source(peer)
        return found.at(cast(PeerSource, source), known=known), source

    async with look("one")[0], look("other")[0]:
        with pytest.raises(Unreachable):
            async with look("third")[0]:
                raise AssertionError
        async with look("a member", known=True)[0]:
            with pytest.raises(Unreachable):
                async with look("a member", known=True)[0]:
                    raise AssertionError
    rests = list[float]()
    for times in range(3):
        at, source = look("one")
        with pytest.raises(CheckFailed):
            async with at:
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
    led, liar = key("a liar's coordinator"), world.members[2]
    said = entries.seal(liar, world.run, term=0, next=led.key)
    seals = [entries.open_seal(said.encode())[1]]
    handed = entries.handover(led, world.run, term=1, seals=seals)
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

        own = Replica.open(tmp_path / "own" / DATABASE_NAME, world.run)
        head = world.head(world.leaves)
        await own.add(world.leaves, world.sign(len(world.leaves), head.root))
        with pytest.raises(CheckFailed, match="not sealed by the electors"):
            await own.take_from(cast(Holder, Liar()), world.run)
        assert own.store.size == len(world.leaves)
        assert not [path for path in asked if path.startswith("tile/entries/001")]
        assert not [path for path in asked if path.startswith("tile/entries/002")]
        own.store.close()
        heads.close()


async def grow(party: Party, leaves: Sequence[bytes], by: Identity, term: int = 0) -> None:
    for first in range(0, len(leaves), MAX_BATCH):
        await party.add(leaves[first : first + MAX_BATCH], by, term)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the files that are shown, of which few are read ahead."""
    monkeypatch.setattr("artel.ledger.fold.replay._IN_FLIGHT", 32 << 10)
    sizes, found = list[int](), PeerSource.files

    async def files(*given: Any, **options: Any) -> list[bytes | None]:
        answers = await found(*given, **options)
        sizes.extend(len(each) for each in answers if each)
        return answers

    monkeypatch.setattr(PeerSource, "files", files)
    return sizes


@pytest.mark.parametrize("whole", [True, False])
async def test_of_a_term_that_nobody_has_sealed_little_is_read_from_who_may_lead(
    run: Parties, world: World, monkeypatch: pytest.MonkeyPatch, shown: list[int], whole: bool
) -> None:
    monkeypatch.setattr(replica, "LOOK_BYTES", 64 << 10)
    monkeypatch.setattr(replica, "UNPROVEN_BYTES", 256 << 10)
    leader, (standby,) = await run.coordinator(), world.standbys
    liar = await run.party(standby)
    await liar.follow(leader)
    said = entries.seal(key("nobody"), world.run, term=0, next=standby.key)
    seals = [entries.open_seal(said.encode())[1]]
    junk = [entries.account(key(f"junk {number}"), world.run) for number in range(3000)]
    handed = entries.handover(standby, world.run, term=1, seals=seals)
    leaves = [each.encode() for each in (*junk, handed)]
    await grow(liar, leaves, standby, 1)
    liar.replica.state.terms.append(Term(1, len(world.leaves) + len(junk), standby.key))
    reader = await run.elector(leader) if whole else await run.party(key("a newcomer"))
    if not whole:
        reader.watches(key("its account"))
        reader.replica.coordinators = reader.link.coordinators
    shown.clear()
    root = reader.replica.store.root
    with pytest.raises(CheckFailed, match="more than is read before it is proven"):
        await reader.follow(liar)
    assert reader.replica.store.root == root
    assert 256 << 10 < sum(shown) < 700 << 10  # of 1.4 MB
    await reader.follow(leader)
    assert reader.replica.store.root == leader.replica.store.root


@pytest.fixture
async def replayed(run: Parties, world: World) -> tuple[Party, Party, Party]:
    """An elector, who leads the term that has begun, and a stranger that shows the true beginning
    of that, much that it made up, and a term of its own."""
    standby, led = world.standbys[0], key("a stranger's coordinator")
    leader, honest = await run.coordinator(), await run.party(standby)
    elector, liar = await run.elector(leader), await run.party(key("a stranger"))
    for party in (honest, liar):
        await party.follow(leader)
    said = [entries.seal(who, world.run, term=0, next=standby.key) for who in world.members]
    seals = [entries.open_seal(each.encode())[1] for each in said]
    true = entries.handover(standby, world.run, term=1, seals=seals)
    await honest.add([true.encode()], standby, 1)
    junk = [entries.account(key(f"junk {number}"), world.run) for number in range(5000)]
    nobodys = entries.seal(key("nobody"), world.run, term=1, next=led.key)
    seals = [entries.open_seal(nobodys.encode())[1]]
    forged = entries.handover(led, world.run, term=2, seals=seals)
    await grow(liar, [each.encode() for each in (true, *junk, forged)], led, 2)
    began = len(world.leaves) + 1 + len(junk)
    liar.replica.state.terms.append(Term(2, began, led.key))
    return elector, honest, liar


async def test_behind_a_true_handover_little_is_read_of_a_term_that_nobody_has_sealed(
    replayed: tuple[Party, Party, Party], monkeypatch: pytest.MonkeyPatch, shown: list[int]
) -> None:
    for module in (replica, looks):
        monkeypatch.setattr(module, "LOOK_BYTES", 512 << 10)
    elector, honest, liar = replayed
    root = elector.replica.store.root
    shown.clear()
    with pytest.raises(CheckFailed, match="more than is read before it is proven"):
        await elector.follow(liar)
    assert elector.replica.store.root == root
    assert sum(shown) < 3 * replica.LOOK_BYTES < 5000 * 400
    await elector.follow(honest)
    assert elector.replica.state.term.number == 1


async def test_who_shows_a_true_handover_and_then_what_it_made_up_gives_way(
    replayed: tuple[Party, Party, Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast it gives that: to fold it takes long."""
    monkeypatch.setattr(PeerSource, "waited", 0.0)
    monkeypatch.setattr(looks, "TURN_S", 0.3)
    elector, honest, liar = replayed
    following = asyncio.create_task(elector.follow(liar))
    await until(elector.replica._lock.locked)
    await elector.follow(honest)
    with pytest.raises(Unreachable, match="did not give its ledger in time"):
        await following
    assert elector.replica.state.term.number == 1


async def test_a_copy_that_is_several_terms_behind_takes_over_more_than_a_look_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: list[int]
) -> None:
    """Of a holder that may not lead, and whose terms are proven only as they are folded."""
    world = two_coordinators()
    before = len(world.leaves)
    for number in range(1, 60):
        world.add(*world.round(number))
        world.add(world.witnessed(world.leaves))
    async with AsyncExitStack() as stack:
        run = Parties(tmp_path, world, stack)
        first, holder = await run.party(world.coordinator), await run.party(key("a holder"))
        reader = await run.party(key("a reader"))
        await grow(first, world.leaves[:before], world.coordinator)
        await reader.follow(first)
        await grow(first, world.leaves[before:], world.coordinator)
        for term, leads in enumerate((world.standbys[0], world.coordinator), 1):
            assert candidate(first.replica.state, term) == leads.key
            said = [
                entries.seal(who, world.run, term=term - 1, next=leads.key) for who in world.members
            ]
            seals = [entries.open_seal(each.encode())[1] for each in said]
            handed = entries.handover(leads, world.run, term=term, seals=seals)
            await first.add([handed.encode()], leads, term)
        await holder.follow(first)
        monkeypatch.setattr("artel.ledger.store.store._PAGE", 32 << 10)  # folded at once
        for module in (replica, looks):
            monkeypatch.setattr(module, "LOOK_BYTES", 250 << 10)
        shown.clear()
        await reader.follow(holder)
        assert reader.replica.state.term.number == 2
        assert reader.replica.store.root == first.replica.store.root
        assert sum(shown) > 2.5 * replica.LOOK_BYTES


async def test_what_electors_have_made_final_is_read_to_its_end_by_a_copy_that_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: list[int]
) -> None:
    monkeypatch.setattr(replica, "UNPROVEN_BYTES", 300 << 10)
    monkeypatch.setattr("artel.ledger.store.store._PAGE", 32 << 10)  # folded at once
    world = two_coordinators()
    for number in range(1, 60):
        world.add(*world.round(number))
        world.add(world.witnessed(world.leaves))
    said = [
        entries.seal(who, world.run, term=0, next=world.standbys[0].key) for who in world.members
    ]
    seals = [entries.open_seal(each.encode())[1] for each in said]
    handed = entries.handover(world.standbys[0], world.run, term=1, seals=seals)
    async with AsyncExitStack() as stack:
        run = Parties(tmp_path, world, stack)
        standby, newcomer = await run.party(world.standbys[0]), await run.party(key("a newcomer"))
        await grow(standby, world.leaves, world.coordinator)
        await standby.add([handed.encode()], world.standbys[0], 1)
        await newcomer.follow(standby)
        assert newcomer.replica.state.term.number == 1
        assert newcomer.replica.store.root == standby.replica.store.root
    assert sum(shown) > 1.5 * replica.UNPROVEN_BYTES
