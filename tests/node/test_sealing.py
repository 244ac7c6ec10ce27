"""A node whose coordinator is gone: it seals the term, finds the next one, and sends again what was
given up. Real hosts, ledgers and files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.entries.evidence import SplitView
from artel.ledger.entries.fold_state import peer_of
from artel.ledger.store import finality
from artel.ledger.store.heads import HeadStore
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.peers import HEADS, PeerSource
from artel.ledger.sync.signed_tree import manifest_of
from artel.ledger.sync.source import SEAL_PATH
from artel.ledger.sync.witness import Witness
from artel.ledger.tlog import note as notes
from artel.ledger.tlog.checkpoint import sign_checkpoint
from artel.ledger.tlog.cosignature import add_lines, witness_name
from artel.node.elected import Elected
from artel.node.link import ASKED, NEIGHBOURS_FILE, Link, keep_neighbours, with_neighbours
from artel.node.session import remembered
from artel.node.watch import Watch
from artel.protocol import messages
from artel.protocol.errors import CheckFailed, Unreachable
from artel.protocol.identity import short_peer
from artel.protocol.invite import Invite
from artel.protocol.net import wire
from ledger_world import World, key
from party_world import HANDOVER_S, Parties, after, handover, two_coordinators


@pytest.fixture(scope="module")
def world() -> World:
    return two_coordinators()


@pytest.fixture
async def run(tmp_path: Path, world: World) -> AsyncIterator[Parties]:
    async with AsyncExitStack() as stack:
        yield Parties(tmp_path, world, stack)


async def test_an_elector_seals_the_term_of_a_silent_coordinator_and_signs_no_more_of_it(
    run: Parties, world: World
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
    assert await asyncio.to_thread(first.heads.sealed, world.run) == (-1, "")

    first.clock.now += 1
    await sealing.look()
    assert sealing.term == 0
    assert first.heads.sealed(world.run) == (0, world.standbys[0].key)
    standby = peer_of(world.standbys[0].key)[-8:]
    assert f"waiting for coordinator …{standby}" in sealing.waiting()
    assert "term 0" in first.said[0]

    # Whoever may lead next is shown the seal, over the network; it names what the ledger records.
    (shown,) = await PeerSource(second.host, first.host.peer_id, world.run).files(SEAL_PATH)
    said, part = entries.open_seal(shown or b"")
    recorded = len(world.leaves) - 1
    assert (said.term, said.next) == (0, world.standbys[0].key)
    assert (said.of, said.size) == (0, recorded)
    assert said.root == first.replica.store.root_at(recorded).hex()
    assert part.node == first.host.peer_id
    (none,) = await PeerSource(first.host, second.host.peer_id, world.run).files(SEAL_PATH)
    assert none is None

    peer = first.host.peer_id
    sign = Witness(first.heads, first.host.identity, witness_name(peer), first.replica.keys_of)
    with pytest.raises(CheckFailed, match="its term is sealed"):
        sign.cosign(first.replica.store.latest_note, first.replica.store)
    # It is so after a restart, too, and never for another, whosever turn it is by then.
    await asyncio.to_thread(first.heads.seal, world.run, 0, second.host.peer_id)
    again = first.watches(world.owners[0])
    assert (again.term, again.statement()) == (0, sealing.statement())


async def test_the_owner_is_told_whose_seals_are_missing(run: Parties, world: World) -> None:
    leader = await run.coordinator()
    first, second = await run.elector(leader), await run.elector(leader, 1)
    assert first.sealing.unsealed() == []
    await leader.host.close()
    peers = sorted(each.peer_id for each in world.members)
    assert len(peers) == 3
    for party in (first, second):
        await party.lose()
    assert first.sealing.unsealed() == peers
    first.clock.now += HANDOVER_S
    await first.sealing.look()
    missing = [peer for peer in peers if peer != first.host.peer_id]
    assert first.sealing.unsealed() == missing
    names = ", ".join(map(short_peer, missing))
    said = f"sealed term 0; sealed by 1 of 3 electors, no seal of {names} is known here yet; "
    assert said in first.sealing.waiting()
    second.clock.now += HANDOVER_S
    await second.sealing.look()
    await first.sealing.look()
    assert first.sealing.unsealed() == []
    assert "electors" not in first.sealing.waiting()


async def test_a_node_that_forgot_what_it_signed_signs_nothing_more_of_the_term(
    run: Parties, world: World
) -> None:
    """It may have sealed it: what it cosigned then would count for both sides."""
    leader, standby = await run.coordinator(), await run.party(world.standbys[0])
    others = [await run.elector(leader, number) for number in range(3)]
    first = others.pop(0)
    await standby.follow(leader)
    first.replica.store.close()
    first.heads.close()
    first.heads.path.unlink()
    node = first.host.identity
    for again in (False, True):  # also when it is started once more
        async with AsyncExitStack() as stack:
            first.heads, first.replica = remembered(first.home, node.key, world.run, stack)
            assert first.heads.gone is not again
    first.heads, first.replica = remembered(first.home, node.key, world.run, AsyncExitStack())
    await first.serve(first.watches(world.owners[0]))
    sign = Witness(first.heads, node, witness_name(node.peer_id), first.replica.keys_of)
    with pytest.raises(CheckFailed, match="its term is sealed"):
        sign.cosign(first.replica.store.latest_note, first.replica.store)
    await leader.host.close()
    for party in (first, *others):
        await party.lose()
        party.clock.now += HANDOVER_S
        await party.sealing.look()
    assert [each.sealing.term for each in (first, *others)] == [-1, 0, 0]
    assert not first.sealing.statement()
    assert "others decide" in first.sealing.waiting()
    await standby.add([handover(world, *others).encode()], world.standbys[0], 1)
    await first.follow(standby)
    sign.cosign(first.replica.store.latest_note, first.replica.store)
    first.sealing.ask(1, 0)
    await first.sealing.look()
    assert first.sealing.term == 1


async def test_before_the_first_state_its_home_alone_goes_on(tmp_path: Path) -> None:
    world = World(nodes=3, waiting=1)
    world.add(*world.start)
    async with AsyncExitStack() as stack:
        run = Parties(tmp_path, world, stack)
        leader = await run.coordinator()
        node = await run.elector(leader)
        await leader.host.close()
        await node.lose()
        node.clock.now += 10 * HANDOVER_S
        await node.sealing.look()
        assert "no state is agreed on yet, so nobody can lead" in node.sealing.waiting()
        assert node.sealing.term == -1


async def test_an_elector_that_reaches_nobody_seals_nothing(run: Parties, world: World) -> None:
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
    run: Parties, world: World
) -> None:
    leader = await run.coordinator()
    both = [await run.elector(leader), await run.elector(leader, 1)]
    await leader.host.close()
    for each in both:
        await each.lose()
    for term, patience in enumerate((HANDOVER_S, 2 * HANDOVER_S, 4 * HANDOVER_S)):
        for seconds, sealed in ((patience - 1, term - 1), (1, term)):
            for each in both:
                each.clock.now += seconds
                await each.sealing.look()
                assert each.sealing.term == sealed


async def test_an_elector_does_not_run_ahead_of_the_others(run: Parties, world: World) -> None:
    """Seals of different terms begin none, and whose turn it was is passed over: a run in which
    some electors had sealed the term of a coordinator that came back was without one for minutes
    after the next fault."""
    leader = await run.coordinator()
    first, second = await run.elector(leader), await run.elector(leader, 1)
    await leader.host.close()
    await first.lose()
    first.clock.now += HANDOVER_S
    await first.sealing.look()
    first.clock.now += 8 * HANDOVER_S
    await first.sealing.look()
    assert first.sealing.term == 0
    await second.lose()
    second.clock.now += HANDOVER_S
    await second.sealing.look()
    await first.sealing.look()
    assert (first.sealing.term, second.sealing.term) == (1, 0)
    # Of the others it may never hear.
    first.clock.now += 2 * 4 * HANDOVER_S
    await first.sealing.look()
    assert first.sealing.term == 1
    first.clock.now += 8 * 4 * HANDOVER_S
    await first.sealing.look()
    assert first.sealing.term == 2


async def test_the_coordinator_that_leads_may_ask_for_its_term_to_be_sealed(run: Parties) -> None:
    leader = await run.coordinator()
    first = await run.elector(leader)
    stranger = await run.party(key("no elector"))
    await stranger.follow(leader)
    asked = stranger.watches(key("an account"))
    for sealing in (first.sealing, asked):
        sealing.ask(sealing.present - 1, 0)  # whoever led before asked too late
        await sealing.look()
        assert sealing.term == -1
        sealing.ask(sealing.present, 0)
        await sealing.look()
    assert (first.sealing.term, asked.term) == (0, -1)
    # It answers: nobody has to be replaced, and the next term is not sealed.
    first.clock.now += 100 * HANDOVER_S
    await first.sealing.look()
    assert first.sealing.term == 0


async def test_a_term_is_sealed_on_purpose_with_all_that_its_leader_has(run: Parties) -> None:
    """Its newest state decides whose turn is next: all have to seal for the same coordinator."""
    world = two_coordinators()
    leader = await run.coordinator()
    behind = await run.elector(leader)
    world.add(*world.round(1))
    await leader.add(world.leaves[leader.replica.store.size :], world.coordinator)
    for asked in (world.leaves, world.leaves[:-1]):  # nor does it matter what was said before
        behind.sealing.ask(0, len(asked))
        await behind.sealing.look()
        assert behind.sealing.term == -1
    await behind.follow(leader)
    await behind.sealing.look()
    assert (behind.sealing.term, behind.replica.state.round) == (0, 2)


async def test_the_next_coordinator_is_found_and_what_was_given_up_is_sent_to_it_again(
    run: Parties, world: World
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
    await first.sealing.petitions.look()
    assert next.submitted == [own.encode()]
    assert first.replica.store.root == next.replica.store.root


async def test_a_node_that_leaves_waits_until_its_own_coordinator_leads_no_more(
    run: Parties, world: World
) -> None:
    leader = await run.coordinator()
    parties = [await run.elector(leader, number) for number in range(3)]
    first, asked, can = parties[0], list[str](), True

    async def hand_over() -> None:
        asked.append("handover")
        while can:
            await asyncio.sleep(60)

    started: Any = SimpleNamespace(key=key("one that stands by").key, hand_over=hand_over)
    first.sealing._elected = started
    await first.sealing.hand_over()
    assert not asked, "it does not lead"

    started.key = world.coordinator.key
    leaving = asyncio.create_task(first.sealing.hand_over())
    for party in parties[1:]:
        party.sealing.ask(0, 0)
        await party.sealing.look()
    await asyncio.sleep(0.1)
    assert not leaving.done()
    next = await run.party(world.standbys[0])
    await next.follow(leader)
    await next.add(after(world.leaves, handover(world, *parties[1:])), world.standbys[0], 1)
    await first.follow(next)
    async with asyncio.timeout(10):
        await leaving
    assert asked == ["handover"]

    started.key, can = world.standbys[0].key, False
    async with asyncio.timeout(10):
        await first.sealing.hand_over()  # nobody could lead after it
    assert len(asked) == 2


async def test_a_coordinator_that_stands_by_counts_as_one_that_does_not_answer(
    run: Parties,
) -> None:
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


async def test_who_joins_needs_nobody_but_one_that_knows_the_run(
    run: Parties, world: World
) -> None:
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
    run: Parties, world: World
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


async def test_two_histories_end_the_term_and_not_the_node(run: Parties, world: World) -> None:
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
    second.sealing.ask(second.sealing.present, 0)
    await second.sealing.look()
    next = await run.party(world.standbys[0])
    await next.follow(leader)
    await next.add(after(world.leaves, handover(world, first, second)), world.standbys[0], 1)
    await sealing.look()
    await sealing.look()
    async with asyncio.timeout(10):
        await following
    assert runs == 2
    first.clock.now += HANDOVER_S
    await sealing.petitions.look()
    (said,) = next.submitted
    body: Any = entries.decode(said).body
    assert (body.kind, body.evidence) == ("split_seen", proof)


async def test_heads_by_another_coordinator_than_the_leader_end_no_term(
    run: Parties, world: World
) -> None:
    """Two of one size by the standby's key, which leads nothing yet."""
    leader = await run.coordinator()
    first, neighbour = await run.elector(leader), await run.party(key("an accomplice"))
    size = len(world.leaves) + 5
    shown = [
        sign_checkpoint(world.standbys[0], world.origin, size, bytes([n]) * 32) for n in range(2)
    ]

    async def answer(peer: str, request: messages.Files, stream: wire.Stream) -> None:
        for path in request.paths:
            if path in HEADS:
                note = shown[HEADS.index(path)].encode()
                await wire.write_message(stream, messages.File(size=len(note)))
                await stream.write(note)
            else:
                await wire.write_message(stream, messages.Refusal.of("not_here", "none"))

    await neighbour.host.serve(wire.LEDGER, answer)
    watch = Watch(
        host=first.host,
        home=first.home,
        run=world.run,
        replica=first.replica,
        heads=first.heads,
        account=world.owners[0],
        coordinator=lambda: first.link.coordinator,
        neighbours=lambda: [neighbour.host.peer_id],
    )
    await watch.exchange(neighbour.host.peer_id)
    for text in shown:
        with pytest.raises(CheckFailed, match="not signed by any key"):
            await watch.consider(neighbour.host.peer_id, text)
    assert not watch.doubtful
    await first.sealing.look()
    assert (first.sealing.term, first.link.liar, list(first.heads.newest_first(0))) == (-1, "", [])


