"""What the ledger says of closed rounds, in the form in which a node applies them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from artel.ledger import entries
from artel.ledger.entries.fold_state import Attempt, Slice
from artel.ledger.store.store import LedgerStore
from artel.protocol.errors import CheckFailed


@dataclass(frozen=True)
class ClosedRound:
    """A closed round: all that its next state follows from."""

    round: int
    attempt: int
    members: tuple[str, ...]
    """Ascending peer ids of everybody who was asked to train."""
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

    @property
    def accepted(self) -> list[str]:
        """Ascending peer ids."""
        return sorted(self.weights)


def under_way(store: LedgerStore, attempt: Attempt) -> ClosedRound:
    """The attempt that is being applied, as the fold sees it."""
    ids = [attempt.shown[node].entry for node in attempt.accepted]
    return ClosedRound(
        attempt.round,
        attempt.attempt,
        tuple(sorted(attempt.accounts)),
        dict(zip(attempt.accepted, contributions(store, ids), strict=True)),
        dict(attempt.accepted),
        dict(attempt.slices),
        frozenset(attempt.wrong),
    )


def contributions(store: LedgerStore, ids: Iterable[str]) -> list[entries.Contribution]:
    """The bodies of the contribution entries with these ids, in the same order.

    :raises CheckFailed: when an id names no contribution of this ledger
    """
    bodies: list[entries.Contribution] = []
    for entry in ids:
        index = store.index_of(entry)
        body = entries.decode(store.leaf(index)).body if index is not None else None
        if not isinstance(body, entries.Contribution):
            raise CheckFailed(f"the ledger has no contribution with the id {entry[:16]}…")
        bodies.append(body)
    return bodies


def closed_since(store: LedgerStore, round: int) -> list[ClosedRound]:
    """Every agreed round from ``round`` on, oldest first.

    Reads the ledger backwards, so it costs what happened since then and no more.

    :raises CheckFailed: the ledger does not reach back to an attempt that it closed
    """
    found: list[ClosedRound] = []
    root = ""
    closed: entries.RoundClosed | None = None
    aggregates: dict[int, Slice] = {}
    accused: set[int] = set()
    for index in range(store.size - 1, -1, -1):
        body = entries.decode(store.leaf(index)).body
        if isinstance(body, entries.StateAgreed):
            if body.round <= round:
                return found[::-1]
            root, closed, aggregates, accused = body.root, None, {}, set()
        elif isinstance(body, entries.Aggregate) and root and closed is None:
            aggregates[body.slice] = Slice(body.node, body.blob, body.size)
        elif isinstance(body, entries.SliceWrong) and root and closed is None:
            accused.add(body.slice)
        elif isinstance(body, entries.RoundClosed) and root and closed is None and body.accepted:
            closed = body
        elif isinstance(body, entries.RoundOpened) and closed is not None:
            if (body.round, body.attempt) != (closed.round, closed.attempt):
                break
            nodes = [item.node for item in closed.accepted]
            listed = contributions(store, [item.entry for item in closed.accepted])
            found.append(
                ClosedRound(
                    closed.round,
                    closed.attempt,
                    body.members,
                    dict(zip(nodes, listed, strict=True)),
                    {item.node: item.weight for item in closed.accepted},
                    aggregates,
                    frozenset(accused),
                    root,
                )
            )
            root, closed = "", None
    if root:
        raise CheckFailed("the ledger has an agreed state without the round that made it")
    return found[::-1]
