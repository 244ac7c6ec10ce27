"""Training that diverged: who says so, what the run goes back to, and what that costs whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.entries.anchors import ANCHORS
from artel.ledger.entries.fold_state import MOST_SETBACKS
from artel.ledger.entries.kinds.diverged import NOT_FINITE, in_micro, is_worse
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import read
from artel.ledger.fold.shares import FoldState, Outcome
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from ledger_world import CREDIT, World, complete, digest, forged, key, outcomes
from log_world import Log

RULES = {"vesting_rounds": 1}
WORLD = World(nodes=5, ownership=RULES)
ROUNDS = 4
GOOD, BAD = 3_000_000, 4_000_000
BEFORE = [*WORLD.start, *(entry for number in range(ROUNDS) for entry in WORLD.round(number))]


def told(
    nodes: Sequence[Identity] = WORLD.members[:3], loss: int = BAD, better: int = GOOD
) -> Mapping[Identity, tuple[int, int]]:
    return dict.fromkeys(nodes, (loss, better))


ASTRAY = WORLD.diverged(ROUNDS, 2, told())
DIVERGED = [*BEFORE, ASTRAY]
BACK = [*DIVERGED, WORLD.rolled_back(ASTRAY, 2)]


def last(*envelopes: Envelope) -> str:
    """What became of the last one."""
    seen = outcomes(envelopes)[1][-1]
    return seen.reason or seen.status


def test_most_of_those_who_made_a_state_say_that_it_is_worse_and_no_round_begins() -> None:
    assert last(*DIVERGED) == "recorded"
    assert last(*DIVERGED, WORLD.opened(ROUNDS)) == reasons.PROVEN_WRONG
    state, _ = outcomes(DIVERGED)
    assert (state.charges[ROUNDS].better, state.setbacks) == (2, (ROUNDS, 1))


@pytest.mark.parametrize(
    ("loss", "better", "worse"),
    [
        (BAD, GOOD, True),
        (NOT_FINITE, GOOD, True),
        (NOT_FINITE, NOT_FINITE, False),
        (5_000_000, 4_000_000, False),
        (5_000_001, 4_000_000, True),
        (2_000_000, 4_000_000, False),
        (0, 0, False),
    ],
)
def test_a_state_is_worse_by_more_than_a_quarter(loss: int, better: int, worse: bool) -> None:
    assert is_worse(loss, better) == worse
    entry = WORLD.diverged(ROUNDS, 2, told(loss=loss, better=better))
    assert last(*BEFORE, entry) == ("recorded" if worse else reasons.NO_MAJORITY)


def test_a_loss_is_signed_in_millionths_and_what_is_no_number_as_the_largest() -> None:
    assert in_micro(2.3456789) == 2_345_679
    assert in_micro(1e6) == in_micro(2e6) == NOT_FINITE


def test_half_of_those_who_made_it_are_too_few_and_who_measured_no_difference_does_not_count() -> (
    None
):
    world = World(nodes=4, ownership=RULES)
    before = [*world.start, *(entry for number in range(3) for entry in world.round(number))]
    half = told(world.members[:2])
    assert last(*before, world.diverged(3, 1, half)) == reasons.NO_MAJORITY
    others = dict.fromkeys(world.members[2:], (GOOD, GOOD))
    assert last(*before, world.diverged(3, 1, {**half, **others})) == reasons.NO_MAJORITY
    assert last(*before, world.diverged(3, 1, told(world.members[:3]))) == "recorded"


def test_who_did_not_make_the_state_has_no_say() -> None:
    strangers = [key(f"stranger {number}") for number in range(3)]
    assert last(*BEFORE, WORLD.diverged(ROUNDS, 2, told(strangers))) == reasons.NO_MAJORITY


def test_what_a_word_weighs_is_the_standing_of_its_account() -> None:
    """Four of five are most of them, not most of the standing."""
    world = World(nodes=5, ownership=RULES)
    rich, *poor = world.members
    rounds = [entry for number in range(3) for entry in alone(world, rich, number)]
    before = [*world.start, *rounds, *world.round(3)]
    weights = outcomes(before)[0].weights(node.peer_id for node in world.members)
    assert weights[rich.peer_id] > 0 == sum(weights[node.peer_id] for node in poor)
    assert last(*before, world.diverged(4, 2, told(poor))) == reasons.NO_MAJORITY
    assert last(*before, world.diverged(4, 2, told([rich]))) == "recorded"


def alone(world: World, node: Identity, round: int) -> list[Envelope]:
    """A round that only one node brought to an end."""
    silent = {other.peer_id: "late" for other in world.members if other is not node}
    made = [world.opened(round), world.committed(round, members=[node])]
    made += [world.contribution(node, round)]
    made += [world.closed(round, accepted=[node], rejected=silent), world.agreed(round + 1, [node])]
    return made


@pytest.mark.parametrize(
    ("reason", "entry"),
    [
        (reasons.OUT_OF_ORDER, WORLD.diverged(ROUNDS + 1, 2, told())),
        (reasons.OUT_OF_ORDER, WORLD.diverged(ROUNDS - 2, 1, told())),
        (reasons.OUT_OF_ORDER, WORLD.diverged(ROUNDS, ROUNDS, told())),
        ("wrong_state", WORLD.diverged(ROUNDS, 2, told(), root=digest("x"))),
        ("wrong_state", WORLD.diverged(ROUNDS, 2, told(), better_root=digest("x"))),
        (reasons.WRONG_SIGNERS, forged(ASTRAY, WORLD.members[0])),
        (reasons.NOT_PROVEN, WORLD.rolled_back(ASTRAY, 2)),
    ],
)
def test_what_does_not_fit_changes_nothing(reason: str, entry: Envelope) -> None:
    assert last(*BEFORE, entry) == reason


def test_a_signature_under_another_loss_makes_the_entry_count_for_nothing() -> None:
    honest = entries.decode(ASTRAY.encode()).body
    assert isinstance(honest, entries.TrainingDiverged)
    lied = [one.model_copy(update={"loss": one.loss + 1}) for one in honest.losses]
    said: dict[str, Any] = {name: getattr(honest, name) for name in ("state", "root", "better")}
    said |= {"better_root": honest.better_root, "losses": lied}
    entry = entries.decode(entries.diverged(WORLD.coordinator, WORLD.run, **said).encode())
    assert entry.signers == frozenset()


def test_the_state_before_the_newest_can_still_be_said_to_have_diverged() -> None:
    assert last(*BEFORE, WORLD.diverged(ROUNDS - 1, 1, told())) == "recorded"


def test_what_the_same_numbers_stand_for_is_no_better() -> None:
    world = World(nodes=2, ownership=RULES)
    before = [*world.start, *world.round(0), *world.until_closed(1)]
    before += [world.agreed(2, root=digest("state 1"))]
    same = world.diverged(2, 1, told(world.members), root=digest("state 1"))
    assert last(*before, same) == reasons.SAME_ROOT


def test_as_long_as_a_state_is_called_wrong_nobody_goes_behind_it_for_that() -> None:
    charge = WORLD.state_wrong(WORLD.members[0], 3, digest("right"))
    assert last(*BEFORE, charge, ASTRAY) == reasons.OUT_OF_ORDER
    assert last(*BEFORE, charge, WORLD.diverged(ROUNDS, 3, told())) == "recorded"
    assert last(*DIVERGED, ASTRAY) == reasons.OUT_OF_ORDER


def test_a_coordinator_cannot_uphold_it_and_nobody_can_answer_it() -> None:
    upheld = WORLD.state_upheld(ASTRAY, digest(f"state {ROUNDS}"))
    assert last(*DIVERGED, upheld) == reasons.NOT_PROVEN
    answer = WORLD.jury_answer(WORLD.members[0], ASTRAY, digest("state 2"))
    assert last(*DIVERGED, answer) == reasons.NOT_ACCUSED


def gone_back(to: int = 2) -> tuple[FoldState, FoldState, Outcome]:
    before, _ = outcomes(DIVERGED)
    after, seen = outcomes([*DIVERGED, WORLD.rolled_back(ASTRAY, to)])
    return before, after, seen[-1]


@pytest.mark.parametrize("to", [0, 1, 2])
def test_the_run_goes_on_from_the_better_state_or_an_earlier_one_with_other_data(to: int) -> None:
    until = [entry for number in range(to) for entry in WORLD.round(number)]
    then, _ = outcomes([*WORLD.start, *until])
    before, after, _ = gone_back(to)
    for name in ("states", "tails", "spans", "recent", "anchors", "attempt"):
        assert getattr(after, name) == getattr(then, name), name
    assert (after.charges, after.round) == ({}, to)
    assert (after.cursor, after.steps) == (before.cursor, before.steps)
    assert last(*DIVERGED, WORLD.rolled_back(ASTRAY, 3)) == reasons.OUT_OF_ORDER


def test_what_is_pending_goes_for_all_what_has_vested_stays_and_nobody_is_to_blame() -> None:
    before, after, outcome = gone_back()
    for owner in WORLD.owners:
        was, now = before.accounts[owner.key], after.accounts[owner.key]
        assert (was.pending, now.pending) == (CREDIT, 0)
        assert (was.vested, now.invalidated) == (now.vested, CREDIT)
    assert (outcome.taken, after.standings()) == ((), before.standings())
    assert {item.reason for item in outcome.left_out} == {reasons.ROLLED_BACK}


def test_a_run_that_diverges_again_and_again_stops_after_three_times() -> None:
    run, first = list(BEFORE), 2
    for time in range(MOST_SETBACKS + 1):
        entry = WORLD.diverged(ROUNDS, 2, told(loss=BAD + time))
        back = [*run, entry, WORLD.rolled_back(entry, 2)]
        assert last(*back) == "recorded"
        once_more = WORLD.again(first, ROUNDS, time + 1)
        if time < MOST_SETBACKS:
            run = [*back, *once_more]
        else:
            assert last(*back, once_more[0]) == reasons.TOO_MANY_SETBACKS
            amended = [*back, WORLD.amended(1, first, optimizer__lr="0.0001")]
            assert last(*amended, once_more[0]) == "recorded"
            state, _ = outcomes(amended)
            assert (state.round, state.setbacks, state.halted) == (2, (ROUNDS, 0), False)


def test_what_the_organiser_had_amended_when_a_run_goes_back_holds_for_all_that_is_made_again() -> (
    None
):
    said = [
        WORLD.amended(1, ROUNDS - 1, optimizer__lr="0.1"),
        WORLD.amended(2, ROUNDS + 1, optimizer__lr="0.2"),
        WORLD.amended(3, ROUNDS + 2, optimizer__lr="0.3"),
    ]
    earlier = [*WORLD.start, *(entry for number in range(2) for entry in WORLD.round(number))]
    made = [*earlier, *said, *(entry for number in (2, 3) for entry in WORLD.round(number))]

    def rates(state: FoldState) -> list[str | None]:
        return [state.changes_at(round).get("optimizer.lr") for round in range(1, ROUNDS + 3)]

    before, _ = outcomes([*made, ASTRAY])
    assert rates(before) == [None, None, "0.1", "0.1", "0.2", "0.3"]
    after, _ = outcomes([*made, ASTRAY, WORLD.rolled_back(ASTRAY, 2)])
    assert rates(after) == [None, "0.2", "0.2", "0.2", "0.2", "0.3"]


def test_a_divergence_long_after_another_is_not_the_next_in_a_row() -> None:
    state, _ = outcomes(BACK)
    assert state.setbacks == (ROUNDS, 1)
    world = World(nodes=2, ownership=RULES, rounds={"total": 60, "inner_steps": 4})
    many = ROUNDS + ANCHORS + 1
    early = world.diverged(2, 1, told(world.members))
    start = [*world.start, *world.round(0), *world.round(1), early, world.rolled_back(early, 1)]
    start += world.again(1, 2, 1)
    start += [entry for number in range(2, many) for entry in world.round(number)]
    late = world.diverged(many, many - 1, told(world.members))
    assert outcomes([*start, late])[0].setbacks == (many, 1)


def test_its_explanation_says_what_was_measured_and_what_it_costs() -> None:
    history = read(Log(complete(BACK)))
    said = "\n".join(explain(history, len(DIVERGED) - 1).lines())
    assert "4.0000 nats per token" in said
    assert "nobody is to blame" in said
    back = "\n".join(explain(history, len(BACK) - 1).lines())
    assert f"training diverged by state {ROUNDS}" in back
    assert "what has vested stays with all" in back
    infinite = WORLD.diverged(ROUNDS, 2, told(loss=NOT_FINITE))
    body = entries.decode(infinite.encode()).body
    assert isinstance(body, entries.TrainingDiverged)
    assert body.says() == f"the loss of state {ROUNDS} is not finite, that of state 2 was 3.0000"
