"""How many bytes the exchange of a round costs a node: bounds, from the manifest alone."""

from __future__ import annotations

import numpy as np

from artel.protocol import needs
from artel.protocol.exchange import parts
from artel.protocol.exchange.codec import Codec
from artel.protocol.exchange.shape import Shape
from artel.protocol.needs import RoundTraffic
from artel.protocol.run_config import RunConfig
from artel.protocol.state import Layout

SAMPLE = (1 << 16,)
"""Shape of the noise that a codec of varying size is measured on: 16 chunks of "sparse"."""


def round_traffic(config: RunConfig, layout: Layout, members: int) -> RoundTraffic:
    """The traffic of a node in a round of ``members`` members, for the largest fragment."""
    shapes = [
        Shape.of(config, layout, number, members) for number in range(config.exchange.fragments)
    ]
    shape = max(shapes, key=lambda shape: shape.total)
    if not shape.slices:
        return needs.gathered(shape.total, members)
    return needs.sharded(shape.total, members, shape.index_bytes)


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
