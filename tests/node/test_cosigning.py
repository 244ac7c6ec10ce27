"""Which nodes cosign: all of a small run; of many the electors, and others by lot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from artel.ledger.entries.electors import Electorate, Electors
from artel.node.cosigning import CALLED, called


def run_with(members: int, round: int = 5, witnesses: int = 1) -> Any:
    """What a fold says of a run in which so many contributed."""
    electors = Electors([Electorate(0, 0, {"e0": 1, "e1": 1}, by_standing=False)])
    recent = [f"account {number}" for number in range(members)]
    rules = SimpleNamespace(witnesses=witnesses)
    return SimpleNamespace(
        run="ab" * 32, round=round, recent=recent, attempt=None, electors=electors, rules=rules
    )


def count(state: Any, members: int) -> int:
    return sum(called(state, f"n{number}") for number in range(members))


def test_everybody_cosigns_in_a_small_run() -> None:
    assert count(run_with(CALLED), CALLED) == CALLED


def test_of_many_the_electors_cosign_and_others_in_turn() -> None:
    members = 1000
    assert called(run_with(members), "e0")
    counts = [count(run_with(members, round), members) for round in range(10)]
    assert all(CALLED / 2 < found < 2 * CALLED for found in counts)
    turns = sum(called(run_with(members, round), "n7") for round in range(400))
    assert 2 <= turns <= 40  # 12.8 on the average


def test_as_many_are_called_as_a_head_needs() -> None:
    assert count(run_with(1000, witnesses=100), 1000) > 150
