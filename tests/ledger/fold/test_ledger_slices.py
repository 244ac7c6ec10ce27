"""Sharded rounds in the ledger: who combines which slice, and what a wrong one costs whom."""

from __future__ import annotations

import json

import pytest

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.fold.claims import REJECTED, Claim, stands
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import read as history_of
from artel.ledger.fold.shares import FoldState, Outcome, fold
from artel.protocol.dsse import Envelope
from ledger_world import CREDIT, World, forged, key, outcomes, read
from log_world import Log

WORLD = World(nodes=4, exchange={"topology": "sharded"}, ownership={"vesting_rounds": 0})
START = WORLD.start
CLOSED = WORLD.until_closed(0)
FIRST, SECOND, THIRD, FOURTH = sorted(WORLD.members, key=lambda member: member.peer_id)
"""The aggregators of slices 0 to 3 of round 0."""
RECORDED = [WORLD.aggregate(0, number) for number in range(4)]
ACCUSED = WORLD.slice_wrong(SECOND, 0, 0)


def after(*history: Envelope) -> tuple[FoldState, Outcome]:
    """The state after a closed round and these, and what the last of them did."""
    state, seen = outcomes([*START, *CLOSED, *history])
    return state, seen[-1]


def test_a_sharded_round_in_which_all_is_well() -> None:
    state, seen = outcomes([*START, *WORLD.round(0), *WORLD.round(1)])
    assert [outcome.reason for outcome in seen if outcome.reason] == []
    assert {account.vested for account in state.accounts.values()} == {2 * CREDIT}
    assert state.rejected == {}


def test_the_aggregator_moves_on_with_the_round() -> None:
    begun = [*START, *WORLD.round(0), *WORLD.until_closed(1)]
    assert outcomes([*begun, WORLD.aggregate(1, 0, by=SECOND)])[1][-1].status == "recorded"
    reason = outcomes([*begun, WORLD.aggregate(1, 0, by=FIRST)])[1][-1].reason
    assert reason == reasons.NOT_AGGREGATOR


def test_only_accepted_members_combine_slices() -> None:
    accepted = [member for member in WORLD.members if member is not FIRST]
    closed = WORLD.closed(0, accepted=accepted, rejected={FIRST.peer_id: "late"})
    begun = [*START, *CLOSED[:-1], closed]
    for number, member in enumerate((SECOND, THIRD, FOURTH, SECOND)):
        outcome = outcomes([*begun, WORLD.aggregate(0, number, by=member)])[1][-1]
        assert outcome.status == "recorded"
    assert outcomes([*begun, RECORDED[0]])[1][-1].reason == reasons.NOT_AGGREGATOR
    again = [WORLD.aggregate(0, 0, by=SECOND), WORLD.slice_wrong(FIRST, 0, 0)]
    assert outcomes([*begun, *again])[1][-1].reason == reasons.NOT_MEMBER


