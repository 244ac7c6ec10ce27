"""The commands of the merge lane: what the trainer makes of a closed round, beside the training.

They run in the merge thread. They read the run's facts, which never change, and move the agreed
state on; the model and its weights belong to the main thread, which takes the outcome over at the
beginning of its next round.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from artel.node.trainer import exchange
from artel.node.trainer.agreed import Agreed, Base, Change
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.exchange import Phases
from artel.node.trainer.orders import Applied, Apply, ApplySlices, Combine
from artel.protocol.exchange import parts
from artel.protocol.exchange.parts import Part
from artel.protocol.manifest import Manifest
from artel.protocol.state import Layout, Vector


@dataclass(frozen=True)
class Merging:
    """What of a run the merge thread may use, and what it does with it."""

    manifest: Manifest
    layout: Layout
    agreed: Agreed

    def apply(self, order: Apply) -> Applied:
        """Combine all contributions of a ``gather`` round; the outcome becomes the agreed state."""
        base, part, phases = self._round(order.round)
        update = exchange.combine(self.manifest, part, base, order.contributions, phases)
        change = Change(order.round, frozenset(c.node for c in order.contributions))
        return self._advance(part, base, update, change, order.out, phases)

    def aggregate(self, order: Combine) -> Path:
        """Combine one slice of all contributions, for everybody, into a new file."""
        base, part, phases = self._round(order.round)
        pieces = parts.cut(part, order.slices)
        if not 0 <= order.slice < len(pieces):
            raise TrainerError(
                "bad_request", f"there is no slice {order.slice}: the round has {len(pieces)}"
            )
        piece = pieces[order.slice]
        update = exchange.combine(self.manifest, piece, base, order.contributions, phases)
        path = order.out / f"slice-{order.round}-{order.slice}.blob"
        exchange.write_slice(self.manifest, piece, base, update, path)
        return path

    def apply_slices(self, order: ApplySlices) -> Applied:
        """Take the outer step of a ``sharded`` round from the blobs of its slices."""
        base, part, phases = self._round(order.round)
        pieces = parts.cut(part, order.count)
        update, entries = exchange.read_slices(self.manifest, pieces, base, order.slices, phases)
        kept = None if entries is None else tuple(e.positions for e in entries)
        change = Change(order.round, frozenset(order.nodes), kept)
        return self._advance(part, base, update, change, order.out, phases)

    def _round(self, round: int) -> tuple[Base, Part, Phases]:
        part = parts.fragment(self.layout, self.manifest.config.exchange.fragments, round)
        return self.agreed.of_round(round), part, Phases()

    def _advance(
        self, part: Part, base: Base, update: Vector, change: Change, out: Path, phases: Phases
    ) -> Applied:
        path = out / f"state-{change.round + 1}.bin"
        new = exchange.step(self.manifest, part, base, update, path, phases)
        self.agreed.advance(base, new, change)
        return Applied(path, new.root, phases.seconds)
