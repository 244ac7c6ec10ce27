"""A coordinator that answers and brings no round about loses its term; one that cannot keeps it.
Real hosts, ledgers and DHT records; only the clocks are the tests'."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from artel.ledger.entries.fold_state import MOST_SETBACKS
from artel.node.standstill import ATTEMPTS, LEAST_S, RETURN_S, STEP_S
from artel.protocol.dsse import Envelope
from artel.protocol.net import dht
from artel.protocol.pauses import wait_before
from ledger_world import World, digest, forged
from party_world import HANDOVER_S, RULES, Parties, Party, after, handover, two_coordinators

BETWEEN_S = 2 * (RULES.grace + HANDOVER_S)
"""So long no round may be opened that could be."""


@pytest.fixture(scope="module")
def world() -> World:
    return two_coordinators()


@pytest.fixture
async def run(tmp_path: Path, world: World) -> AsyncIterator[Parties]:
    async with AsyncExitStack() as stack:
        yield Parties(tmp_path, world, stack)


async def holds(party: Party, leader: Party, state: str) -> None:
    """Say in the DHT that a node holds a state."""
    where = await party.host.addresses()
    await party.host.join(await leader.host.addresses())
    record = dht.HolderRecord(addresses=where, state=digest(state), shards=b"")
    assert await party.host.publish(dht.nodes_key(party.world.run), record)


async def electors_of(run: Parties, leader: Party, state: str = "state 1") -> list[Party]:
    """All three electors; they hold this state."""
    found = [await run.elector(leader, number) for number in range(3)]
    for party in found:
        party.sealing.standstill.ready = lambda: True
        await holds(party, leader, state)
    return found


async def passes(seconds: float, *parties: Party) -> None:
    """Time passes, with everybody looking after the term."""
    left = seconds
    while left > 0:
        for party in parties:
            party.clock.now += min(left, STEP_S)
            await party.sealing.look()
        left -= STEP_S


async def goes_on(leader: Party, *entries: Envelope, term: int = 0) -> None:
    """Whoever leads adds entries."""
    by = leader.world.standbys[0] if term else leader.world.coordinator
    await leader.add(after(list(leader.replica.store.leaves()), *entries), by, term)


def sealed(parties: Sequence[Party]) -> list[int]:
    return [party.sealing.term for party in parties]


async def test_a_coordinator_that_answers_and_opens_no_round_loses_its_term(
    run: Parties, world: World
) -> None:
    leader = await run.coordinator()
    electors = await electors_of(run, leader)
    await passes(BETWEEN_S - STEP_S, *electors)
    assert sealed(electors) == [-1] * 3
    await passes(2 * STEP_S, *electors)
    assert sealed(electors) == [0] * 3
    assert "no round is opened, although it could go on" in electors[0].said[0]

    # The next one has its own time, and twice as much: that the run stands still may be nobody's
    # fault.
    next = await run.party(world.standbys[0])
    await next.follow(leader)
    await goes_on(next, handover(world, *electors), term=1)
    await passes(2 * (RULES.grace + 2 * HANDOVER_S) - STEP_S, *electors)
    assert [party.replica.state.term.number for party in electors] == [1] * 3
    assert sealed(electors) == [0] * 3
    # It opens a round, to which everybody has as long as the rules say.
    await goes_on(next, forged(world.opened(1), world.standbys[0]), term=1)
    for party in electors:
        await party.follow(next)
    await passes(2 * (RULES.deadline + 2 * HANDOVER_S) - STEP_S, *electors)
    assert sealed(electors) == [0] * 3
    assert all(party.replica.state.attempt is not None for party in electors)
    await passes(2 * STEP_S, *electors)
    assert sealed(electors) == [1] * 3


async def test_who_waits_for_nodes_keeps_its_term(run: Parties) -> None:
    leader = await run.coordinator()
    electors = await electors_of(run, leader, "state 0")  # they have yet to fetch the newest one
    await passes(4 * BETWEEN_S, *electors)
    assert sealed(electors) == [-1] * 3
    first = electors[0]
    first.sealing.standstill._written = replace(RULES, min_nodes=4)
    for party in electors:
        await holds(party, leader, "state 1")
    stranger = await run.party(leader.world.owners[0])  # it is no node of the run
    await holds(stranger, leader, "state 1")
    await passes(4 * BETWEEN_S, *electors)
    assert sealed(electors) == [-1, 0, 0]
    # Who is there from now on gets all the time to be seen by whoever leads.
    first.sealing.standstill._written = RULES
    await passes(BETWEEN_S / 2, first)
    assert sealed(electors) == [-1, 0, 0]
    await passes(BETWEEN_S, first)
    assert sealed(electors) == [0] * 3


async def test_a_node_that_takes_no_part_does_not_judge(run: Parties) -> None:
    leader = await run.coordinator()
    electors = await electors_of(run, leader)
    electors[0].sealing.standstill.ready = lambda: False
    await passes(2 * BETWEEN_S, *electors)
    assert sealed(electors) == [-1, 0, 0]
    electors[0].sealing.standstill.ready = lambda: True
    await passes(BETWEEN_S - STEP_S, electors[0])
    assert sealed(electors) == [-1, 0, 0]


async def test_a_copy_that_is_behind_ends_no_term(run: Parties, world: World) -> None:
    """Whoever leads answers this node, and tells it nothing of what goes on."""
    leader = await run.coordinator()
    electors = await electors_of(run, leader)
    await goes_on(electors[1], world.opened(1))  # to others it does
    await passes(BETWEEN_S + STEP_S, electors[0])
    assert sealed(electors) == [-1] * 3
    assert electors[0].replica.store.size == len(world.leaves) + 1


async def test_a_process_that_was_stopped_has_seen_nothing(run: Parties) -> None:
    leader = await run.coordinator()
    electors = await electors_of(run, leader)
    await passes(BETWEEN_S / 2, *electors)
    for party in electors:
        party.clock.now += 10 * BETWEEN_S
        await party.sealing.look()
    assert sealed(electors) == [-1] * 3


async def test_a_coordinator_under_which_attempts_come_to_nothing_for_ever_loses_its_term(
    run: Parties, world: World
) -> None:
    leader = await run.coordinator()
    electors = await electors_of(run, leader)
    await passes(STEP_S, *electors)
    for attempt in range(ATTEMPTS):
        assert sealed(electors) == [-1] * 3, attempt
        await goes_on(leader, world.opened(1, attempt), world.closed(1, attempt, accepted=[]))
        for party in electors:
            await party.follow(leader)
        # It waits as the rules say.
        await passes(wait_before(attempt + 1) + RULES.grace, *electors)
    assert sealed(electors) == [0] * 3
    assert "8 attempts of round 1 in a row have come to nothing" in electors[0].said[0]


async def test_a_run_that_is_over_keeps_its_coordinator(run: Parties) -> None:
    leader = await run.coordinator()
    electors = await electors_of(run, leader)
    for party in electors:
        party.sealing.standstill._written = replace(RULES, total=1)
    await passes(4 * BETWEEN_S, *electors)
    assert sealed(electors) == [-1] * 3


async def test_a_run_that_diverged_too_often_keeps_its_coordinator(
    run: Parties, world: World
) -> None:
    """Only its organiser can have it go on."""
    leader = await run.coordinator()
    electors = await electors_of(run, leader)
    for time in range(MOST_SETBACKS + 1):
        bad = world.diverged(1, 0, dict.fromkeys(world.members, (9_000_000 + time, 3_000_000)))
        await goes_on(leader, bad, world.rolled_back(bad, 0))
        if time < MOST_SETBACKS:
            await goes_on(leader, *world.again(0, 1, time + 1))
    for party in electors:
        await party.follow(leader)
        await holds(party, leader, "state 0")
        assert party.replica.state.stuck
    await passes(4 * (BETWEEN_S + RETURN_S), *electors)
    assert sealed(electors) == [-1] * 3
    await goes_on(leader, world.amended(1, 0, optimizer__lr="0.0001"))
    for party in electors:
        await party.follow(leader)
    await passes(4 * (BETWEEN_S + RETURN_S), *electors)
    assert sealed(electors) == [0] * 3


async def test_nobody_is_in_a_hurry_where_phases_are_short(run: Parties) -> None:
    """Records of nodes that are gone stay for a while."""
    leader = await run.coordinator()
    electors = await electors_of(run, leader)
    for party in electors:
        party.sealing.standstill._written = replace(RULES, grace=0.0)
        party.sealing._handover_s = party.sealing.standstill._handover_s = 1.0
    await passes(LEAST_S - STEP_S, *electors)
    assert sealed(electors) == [-1] * 3
    await passes(2 * STEP_S, *electors)
    assert sealed(electors) == [0] * 3
