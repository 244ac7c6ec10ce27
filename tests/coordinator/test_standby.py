"""A coordinator that stands by, on real hosts: it follows, takes over with seals of a quorum, and
whoever led before stands by in its turn."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from artel.coordinator import recovery, standby
from artel.coordinator.circle import Circle
from artel.coordinator.own_ledger import OwnLedger
from artel.coordinator.standby import Standby
from artel.coordinator.takeover import Seals, begin, shows_handover
from artel.ledger import entries
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync.peers import PeerSource
from artel.ledger.sync.replica import Replica
from artel.ledger.sync.serving import LedgerService, Served
from artel.ledger.sync.source import CERTIFIED_PATH
from artel.ledger.tlog.checkpoint import origin_of, parse_checkpoint, sign_checkpoint
from artel.ledger.tlog.tiles import CHECKPOINT_PATH
from artel.protocol import messages
from artel.protocol.errors import CheckFailed, DecodeError, ResourceError
from artel.protocol.identity import Identity
from artel.protocol.net import dht, dht_node, wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.host import Host
from artel.protocol.tasks import end
from client_world import cosigned, write_key
from host_world import LOOPBACK, anybody, until
from ledger_world import World, key

OLDER = 10


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "FOLLOW_S", 0.05)
    monkeypatch.setattr(standby, "SILENT_S", 0.2)
    monkeypatch.setattr(recovery, "ASK_S", 1.0)


@pytest.fixture
def world() -> World:
    world = World(nodes=3, waiting=1)
    world.add(*world.start, *world.round(0))
    return world


async def host_of(home: Path, who: Identity, run: str = "") -> Host:
    """A host that keeps the records of a run in the DHT."""
    write_key(home / "node.key", who)
    keys = dht.keys_of(run) if run else ()
    host = await Host.start(who, home / "node.key", listen=[LOOPBACK], keys=keys)
    host.admit(anybody)
    return host


def sealed(world: World, who: Identity, term: int = 0, *, run: str = "", **changes: Any) -> bytes:
    """A seal for the standby."""
    known = {"next": world.standbys[0].key} | changes
    return entries.seal(who, run or world.run, term=term, **known).encode()


@dataclass
class Party:
    """Somebody who has a copy of the ledger, and shows a seal."""

    host: Host
    replica: Replica
    heads: HeadStore
    who: Identity
    seal: bytes = b""

    @classmethod
    async def of(cls, home: Path, world: World, who: Identity, size: int) -> Party:
        host = await host_of(home, who, world.run)
        replica = Replica.open(home / DATABASE_NAME, world.run)
        party = cls(host, replica, HeadStore(home / HEADS_NAME), who)
        await party.take(world, size)
        service = LedgerService(
            replica.store, party.heads, world.run, lambda: replica.state, seal=lambda: party.seal
        )
        await host.serve(wire.LEDGER, service.answer)
        return party

    async def take(self, world: World, size: int) -> None:
        """Have so many entries of the first coordinator's."""
        head = world.head(world.leaves[:size])
        await self.replica.add(
            world.leaves[self.replica.store.size : size], world.sign(size, head.root)
        )

    def seals(self, world: World, term: int = 0, **changes: Any) -> None:
        self.seal = sealed(world, self.who, term, **changes)

    async def close(self) -> None:
        await self.host.close()
        self.replica.store.close()
        self.heads.close()


@pytest_asyncio.fixture
async def parties(tmp_path: Path, world: World) -> AsyncIterator[list[Party]]:
    """Two of the three electors; one has all that the coordinator signed, the other one less."""
    whole = len(world.leaves)
    sizes = zip(world.members[:2], (whole, whole - 1), strict=True)
    found = [await Party.of(tmp_path / who.peer_id, world, who, n) for who, n in sizes]
    yield found
    for party in found:
        await party.close()


