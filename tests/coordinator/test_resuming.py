"""Where a coordinator goes on: the rounds that a fold implies, for each phase that it can be in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from artel.coordinator.resuming import resumed
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Attempt
from artel.protocol import assignment, rounds
from artel.protocol.pauses import Pause
from artel.protocol.round_state import Phase, Presence, RoundRules, RunState, Seen, Tick

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


@pytest.mark.parametrize("phase", ["training", "revealing", "failed"])
def test_an_attempt_whose_messages_are_lost_is_followed_by_the_next(phase: str) -> None:
    state = resumed(folded(attempt_in(phase)), 0.0)
    assert (state.phase, state.round, state.attempt) == (Phase.WAITING, 2, 2)
    assert not state.commitments
    assert not state.revealed


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
