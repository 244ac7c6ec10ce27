"""The content service of a coordinator: it serves what it has, and takes what members owe it."""

from __future__ import annotations

from artel.coordinator.service import Coordinator
from artel.protocol import assignment, index_items, messages, repeated_work, round_state
from artel.protocol.fingerprints import ROW_BYTES
from artel.protocol.messages import Kind
from artel.protocol.net import delivery, wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.round_state import Phase


class Puts:
    """Answers for one coordinator; keeps what was put only when a statement that counts names it.

    While contributions are revealed each member that has committed owes the blobs of its own, and
    the fingerprints of its steps, which are served to nobody; while
    a sharded round is applied each aggregator owes those of its slices.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._core = coordinator
        self._offers = delivery.Offers()
        self._unclaimed: set[tuple[BlobStore, str]] = set()

    async def answer(
        self, peer: str, request: messages.Message, stream: wire.ByteStream
    ) -> messages.Message | None:
        """One request of the content service."""
        core = self._core
        if isinstance(request, repeated_work.GetDifference):
            return await core.verdicts.difference(peer, request)
        if isinstance(request, messages.GetItems):
            return await index_items.give(core.blobs, request, stream)
        if not isinstance(request, messages.Put):
            return await delivery.serve_content(core.blobs, request, stream)
        if request.fingerprints:
            return await self._take_fingerprints(peer, request, stream)
        if core.state.phase is Phase.APPLYING:
            kind: Kind = "slice"
            owed, most = self._slices_owed(peer)
            if request.size > most:
                raise _too_large("slice", request.size, most)
        else:
            kind = "contribution"
            self.require_reveals(peer)
            state, shape = core.state, core.shape(len(core.state.members))
            owed, most = shape.blobs, shape.largest
            if request.size > most:
                await core.feed(
                    round_state.Revealed(
                        core.clock(), peer, state.round, state.attempt, round_state.TOO_LARGE
                    )
                )
                raise _too_large("contribution's blob", request.size, most)
        await self._take(peer, request, stream, owed, kind)
        return messages.Ok()

    def require_reveals(self, peer: str) -> None:
        """Refuse a contribution that cannot count, before any work is done for it.

        :raises Refused: the node is out of the round, or nothing is revealed now
        """
        state = self._core.state
        if peer in state.rejected:
            raise wire.Refused("this node is out of the round", code=state.rejected[peer])
        if state.phase is not Phase.REVEALING or peer not in state.commitments:
            raise wire.Refused("nothing is expected from this node now", code="too_early")

    async def _take_fingerprints(
        self, peer: str, request: messages.Put, stream: wire.ByteStream
    ) -> messages.Ok:
        """Those of an auditor; or of a contribution, which is revealed after them."""
        if taken := await self._core.verdicts.take(peer, request, stream):
            return taken
        self.require_reveals(peer)
        core, fold = self._core, self._core.ledger.state
        steps = core.work.head(fold.round, core.assigned(peer)) + fold.tails.get(peer, 0)
        if request.size % ROW_BYTES or request.size > ROW_BYTES * steps:
            raise wire.Refused(
                f"{request.size} bytes are no fingerprints of at most {steps} steps",
                f"send {ROW_BYTES} bytes for each step of the contribution",
                code=round_state.NO_FINGERPRINTS,
            )
        await self._take(peer, request, stream, 1, "fingerprints")
        return messages.Ok()

    def claim(self, *blobs: str) -> None:
        """Keep this content: a statement that counts names it."""
        self._unclaimed = {one for one in self._unclaimed if one[1] not in blobs}

    def _slices_owed(self, peer: str) -> tuple[int, int]:
        """How many slices this node combines, and the most bytes of one of them."""
        core, state = self._core, self._core.state
        shape = core.shape(len(state.members))
        mine = range(0)
        if peer in state.accepted:
            mine = assignment.combined_by(state.accepted, state.round, len(shape.slices), peer)
        if not mine:
            raise wire.Refused("nothing is expected from this node now", code="too_early")
        return len(mine), max(shape.sizes[number] for number in mine)

    async def _take(
        self, peer: str, request: messages.Put, stream: wire.ByteStream, owed: int, kind: Kind
    ) -> None:
        """Receive content from a node that owes ``owed`` blobs in this phase."""
        core, state = self._core, self._core.state
        if self._offers.begin(state.round, state.attempt, state.phase):
            while self._unclaimed:
                store, blob = self._unclaimed.pop()
                store.drop(blob)
        store = core.fingerprints if kind == "fingerprints" else core.blobs
        self._offers.require(peer, request, owed, kind)
        if store.has(request.id):
            raise wire.Refused("this content is here already", code="present")
        # What another stream brought meanwhile may be claimed by now.
        if await delivery.receive(store, request, stream, kind=kind):
            self._unclaimed.add((store, request.id))


def _too_large(what: str, size: int, most: int) -> wire.Refused:
    return wire.Refused(
        f"a {what} of {size} bytes, at most {most} allowed", code=round_state.TOO_LARGE
    )
