"""``slice_wrong``: a recorded slice of a sharded round is not what it should be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.body import AttemptBody, Digest, Entry, PeerId, SliceNumber, signed
from artel.ledger.entries.fold_state import FoldState, key_of
from artel.ledger.entries.records import RECORDED, Effect, Outcome
from artel.ledger.entries.story import Fact, Story, of_slice
from artel.protocol.assignment import checker
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, short_peer


class SliceWrong(AttemptBody):
    """The checker of a slice has recomputed it and got ``blob``, not what was recorded; signed by
    it."""

    KIND: ClassVar = "slice_wrong"
    TITLE: ClassVar = "Slice called wrong"
    kind: Literal["slice_wrong"] = "slice_wrong"
    slice: SliceNumber
    node: PeerId
    blob: Digest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if entry.signers != {key_of(self.node)}:
            return reasons.WRONG_SIGNERS
        attempt = state.current(self.round, self.attempt, "applying")
        if attempt is None:
            return reasons.OUT_OF_ORDER
        if self.node not in attempt.accepted:
            return reasons.NOT_MEMBER
        recorded = attempt.slices.get(self.slice)
        if recorded is None:
            return reasons.UNKNOWN_SLICE
        if self.node == recorded.node:
            return reasons.OWN_WORK
        if self.node != checker(sorted(attempt.accepted), self.round, self.slice):
            return reasons.NOT_CHECKER
        if self.blob == recorded.blob:
            return reasons.SAME_BLOB
        if self.slice in attempt.wrong:
            return reasons.DUPLICATE

        def effect() -> Outcome:
            attempt.wrong[self.slice] = self.node
            return RECORDED

        return effect

    def says(self) -> str:
        return f"node {short_peer(self.node)} says that slice {self.slice} is wrong"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield from of_slice(story, self.slice)


def slice_wrong(
    identity: Identity, run: str, *, round: int, attempt: int, slice: int, blob: str
) -> Envelope:
    """The node ``identity`` recomputed a slice and got ``blob``, not what is recorded."""
    body = {"run": run, "round": round, "attempt": attempt, "slice": slice}
    return signed(SliceWrong, body | {"node": identity.peer_id, "blob": blob}, identity)