async def test_a_leader_of_before_that_forked_its_own_term_ends_not_the_present_one(
    run: Parties, world: World
) -> None:
    leader = await run.coordinator()
    first, second = await run.elector(leader), await run.elector(leader, 1)
    for elector in (first, second):
        elector.sealing.ask(elector.sealing.present, 0)
        await elector.sealing.look()
    next = await run.party(world.standbys[0])
    await next.follow(leader)
    await next.add(after(world.leaves, handover(world, first, second)), world.standbys[0], 1)
    await first.follow(next)
    forked = await run.party(key("an accomplice"))
    other = entries.account(key("another"), world.run).encode()
    await forked.add([*world.leaves[:-1], other], world.coordinator)
    await first.follow(forked)
    proof = world.split_view(world.leaves, [*world.leaves[:-1], other])
    await first.sealing.convict(SplitViewProven(SplitView.from_dict(proof)))
    await first.sealing.look()
    assert (first.link.coordinator, first.link.liar) == (next.host.peer_id, "")
    assert first.sealing.term == 0
    assert first.heads.conflicts() == [proof], "the ledger is told of it"


async def test_before_there_are_electors_two_histories_end_the_node(
    tmp_path: Path, world: World
) -> None:
    young = World(nodes=3, waiting=1, name="sealing")
    young.add(*young.start)
    async with AsyncExitStack() as stack:
        run = Parties(tmp_path, young, stack)
        first = await run.elector(await run.coordinator())
        proof = young.split_view(young.leaves, [*young.leaves[:-1], b"x"])

        async def work() -> None:
            raise SplitViewProven(SplitView.from_dict(proof))

        with pytest.raises(SplitViewProven):
            await first.sealing.while_led(work)