@pytest_asyncio.fixture
async def waiting(
    tmp_path: Path, world: World, parties: list[Party]
) -> AsyncIterator[tuple[Standby, OwnLedger]]:
    """The standby, whose home has the first entries and knows where the others are."""
    home, (who,) = tmp_path / "standby", world.standbys
    host = await host_of(home, who)
    with contextlib.ExitStack() as stack:
        coordinators = [world.coordinator.key, who.key]
        own = OwnLedger.open(home, world.run, who.key, coordinators, "", stack)
        head = world.head(world.leaves[:OLDER])
        await own.replica.add(world.leaves[:OLDER], world.sign(OLDER, head.root))
        circle = Circle(home, host, world.run, lambda: own.replica.state)
        for party in parties:
            circle.known[party.host.peer_id] = await party.host.addresses()
            host.remember(party.host.peer_id, circle.known[party.host.peer_id])
            assert await host.connect(party.host.peer_id, await party.host.addresses())
        blobs = BlobStore(home / "blobs")
        stands = Standby(own, host, blobs, cast(Any, None), circle, who.key)
        await stands.open()
        yield stands, own
    await host.close()


async def test_with_an_empty_home_it_is_held_up_by_no_stranger_that_shows_a_head(
    world: World, parties: list[Party], tmp_path: Path
) -> None:
    home, (who,) = tmp_path / "fresh", world.standbys
    note = sign_checkpoint(key("whoever"), world.origin, 10**6, b"\1" * 32).encode()
    asked = list[str]()

    async def answer(peer: str, request: Any, stream: wire.ByteStream) -> None:
        asked.append(peer)
        if len(request.paths) == 1:  # whoever looks at it gets nothing
            await asyncio.sleep(300)
        for path in request.paths:
            if path == CHECKPOINT_PATH:
                await wire.write_message(stream, messages.File(size=len(note)))
                await stream.write(note)
            else:
                await wire.write_message(stream, messages.Refusal.of("not_here", "none"))

    async with contextlib.AsyncExitStack() as stack:
        host = await host_of(home, who)
        stack.push_async_callback(host.close)
        keys = [world.coordinator.key, who.key]
        exits = stack.enter_context(contextlib.ExitStack())
        own = OwnLedger.open(home, world.run, who.key, keys, "", exits)
        circle = Circle(home, host, world.run, lambda: own.replica.state)
        for number in range(3):
            other = await host_of(tmp_path / f"stranger-{number}", key(f"stranger {number}"))
            stack.push_async_callback(other.close)
            await other.serve(wire.LEDGER, answer)
            assert await host.connect(other.peer_id, await other.addresses())
        stands = Standby(own, host, BlobStore(home / "blobs"), cast(Any, None), circle, who.key)
        following = asyncio.create_task(stands.until_turn())
        await until(lambda: len(asked) >= 6)
        holder = parties[0].host  # no coordinator
        assert await host.connect(holder.peer_id, await holder.addresses())
        await until(lambda: own.store.size == len(world.leaves), 15.0)
        await end(following)


async def test_with_seals_of_a_quorum_it_goes_on_from_the_longest_head_that_anybody_shows(
    world: World, parties: list[Party], waiting: tuple[Standby, OwnLedger], tmp_path: Path
) -> None:
    stands, own = waiting
    one, other = parties
    turn = asyncio.create_task(stands.until_turn())
    one.seals(world)
    await until(lambda: own.store.size == len(world.leaves), 30.0)
    await asyncio.sleep(0.5)
    assert not turn.done(), "one of three seals no term"
    world.add(world.opened(1))
    await one.take(world, len(world.leaves))
    other.seals(world, size=other.replica.store.size, root=other.replica.store.root.hex())
    found = await asyncio.wait_for(turn, 30.0)
    assert found is not None
    assert found.term == 1
    (who,) = world.standbys
    sequencer = await begin(own, found, who)
    assert sequencer.state.term.leader == who.key
    assert parse_checkpoint(own.store.latest_note).origin == origin_of(world.run, 1)
    leaves = list(own.store.leaves())
    assert leaves[:-1] == world.leaves
    assert entries.decode(leaves[-1]).kind == "handover"
    assert own.heads.sealed(world.run) == (0, "")
    service = LedgerService(own.store, own.heads, world.run, lambda: sequencer.state)
    await stands._host.serve(wire.LEDGER, service.answer)
    # Whoever led before, and signed more than anybody has seen, is one history with all again.
    home = tmp_path / "former"
    with contextlib.ExitStack() as stack:
        key = world.coordinator.key
        with LedgerStore.open(home / DATABASE_NAME, create=True) as store:
            store.append(world.leaves, world.sign)
            store.append(
                [entry.encode() for entry in world.followed(world.committed(1))], world.sign
            )
        former = OwnLedger.open(home, world.run, key, [key, who.key], "", stack)
        assert former.leads(key)
        source = PeerSource(one.host, stands._host.peer_id, world.run)
        one.host.remember(stands._host.peer_id, await stands._host.addresses())
        note, state = own.store.latest_note, former.replica.state
        assert await asyncio.to_thread(shows_handover, source, note, former.store, state)
        await former.follow(source)
        assert not former.leads(key)
        assert former.store.root == own.store.root
        assert former.lost() == ""


