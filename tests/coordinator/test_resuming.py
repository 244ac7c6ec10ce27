"""Where a coordinator goes on: the rounds that a fold implies, for each phase that it can be in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from artel.coordinator.resuming import resumed
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Attempt, ValidContribution
from artel.protocol import assignment, duties, rounds
from artel.protocol.pauses import Pause
from artel.protocol.round_state import (
    CloseRound,
    Committed,
    Phase,
    Presence,
    Revealed,
    RoundRules,
    RunState,
    Seen,
    Tick,
)

ROOTS = [f"{number:064x}" for number in range(4)]
ACCOUNTS = {"a": "ann", "b": "bob", "c": "ann"}
RULES = RoundRules(10, 2, 8, 0.6, 100.0, 10.0, 20.0, 30.0, 60.0)


def folded(attempt: Attempt | None = None, states: int = 3) -> FoldState:
    """A fold with this attempt under way; ``gone`` has earned once, in a round long ago."""
    return FoldState(
        states=ROOTS[:states],
        attempt=attempt,
        nodes=ACCOUNTS | {"new": "ann", "gone": "zoe"},
        node_tokens=dict.fromkeys([*ACCOUNTS, "gone"], 5),
        recent=["ann", "bob"],
    )


def attempt_in(phase: str, **changes: object) -> Attempt:
    attempt = Attempt(2, 1, dict(ACCOUNTS), phase=phase)
    for name, value in changes.items():
        setattr(attempt, name, value)
    return attempt


def after(fold: FoldState, *beats: str, until: float) -> RunState:
    """The rounds at ``until``, when these nodes come back at once."""
    state = replace(resumed(fold, 100.0), unranked=False)
    for peer in beats:
        state, _ = rounds.step(RULES, state, Seen(100.0, peer, state.base))
    return rounds.step(RULES, state, Tick(until))[0]


def test_between_rounds_the_next_one_comes() -> None:
    state = resumed(folded(), 7.0)
    assert (state.phase, state.round, state.attempt) == (Phase.WAITING, 2, 0)
    assert (state.base, state.since) == (ROOTS[2], 7.0)
    assert state.proven == {*ACCOUNTS, "gone"}
    assert resumed(FoldState(states=ROOTS[:1]), 0.0).members == ()


def test_an_attempt_that_failed_is_followed_by_the_next() -> None:
    state = resumed(folded(attempt_in("failed")), 0.0)
    assert (state.phase, state.round, state.attempt) == (Phase.WAITING, 2, 2)
    assert not state.commitments
    assert not state.revealed


def test_members_go_on_training_and_commit_again() -> None:
    state = resumed(folded(attempt_in("training")), 7.0)
    assert (state.phase, state.round, state.attempt) == (Phase.TRAINING, 2, 1)
    assert (state.members, state.commitments, state.since) == (("a", "b", "c"), {}, 7.0)
    for peer in "abc":
        state, _ = rounds.step(RULES, state, Committed(8.0, peer, 2, 1, "00"))
    assert state.phase is Phase.REVEALING


def test_what_is_recorded_is_not_revealed_again() -> None:
    shown = ValidContribution("00", 0, 5, 5, 0, "", "")
    fold = folded(attempt_in("revealing", commitments={"a": "00", "b": "01"}, shown={"a": shown}))
    state = resumed(fold, 7.0)
    assert (state.phase, state.round, state.attempt) == (Phase.REVEALING, 2, 1)
    assert (state.accepted, state.commitments.keys()) == (("a",), {"a", "b"})
    state, _ = rounds.step(RULES, state, Seen(8.0, "b", state.base))
    assert duties.directive(RULES, state, "b", 8.0).task == "reveal"
    state, actions = rounds.step(RULES, state, Revealed(8.0, "b", 2, 1, ""))
    assert state.phase is Phase.APPLYING
    assert [action.accepted for action in actions if isinstance(action, CloseRound)] == [("a", "b")]


def test_a_member_that_does_not_come_back_costs_its_own_part() -> None:
    state = resumed(folded(attempt_in("training")), 0.0)
    for peer in "ab":
        state, _ = rounds.step(RULES, state, Seen(50.0, peer, state.base))
        state, _ = rounds.step(RULES, state, Committed(50.0, peer, 2, 1, "00"))
    state, _ = rounds.step(RULES, state, Tick(61.0))
    assert (state.phase, dict(state.rejected)) == (Phase.REVEALING, {"c": "disconnected"})


def test_a_closed_round_goes_on_being_applied() -> None:
    checker = assignment.checker(["a", "c"], 2, 0)
    applying = attempt_in(
        "applying",
        commitments=dict.fromkeys("abc", "00"),
        accepted={"a": 5, "c": 5},
        wrong={0: checker},
    )
    state = resumed(folded(applying), 3.0)
    assert (state.phase, state.round, state.attempt) == (Phase.APPLYING, 2, 1)
    assert state.members == ("a", "b", "c")
    assert state.accepted == ("a", "c")
    assert state.accused == {0}
    assert state.votes == {}
    assert rounds.step(RULES, state, Tick(4.0))[0].phase is Phase.APPLYING, "they are awaited"


def test_what_the_process_knows_outlives_an_entry_without_effect() -> None:
    pauses = {"b": Pause(2, 3, "late", "b")}
    before = RunState(
        Phase.APPLYING,
        round=2,
        attempt=4,
        base=ROOTS[2],
        since=0.0,
        peers={"a": Presence(5.0, ROOTS[2])},
        pauses=pauses,
        proven=frozenset("a"),
    )
    state = resumed(folded(attempt_in("failed")), 9.0, before)
    assert (state.peers, state.pauses, state.proven) == (before.peers, pauses, before.proven)
    assert state.attempt == 5, "later than any that it had in mind"
    assert resumed(folded(), 9.0, replace(before, round=1)).attempt == 0


@pytest.mark.parametrize("attempt", [None, attempt_in("failed")], ids=["agreed", "failed"])
def test_the_members_of_the_last_round_are_waited_for_but_not_for_long(
    attempt: Attempt | None,
) -> None:
    fold = folded(attempt)
    assert after(fold, "a", "b", until=109.0).phase is Phase.WAITING
    assert after(fold, "a", "b", until=110.0).members == ("a", "b")
    assert after(fold, "a", "b", "c", until=106.0).members == ("a", "b", "c")
    assert "gone" not in resumed(fold, 100.0).peers
    assert after(fold, "a", until=150.0).phase is Phase.WAITING, "too few"
