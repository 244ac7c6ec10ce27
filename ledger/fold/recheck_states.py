"""Recomputes agreed states from what the nodes published, offline.

The ledger names the accepted contributions of each round and their tokens, and the arithmetic is
exact: so the right root of a state follows from the state before it and these blobs, whoever
computes it. What single nodes combined for all in a sharded round is not believed, but recomputed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from artel.ledger.entries import Contribution
from artel.ledger.entries.trail import AttemptTrail
from artel.ledger.entries.words import short_key
from artel.ledger.fold.attempts import newest_attempt
from artel.ledger.fold.history import History
from artel.ledger.fold.layout import layout_of
from artel.ledger.fold.recheck import RIGHT, UNCHECKED, WRONG, HomeBlobs, sub_blobs
from artel.protocol import content
from artel.protocol.errors import ArtelError, CheckFailed
from artel.protocol.manifest import open_manifest
from artel.protocol.state import State, read_state, state_root

if TYPE_CHECKING:
    from artel.protocol.exchange.next_state import Base


@dataclass(frozen=True)
class StateChecked:
    """How one agreed state came out."""

    state: int
    """Its number."""
    status: str
    """right, wrong or not checkable."""
    entry: int
    """Index of the entry that agreed on it."""
    root: str
    """What that entry says."""
    recomputed: str
    """Its root as recomputed, or "" where it cannot be had."""
    contributions: int
    why: str = ""
    """What is missing."""

    def line(self) -> str:
        """For people."""
        said = {
            RIGHT: f"right: {short_key(self.root)}, recomputed from {self.contributions} "
            f"contributions, entry {self.entry}",
            WRONG: f"WRONG (agreed on {self.root}, recomputed {self.recomputed}, entry "
            f"{self.entry})",
            UNCHECKED: f"not checkable: {self.why}",
        }
        return f"state {self.state:>4}  {said[self.status]}"


def recheck_states(history: History, count: int, homes: Sequence[Path]) -> Iterator[StateChecked]:
    """Recompute the newest ``count`` agreed states, the oldest of them first.

    The state before a round has to be in a home, or follow from an older one there and the rounds
    between.

    :param homes: homes of nodes or coordinators, whose content stores hold states and contributions
    :raises ResourceError: the model's layout cannot be worked out
    """
    newest = history.state.round
    first = max(1, newest - count + 1)
    if newest:
        yield from _Rounds(history, homes).checked(first, newest)


def right_root(history: History, number: int, homes: Sequence[Path]) -> str:
    """The root that the agreed state with this number should have.

    :raises CheckFailed: the state before it cannot be had from the homes, or a contribution
    :raises ResourceError: the model's layout cannot be worked out
    """
    (found,) = _Rounds(history, homes).checked(number, number)
    if not found.recomputed:
        raise CheckFailed(found.why)
    return found.recomputed


class _Rounds:
    """The rounds of a ledger, as files in homes allow to repeat them."""

    def __init__(self, history: History, homes: Sequence[Path]) -> None:
        from artel.protocol.exchange import codec

        leaf = history.log.leaf(0)
        self._history, self._store = history, HomeBlobs(homes)
        self._manifest, _ = open_manifest(leaf)
        self._layout = layout_of(leaf, homes)
        self._codec = codec.of(self._manifest.config.exchange)

    def checked(self, first: int, newest: int) -> Iterator[StateChecked]:
        """States ``first`` to ``newest``."""
        from artel.protocol.exchange.next_state import Base

        base: Base | None = None
        for number in range(self._beginning(first) + 1, newest + 1):
            trail = newest_attempt(self._history, number - 1)
            assert trail.agreed is not None
            entry, agreed = trail.agreed
            root, why = "", ""
            try:
                base = base or self._held(number - 1)
                state = self._repeated(trail, base)
                root = state_root(state)
                base = Base(state, root) if root == agreed.root else None
            except ArtelError as error:
                base, why = None, error.message
            if number >= first:
                right = RIGHT if root == agreed.root else WRONG
                yield StateChecked(
                    number,
                    right if root else UNCHECKED,
                    entry,
                    agreed.root,
                    root,
                    len(trail.weights),
                    why,
                )

    def _beginning(self, first: int) -> int:
        """The newest state from which that before ``first`` can be had; the one before ``first``
        when there is none."""
        for number in range(first - 1, -1, -1):
            if self._store.path(self._root_of(number)) is not None:
                return number
            if number and not self._there(number - 1):
                break
        return first - 1

    def _root_of(self, number: int) -> str:
        return self._history.state.states[number]

    def _held(self, number: int) -> Base:
        from artel.protocol.exchange.next_state import Base

        root = self._root_of(number)
        path = self._store.path(root)
        if path is None or content.file_content_id(path) != root:
            raise CheckFailed(f"no home holds state {number}, which the round begins with")
        return Base(read_state(path, self._layout), root)

    def _there(self, round: int) -> bool:
        """Whether the contributions of a round lie in a home; their bytes are not looked at."""
        trail = newest_attempt(self._history, round)
        return all(self._store.path(body.blob) for body in self._shown(trail).values())

    def _shown(self, trail: AttemptTrail) -> dict[str, Contribution]:
        bodies = {node: self._history.entry(trail.shown[node]).body for node in trail.weights}
        return {n: body for n, body in bodies.items() if isinstance(body, Contribution)}

    def _repeated(self, trail: AttemptTrail, base: Base) -> State:
        """The state that a round leads to from the one before it.

        :raises CheckFailed: a blob is gone, or does not count
        """
        from artel.protocol.exchange.aggregate_slice import round_slices
        from artel.protocol.exchange.next_state import Given, next_state
        from artel.protocol.exchange.parts import fragment
        from artel.protocol.exchange.pseudogradient import max_blob_bytes

        config, members = self._manifest.config, len(trail.steps)
        work = self._history.genesis.rules.work
        sharded = work.topology_of(members) == "sharded"
        pieces = (
            round_slices(self._layout, config.exchange, trail.round, members)
            if sharded
            else [fragment(self._layout, config.exchange.fragments, trail.round)]
        )
        sizes = [max_blob_bytes(piece.layout, self._codec) for piece in pieces]
        given = []
        for node, body in self._shown(trail).items():
            listed = sub_blobs(self._store, body, sizes) if sharded else [(body.blob, body.size)]
            if isinstance(listed, str):
                raise CheckFailed(listed)
            for blob, _ in listed:
                if self._store.path(blob) is None:
                    raise CheckFailed(f"no home holds the blob {blob} of node {node}")
            sources = [
                partial(self._store.require, blob, most)
                for (blob, _), most in zip(listed, sizes, strict=True)
            ]
            given.append(Given(node, trail.weights[node], sources))
        return next_state(
            config.exchange,
            self._history.state.rules_at(trail.round).total,
            self._layout,
            base,
            given,
            members=members if sharded else 0,
        ).state
