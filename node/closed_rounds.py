"""What the ledger says of closed rounds, in the form in which a node applies them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from artel.ledger import entries
from artel.ledger.entries.records import Attempt, Slice
from artel.ledger.fold.attempts import newest_attempt
from artel.ledger.fold.history import History
from artel.ledger.fold.kept import Leaves


@dataclass(frozen=True)
class ClosedRound:
    """A closed round: all that its next state follows from."""

    round: int
    attempt: int
    members: tuple[str, ...]
    """Ascending peer ids of everybody who was asked to train."""
    committed: tuple[str, ...]
    """Ascending peer ids of those of them that have committed."""
    shown: Mapping[str, entries.Contribution]
    """Accepted node to its contribution."""
    weights: Mapping[str, int]
    """Accepted node to the tokens that count."""
    aggregates: Mapping[int, Slice] = field(default_factory=dict)
    """Slice to what its aggregator made of it; only in sharded rounds."""
    accused: frozenset[int] = frozenset()
    """Slices whose aggregate somebody calls wrong."""
    root: str = ""
    """Root of the state that was agreed on; empty while it is not."""

    @cached_property
    def accepted(self) -> list[str]:
        """Ascending peer ids."""
        return sorted(self.weights)


def under_way(log: Leaves, attempt: Attempt, before: ClosedRound | None = None) -> ClosedRound:
    """The attempt that is being applied, as the fold sees it.

    :param before: what it was when it was looked at before, in the same term; a thousand
        contributions need not be read again
    """
    place = (attempt.round, attempt.attempt)
    if before is not None and (before.round, before.attempt) == place:
        made, wrong = dict(attempt.slices), frozenset(attempt.wrong)
        return replace(before, aggregates=made, accused=wrong)
    shown = {node: attempt.shown[node].index for node in attempt.accepted}
    return ClosedRound(
        attempt.round,
        attempt.attempt,
        tuple(sorted(attempt.accounts)),
        tuple(sorted(attempt.commitments)),
        _bodies(log, shown),
        dict(attempt.accepted),
        dict(attempt.slices),
        frozenset(attempt.wrong),
    )


def closed_since(history: History, round: int) -> list[ClosedRound]:
    """Every agreed round from ``round`` on, oldest first."""
    return [agreed_round(history, number) for number in range(round, history.state.round)]


def agreed_round(history: History, round: int) -> ClosedRound:
    """A round whose state was agreed on and counts."""
    trail = newest_attempt(history, round)
    assert trail.agreed is not None
    assert trail.committed is not None
    made = {number: body for number, (_, body) in trail.slices.items()}
    return ClosedRound(
        round,
        trail.attempt,
        tuple(trail.steps),
        tuple(sorted(trail.committed[1].commitments)),
        _bodies(history.log, {node: trail.shown[node] for node in trail.weights}),
        trail.weights,
        {number: Slice(body.node, body.blob, body.size) for number, body in made.items()},
        frozenset(trail.accused),
        trail.agreed[1].root,
    )


def _bodies(log: Leaves, shown: Mapping[str, int]) -> dict[str, entries.Contribution]:
    """Node to its contribution, by the indices of these."""
    bodies = {node: entries.decode(log.leaf(index)).body for node, index in shown.items()}
    return {n: body for n, body in bodies.items() if isinstance(body, entries.Contribution)}
