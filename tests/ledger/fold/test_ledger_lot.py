"""Which salts the lot of a round is made of, and what keeping one back changes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

import pytest

from artel.ledger import entries
from artel.ledger.entries import lot
from artel.ledger.fold.shares import FoldState
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from artel.protocol.round_state import NO_NUMBERS
from ledger_world import World, key, outcomes

WORLD = World(nodes=5, ownership={"vesting_rounds": 1}, exchange={"topology": "gather"})
STRANGER = key("a stranger")
MORE = sorted((key(f"more {i}") for i in range(2)), key=lambda node: node.peer_id)
OWN = sorted([WORLD.members[0], *MORE], key=lambda node: node.peer_id)
"""Nodes of one account with standing, ascending."""
OTHERS = WORLD.members[1:]
ROUNDS = [entry for number in range(3) for entry in WORLD.round(number)]
BEFORE = [
    *(WORLD.start + ROUNDS),
    *(entries.node(node, WORLD.owners[0], WORLD.run) for node in MORE),
    entries.account(key("stranger"), WORLD.run),
    entries.node(STRANGER, key("stranger"), WORLD.run),
]


def drawn(
    members: Sequence[Identity],
    *,
    silent: Collection[Identity] = (),
    zeros: Collection[Identity] = (),
    left_out: Collection[Identity] = (),
    before: Sequence[Envelope] = BEFORE,
    number: int = 3,
) -> FoldState:
    """After a round of these in which some show nothing, or zeros, or are not accepted."""
    peers = [node.peer_id for node in members]
    begun = [WORLD.opened(number, members=peers), WORLD.committed(number, members=members)]
    shown = {
        node.peer_id: WORLD.contribution(
            node, number, **({"payload": NO_NUMBERS} if node in zeros else {})
        )
        for node in members
        if node not in silent
    }
    accepted = [node for node in members if node not in {*silent, *left_out}]
    closed = WORLD.closed(number, accepted=accepted, shown=shown)
    ledger = [*before, *begun, *shown.values(), closed, WORLD.agreed(number + 1, accepted)]
    state, seen = outcomes(ledger)
    assert seen[-1].status == "credited"
    return state


def seed(*nodes: Identity, number: int = 3) -> str:
    """The lot that the salts of these make."""
    return lot.seed(WORLD.blob(number, 0, node)[1].hex() for node in nodes)


def test_one_salt_of_each_account_with_standing_counts() -> None:
    state = drawn([*OWN[:2], *OTHERS, STRANGER])
    assert state.rests_on == "members"
    assert state.lot == seed(OWN[0], *OTHERS)


def test_whoever_sends_zeros_or_is_unknown_chooses_nothing() -> None:
    """Whichever of them keep their salts back, and in all ways."""
    members = [*OWN[:2], *OTHERS, STRANGER]
    free = [OTHERS[0], STRANGER]
    lots = {
        drawn(members, silent=silent, zeros=free).lot
        for many in range(3)
        for silent in combinations(free, many)
    }
    assert lots == {seed(OWN[0], *OTHERS[1:])}


def test_an_account_with_many_nodes_chooses_between_two_lots_and_one_costs_it_a_rounds_pay() -> (
    None
):
    members = [*OWN[:2], *OTHERS]
    seen = {}
    for many in range(3):
        for silent in combinations(OWN[:2], many):
            state = drawn(members, silent=silent)
            seen.setdefault(state.lot, []).append(OWN[0] in silent)
    assert seen == {seed(OWN[0], *OTHERS): [False, False], seed(*OTHERS): [True, True]}


def test_what_is_shown_and_not_paid_for_does_not_count() -> None:
    assert drawn([OWN[0], *OTHERS], left_out=[OTHERS[0]]).lot == seed(OWN[0], *OTHERS[1:])


@pytest.mark.parametrize("zeros", [0, 2])
def test_before_a_run_rests_on_its_members_all_count_but_zeros(zeros: int) -> None:
    state = drawn(WORLD.members, zeros=WORLD.members[:zeros], before=WORLD.start, number=0)
    assert state.rests_on == "coordinator"
    assert state.lot == seed(*WORLD.members[zeros:], number=0)


def test_a_round_of_nothing_but_zeros_has_a_lot_of_its_own() -> None:
    state = drawn([OWN[0], *OTHERS], zeros=[OWN[0], *OTHERS])
    assert state.lot == lot.seed([outcomes(BEFORE)[0].lot])
