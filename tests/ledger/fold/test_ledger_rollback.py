"""A state that was proven wrong: who decides, who loses what, and what the run goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.entries.anchors import ANCHORS
from artel.ledger.entries.kinds.state_wrong import JURY, MOST_JURY
from artel.ledger.fold import claims, effects, kept
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import read
from artel.ledger.fold.shares import FoldState, Outcome
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync.serving import Served
from artel.ledger.sync.share_proof import prove_share
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from ledger_world import CREDIT, World, complete, digest, forged, outcomes
from log_world import Log

RIGHT = digest("right")
PROOF = [RIGHT] * 3
"""What most of a jury of five say."""
RULES = {"vesting_rounds": 1, "transfers": True}


def world_of(**changes: Any) -> World:
    return World(nodes=6, ownership=RULES, **changes)


WORLD = world_of()
LIARS, HONEST = WORLD.members[:4], WORLD.members[4:]


def agreed_by_liars(world: World, round: int, liars: Sequence[Identity] = LIARS) -> list[Envelope]:
    """A round whose state only these have signed."""
    return [*world.until_closed(round), world.agreed(round + 1, liars)]


def history(world: World = WORLD, wrong: int = 3, after: int = 1) -> list[Envelope]:
    """Rounds up to a wrong state with the number ``wrong``, and so many behind it."""
    rounds = [entry for number in range(wrong - 1) for entry in world.round(number)]
    more = [entry for number in range(wrong, wrong + after) for entry in world.round(number)]
    return [*world.start, *rounds, *agreed_by_liars(world, wrong - 1), *more]


def jury(envelopes: Sequence[Envelope], world: World = WORLD) -> list[Identity]:
    """The nodes of those that are drawn, in order."""
    state, _ = outcomes(envelopes)
    (charge,) = state.charges.values()
    nodes = {state.account_of(member.peer_id): member for member in world.members}
    return [nodes[name] for name in charge.jury]


CHARGE = WORLD.state_wrong(HONEST[0], 3, RIGHT)
CHARGED = [*history(), CHARGE]


def answered(*roots: str, charged: Sequence[Envelope] = CHARGED) -> list[Envelope]:
    """The jury says so, in its order."""
    drawn = jury(charged)
    said = zip(drawn, roots, strict=False)
    return [*charged, *(WORLD.jury_answer(node, charged[-1], root) for node, root in said)]


def last(*envelopes: Envelope) -> str:
    """What became of the last one."""
    seen = outcomes(envelopes)[1][-1]
    return seen.reason or seen.status


def test_all_but_the_accuser_are_drawn_those_who_signed_too() -> None:
    drawn = jury(CHARGED)
    assert set(drawn) == {HONEST[1], *LIARS}
    assert len(drawn) == 5 < MOST_JURY


def test_most_of_the_jury_prove_a_state_wrong_and_no_round_begins() -> None:
    assert outcomes(answered(*PROOF[1:]))[0].charges[3].proven == ""
    proven = answered(*PROOF)
    state, seen = outcomes(proven)
    assert state.charges[3].proven == RIGHT
    assert [outcome.status for outcome in seen[-3:]] == ["recorded"] * 3
    assert last(*proven, WORLD.opened(4)) == reasons.PROVEN_WRONG
    assert last(*proven, WORLD.jury_answer(LIARS[0], CHARGE, RIGHT)) == reasons.NOT_ACCUSED


def gone_back(to: int = 2) -> tuple[FoldState, FoldState, Outcome]:
    """Before and after going back behind state 3."""
    proven = answered(*PROOF)
    before, _ = outcomes(proven)
    after, seen = outcomes([*proven, WORLD.rolled_back(CHARGE, to)])
    return before, after, seen[-1]


@pytest.mark.parametrize("to", [0, 1, 2])
def test_the_run_goes_on_from_what_it_had_then(to: int) -> None:
    until = [entry for number in range(to) for entry in WORLD.round(number)]
    then, _ = outcomes([*WORLD.start, *until])
    _, after, _ = gone_back(to)
    for name in ("states", "cursor", "steps", "tails", "spans", "recent", "anchors", "attempt"):
        assert getattr(after, name) == getattr(then, name), name
    assert (after.charges, after.round) == ({}, to)


def test_what_was_pending_goes_for_all_and_what_had_vested_for_those_who_signed() -> None:
    before, after, outcome = gone_back()
    for member, owner in zip(WORLD.members, WORLD.owners, strict=True):
        was, now = before.accounts[owner.key], after.accounts[owner.key]
        assert was.pending == CREDIT  # of round 3; that of round 2 has vested
        assert now.pending == 0
        lost = CREDIT if member in LIARS else 0
        assert was.vested - now.vested == lost
        assert now.invalidated == CREDIT + lost
        assert (after.standing_of(member.peer_id) == 0) == (member in LIARS)
    assert {credit.round for credit in outcome.taken} == {2}
    held = {(item.node, item.reason) for item in outcome.left_out}
    assert {node for node, why in held if why == reasons.SIGNED_WRONG} == {
        liar.peer_id for liar in LIARS
    }


def test_a_claim_says_why_its_credit_is_gone() -> None:
    envelopes = complete([*PROVEN, WORLD.rolled_back(CHARGE, 2)])
    history = read(Log(envelopes))

    def stand(node: Identity, round: int) -> claims.Stand:
        entry, name = WORLD.earned(node, round), history.state.account_of(node.peer_id)
        claim = claims.Claim(round, 0, entry, digest("blob"), 128, 0)
        return claims.stands([claim], node.peer_id, history.state, history.work_of(name))[0]

    assert stand(HONEST[0], 3).reason == reasons.ROLLED_BACK
    assert (stand(HONEST[0], 2).status, stand(HONEST[0], 2).reason) == ("vested", "")
    assert stand(LIARS[0], 2).reason == reasons.SIGNED_WRONG
    assert {stand(LIARS[0], round).status for round in (2, 3)} == {"invalidated"}


def test_a_share_is_proven_from_going_back(tmp_path: Path) -> None:
    envelopes = complete([*PROVEN, WORLD.rolled_back(CHARGE, 2)])
    leaves, (state, _) = [each.encode() for each in envelopes], outcomes(envelopes)
    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True, run=WORLD.run) as store:
        store.append(leaves, WORLD.sign)
        found = prove_share(Served(store, None, lambda: state), WORLD.owners[0].key)
    assert isinstance(found.root.body, entries.RolledBack)
    assert (found.root.round, found.root.nodes) == (1, 0)
    assert found.credits == (2 * CREDIT, 0)


def test_what_was_given_away_stays_with_who_got_it() -> None:
    liar, friend = WORLD.owners[0], WORLD.owners[5]
    before, _ = outcomes(CHARGED)
    all_of_it = before.accounts[liar.key].vested
    given = [*CHARGED[:-1], WORLD.transfer(liar, friend.key, all_of_it), CHARGE]
    after, seen = outcomes([*answered(*PROOF, charged=given), WORLD.rolled_back(CHARGE, 2)])
    assert seen[-1].status == "recorded"
    assert liar.key not in {credit.account for credit in seen[-1].taken}
    assert after.accounts[friend.key].received == all_of_it


def test_the_rounds_are_made_again_under_numbers_of_their_own() -> None:
    back = [*answered(*PROOF), WORLD.rolled_back(CHARGE, 2)]
    for round, again in ((2, 1), (3, 1)):
        assert last(*back, WORLD.opened(round, again - 1)) == reasons.OUT_OF_ORDER
        shown = [WORLD.contribution(member, round, again) for member in WORLD.members]
        back += [WORLD.opened(round, again), WORLD.committed(round, again), *shown]
        back += [WORLD.closed(round, again), WORLD.agreed(round + 1)]
    state, seen = outcomes([*back, *WORLD.round(4)])
    assert state.round == 5
    assert [outcome.status for outcome in seen[-2:]] == ["recorded", "credited"]


def test_a_state_that_is_called_wrong_again_is_another_accusation() -> None:
    """The same numbers can come out of the second attempt, and the same lie."""
    again = [WORLD.opened(2, 1), WORLD.committed(2, 1)]
    again += [WORLD.contribution(member, 2, 1) for member in WORLD.members]
    again += [WORLD.closed(2, 1), WORLD.agreed(3)]  # the liars alone weigh too little by now
    back = [*answered(*PROOF), WORLD.rolled_back(CHARGE, 2), *again]
    assert last(*back, CHARGE) == "wrong_state"
    assert last(*back, WORLD.state_wrong(HONEST[0], 3, RIGHT, attempt=1)) == "recorded"


def test_a_false_accusation_costs_the_accuser_its_standing_and_its_voice() -> None:
    false = answered(*[digest("state 3")] * 3)
    state, seen = outcomes(false)
    node = HONEST[0].peer_id
    assert [(item.node, item.reason) for item in seen[-1].left_out] == [
        (node, reasons.FALSE_ACCUSATION)
    ]
    assert (state.charges, state.standing_of(node)) == ({}, 0)
    assert state.accounts[state.account_of(node)].pending > 0
    assert last(*false, WORLD.state_wrong(HONEST[0], 2, RIGHT)) == reasons.TOO_MANY
    assert last(*false, WORLD.state_wrong(HONEST[0], 3, RIGHT)) == reasons.DUPLICATE
    assert last(*false, WORLD.state_wrong(HONEST[1], 3, RIGHT)) == "recorded"
    assert last(*false, WORLD.opened(4)) == "recorded"


def test_a_node_that_moves_to_another_account_of_the_jury_answers_no_second_time() -> None:
    first, second, *_ = jury(CHARGED)
    name = outcomes(CHARGED)[0].account_of(second.peer_id)
    owner = WORLD.owners[WORLD.members.index(second)]
    said = answered(RIGHT)
    moved = [*said, entries.node(first, owner, WORLD.run, account=name, seq=2)]
    assert (outcomes(moved)[0].account_of(first.peer_id), last(*moved)) == (name, "recorded")
    assert last(*moved, said[-1]) == reasons.DUPLICATE
    assert last(*moved, WORLD.jury_answer(second, CHARGE, RIGHT)) == "recorded"


def test_who_says_another_root_than_most_loses_its_standing_once_that_is_settled() -> None:
    liar = jury(CHARGED)[0].peer_id
    proven = answered(digest("lie"), *PROOF)
    state, seen = outcomes(proven)
    assert (seen[-1].left_out, state.standing_of(liar) > 0) == ((), True)
    state, seen = outcomes([*proven, WORLD.rolled_back(CHARGE, 2)])
    assert [(item.node, item.reason) for item in seen[-1].left_out[:1]] == [
        (liar, reasons.FALSE_CHECK)
    ]
    assert state.standing_of(liar) == 0
    assert state.charges == {}


def test_what_is_proven_takes_nothing_from_anybody_until_the_coordinator_has_decided() -> None:
    before, _ = outcomes(CHARGED)
    after, seen = outcomes(answered(*PROOF))
    assert (after.standings(), after.accounts) == (before.standings(), before.accounts)
    assert not any(outcome.invalidated or outcome.left_out for outcome in seen[-3:])


def test_what_the_coordinator_upholds_costs_those_their_standing_who_said_otherwise() -> None:
    proven = answered(digest("state 3"), *PROOF)
    upheld = WORLD.state_upheld(CHARGE, digest("state 3"))
    state, seen = outcomes([*proven, upheld])
    right, *false = jury(CHARGED)[:4]
    held = {(item.node, item.reason) for item in seen[-1].left_out}
    assert held == {(node.peer_id, reasons.FALSE_CHECK) for node in false} | {
        (HONEST[0].peer_id, reasons.FALSE_ACCUSATION)
    }
    assert state.charges == {}
    assert state.standing_of(right.peer_id) > 0
    assert [state.standing_of(node.peer_id) for node in (HONEST[0], *false)] == [0] * 4
    assert last(*proven, upheld, WORLD.opened(4)) == "recorded"
    assert last(*proven, upheld, WORLD.rolled_back(CHARGE, 2)) == reasons.NOT_PROVEN
    assert last(*proven, WORLD.state_upheld(CHARGE, RIGHT)) == "wrong_state"
    assert last(*answered(*PROOF[1:]), upheld) == reasons.NOT_PROVEN
    other = forged(upheld, WORLD.members[0])
    assert last(*proven, other) == reasons.WRONG_SIGNERS


def test_who_was_found_to_lie_is_not_heard_for_a_while() -> None:
    """Neither as an accuser nor on a jury, also while the run rests on its coordinator."""
    upheld = [*PROVEN, WORLD.state_upheld(CHARGE, digest("state 3"))]
    *false, honest, _ = jury(CHARGED)
    assert outcomes(upheld)[0].rests_on == "coordinator"
    assert last(*upheld, WORLD.state_wrong(false[0], 2, RIGHT)) == reasons.TOO_MANY
    assert last(*upheld, WORLD.state_wrong(honest, 2, RIGHT)) == reasons.NO_JURY


def test_more_are_drawn_for_those_who_do_not_answer_until_it_lapses() -> None:
    world = World(nodes=JURY + 3, ownership=RULES, exchange={"topology": "gather"})
    rounds = [entry for number in range(4) for entry in world.round(number)]
    charge = world.state_wrong(world.members[0], 3, RIGHT)
    charged = [*world.start, *rounds, charge]
    late = world.jury_answer(jury(charged, world)[JURY], charge, RIGHT)
    assert last(*charged, late) == reasons.NOT_DRAWN
    attempts = [world.opened(4, attempt) for attempt in range(12)]
    assert last(*charged, *attempts[:3], late) == "recorded"
    assert outcomes([*charged, *attempts[:11]])[0].charges
    state, _ = outcomes([*charged, *attempts])
    assert state.charges == {}
    assert state.standing_of(world.members[0].peer_id) > 0
    assert last(*charged, *attempts, charge) == reasons.DUPLICATE
    # Nor is a node heard again for the account that it moves to.
    moved = entries.node(world.members[0], world.owners[1], world.run, seq=2)
    again = world.state_wrong(world.members[0], 3, digest("another root"))
    assert last(*charged, *attempts, moved, again) == reasons.DUPLICATE


PROVEN = answered(*PROOF)


@pytest.mark.parametrize(
    ("reason", "entry"),
    [
        (reasons.OUT_OF_ORDER, WORLD.state_wrong(HONEST[1], 5)),
        ("wrong_state", WORLD.state_wrong(HONEST[1], 3, recorded=digest("x"))),
        ("wrong_state", WORLD.state_wrong(HONEST[1], 3, attempt=1)),
        (reasons.SAME_ROOT, WORLD.state_wrong(HONEST[1], 2, digest("state 2"))),
        (reasons.DUPLICATE, WORLD.state_wrong(HONEST[1], 3)),
        (reasons.TOO_MANY, WORLD.state_wrong(HONEST[0], 2)),
        (reasons.NOT_DRAWN, WORLD.jury_answer(HONEST[0], CHARGE, RIGHT)),
        (reasons.NOT_ACCUSED, WORLD.jury_answer(HONEST[1], WORLD.start[1], RIGHT)),
        (reasons.NOT_PROVEN, WORLD.rolled_back(CHARGE, 2)),
    ],
)
def test_what_does_not_fit_changes_nothing(reason: str, entry: Envelope) -> None:
    assert last(*CHARGED, entry) == reason


def test_going_back_ends_before_the_wrong_state_at_one_of_the_run() -> None:
    assert last(*PROVEN, WORLD.rolled_back(CHARGE, 3)) == reasons.OUT_OF_ORDER
    assert last(*PROVEN, WORLD.rolled_back(CHARGE, 2, root=digest("x"))) == "wrong_state"
    other = entries.rolled_back(
        WORLD.coordinator,
        WORLD.run,
        charge=entries.entry_id(CHARGE.encode()),
        state=2,
        root=digest("state 2"),
        credits=digest("x"),
    )
    assert last(*PROVEN, other) == reasons.WRONG_CREDITS


def test_only_the_newest_states_can_be_called_wrong() -> None:
    world = World(nodes=2)
    rounds = [entry for number in range(ANCHORS) for entry in world.round(number)]
    state, _ = outcomes([*world.start, *rounds])
    assert len(state.anchors) == ANCHORS
    assert last(*world.start, *rounds, world.state_wrong(world.members[0], 1)) == "out_of_order"


def test_once_founded_nobody_without_standing_calls_a_state_wrong_or_is_drawn() -> None:
    """Neither does somebody else's credit make a voice, nor work that has not vested yet."""
    world = World(nodes=7, ownership=RULES | {"vesting_rounds": 3})
    *known, new = world.members
    peers = [node.peer_id for node in known]

    def old(round: int) -> list[Envelope]:
        shown = [world.contribution(node, round) for node in known]
        begun = [world.opened(round, members=peers), world.committed(round, members=known)]
        return [*begun, *shown, world.closed(round, accepted=known), world.agreed(round + 1, known)]

    rounds = [entry for round in range(4) for entry in old(round)]
    ledger = [*world.start, *rounds, *world.round(4)]
    state, _ = outcomes(ledger)
    assert (state.rests_on, state.credit(world.owners[-1].key)) == ("members", CREDIT)
    assert last(*ledger, world.state_wrong(new, 5, RIGHT)) == reasons.NO_STANDING
    charge = world.state_wrong(known[0], 5, RIGHT)
    assert set(jury([*ledger, charge], world)) == set(known[1:])