async def test_what_is_certified_may_be_known_by_the_ledger_alone(
    run: Parties, world: World
) -> None:
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


async def test_what_is_certified_stays_known_when_its_record_is_given_up_with_a_term(
    run: Parties, world: World
) -> None:
    """Who held the record alone named an older head for the term after: what was final could be
    lost with two leaders in a row that certified nothing."""
    leader = await run.coordinator()
    parties = [await run.elector(leader, number) for number in range(3)]
    for party in parties:
        party.sealing.ask(0, 0)
        await party.sealing.look()
    size = entries.open_seal(parties[0].sealing.statement())[0].size
    next = await run.party(world.standbys[0])
    await next.add(world.leaves[:size], world.coordinator)  # it goes on from there, and no further
    began = handover(world, *parties)
    await next.add(after(world.leaves[:size], began), world.standbys[0], 1)
    for party in parties:
        await party.follow(next)
        assert party.replica.store.size == size + 1
        party.sealing.ask(1, 0)
        await party.sealing.look()
        said, _ = entries.open_seal(party.sealing.statement())
        root = next.replica.store.root_at(size).hex()
        assert (said.term, said.of, said.size, said.root) == (1, 0, size, root)


async def test_records_that_are_looked_up_anew_meanwhile_end_nobody(run: Parties) -> None:
    """A node that left while it looked for a coordinator ended with an unexpected KeyError."""
    party = await run.party(key("who looks"))
    other = (await run.party(key("who leads"))).host
    record: Any = SimpleNamespace(term=1, addresses=await other.addresses())
    link = party.link
    link._records = {other.peer_id: record}
    connected = party.host.connected

    async def later() -> list[str]:
        link._records = {}
        return await connected()

    party.host.connected = later  # type: ignore[method-assign]
    assert other.peer_id in await link._candidates(())


