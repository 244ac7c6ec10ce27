"""A node whose coordinator is gone: it seals the term, finds the next one, and sends again what was
given up. Real hosts, ledgers and files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.entries.evidence import SplitView
from artel.ledger.entries.fold_state import peer_of
from artel.ledger.store import finality
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.keyfiles import NODE_KEY
from artel.ledger.store.store import DATABASE_NAME
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.peers import PeerSource
from artel.ledger.sync.replica import Replica
from artel.ledger.sync.serving import LedgerService
from artel.ledger.sync.signed_tree import manifest_of
from artel.ledger.sync.source import SEAL_PATH
from artel.ledger.sync.witness import Witness
from artel.ledger.tlog import note as notes
from artel.ledger.tlog.checkpoint import origin_of, sign_checkpoint
from artel.ledger.tlog.cosignature import add_lines, witness_name
from artel.node.link import NEIGHBOURS_FILE, Link, keep_neighbours, with_neighbours
from artel.node.sealing import Sealing
from artel.protocol import messages
from artel.protocol.dsse import Envelope
from artel.protocol.errors import CheckFailed, Unreachable
from artel.protocol.identity import Identity
from artel.protocol.invite import Invite
from artel.protocol.net import wire
from artel.protocol.net.host import Host
from host_world import LOOPBACK
from ledger_world import World, complete, key
from log_world import replay

HANDOVER_S = 100.0


@pytest.fixture(scope="module")
def world() -> World:
    """A run with two coordinators and three electors, whose first state is agreed on."""
    world = World(nodes=3, waiting=1, name="sealing")
    world.add(*world.start)
    world.add(*world.round(0))
    world.add(world.witnessed(world.leaves))
    return world


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Party:
    """Somebody with a host, a home and a copy of the ledger, which it serves."""

    def __init__(self, home: Path, host: Host, world: World) -> None:
        self.home, self.host, self.world = home, host, world
        self.replica = Replica.open(home / DATABASE_NAME, world.run)
        self.heads = HeadStore(home / HEADS_NAME)
        self.link = Link(host, Invite(world.run, (f"/ip4/127.0.0.1/tcp/1/p2p/{host.peer_id}",)))
        self.clock, self.said, self.submitted = Clock(), list[str](), list[bytes]()
        self.leads = True
        self.sealing: Sealing

    @classmethod
    async def at(cls, folder: Path, identity: Identity, world: World) -> Party:
        home = folder / identity.peer_id[-6:]
        home.mkdir()
        file = home / NODE_KEY
        file.write_bytes(identity.encode())
        file.chmod(0o600)
        party = cls(home, await Host.start(identity, file, listen=[LOOPBACK]), world)
        await party.serve()
        return party

    async def serve(self, sealing: Sealing | None = None) -> None:
        async def submit(_: str, statement: bytes) -> None:
            self.submitted.append(statement)

        async def control(*_: object) -> messages.Message:
            if not self.leads:
                raise wire.Refused("it stands by", code=messages.NOT_LEADING)
            return messages.Ok()

        service = LedgerService(
            self.replica.store,
            self.heads,
            self.world.run,
            lambda: self.replica.state,
            submit=submit,
            seal=sealing.statement if sealing else bytes,
        )
        await self.host.serve(wire.LEDGER, service.answer)
        await self.host.serve(wire.CONTROL, control)

    async def add(self, leaves: Sequence[bytes], by: Identity, term: int = 0) -> None:
        """Have the ledger here go on, as a coordinator has it."""
        store = self.replica.store
        if store.size and term > store.term:
            store.begin_term(term)
        sign = partial(sign_checkpoint, by, origin_of(self.world.run, term))
        await asyncio.to_thread(store.append, leaves, sign, self.replica.fold.beside)
        self.replica._settle()

    async def follow(self, other: Party) -> None:
        await self.replica.catch_up(self.host, other.host.peer_id, self.world.run)

    def watches(self, account: Identity) -> Sealing:
        self.link.coordinators = tuple(
            peer_of(each.key) for each in (self.world.coordinator, *self.world.standbys)
        )
        self.link._replica = self.replica
        self.sealing = Sealing(
            host=self.host,
            identity=self.host.identity,
            account=account,
            run=self.world.run,
            replica=self.replica,
            heads=self.heads,
            link=self.link,
            handover_s=HANDOVER_S,
            elected=None,
            say=self.said.append,
            clock=self.clock,
        )
        return self.sealing

    async def lose(self) -> None:
        """Notice that the coordinator does not answer."""
        with pytest.raises(Unreachable):
            await self.link.ask(messages.Leave(run=self.world.run), 3.0)
        self.link._lost = (self.link.coordinator, self.clock.now)

    async def close(self) -> None:
        await self.host.close()
        self.replica.store.close()
        self.heads.close()


class Run:
    """Parties of one run, who know where the others are."""

    def __init__(self, folder: Path, world: World, stack: AsyncExitStack) -> None:
        self._folder, self.world, self._stack = folder, world, stack
        self.parties: list[Party] = []

    async def party(self, identity: Identity) -> Party:
        party = await Party.at(self._folder, identity, self.world)
        self._stack.push_async_callback(party.close)
        for other in self.parties:
            party.host.remember(other.host.peer_id, await other.host.addresses())
            other.host.remember(party.host.peer_id, await party.host.addresses())
        self.parties.append(party)
        return party

    async def coordinator(self) -> Party:
        party = await self.party(self.world.coordinator)
        await party.add(self.world.leaves, self.world.coordinator)
        return party

    async def elector(self, leader: Party, number: int = 0) -> Party:
        party = await self.party(self.world.members[number])
        await party.follow(leader)
        sealing = party.watches(self.world.owners[number])
        sealing.neighbours = lambda: [each.host.peer_id for each in self.parties[1:]]
        await party.serve(sealing)
        return party


@pytest.fixture
async def run(tmp_path: Path, world: World) -> AsyncIterator[Run]:
    async with AsyncExitStack() as stack:
        yield Run(tmp_path, world, stack)


def after(leaves: Sequence[bytes], *envelopes: Envelope) -> list[bytes]:
    """These entries as they stand behind those."""
    return [each.encode() for each in complete(envelopes, replay(leaves))]


def handover(world: World, *sealers: Party, term: int = 1) -> Envelope:
    seals = [entries.open_seal(party.sealing.statement())[1] for party in sealers]
    return entries.handover(world.standbys[0], world.run, term=term, seals=seals)


async def test_an_elector_seals_the_term_of_a_silent_coordinator_and_signs_no_more_of_it(
    run: Run, world: World
) -> None:
    leader = await run.coordinator()
    first, second = await run.elector(leader), await run.elector(leader, 1)
    sealing = first.sealing
    assert sealing.due() is None
    await leader.host.close()
    await first.lose()
    first.clock.now += HANDOVER_S - 1
    await sealing.look()
    assert (sealing.term, sealing.waits) == (-1, True)
    assert "silent for 99 s" in sealing.waiting()
    assert await asyncio.to_thread(first.heads.sealed, world.run) == -1

    first.clock.now += 1
    await sealing.look()
    assert sealing.term == first.heads.sealed(world.run) == 0
    standby = peer_of(world.standbys[0].key)[-8:]
    assert f"waiting for coordinator …{standby}" in sealing.waiting()
    assert "term 0" in first.said[0]

    # Whoever may lead next is shown the seal, over the network; it names what the ledger records.
    (shown,) = await PeerSource(second.host, first.host.peer_id, world.run).files(SEAL_PATH)
    said, part = entries.open_seal(shown or b"")
    recorded = len(world.leaves) - 1
    assert (said.term, said.of, said.size) == (0, 0, recorded)
    assert said.root == first.replica.store.root_at(recorded).hex()
    assert part.node == first.host.peer_id
    (none,) = await PeerSource(first.host, second.host.peer_id, world.run).files(SEAL_PATH)
    assert none is None

    peer = first.host.peer_id
    sign = Witness(first.heads, first.host.identity, witness_name(peer), first.replica.keys_of)
    with pytest.raises(CheckFailed, match="its term is sealed"):
        sign.cosign(first.replica.store.latest_note, first.replica.store)
    # It is so after a restart, too.
    assert first.watches(world.owners[0]).term == 0


async def test_an_elector_that_reaches_nobody_seals_nothing(run: Run, world: World) -> None:
    leader = await run.coordinator()
    first = await run.elector(leader)
    first.sealing.neighbours = tuple
    await leader.host.close()
    await first.lose()
    first.clock.now += 10 * HANDOVER_S
    await first.sealing.look()
    assert first.sealing.term == -1
    second = await run.party(world.members[1])
    first.sealing.neighbours = lambda: [second.host.peer_id]
    await first.sealing.look()
    assert first.sealing.term == 0


async def test_each_term_that_nobody_begins_is_waited_for_twice_as_long(
    run: Run, world: World
) -> None:
    leader = await run.coordinator()
    first = await run.elector(leader)
    await run.elector(leader, 1)
    sealing = first.sealing
    await leader.host.close()
    await first.lose()
    for term, patience in enumerate((HANDOVER_S, 2 * HANDOVER_S, 4 * HANDOVER_S)):
        first.clock.now += patience - 1
        await sealing.look()
        assert sealing.term == term - 1
        first.clock.now += 1
        await sealing.look()
        assert sealing.term == term


async def test_the_coordinator_that_leads_may_ask_for_its_term_to_be_sealed(run: Run) -> None:
    leader = await run.coordinator()
    first = await run.elector(leader)
    stranger = await run.party(key("no elector"))
    await stranger.follow(leader)
    asked = stranger.watches(key("an account"))
    for sealing in (first.sealing, asked):
        sealing.ask(sealing.present - 1)  # whoever led before asked too late
        await sealing.look()
        assert sealing.term == -1
        sealing.ask(sealing.present)
        await sealing.look()
    assert (first.sealing.term, asked.term) == (0, -1)
    # It answers: nobody has to be replaced, and the next term is not sealed.
    first.clock.now += 100 * HANDOVER_S
    await first.sealing.look()
    assert first.sealing.term == 0


async def test_the_next_coordinator_is_found_and_what_was_given_up_is_sent_to_it_again(
    run: Run, world: World
) -> None:
    leader = await run.coordinator()
    parties = [await run.elector(leader, number) for number in range(3)]
    first = parties[0]
    first.replica.own = (world.owners[0].key, world.members[0].key)
    next = await run.party(world.standbys[0])
    await next.follow(leader)
    next.leads = False

    # Behind what is certified the first coordinator adds entries that the next one never gets.
    own = world.dispute(world.owners[0], world.earned(world.members[1], 0))
    other = world.dispute(world.owners[2], world.earned(world.members[1], 0))
    await leader.add(after(world.leaves, other, own), world.coordinator)
    await first.follow(leader)
    assert first.replica.store.size == next.replica.store.size + 2
    await leader.host.close()
    for party in parties:
        await party.lose()
        party.clock.now += HANDOVER_S
        await party.sealing.look()
        assert party.sealing.term == 0

    began = handover(world, *parties[1:])
    await next.add(after(world.leaves, began), world.standbys[0], 1)
    next.leads = True
    for party in parties:
        for _ in range(2):  # finds it, then follows
            await party.sealing.look()
        assert party.link.coordinator == next.host.peer_id
        assert (party.replica.state.term.number, party.sealing.waits) == (1, False)
        assert party.sealing.statement() == b""
        assert isinstance(await party.link.ask(messages.Leave(run=world.run)), messages.Ok)
    await first.sealing.look()
    assert next.submitted == [own.encode()]
    assert first.replica.store.root == next.replica.store.root


async def test_a_coordinator_that_stands_by_counts_as_one_that_does_not_answer(run: Run) -> None:
    leader = await run.coordinator()
    first = await run.elector(leader)
    assert first.link.lost_since is None
    leader.leads = False
    with pytest.raises(Unreachable, match="nobody leads the run: it stands by"):
        await first.link.ask(messages.Leave(run=run.world.run))
    assert first.link.lost_since is not None
    leader.leads = True
    await first.link.ask(messages.Leave(run=run.world.run))
    assert first.link.lost_since is None


async def test_who_joins_needs_nobody_but_one_that_knows_the_run(run: Run, world: World) -> None:
    leader = await run.coordinator()
    first = await run.elector(leader)
    await leader.host.close()
    newcomer = await run.party(key("a newcomer"))
    link = newcomer.link
    newcomer.watches(key("its account"))
    with pytest.raises(Unreachable):
        await link.catch_up()
    assert await newcomer.host.connect(first.host.peer_id, await first.host.addresses())
    await link.catch_up()
    assert newcomer.replica.store.root == first.replica.store.root
    assert link.coordinator == leader.host.peer_id


async def test_a_home_that_is_used_again_needs_nobody_whom_its_invite_names(
    run: Run, world: World
) -> None:
    leader = await run.coordinator()
    first = await run.elector(leader)
    invite = Invite(world.run, tuple(await leader.host.addresses()))
    await leader.host.close()
    again = await run.party(key("a node that comes back"))
    again.host._addresses.clear()
    keep_neighbours(again.home, world.run, {first.host.peer_id: await first.host.addresses()})
    assert with_neighbours(again.home, Invite("cd" * 32, invite.peers)).peers == invite.peers
    link = Link(again.host, with_neighbours(again.home, invite))
    assert link.coordinators[-1] == first.host.peer_id
    source = PeerSource(again.host, link.coordinators[-1], world.run)
    _, manifest = await asyncio.to_thread(manifest_of, source, world.run)
    assert manifest == world.leaves[0]
    (again.home / NEIGHBOURS_FILE).write_text("artel1.broken")
    assert with_neighbours(again.home, invite) == invite


async def test_two_histories_end_the_term_and_not_the_node(run: Run, world: World) -> None:
    leader = await run.coordinator()
    first = await run.elector(leader)
    await run.elector(leader, 1)
    sealing = first.sealing
    proof = world.split_view(world.leaves, [*world.leaves[:-2], b"x", b"y"])
    found = SplitViewProven(SplitView.from_dict(proof))
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise found

    following = asyncio.create_task(sealing.while_led(work))
    await asyncio.sleep(0.1)
    assert not following.done()
    assert (first.home / "split-view.json").exists()
    with pytest.raises(Unreachable, match="two histories"):
        await first.link.ask(messages.Leave(run=world.run))
    await sealing.look()
    assert sealing.term == 0, "nobody waits for one who is proven to lie"

    second = run.parties[2]
    second.sealing.ask(second.sealing.present)
    await second.sealing.look()
    next = await run.party(world.standbys[0])
    await next.follow(leader)
    await next.add(after(world.leaves, handover(world, first, second)), world.standbys[0], 1)
    await sealing.look()
    await sealing.look()
    async with asyncio.timeout(10):
        await following
    assert runs == 2
    await sealing.look()
    (said,) = next.submitted
    body: Any = entries.decode(said).body
    assert (body.kind, body.evidence) == ("split_seen", proof)


async def test_before_there_are_electors_two_histories_end_the_node(
    tmp_path: Path, world: World
) -> None:
    young = World(nodes=3, waiting=1, name="sealing")
    young.add(*young.start)
    async with AsyncExitStack() as stack:
        run = Run(tmp_path, young, stack)
        first = await run.elector(await run.coordinator())
        proof = young.split_view(young.leaves, [*young.leaves[:-1], b"x"])

        async def work() -> None:
            raise SplitViewProven(SplitView.from_dict(proof))

        with pytest.raises(SplitViewProven):
            await first.sealing.while_led(work)


async def test_what_is_certified_may_be_known_by_the_ledger_alone(run: Run, world: World) -> None:
    leader = await run.coordinator()
    store, state = leader.replica.store, leader.replica.state
    size = len(world.leaves) - 1
    assert finality.newest_certified(leader.heads, state) == ""
    found = finality.known_certified(store, leader.heads, state)
    assert found == (0, size, store.root_at(size).hex())
    note = store.latest_note
    lines = []
    for number, member in enumerate(world.members):
        kept = HeadStore(leader.home / f"{number}.sqlite3")
        by = Witness(kept, member, witness_name(member.peer_id), leader.replica.keys_of)
        lines.append(by.cosign(note, store))
        kept.close()
    leader.heads.add_note(add_lines(notes.parse(note), lines).encode())
    assert finality.known_certified(store, leader.heads, state) == (0, store.size, store.root.hex())