@pytest.mark.parametrize(
    ("reason", "history"),
    [
        (reasons.DUPLICATE, [RECORDED[0], RECORDED[0]]),
        (reasons.DUPLICATE, [RECORDED[0], WORLD.aggregate(0, 0, size=501)]),
        (reasons.NOT_AGGREGATOR, [WORLD.aggregate(0, 0, by=SECOND)]),
        (reasons.NOT_AGGREGATOR, [WORLD.aggregate(0, 0, by=key("stranger"))]),
        (reasons.UNKNOWN_SLICE, [WORLD.aggregate(0, 4)]),
        (reasons.UNKNOWN_SLICE, [WORLD.aggregate(0, 2, slices=2)]),
        (reasons.UNKNOWN_SLICE, [WORLD.aggregate(0, 0, slices=5)]),
        (reasons.OUT_OF_ORDER, [WORLD.aggregate(1, 0)]),
        (reasons.OUT_OF_ORDER, [WORLD.aggregate(0, 0, attempt=1)]),
        (reasons.OUT_OF_ORDER, [WORLD.agreed(1), RECORDED[0]]),
        (reasons.OUT_OF_ORDER, [WORLD.closed(0, accepted=[]), RECORDED[0]]),
        (reasons.UNKNOWN_SLICE, [ACCUSED]),
        (reasons.UNKNOWN_SLICE, [RECORDED[1], ACCUSED]),
        (reasons.OWN_WORK, [RECORDED[0], WORLD.slice_wrong(FIRST, 0, 0)]),
        (
            reasons.SAME_BLOB,
            [
                RECORDED[0],
                WORLD.slice_wrong(SECOND, 0, 0, blob=json.loads(RECORDED[0].payload)["blob"]),
            ],
        ),
        (reasons.DUPLICATE, [RECORDED[0], ACCUSED, ACCUSED]),
        (
            reasons.DUPLICATE,
            [RECORDED[0], ACCUSED, WORLD.slice_wrong(SECOND, 0, 0, blob="ab" * 32)],
        ),
        (reasons.NOT_CHECKER, [RECORDED[0], WORLD.slice_wrong(THIRD, 0, 0)]),
        (reasons.NOT_CHECKER, [RECORDED[0], ACCUSED, WORLD.slice_wrong(FOURTH, 0, 0)]),
        (reasons.NOT_MEMBER, [RECORDED[0], WORLD.slice_wrong(key("stranger"), 0, 0)]),
        (reasons.OUT_OF_ORDER, [RECORDED[0], WORLD.slice_wrong(SECOND, 0, 0, attempt=1)]),
        (reasons.OUT_OF_ORDER, [RECORDED[0], WORLD.agreed(1), ACCUSED]),
        (reasons.WRONG_SIGNERS, [forged(RECORDED[0], SECOND)]),
        (reasons.WRONG_SIGNERS, [forged(RECORDED[0], FIRST, SECOND)]),
        (reasons.WRONG_SIGNERS, [RECORDED[0], forged(ACCUSED, THIRD)]),
        (reasons.UNKNOWN_SLICE, [WORLD.agreed(1, wrong=[0])]),
        (reasons.UNKNOWN_SLICE, [RECORDED[0], WORLD.agreed(1, wrong=[0])]),
        (reasons.UNKNOWN_SLICE, [*RECORDED, ACCUSED, WORLD.agreed(1, wrong=[0, 1])]),
        (reasons.UNKNOWN_SLICE, [RECORDED[0], ACCUSED, WORLD.agreed(1, wrong=[0, 63])]),
    ],
)
def test_what_does_not_fit_changes_nothing(reason: str, history: list[Envelope]) -> None:
    before, _ = after(*history[:-1])
    state, outcome = after(*history)
    assert outcome == Outcome("ignored", reason)
    state.ignored, state.size, state.kinds = before.ignored, before.size, before.kinds
    assert state == before


def test_slices_belong_to_closed_rounds_that_are_sharded() -> None:
    early = [*START, *CLOSED[:-1], RECORDED[0]]
    assert outcomes(early)[1][-1].reason == reasons.OUT_OF_ORDER
    for world in (World(nodes=4), World(nodes=4, exchange={"topology": "gather"})):
        history = [*world.start, *world.until_closed(0), world.aggregate(0, 0)]
        assert outcomes(history)[1][-1].reason == reasons.NOT_SHARDED
    many = World(nodes=9)  # auto: sharded above 8
    state, seen = outcomes([*many.start, *many.round(0)])
    assert [outcome.reason for outcome in seen if outcome.reason] == []
    assert state.round == 1
    assert sum(entry.kind == "aggregate" for entry in read(many.round(0))) == 9


def test_whoever_combined_a_slice_wrongly_earns_nothing_in_that_round() -> None:
    state, outcome = after(*RECORDED, ACCUSED, WORLD.agreed(1, wrong=[0]))
    earned = {account: owner.vested for account, owner in state.accounts.items()}
    guilty = state.account_of(FIRST.peer_id)
    assert earned == {name: 0 if name == guilty else CREDIT for name in earned}
    assert state.rejected == {FIRST.peer_id: {reasons.WRONG_SLICE: 1}}
    assert [(item.node, item.reason) for item in outcome.left_out] == [
        (FIRST.peer_id, reasons.WRONG_SLICE)
    ]
    assert [credit.node for credit in outcome.granted].count(FIRST.peer_id) == 0
    assert state.recent == sorted(set(earned) - {guilty})
    # In the next round all is as before.
    later, _ = outcomes([*START, *CLOSED, *RECORDED, ACCUSED, WORLD.agreed(1, wrong=[0])])
    assert fold(read(WORLD.round(1), later.copy()), later).accounts[guilty].vested == CREDIT


