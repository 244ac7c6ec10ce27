"""What counts as standing, for how long, and at most how much."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.entries.kinds.transfer import Transfer
from artel.ledger.entries.standing import CAP, Standings
from artel.ledger.fold.labels import Recomputations, state_roots
from artel.ledger.fold.shares import FoldState, fold
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from ledger_world import CREDIT, World, agreed, digest, key, outcomes, read

LATELY = {"standing_rounds": 4, "founders": 2}


def after(world: World, rounds: int) -> FoldState:
    return outcomes([*world.start, *(e for r in range(rounds) for e in world.round(r))])[0]


def test_vested_work_counts_for_so_many_rounds() -> None:
    world = World(nodes=2, ownership={"vesting_rounds": 1}, trust=LATELY)
    for rounds, vested in ((1, 0), (2, 1), (4, 3), (5, 4), (9, 4)):
        state = after(world, rounds)
        expected = {owner.key: vested * CREDIT for owner in world.owners} if vested else {}
        assert state.standings() == expected
        assert state.rests_on == ("members" if vested else "coordinator")
        assert state.standing_of(world.members[0].peer_id) == vested * CREDIT


@pytest.mark.parametrize("rounds", [1, 15, 16, 17, 100, 500])
def test_to_a_sixteenth_of_the_rounds(rounds: int) -> None:
    standings, now = Standings(), 0
    for now in range(3 * rounds):
        standings.fade(now, rounds)
        standings.earned("a", 1, now, rounds)
    assert len(standings.parts) <= 16
    assert rounds - -(-rounds // 16) <= standings.sums["a"] <= rounds + -(-rounds // 16)
    standings.fade(now + 2 * rounds, rounds)
    assert standings == Standings()


def test_a_rich_account_is_not_a_majority() -> None:
    standings = Standings()
    for name, amount in (("a", 10), ("b", 20), ("c", 30), ("rich", 1000)):
        standings.earned(name, amount, 7, 500)
    assert standings.of_all() == {"a": 10, "b": 20, "c": 30, "rich": CAP * 20}
    standings.forfeit("b")
    assert standings.of_all() == {"a": 10, "c": 30, "rich": CAP * 30}


def test_nodes_of_one_account_share_its_standing() -> None:
    world = World(nodes=3, ownership={"vesting_rounds": 0})
    moved = entries.node(world.members[1], world.owners[0], world.run, seq=2)
    state = fold(read([*world.start, *world.round(0), moved]))
    names = [member.peer_id for member in world.members]
    assert state.weights(names) == dict(zip(names, (CREDIT // 2, CREDIT // 2, CREDIT), strict=True))
    assert state.weights(names[1:]) == dict.fromkeys(names[1:], CREDIT)


def test_only_a_node_of_another_account_with_standing_looks_from_outside() -> None:
    world = World(nodes=4, ownership={"vesting_rounds": 0}, trust=LATELY)
    *inside, other = world.members
    new, owner = key("new node"), key("new owner")
    moved = entries.node(inside[0], world.owners[3], world.run, seq=2)
    start = [
        *(*world.start, entries.account(owner, world.run)),
        entries.node(new, owner, world.run, seq=1),
        *world.round(0),
        *world.until_closed(1)[:-1],
        world.closed(1, accepted=inside),
    ]

    def outcome(*before: Envelope, voters: Sequence[Identity] = world.members, **said: str) -> str:
        agreed = world.agreed(2, voters, **said)
        made = outcomes([*start, *before, agreed])[1][-1]
        return made.reason or made.status

    assert outcome() == outcome(outside=other.peer_id) == "credited"
    assert outcome(voters=inside, outside=other.peer_id) == reasons.WRONG_GROUNDS  # it signed not
    assert outcome(outside=inside[0].peer_id) == reasons.WRONG_GROUNDS
    nobody = [*inside, new]
    assert outcome(voters=nobody, outside=new.peer_id) == reasons.WRONG_GROUNDS
    assert outcome(moved, outside=inside[0].peer_id) == reasons.WRONG_GROUNDS
    assert outcome(rests_on="coordinator") == "credited"  # it may always compute it too
    early = [*world.start, *world.round(0)[:-1], world.agreed(1, rests_on="members")]
    assert outcomes(early)[1][-1].reason == reasons.WRONG_GROUNDS


def test_a_check_says_how_many_states_were_seen_from_outside() -> None:
    world, seen = World(nodes=2), Recomputations()
    for number, rests_on, outside in (
        (1, "coordinator", ""),
        (2, "members", world.members[0].peer_id),
        (3, "members", ""),
        (3, "coordinator", world.members[0].peer_id),  # made again
        (4, "members", world.members[0].peer_id),  # and gone back behind
    ):
        said = {"round": number, "attempt": 0, "root": digest("r"), "credits": digest("c")}
        said |= {"run": world.run, "wrong": [], "rests_on": rests_on, "outside": outside}
        body = entries.decode(agreed(said, world.members, world.coordinator).encode()).body
        assert isinstance(body, entries.StateAgreed)
        seen.note(body)
    assert seen.counts(3) == {"coordinator": 2, "outside": 2}
    detail = state_roots(3, seen.counts(3), 1).detail
    assert "came to 2 of all 3 itself; a node from outside the round signed 2 of all 3" in detail
    assert Recomputations().counts(0) == {"coordinator": 0, "outside": 0}


def test_what_is_given_away_is_no_standing() -> None:
    world = World(nodes=2, ownership={"vesting_rounds": 0, "transfers": True})
    giver, taker = world.owners
    gift = entries.by_account(
        Transfer, giver, world.run, account=giver.key, to=taker.key, amount=CREDIT, seq=1
    )
    state = outcomes([*world.start, *world.round(0), gift])[0]
    assert state.credit(giver.key) == 0
    assert set(state.standings().values()) == {CREDIT}


def test_a_copy_is_not_changed_and_what_is_kept_is_the_same() -> None:
    world = World(nodes=2, ownership={"vesting_rounds": 0}, trust=LATELY)
    state = after(world, 3)
    before = state.encode()
    other = state.copy()
    for name in (world.owners[0].key, world.owners[1].key):
        other.standing.earned(name, 5, 3, 4)
    other.standing.forfeit(world.owners[0].key)
    other.standing.fade(9, 4)
    assert state.encode() == before
    assert FoldState.decode(before).standings() == state.standings()
    assert FoldState.decode(before).lot == state.lot