def test_two_accounts_cannot_decide_alone() -> None:
    world = World(nodes=2)
    called = [*world.start, *world.round(0), world.state_wrong(world.members[0], 1)]
    assert last(*called) == reasons.NO_JURY


def test_each_entry_is_told_and_verified(tmp_path: Path) -> None:
    world = world_of()
    whole = [*answered(*PROOF), WORLD.rolled_back(CHARGE, 2)]
    again = [WORLD.opened(2, 1), WORLD.committed(2, 1)]
    again += [WORLD.contribution(member, 2, 1) for member in WORLD.members]
    again += [WORLD.closed(2, 1), WORLD.agreed(3)]
    envelopes = complete([*whole, *again])
    history = read(Log(envelopes))
    back = len(whole) - 1
    for index in range(len(CHARGED) - 1, len(envelopes)):
        assert explain(history, index).lines()
    told = explain(history, back)
    assert sum(t.credit.amount for t in told.settled("invalidated")) == 10 * CREDIT
    first, second = (
        next(i for i, made in enumerate(envelopes) if made == WORLD.contribution(LIARS[0], 2, at))
        for at in (0, 1)
    )
    assert history.earned_by(first).status == "invalidated"  # type: ignore[union-attr]
    assert history.earned_by(second).status == "pending"  # type: ignore[union-attr]
    assert history.vested_at(world.owners[0].key, [1, 2, 3]) == [0, 2 * CREDIT, 2 * CREDIT]
    assert history.vested_at(world.owners[5].key, [1, 2, 3]) == [0, 3 * CREDIT, 3 * CREDIT]
    leaves = [envelope.encode() for envelope in envelopes]
    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True, run=world.run) as store:
        fold = effects.Fold.open(store)
        for at in range(0, len(leaves), 7):
            store.append(leaves[at : at + 7], world.sign, fold.beside)
            fold.settle()
        loose = effects.Loose()
        for leaf in leaves:
            loose.add(entries.decode(leaf))
        loose.flush()
        for table in effects.tables()[:-1]:
            assert store.query(f"SELECT * FROM {table}") == loose.query(f"SELECT * FROM {table}")
        before = read(store, back)
        assert before.sums_of(world.owners[0].key)[("compute", "vested")] == 3 * CREDIT
        assert kept.kept_by(store.query, store, store.size) == fold.state