def test_two_wrong_slices_of_one_node_are_counted_once() -> None:
    world = World(nodes=4, exchange={"topology": "sharded"})
    accepted = [FIRST, SECOND]
    history = [
        *CLOSED[:-1],
        world.closed(0, accepted=accepted, rejected={}),
        *(world.aggregate(0, n, by=world.aggregator(0, n, accepted)) for n in range(4)),
    ]
    assert world.run != WORLD.run
    history = [
        *(world.opened(0), world.committed(0)),
        *(world.contribution(member, 0) for member in world.members),
        *history[-5:],
        *(world.slice_wrong(SECOND, 0, number) for number in (0, 2)),
        world.agreed(1, nodes=accepted, wrong=[0, 2]),
    ]
    state, seen = outcomes([*world.start, *history])
    assert [outcome.reason for outcome in seen if outcome.reason] == []
    assert state.rejected == {FIRST.peer_id: {reasons.WRONG_SLICE: 1}}
    assert len(seen[-1].granted) == 1


def test_a_false_accusation_is_counted_and_takes_nothing() -> None:
    state, outcome = after(*RECORDED, ACCUSED, WORLD.agreed(1))
    assert state.rejected == {SECOND.peer_id: {reasons.FALSE_ACCUSATION: 1}}
    assert {item.reason for item in outcome.left_out} == {reasons.FALSE_ACCUSATION}
    assert {owner.vested for owner in state.accounts.values()} == {CREDIT}


def test_nothing_is_held_against_anybody_when_no_state_is_agreed_on() -> None:
    given_up = [*RECORDED, ACCUSED, WORLD.closed(0, accepted=[])]
    state, outcome = after(*given_up)
    assert outcome.status == "recorded"
    assert state.rejected == {m.peer_id: {reasons.NOT_AGREED: 1} for m in WORLD.members}
    assert state.attempt is not None
    assert (state.attempt.slices, state.attempt.wrong) == ({}, {})


def test_the_state_with_slices_survives_being_written_down() -> None:
    state, _ = after(*RECORDED, ACCUSED)
    again = FoldState.decode(state.encode())
    assert again == state
    assert again.attempt is not None
    assert again.attempt.slices[3].node == FOURTH.peer_id
    assert list(again.attempt.wrong) == [0]
    (agreed,) = read([WORLD.agreed(1, wrong=[0])])
    assert fold([agreed], again) == fold([agreed], state)


def test_the_node_itself_is_told_why_it_earned_nothing() -> None:
    account = next(
        owner for owner, member in zip(WORLD.owners, WORLD.members, strict=True) if member is FIRST
    )
    told = history_of(Log([*START, *CLOSED, *RECORDED, ACCUSED, WORLD.agreed(1, wrong=[0])]))
    claim = Claim(0, 0, WORLD.earned(FIRST, 0), "", 128, 0)
    (stand,) = stands([claim], FIRST.peer_id, told.state, told.work_of(account.key))
    assert (stand.status, stand.reason) == (REJECTED, reasons.WRONG_SLICE)


def test_slices_are_explained() -> None:
    history = [*START, *CLOSED, *RECORDED, ACCUSED, WORLD.agreed(1, wrong=[0])]
    log, closed = history_of(Log(history)), len(START) + len(CLOSED) - 1
    told = "\n".join(explain(log, closed + 1).lines())
    assert "the round is sharded: 4 members (exchange.topology = sharded)" in told
    assert (
        f"slice 0 is for number 0 = (0 + round 0) mod 4 of the members that entry {closed} accepted"
    ) in told
    assert f"recomputed it and got {json.loads(ACCUSED.payload)['blob'][:12]}" in told
    assert "earns nothing in this round (wrong_slice)" in told
    wrong = "\n".join(explain(log, closed + 5).lines())
    assert "says that slice 0 is wrong" in wrong
    assert "found wrong by those who signed" in wrong
    agreed = explain(log, closed + 6)
    assert "made without the wrong slice 0" in agreed.summary
    assert "1 contribution denied credit" in agreed.summary
    index = next(
        number
        for number, entry in enumerate(read(history))
        if isinstance(entry.body, entries.Contribution) and entry.body.node == FIRST.peer_id
    )
    assert "earns nothing in this round (wrong_slice)" in "\n".join(explain(log, index).lines())
    false = history_of(Log([*START, *CLOSED, *RECORDED, ACCUSED, WORLD.agreed(1)]))
    assert "counted as false_accusation" in "\n".join(explain(false, closed + 5).lines())
