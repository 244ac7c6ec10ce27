"""Numbers and contributions for the tests of the exchange, the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np

from artel.protocol.exchange.aggregation import Weighted
from artel.protocol.exchange.codec import Elements
from artel.protocol.state import Layout, Vector

LAYOUT = Layout.of([("matrix", (40, 70)), ("vector", (33,)), ("scalar", ())])


def numbers(seed: int | str, count: int, scale: int = -40) -> Vector:
    """Values from SHA-256 in counter mode."""
    blocks = (hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(-(-count * 4 // 32)))
    words = np.frombuffer(b"".join(blocks), "<i4")[:count]
    return words.astype(np.float32) * np.float32(2.0**scale)


def contributions(weights: list[int]) -> list[Weighted]:
    """Dense ones of growing norms."""
    return [
        Weighted(f"peer-{i}", weight, numbers(i, LAYOUT.parameters) * np.float32(1 + i))
        for i, weight in enumerate(weights)
    ]


def largest(vector: Vector, part: float = 0.03) -> Elements:
    """The elements of largest magnitude, as a sparse codec sends them."""
    count = max(1, round(len(vector) * part))
    where = np.sort(np.argsort(-np.abs(vector), kind="stable")[:count]).astype(np.int64)
    return Elements(where, vector[where])


def dense(entries: Vector | Elements, parameters: int) -> Vector:
    """The vector of these elements."""
    if not isinstance(entries, Elements):
        return entries
    vector = np.zeros(parameters, np.float32)
    vector[entries.positions] = entries.values
    return vector


def fingerprint(vector: Vector) -> str:
    """SHA-256 of the little-endian bytes."""
    return hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()
