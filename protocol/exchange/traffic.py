"""How many bytes the exchange of a round costs a node: bounds, from the manifest alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from artel.protocol.exchange import parts
from artel.protocol.exchange.codec import Codec
from artel.protocol.exchange.shape import Shape
from artel.protocol.run_config import RunConfig
from artel.protocol.state import Layout

SAMPLE = (1 << 16,)
"""Shape of the noise that a codec of varying size is measured on: 16 chunks of "sparse"."""


@dataclass(frozen=True)
class RoundTraffic:
    """Bytes of one node in one round, of contributions and slices alone; the most there can be."""

    topology: str
    contribution: int
    """What the node makes and gives to the coordinator."""
    up_least: int
    """When others fetch what they need from the coordinator or from one another ..."""
    up_most: int
    """... and when all of them fetch it from this node."""
    down: int


def round_traffic(config: RunConfig, layout: Layout, members: int) -> RoundTraffic:
    """The traffic of a node in a round of ``members`` members, for the largest fragment.

    In ``gather`` everybody fetches the contributions of all others: (N - 1) of them. In ``sharded``
    a node fetches its own slice and the one that it checks from all others, and the combined slices
    of all others: below three contributions whatever N is.
    """
    shapes = [
        Shape.of(config, layout, number, members) for number in range(config.exchange.fragments)
    ]
    shape = max(shapes, key=lambda shape: shape.total)
    total, others = shape.total, members - 1
    if not shape.slices:
        return RoundTraffic("gather", total, total, total * members, total * others)
    slices = total - shape.index_bytes  # of one contribution, and of all aggregates together
    mine = -(-slices // members)
    down = others * (shape.index_bytes + 3 * mine)
    return RoundTraffic("sharded", total, total + mine, total + mine + down, down)


def typical_share(codec: Codec, layout: Layout) -> float:
    """What a codec of varying size takes of its bound (above 0, at most 1), by encoding noise.

    Real pseudo-gradients differ a little: their largest elements lie less evenly.
    """
    if not codec.sparse:
        return 1.0
    sample = Layout.of([("noise", SAMPLE)])
    noise = np.random.default_rng(0).normal(size=SAMPLE[0]).astype(np.float32)
    share = len(codec.encode(sample, noise)) / codec.payload_bytes(sample)
    # Tensors of less than a chunk always take the same.
    small = [(t.name, t.shape) for t in layout.tensors if t.size < parts.CHUNK]
    fixed = codec.payload_bytes(Layout.of(small)) if small else 0
    whole = codec.payload_bytes(layout)
    return (fixed + (whole - fixed) * share) / whole
