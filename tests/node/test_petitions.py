"""Entries that whoever leads leaves out: members hand them in, and electors end the term for it; a
coordinator that does its part keeps it. Real hosts, ledgers and files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.sync.replica import Replica
from artel.node import petitions
from artel.node.petitions import Petitions
from artel.protocol import dsse, messages
from artel.protocol.dsse import Envelope
from artel.protocol.errors import ArtelError
from artel.protocol.net import wire
from ledger_world import World, forged, key
from party_world import HANDOVER_S, Parties, Party, after, handover, two_coordinators


@pytest.fixture(scope="module")
def world() -> World:
    return two_coordinators()


@pytest.fixture
async def run(tmp_path: Path, world: World) -> AsyncIterator[Parties]:
    async with AsyncExitStack() as stack:
        yield Parties(tmp_path, world, stack)


async def taking(leader: Party, statement: bytes, term: int = 0) -> None:
    """Append it to the ledger, as a coordinator does."""
    store, world = leader.replica.store, leader.world
    if store.index_of(entries.entry_id(statement)) is None:
        by = world.standbys[0] if term else world.coordinator
        await leader.add(after(list(store.leaves()), dsse.decode(statement)), by, term)


async def leaving_out(_: bytes) -> None:
    raise wire.Refused("I do not like this account", code="unknown")


async def busy(_: bytes) -> None:
    raise wire.Refused("too much", code="busy")


async def handed(by: Party, to: Party, *said: Envelope) -> None:
    """Somebody hands in entries at a node."""
    for one in said:
        request = messages.Submit(run=by.world.run, statement=one.encode())
        await by.host.ask(to.host.peer_id, wire.LEDGER, request)


async def looked(parties: list[Party], *, seconds: float, times: int = 8) -> None:
    """Let time pass, with everybody doing what is to be done."""
    for _ in range(times):
        for party in parties:
            party.clock.now += seconds / times
        for party in parties:
            await party.sealing.petitions.look()
        for party in parties:
            await party.sealing.look()


async def led(run: Parties, takes: Callable[[bytes], Awaitable[None]]) -> tuple[Party, list[Party]]:
    """A coordinator that does this with what is handed in, and the electors."""
    leader = await run.coordinator()
    leader.takes = takes
    return leader, [await run.elector(leader, number) for number in range(3)]


def sealed(parties: list[Party]) -> list[int]:
    return [party.sealing.term for party in parties]


async def test_a_coordinator_that_leaves_out_one_members_entry_loses_its_term(
    run: Parties, world: World
) -> None:
    leader, electors = await led(run, leaving_out)
    submitter = await run.party(key("a terminal"))
    entry = world.dispute(world.owners[0], world.earned(world.members[1], 0))
    with pytest.raises(wire.Refused, match="do not like"):
        await handed(submitter, leader, entry)
    await handed(submitter, electors[0], entry)

    await looked(electors, seconds=HANDOVER_S)
    assert leader.submitted.count(entry.encode()) > 8, "the others hand it in, too"
    assert sealed(electors) == [-1] * 3
    await looked(electors, seconds=HANDOVER_S)
    assert sealed(electors) == [0] * 3
    assert "the coordinator leaves out entry" in electors[2].said[0]

    next = await run.party(world.standbys[0])
    await next.follow(leader)
    await next.add(after(world.leaves, handover(world, *electors)), world.standbys[0], 1)

    async def takes(statement: bytes) -> None:
        await taking(next, statement, 1)

    next.takes = takes
    await looked(electors, seconds=HANDOVER_S)
    name = entries.entry_id(entry.encode())
    for party in (next, *electors):
        assert party.replica.store.index_of(name) == len(world.leaves) + 1
        assert party.replica.state.term.number == 1
    assert not any(party.sealing.petitions._held for party in electors)
    await looked(electors, seconds=4 * HANDOVER_S)
    assert sealed(electors) == [0] * 3


async def test_a_coordinator_that_takes_it_late_keeps_its_term(run: Parties, world: World) -> None:
    leader, electors = await led(run, busy)
    entry = world.dispute(world.owners[0], world.earned(world.members[1], 0))
    await handed(leader, electors[0], entry)
    await looked(electors, seconds=0.9 * HANDOVER_S)

    async def takes(statement: bytes) -> None:
        await taking(leader, statement)

    leader.takes = takes
    await looked(electors, seconds=4 * HANDOVER_S)
    assert sealed(electors) == [-1] * 3
    assert leader.replica.store.size == len(world.leaves) + 1
    assert not any(party.sealing.petitions._held for party in electors)


async def test_what_would_not_count_and_what_strangers_sign_is_not_held(
    run: Parties, world: World
) -> None:
    leader = await run.coordinator()
    hers, stranger, idle = world.earned(world.members[1], 0), key("a stranger"), key("idle")
    await taking(leader, entries.account(idle, world.run, "").encode())
    first = await run.elector(leader)
    refused: list[tuple[str, Envelope]] = [
        (reasons.UNKNOWN_ACCOUNT, world.dispute(stranger, hers)),
        (reasons.OWN_WORK, world.dispute(world.owners[1], hers)),
        (reasons.NOT_PENDING, world.dispute(world.owners[0], "ab" * 32)),
        ("not_coordinator", entries.account(stranger, world.run, "")),
        ("not_coordinator", world.rotated(idle, key("its next key"), idle)),
    ]
    for code, entry in refused:
        with pytest.raises(wire.Refused) as error:
            await handed(leader, first, entry)
        assert error.value.code == code
    request = messages.Submit(run=world.run, statement=b"{}")
    with pytest.raises(ArtelError):
        await leader.host.ask(first.host.peer_id, wire.LEDGER, request)
    assert not first.sealing.petitions._held
    await looked([first], seconds=4 * HANDOVER_S)
    assert (first.sealing.term, leader.submitted) == (-1, [])


async def test_a_flood_is_refused_before_it_is_looked_at(run: Parties, world: World) -> None:
    leader = await run.coordinator()
    first = await run.elector(leader)
    hers = world.earned(world.members[1], 0)
    await handed(leader, first, world.dispute(world.owners[0], hers))
    with pytest.raises(wire.Refused) as second:
        await handed(leader, first, world.dispute(world.owners[0], hers, "again"))
    assert second.value.hint == "wait until what was handed in before is in the ledger"
    codes = set()
    for number in range(petitions.PER_SOURCE_AT_ONCE):
        with pytest.raises(wire.Refused) as error:
            await handed(leader, first, world.dispute(key("a stranger"), hers, f"n{number}"))
        codes.add(error.value.code)
    assert codes == {reasons.UNKNOWN_ACCOUNT, "busy"}
    assert len(first.sealing.petitions._held) == 1


@pytest.mark.parametrize("other", ["a dispute", "a new node"])
async def test_who_says_so_much_that_it_has_to_wait_ends_no_term(
    run: Parties, world: World, other: str
) -> None:
    """The coordinator takes other entries of the same account all the time."""
    leader, electors = await led(run, busy)
    mine = [world.earned(member, 0) for member in world.members[1:3]]
    await handed(leader, electors[0], world.dispute(world.owners[0], mine[0]))
    await looked(electors, seconds=0.9 * HANDOVER_S)
    taken = {
        "a dispute": world.dispute(world.owners[0], mine[1]),
        "a new node": entries.node(key("one more node"), world.owners[0], world.run),
    }
    await taking(leader, taken[other].encode())
    assert not leader.replica.state.ignored
    await looked(electors, seconds=0.9 * HANDOVER_S)
    assert sealed(electors) == [-1] * 3
    await looked(electors, seconds=0.5 * HANDOVER_S)
    assert sealed(electors) == [0] * 3, "it says nothing more, and waits as long as anybody"


@pytest.mark.parametrize("by", ["somebody else", "the account"])
async def test_what_counts_for_nothing_gives_a_coordinator_no_time(
    run: Parties, world: World, by: str
) -> None:
    """It can make entries itself that name an account, and keep some that came too late."""
    leader, electors = await led(run, leaving_out)
    hers = world.earned(world.members[1], 0)
    await handed(leader, electors[0], world.dispute(world.owners[0], hers))
    for number in range(3):
        made = world.dispute(world.owners[0], hers, f"n{number}")
        if by == "the account":
            made = world.dispute(world.owners[0], "ab" * 32, f"n{number}")
        else:
            made = forged(made, key("an accomplice"))
        await taking(leader, made.encode())
        await looked(electors, seconds=0.8 * HANDOVER_S)
    assert sum(electors[0].replica.state.ignored.values()) == 3
    assert sealed(electors) == [0] * 3


async def test_what_may_be_given_up_with_a_term_outlives_the_process(
    run: Parties, world: World
) -> None:
    leader = await run.coordinator()
    electors = [await run.elector(leader, number) for number in range(3)]
    first = electors[0]
    first.replica.own = (world.owners[0].key,)
    own = world.dispute(world.owners[0], world.earned(world.members[1], 0))
    next = await run.party(world.standbys[0])
    await next.follow(leader)
    await taking(leader, own.encode())
    await first.follow(leader)
    for party in electors:
        party.sealing.ask(0, 0)
        await party.sealing.look()
    await next.add(after(world.leaves, handover(world, *electors[1:])), world.standbys[0], 1)
    await first.follow(next)  # and the process ends before it has sent anything
    assert first.replica.store.index_of(entries.entry_id(own.encode())) is None

    def started() -> Petitions:
        replica: Replica = first.replica
        return Petitions(first.host, world.run, replica, first.link, HANDOVER_S, first.clock)

    again = started()
    await again.look()
    assert next.submitted == [own.encode()]
    await taking(next, own.encode(), 1)
    first.clock.now += HANDOVER_S
    await again.look()
    assert not started()._held, "what is there is sent no more"
