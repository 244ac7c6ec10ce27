"""A layout with odd corners, and numbers that are the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np

from aggregate_world import dense
from artel.protocol.exchange.codec import Codec, Payload
from artel.protocol.state import Layout, Vector

LAYOUT = Layout.of([("odd", (3, 111)), ("scalar", ()), ("even", (2, 4096)), ("tail", (257,))])


def numbers(seed: int, count: int) -> Vector:
    """Roughly bell-shaped values from SHA-256 in counter mode: the same on every machine."""
    blocks = (hashlib.sha256(b"%d %d" % (seed, i)).digest() for i in range(-(-count * 4 // 32)))
    parts = np.frombuffer(b"".join(blocks), "u1")[: 4 * count].reshape(count, 4)
    sums: Vector = (parts.sum(axis=1, dtype=np.int32) - 510).astype(np.float32)
    return sums * np.float32(2**-16)


def vector_of(codec: Codec, layout: Layout, payload: Payload) -> Vector:
    """The vector that a payload stands for, also of a sparse codec."""
    return dense(codec.decode(layout, payload), layout.parameters)
