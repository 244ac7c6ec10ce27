"""Whom a jury believes when some collude: twenty accounts of equal standing, and many lots."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

from artel.ledger import entries
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.state_wrong import MOST_JURY, asked
from artel.ledger.fold.shares import apply
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from ledger_world import World, complete, digest

WORLD = World(nodes=20, ownership={"vesting_rounds": 1}, exchange={"topology": "gather"})
LOTS = 40
RIGHT = digest("right")
ACCOUNT = {owner.key: node for owner, node in zip(WORLD.owners, WORLD.members, strict=True)}


def round_of(number: int, members: list[Identity], signers: list[Identity]) -> list[Envelope]:
    """A round of these, whose state those have signed."""
    peers = [node.peer_id for node in members]
    shown = [WORLD.contribution(node, number) for node in members]
    begun = [WORLD.opened(number, members=peers), WORLD.committed(number, members=members)]
    return [
        *begun,
        *shown,
        WORLD.closed(number, accepted=members),
        WORLD.agreed(number + 1, signers),
    ]


def folded(*rounds: Iterable[Envelope]) -> FoldState:
    state = FoldState()
    complete([*WORLD.start, *(entry for each in rounds for entry in each)], state)
    assert (state.rests_on, state.round) == ("members", len(rounds))
    return state


def by_lot(state: FoldState, number: int) -> FoldState:
    """The same ledger with another lot."""
    other = state.copy()
    other.lot = digest(f"lot {number}")
    return other


def tried(
    state: FoldState, accuser: Identity, false: Collection[Identity], number: int
) -> tuple[str, str]:
    """A state is called wrong, the colluders answer first, and all alike: what was proven, or what
    a charge that ended came to."""
    lie, truth = (RIGHT, digest(f"state {number}"))
    if accuser not in false:
        lie, truth = truth, lie
    charge = WORLD.state_wrong(accuser, number, RIGHT)
    assert said(state, charge) == "recorded"
    jury = [ACCOUNT[name] for name in asked(state, state.charges[number])]
    assert len(jury) == 7
    assert len(state.charges[number].jury) == MOST_JURY
    for node in sorted(jury, key=lambda node: node not in false):
        if number in state.charges and not state.charges[number].proven:
            answer = WORLD.jury_answer(node, charge, lie if node in false else truth)
            assert said(state, answer) == "recorded"
    if number not in state.charges:
        return "", "dismissed"
    return state.charges[number].proven, ""


def said(state: FoldState, envelope: Envelope) -> str:
    outcome = apply(state, entries.decode(envelope.encode()))
    return outcome.reason or outcome.status


def test_colluders_with_15_percent_of_standing_prove_nothing_against_a_right_state() -> None:
    """All honest ones have signed it, as they do, and of the others none."""
    colluders, honest = WORLD.members[:3], WORLD.members[3:]
    before = [round_of(number, WORLD.members, WORLD.members) for number in range(2)]
    state = folded(*before, round_of(2, WORLD.members, honest))
    for number in range(LOTS):
        lot = by_lot(state, number)
        for accuser in colluders[: 1 + number % 3]:
            if lot.standing_of(accuser.peer_id):
                assert tried(lot, accuser, colluders, 3) == ("", "dismissed")
        assert lot.standing_of(WORLD.members[-1].peer_id) > 0


def test_what_most_of_a_round_lied_about_is_proven_by_honest_accounts_with_70_percent() -> None:
    """Six of ten in the round have signed it; they have 30 % of all standing. Where the lot is with
    them at first, another honest account asks again when there is another lot."""
    colluders, honest = WORLD.members[:6], WORLD.members[6:]
    before = [round_of(number, WORLD.members, WORLD.members) for number in range(3)]
    state = folded(*before, round_of(3, [*colluders, *honest[:4]], colluders))
    share = sum(state.standing_of(node.peer_id) for node in honest) / sum(
        state.standings().values()
    )
    assert share == pytest.approx(0.7)
    first = 0
    for number in range(LOTS):
        lot = by_lot(state, number)
        for turn, accuser in enumerate(honest[::-1][:4]):
            if not lot.standing_of(accuser.peer_id):
                continue
            if tried(lot, accuser, colluders, 4)[0] == RIGHT:
                first += turn == 0
                break
            lot = by_lot(lot, LOTS * (turn + 1) + number)
        else:
            pytest.fail(f"never proven with lot {number}")
    assert first >= 0.8 * LOTS
