"""``aggregate``: what a slice of a sharded round was combined into.

Each slice is combined by one accepted member for all (:func:`protocol.assignment.aggregator`). The
inputs are named in the ledger and the arithmetic is exact, so everybody can recompute a slice; one
that differs is replaced, and whoever recorded it earns nothing in that round.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from artel.ledger.entries import reasons
from artel.ledger.entries.body import (
    AttemptBody,
    Digest,
    Entry,
    PeerId,
    Positive,
    SliceNumber,
    signed,
)
from artel.ledger.entries.fold_state import FoldState, key_of
from artel.ledger.entries.records import RECORDED, Effect, Outcome, Slice
from artel.ledger.entries.story import Fact, Story, of_slice
from artel.ledger.entries.words import plural
from artel.protocol import assignment
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, short_peer


class Aggregate(AttemptBody):
    """A node has combined ``slice`` of ``slices`` of a sharded round: ``blob``, of ``size`` bytes.

    Signed by the node.
    """

    KIND: ClassVar = "aggregate"
    TITLE: ClassVar = "Slice combined"
    kind: Literal["aggregate"] = "aggregate"
    slice: SliceNumber
    slices: Annotated[int, Field(ge=1, le=assignment.MAX_SLICES)]
    node: PeerId
    blob: Digest
    size: Positive

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if entry.signers != {key_of(self.node)}:
            return reasons.WRONG_SIGNERS
        attempt = state.current(self.round, self.attempt, "applying")
        if attempt is None:
            return reasons.OUT_OF_ORDER
        if state.work.topology_of(len(attempt.accounts)) != "sharded":
            return reasons.NOT_SHARDED
        # How many slices there are follows from the model, which is unknown here: never more than
        # members. The nodes know, and take no slice of another division.
        if not self.slice < self.slices <= len(attempt.accounts):
            return reasons.UNKNOWN_SLICE
        if self.node != assignment.aggregator(sorted(attempt.accepted), self.round, self.slice):
            return reasons.NOT_AGGREGATOR
        if self.slice in attempt.slices:
            return reasons.DUPLICATE

        def effect() -> Outcome:
            attempt.slices[self.slice] = Slice(self.node, self.blob, self.size)
            return RECORDED

        return effect

    def says(self) -> str:
        what = f"slice {self.slice} (of {self.slices})"
        return f"node {short_peer(self.node)} combined {what}: {plural(self.size, 'byte')}"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield from of_slice(story, self.slice)


def aggregate(
    identity: Identity,
    run: str,
    *,
    round: int,
    attempt: int,
    slice: int,
    slices: int,
    blob: str,
    size: int,
) -> Envelope:
    """Record what the node ``identity`` combined one slice of a sharded round into."""
    body = {"run": run, "round": round, "attempt": attempt, "slice": slice, "slices": slices}
    body |= {"node": identity.peer_id, "blob": blob, "size": size}
    return signed(Aggregate, body, identity)
