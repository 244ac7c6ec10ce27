"""The commands of the merge lane: what the trainer makes of a closed round, beside the training.

They run in the merge thread. They read the run's facts, which never change, and move the agreed
state on; the model and its weights belong to the main thread, which takes the outcome over at the
beginning of its next round.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artel.node.trainer import exchange
from artel.node.trainer.agreed import Agreed, Change
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.exchange import Base, Listed, Phases
from artel.protocol.exchange import parts
from artel.protocol.exchange.parts import Part
from artel.protocol.manifest import Manifest
from artel.protocol.state import Layout, Vector

__all__ = ["Listed", "Run", "aggregate_slice", "apply", "apply_slices"]


@dataclass(frozen=True)
class Run:
    """What of a session the merge thread may use."""

    manifest: Manifest
    layout: Layout
    agreed: Agreed

    def fragment(self, round: int) -> Part:
        """What ``round`` exchanges."""
        return exchange.fragment(self.manifest, self.layout, round)


def apply(run: Run, round: int, listed: Sequence[Listed], out: Path) -> dict[str, Any]:
    """Combine all contributions of a ``gather`` round; the outcome becomes the agreed state.

    :returns: state (path of the new file), root, seconds per phase
    :raises TrainerError: ``wrong_round``, ``bad_blob`` with the node, ``diverged``, ``disk_full``,
        ``disk``, ``failed``; then nothing has changed
    """
    base, part, phases = Base(*run.agreed.of_round(round)), run.fragment(round), Phases()
    update = exchange.combine(run.manifest, part, base, listed, phases)
    change = Change(round, frozenset(c.node for c in listed))
    return _advance(run, part, base, update, change, out, phases)


def aggregate_slice(
    run: Run, round: int, number: int, slices: int, listed: Sequence[Listed], out: Path
) -> dict[str, Any]:
    """Combine slice ``number`` of the ``slices`` asked for, of all contributions, for everybody.

    :param listed: the blobs of that slice
    :returns: blob (path of the new file), seconds
    :raises TrainerError: ``wrong_round``, ``bad_request``, ``bad_blob`` with the node,
        ``disk_full``, ``disk``, ``failed``
    """
    start = time.perf_counter()
    base, phases = Base(*run.agreed.of_round(round)), Phases()
    pieces = parts.cut(run.fragment(round), slices)
    if not 0 <= number < len(pieces):
        raise TrainerError(
            "bad_request", f"there is no slice {number}: the round has {len(pieces)}"
        )
    update = exchange.combine(run.manifest, pieces[number], base, listed, phases)
    path = out / f"slice-{round}-{number}.blob"
    exchange.pack_slice(run.manifest, pieces[number], base, update, path, phases)
    return {"blob": str(path), "seconds": time.perf_counter() - start}


def apply_slices(
    run: Run, round: int, blobs: Sequence[Path], slices: int, nodes: Sequence[str], out: Path
) -> dict[str, Any]:
    """Take the outer step of a ``sharded`` round from the blobs of its slices, in order.

    :param slices: as many as were asked for; a small model has fewer
    :param nodes: those whose contributions count
    :returns: as :func:`apply`
    :raises TrainerError: ``wrong_round``, ``bad_request``, ``bad_blob``, ``diverged``,
        ``disk_full``, ``disk``; then nothing has changed
    """
    base, part, phases = Base(*run.agreed.of_round(round)), run.fragment(round), Phases()
    pieces = parts.cut(part, slices)
    update, entries = exchange.unpack_slices(run.manifest, pieces, base, blobs, phases)
    kept = None if entries is None else tuple(e.positions for e in entries)
    return _advance(run, part, base, update, Change(round, frozenset(nodes), kept), out, phases)


def _advance(
    run: Run, part: Part, base: Base, update: Vector, change: Change, out: Path, phases: Phases
) -> dict[str, Any]:
    path = out / f"state-{change.round + 1}.bin"
    new = exchange.step(run.manifest, part, base, update, path, phases)
    run.agreed.advance(base.root, new.state, new.root, change)
    return {"state": str(path), "root": new.root, "seconds": phases.seconds}
