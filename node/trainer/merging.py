"""The commands of the merge lane: what the trainer makes of a closed round, beside the training.

They run in the merge thread. They read the run's facts, which never change, and move the agreed
state on; the model and its weights belong to the main thread, which takes the outcome over at the
beginning of its next round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from artel.node.trainer import writing
from artel.node.trainer.agreed import Agreed, Change
from artel.node.trainer.channel import TrainerError, coded
from artel.node.trainer.exchange import Phases
from artel.node.trainer.orders import Applied, Apply, ApplySlices, Combine
from artel.protocol.amending import amended
from artel.protocol.exchange import outer
from artel.protocol.exchange.aggregate_slice import Unusable, recompute, round_slices
from artel.protocol.exchange.next_state import Base, Given, next_state
from artel.protocol.manifest import Manifest
from artel.protocol.state import Layout


@dataclass(frozen=True)
class Merging:
    """What of a run the merge thread may use, and what it does with it."""

    manifest: Manifest
    layout: Layout
    agreed: Agreed

    def apply(self, order: Apply) -> Applied:
        """Combine all contributions of a ``gather`` round; the outcome becomes the agreed state."""
        sent = [Given(c.node, c.weight, (c.blob,)) for c in order.contributions]
        counted = [c.node for c in order.contributions]
        return self._advance(order, sent, counted)

    def aggregate(self, order: Combine) -> Path:
        """Combine one slice of all contributions, for everybody, into a new file."""
        base, settings = self.agreed.of_round(order.round), self.manifest.config.exchange
        count = len(round_slices(self.layout, settings, order.round, order.slices))
        if not 0 <= order.slice < count:
            raise TrainerError(
                "bad_request", f"there is no slice {order.slice}: the round has {count}"
            )
        with usable():
            blob = recompute(
                self.layout,
                settings,
                round=order.round,
                members=order.slices,
                slice=order.slice,
                base=base.root,
                blobs={c.node: c.blob for c in order.contributions},
                tokens={c.node: c.weight for c in order.contributions},
            )
        path = order.out / f"slice-{order.round}-{order.slice}.blob"
        writing.write(path, [blob])
        return path

    def apply_slices(self, order: ApplySlices) -> Applied:
        """Take the outer step of a ``sharded`` round from the blobs of its slices."""
        self.agreed.of_round(order.round)
        count = len(
            round_slices(self.layout, self.manifest.config.exchange, order.round, order.count)
        )
        if len(order.slices) != count:
            raise TrainerError(
                "bad_request", f"the round has {count} slices, {len(order.slices)} were given"
            )
        slices = dict(enumerate(order.slices))
        return self._advance(order, (), order.nodes, order.count, slices)

    def _advance(
        self,
        order: Apply | ApplySlices,
        sent: Sequence[Given],
        counted: Sequence[str],
        members: int = 0,
        slices: Mapping[int, Path] | None = None,
    ) -> Applied:
        round, base, phases = order.round, self.agreed.of_round(order.round), Phases()
        config = amended(self.manifest.config, order.changes)
        with usable():
            state, kept = next_state(
                config.exchange,
                config.rounds.total,
                self.layout,
                base,
                sent,
                members=members,
                slices=slices,
                measured=phases.measured,
            )
        if sent:  # decoding happens inside the aggregation, but is told apart
            phases.seconds["aggregate"] -= phases.seconds.setdefault("decode", 0.0)
        path = order.out / f"state-{round + 1}.bin"
        with phases.measured("write"):
            new = Base(state, writing.write_agreed(path, state))
        self.agreed.advance(base, new, Change(round, frozenset(counted), kept))
        return Applied(path, new.root, phases.seconds)


@contextlib.contextmanager
def usable() -> Iterator[None]:
    """:raises TrainerError: ``bad_blob`` with the node; ``diverged``"""
    with coded("diverged", outer.Diverged):
        try:
            yield
        except Unusable as error:
            raise TrainerError("bad_blob", error.message, error.hint, error.node) from None
