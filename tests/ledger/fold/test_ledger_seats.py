"""How many nodes an account may have, and how many of them may sit in a round together."""

from __future__ import annotations

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.entries.kinds.node import MAX_NODES
from artel.protocol.dsse import Envelope
from ledger_world import World, key, outcomes

WORLD = World(nodes=5, ownership={"vesting_rounds": 1})
MORE = [key(f"another node {i}") for i in range(MAX_NODES)]
OWNER = WORLD.owners[0]
ROUNDS = [entry for number in range(3) for entry in WORLD.round(number)]


def bound(count: int) -> list[Envelope]:
    """More nodes of the first account."""
    return [entries.node(node, OWNER, WORLD.run) for node in MORE[:count]]


def opened(count: int) -> str:
    """What becomes of a round of all members and so many more nodes of the first account."""
    peers = [node.peer_id for node in (*WORLD.members, *MORE[:count])]
    ledger = [*WORLD.start, *ROUNDS, *bound(9), WORLD.opened(3, members=peers)]
    state, seen = outcomes(ledger)
    assert (state.rests_on, len(state.standings())) == ("members", 5)
    return seen[-1].reason


def test_no_account_has_a_larger_part_of_the_members_than_of_all_standing() -> None:
    """It has a fifth: of six members two, of seven, too."""
    assert (opened(0), opened(1)) == ("", "")
    assert [opened(count) for count in (2, 3, 9)] == [reasons.TOO_MANY_SEATS] * 3


def test_a_round_of_no_more_than_are_needed_may_have_any_members() -> None:
    world = World(nodes=5, ownership={"vesting_rounds": 1}, rounds={"min_nodes": 7})
    more = [entries.node(node, world.owners[0], world.run) for node in MORE[:3]]
    rounds = [entry for number in range(3) for entry in world.round(number)]
    for count, reason in ((2, ""), (3, reasons.TOO_MANY_SEATS)):
        peers = [node.peer_id for node in (*world.members, *MORE[:count])]
        _, seen = outcomes([*world.start, *rounds, *more, world.opened(3, members=peers)])
        assert seen[-1].reason == reason


def test_before_a_run_rests_on_its_members_all_nodes_may_sit() -> None:
    peers = [node.peer_id for node in (*WORLD.members, *MORE[:9])]
    _, seen = outcomes([*WORLD.start, *bound(9), WORLD.opened(0, members=peers)])
    assert seen[-1].status == "recorded"


def test_an_account_has_so_many_nodes_at_a_time_and_no_more() -> None:
    full = [*WORLD.start, *bound(MAX_NODES - 1)]
    last = entries.node(MORE[-1], OWNER, WORLD.run)
    assert outcomes([*full, last])[1][-1].reason == reasons.TOO_MANY_NODES
    moved = entries.node(MORE[0], WORLD.owners[1], WORLD.run, seq=2)
    assert outcomes([*full, moved, last])[1][-1].status == "recorded"
    again = entries.node(MORE[1], OWNER, WORLD.run, seq=2)
    assert outcomes([*full, again])[1][-1].reason == reasons.DUPLICATE