async def test_who_says_to_lead_a_late_term_hides_nobody_that_leads(
    run: Parties, world: World
) -> None:
    """Nor do strangers that connect hide the electors, and other nodes of the ledger."""
    leader = await run.coordinator()
    first, second = await run.elector(leader), await run.elector(leader, 1)
    claims = [key(f"claims {number}").peer_id for number in range(60)]
    leads = key("who leads").peer_id
    record: Any = SimpleNamespace(term=2**52, addresses=[])
    strangers = [key(f"connects {number}").peer_id for number in range(100)]
    link = first.link
    link._records = dict.fromkeys(claims, record)
    link._records[leads] = SimpleNamespace(term=1, addresses=[])  # type: ignore[assignment]

    async def connected() -> list[str]:
        return [*strangers, second.host.peer_id]

    first.host.connected = connected  # type: ignore[method-assign]
    asked = [await link._candidates(()) for _ in range(200)]
    assert any(leads in each for each in asked)
    assert all(second.host.peer_id in each for each in asked)
    assert all(2 * ASKED <= len(each) <= 3 * ASKED + 3 for each in asked)
    assert {*strangers} <= {peer for each in asked for peer in each}


async def test_a_coordinator_that_cannot_hand_over_holds_up_no_leaving_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The command that is run for it says why, and ends."""
    caplog.set_level("WARNING", "artel.node")
    nothing: Any = None
    started = Elected(tmp_path, nothing, nothing, nothing, ())
    async with asyncio.timeout(100):
        await started.hand_over()
    (event,) = (record for record in caplog.records if record.msg == "elected.handed_over")
    assert "no coordinator" in str(vars(event))
