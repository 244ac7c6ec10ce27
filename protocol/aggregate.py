"""Aggregation: many pseudo-gradients become one update, with the same bits on every machine.

Rule: in every tensor, each contribution whose L2 norm exceeds the median norm over the contributors
(for an even number the mean of the middle two) is scaled down to that median; then the mean with
integer weights is taken.

    coefficient(i, t) = fp32( weight_i / sum of weights * min(1, median_t / norm(i, t)) )
    update[t] = sum over i, in ascending peer id, of coefficient(i, t) * contribution_i[t]

The mean is DiLoCo's (arXiv 2311.08105); the clip is that of the Templar code base (SparseLoCo,
arXiv 2508.15706): without attackers it changes next to nothing, and one contribution multiplied by
1000 cannot do more than an ordinary one. It does not stop colluders that stay inside the norm.

Same bits everywhere: norms and coefficients are float64 in a fixed order of additions (1024 lanes,
then halving), the sum is fp32 with separate multiplications and additions. ``np.sum``, ``np.dot``
and ``np.linalg.norm`` would choose an order that depends on the processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from protocol.errors import CheckFailed
from protocol.state import Layout, Vector

_LANES = 1024  # part of the protocol: it fixes the order of additions
_PIECE = 1 << 18  # elements in one go; affects speed and memory, never the result


@dataclass(frozen=True, eq=False)
class Contribution:
    """One node's pseudo-gradient and its integer weight (tokens).

    ``vector``, shape (N,), may be a function that returns it: it is called twice, and with lazy
    contributions at most one of them and the update are in memory.
    """

    peer_id: str
    weight: int
    vector: Vector | Callable[[], Vector]

    def load(self, layout: Layout) -> Vector:
        vector = self.vector() if callable(self.vector) else self.vector
        layout.require(vector)
        return vector


def aggregate(layout: Layout, contributions: Iterable[Contribution]) -> Vector:
    """The update, shape (N,): clipped weighted mean, whatever the order of the input.

    :raises CheckFailed: no contributions, a peer twice, a weight below 1, a vector of another
        shape, NaN or infinity
    """
    ordered = sorted(contributions, key=lambda c: c.peer_id)
    if not ordered:
        raise CheckFailed("there is nothing to aggregate")
    if len({c.peer_id for c in ordered}) != len(ordered):
        raise CheckFailed("a peer contributes twice to one round")
    if any(type(c.weight) is not int or c.weight < 1 for c in ordered):
        raise CheckFailed("a contribution has a weight below 1")

    norms = [_norms(layout, c) for c in ordered]
    medians = [_median(column) for column in zip(*norms, strict=True)]
    total = sum(c.weight for c in ordered)

    update = np.zeros(layout.parameters, np.float32)
    scaled = np.empty(min(_PIECE, layout.parameters), np.float32)
    for contribution, row in zip(ordered, norms, strict=True):
        vector = contribution.load(layout)
        share = contribution.weight / total
        for tensor, norm, median in zip(layout.tensors, row, medians, strict=True):
            clip = median / norm if norm > median else 1.0
            coefficient = np.float32(share * clip)
            end = tensor.offset + tensor.size
            for start in range(tensor.offset, end, _PIECE):
                piece = slice(start, min(start + _PIECE, end))
                part = scaled[: piece.stop - piece.start]
                np.multiply(vector[piece], coefficient, out=part)
                np.add(update[piece], part, out=update[piece])
    return update


def norm_of(values: Vector) -> float:
    """L2 norm, float64, in the fixed order: 1024 lanes summed row by row, then halved together."""
    lanes = np.zeros(_LANES, np.float64)
    for start in range(0, len(values), _PIECE):
        squares = values[start : start + _PIECE].astype(np.float64)
        np.multiply(squares, squares, out=squares)
        whole = len(squares) // _LANES * _LANES
        for row in squares[:whole].reshape(-1, _LANES):
            np.add(lanes, row, out=lanes)
        rest = squares[whole:]
        np.add(lanes[: len(rest)], rest, out=lanes[: len(rest)])
    width = _LANES
    while width > 1:
        width //= 2
        lanes = lanes[:width] + lanes[width:]
    return math.sqrt(lanes[0])


def _norms(layout: Layout, contribution: Contribution) -> list[float]:
    """Norm of every tensor. Squares of finite fp32 numbers cannot overflow a float64 sum, so an
    infinite or NaN norm means an infinite or NaN element."""
    vector = contribution.load(layout)
    norms = [norm_of(vector[t.offset : t.offset + t.size]) for t in layout.tensors]
    if not all(math.isfinite(norm) for norm in norms):
        raise CheckFailed(f"the contribution of {contribution.peer_id} holds NaN or infinity")
    return norms


def _median(values: Iterable[float]) -> float:
    """Median; of an even number the mean of the middle two."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) * 0.5