async def test_with_a_wrong_clock_it_leaves_a_term_to_another_coordinator_that_answers_once(
    world: World,
    parties: list[Party],
    waiting: tuple[Standby, OwnLedger],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stands, _ = waiting
    leader = await host_of(tmp_path / "leader", world.coordinator)
    stands._host.remember(leader.peer_id, await leader.addresses())
    monkeypatch.setattr(dht_node, "get_dht_time", lambda: time.time() + 3600.0)
    turn = asyncio.create_task(stands.until_turn())
    try:
        for party in parties:
            await party.take(world, len(world.leaves))
            party.seals(world)
        await until(lambda: "term.left_to_others" in caplog.text, 30.0)
        await asyncio.sleep(0.5)
        assert not turn.done()
        # Nobody has led since: the next time that it is its turn a wrong clock is better than none.
        for party in parties:
            party.seals(world, 6)
        found = await asyncio.wait_for(turn, 30.0)
    finally:
        await end(turn)
        await leader.close()
    assert found is not None
    assert found.term == 7
    assert caplog.text.count("clock.differs") >= 2
    assert caplog.text.count("term.left_to_others") == 1


async def test_with_a_wrong_clock_it_leads_where_no_other_coordinator_answers_and_says_so(
    world: World,
    parties: list[Party],
    waiting: tuple[Standby, OwnLedger],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stands, _ = waiting
    monkeypatch.setattr(dht_node, "get_dht_time", lambda: time.time() - 60.0)
    turn = asyncio.create_task(stands.until_turn())
    for party in parties:
        await party.take(world, len(world.leaves))
        party.seals(world)
    found = await asyncio.wait_for(turn, 30.0)
    assert found is not None
    assert found.term == 1
    assert "clock.differs" in caplog.text
    assert "left_to_others" not in caplog.text


async def test_a_head_of_a_later_term_without_a_handover_ends_no_term(
    world: World, parties: list[Party], waiting: tuple[Standby, OwnLedger]
) -> None:
    stands, own = waiting
    (who,) = world.standbys
    sign = partial(sign_checkpoint, who, origin_of(world.run, 1))
    one = parties[0]
    source = PeerSource(stands._host, one.host.peer_id, world.run)
    note = sign(one.replica.store.size, one.replica.store.root)
    assert not await asyncio.to_thread(shows_handover, source, note, own.store, own.replica.state)


async def test_a_seal_that_names_what_nobody_has_is_left_out(
    world: World, parties: list[Party], waiting: tuple[Standby, OwnLedger]
) -> None:
    stands, own = waiting
    one, other = parties
    one.seals(world)
    other.seals(world, size=1000, root="ab" * 32)
    turn = asyncio.create_task(stands.until_turn())
    await until(lambda: stands._seals.sealed(own.replica.state) == 0, 30.0)
    await asyncio.sleep(0.5)
    assert not turn.done()
    third = world.members[2]
    stands._seals.take(third.peer_id, sealed(world, third))
    found = await asyncio.wait_for(turn, 30.0)
    assert found is not None
    assert {seal.node for seal in found.seals} == {one.who.peer_id, third.peer_id}


async def test_who_asks_a_standby_to_lead_is_told_so(
    world: World, parties: list[Party], waiting: tuple[Standby, OwnLedger]
) -> None:
    stands, _ = waiting
    one = parties[0]
    one.host.remember(stands._host.peer_id, await stands._host.addresses())
    leave = messages.Leave(run=world.run)
    with pytest.raises(wire.Refused) as caught:
        await one.host.ask(stands._host.peer_id, wire.CONTROL, leave)
    assert caught.value.code == messages.NOT_LEADING


async def test_a_seal_or_a_certified_head_that_is_wrong_hides_no_newer_head(
    world: World, parties: list[Party], waiting: tuple[Standby, OwnLedger]
) -> None:
    stands, own = waiting
    one, other = parties
    await other.host.close()
    another = sealed(world, other.who)
    forged = sign_checkpoint(key("another"), world.origin, OLDER, world.head(world.leaves).root)
    files = Served(one.replica.store, one.heads, lambda: one.replica.state, lambda: another)

    async def answer(peer: str, request: Any, stream: wire.ByteStream) -> None:
        for path in request.paths:
            data = forged.encode() if path == CERTIFIED_PATH else files.get(path)
            data = data[request.skip :] if path == request.paths[-1] else data
            await wire.write_message(stream, messages.File(size=len(data)))
            await stream.write(data)

    await one.host.serve(wire.LEDGER, answer)
    turn = asyncio.create_task(stands.until_turn())
    await until(lambda: own.store.size == len(world.leaves), 30.0)
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)


def test_seals_are_of_the_node_that_shows_them_and_the_newest_counts(world: World) -> None:
    one, other, third = world.members
    seals, state = Seals(world.run), world.state
    with pytest.raises(DecodeError):
        seals.take(one.peer_id, world.leaves[0])
    with pytest.raises(CheckFailed, match="another node"):
        seals.take(other.peer_id, sealed(world, one))
    with pytest.raises(CheckFailed, match="another run"):
        seals.take(one.peer_id, sealed(world, one, run="ab" * 32))
    for node, term in ((one, 1), (one, 0), (other, 0), (third, 0)):
        seals.take(
            node.peer_id,
            sealed(world, node, term),
        )
    assert (seals.some(state), seals.sealed(state)) == (True, 0)
    seals.take(other.peer_id, sealed(world, other, 1))
    assert seals.sealed(state) == 1


def test_a_seal_of_a_term_that_no_elector_can_have_come_to_says_nothing(world: World) -> None:
    liar, other = world.members[:2]
    seals, state = Seals(world.run), world.state
    seals.take(liar.peer_id, sealed(world, liar, 2**52))
    assert (seals.some(state), seals.sealed(state)) == (False, -1)
    stranger = key("a stranger")
    seals.take(
        stranger.peer_id,
        sealed(world, stranger),
    )
    assert not seals.some(state), "it is no elector"
    seals.take(other.peer_id, sealed(world, other))
    assert seals.some(state)


async def test_a_term_is_begun_with_seals_of_electors_alone(
    world: World, parties: list[Party], waiting: tuple[Standby, OwnLedger]
) -> None:
    _, own = waiting
    await own.follow(PeerSource(waiting[0]._host, parties[0].host.peer_id, world.run))
    seals = Seals(world.run)
    for node in (*world.members, key("a stranger"), key("another")):
        seals.take(node.peer_id, sealed(world, node, next=world.members[0].elected.key))
    assert seals.sealed(own.replica.state) == 0
    assert seals.turn(own, world.standbys[0].key) is None, "these are for another"
    for node in (*world.members, key("a stranger"), key("another")):
        seals.take(node.peer_id, sealed(world, node))
    turn = seals.turn(own, world.standbys[0].key)
    assert turn is not None
    assert {seal.node for seal in turn.seals} == {node.peer_id for node in world.members}


async def test_of_many_who_say_to_know_a_run_all_are_asked_in_turn(
    world: World, waiting: tuple[Standby, OwnLedger], monkeypatch: pytest.MonkeyPatch
) -> None:
    stands, _ = waiting
    monkeypatch.setattr(Standby, "state", World(name="nothing yet").state)
    many = [key(f"liar {number}").peer_id for number in range(20)]
    stands._circle.known.update({peer: ["/ip4/127.0.0.1/tcp/1"] for peer in many})
    asked = {peer for _ in range(2) for peer in await stands._asked_now()}
    assert asked >= set(many)


async def test_who_says_in_the_dht_to_lead_hides_nobody_that_leads(
    waiting: tuple[Standby, OwnLedger], monkeypatch: pytest.MonkeyPatch
) -> None:
    stands, _ = waiting
    claims = [key(f"claims {number}").peer_id for number in range(4 * standby.MOST_OTHERS)]
    record = dht.RunRecord(name="", addresses=[], http="", round=0, term=2**52)

    async def found(name: str, schema: type) -> dict[str, Any]:
        return dict.fromkeys([*claims, key("who leads").peer_id], record)

    monkeypatch.setattr(stands._circle, "_found", found)
    asked = set[str]()
    for _ in range(100):
        await stands._circle.learn(())
        asked |= set(await stands._everybody())
    assert key("who leads").peer_id in asked


async def test_a_home_that_was_put_back_begins_no_term_twice(
    world: World, parties: list[Party], waiting: tuple[Standby, OwnLedger]
) -> None:
    _, own = waiting
    (who,) = world.standbys
    await own.follow(PeerSource(waiting[0]._host, parties[0].host.peer_id, world.run))
    seals = Seals(world.run)
    for node in world.members:
        seals.take(node.peer_id, sealed(world, node))
    assert seals.turn(own, who.key) is not None
    assert own.heads.advance(origin_of(world.run, 1), 0, 3, bytes(32))
    assert seals.turn(own, who.key) is None


async def test_of_two_histories_it_goes_over_to_the_one_that_electors_have_certified(
    world: World, parties: list[Party], waiting: tuple[Standby, OwnLedger]
) -> None:
    stands, own = waiting
    shared = list(world.leaves)
    disputed = world.dispute(world.owners[0], world.earned(world.members[1], 0)).encode()
    (opened,) = world.add(world.opened(1))
    ours, theirs = [*shared, opened], [*shared, disputed]
    head = world.head(ours)
    await own.replica.add(ours[OLDER:], world.sign(len(ours), head.root))
    certified = cosigned(world.sign(len(theirs), world.head(theirs).root), *world.members)
    for party in parties:
        await party.replica.add(theirs[party.replica.store.size :], certified)
        party.heads.add_note(certified)
        party.seals(world, size=len(theirs), root=world.head(theirs).root.hex())
    found = await asyncio.wait_for(stands.until_turn(), 60.0)
    assert found is not None
    assert list(own.store.leaves()) == theirs
    assert own.replica.state.size == len(theirs)
    assert own.heads.conflicts(), "who led has signed both"
    sequencer = await begin(own, found, world.standbys[0])
    assert sequencer.state.term.number == 1


def test_seals_that_come_before_the_ledger_give_no_turn(world: World, tmp_path: Path) -> None:
    """The coordinator that a node had started ended with an error again and again: electors had
    answered before whoever had the ledger."""
    seals = Seals(world.run)
    for member in world.members:
        seals.take(member.peer_id, sealed(world, member))
    assert seals.sealed(FoldState()) == -1
    who = world.standbys[0].key
    with contextlib.ExitStack() as stack:
        own = OwnLedger.open(tmp_path, world.run, who, [world.coordinator.key, who], "", stack)
        assert seals.turn(own, who) is None


async def test_no_term_is_begun_while_another_process_runs_with_the_same_key(
    waiting: tuple[Standby, OwnLedger], parties: list[Party], world: World, tmp_path: Path
) -> None:
    stands, own = waiting
    ways = [way for party in parties for way in await party.host.addresses()]
    assert await stands._host.join(ways)
    other = await host_of(tmp_path / "copy", world.standbys[0])
    try:
        assert await other.join(ways)
        where = await other.addresses()
        says = {"name": "", "addresses": where, "http": "", "round": 0, "term": -1}
        assert await other.publish(dht.run_key(world.run), dht.RunRecord.model_validate(says))
        for party in parties:
            party.seals(world)
        with pytest.raises(ResourceError, match=f"with this coordinator's key.* {where[0]}"):
            await asyncio.wait_for(stands.until_turn(), 30.0)
        assert own.store.term == 0
    finally:
        await other.close()
