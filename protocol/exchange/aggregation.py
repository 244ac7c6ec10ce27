"""Aggregation: many pseudo-gradients become one update, with the same bits on every machine.

Rule: in every tensor (in a slice: in every piece of one), each contribution whose L2 norm exceeds
the median of their norms is scaled down to it; then the mean is taken. The median of an even number
is the mean of the middle two, but at most :data:`APART` times the lower of them.

    share_i  = weight_i / sum of weights, after weights()
    clip_it  = min(1, median_t / norm_it)
    update[p] = sum over i, in ascending peer id, of fp32(share_i * clip_it) * contribution_i[p]

The mean is DiLoCo's (arXiv 2311.08105); the clip is that of the Templar code base (SparseLoCo,
arXiv 2508.15706): without attackers it changes next to nothing, and up to half of all contributions
that are multiplied by 1000 cannot do more than :data:`APART` times as much as ordinary ones. (A
plain mean of the middle two lets one of two through; the lower one alone takes away what the faster
of two uneven nodes did.) The price: half of all stop a run by sending nothing. It does not stop
colluders that stay inside the norm.

**Sparse** contributions are averaged over those who sent an element, within bounds:

    update[p] /= max(mass, floor, min(1, 2 / R)),  mass = sum of the shares of those who sent p

R is the number of contributions. Where one alone sent p, min(1, 2 * its share) is a bound too, so
that it moves an element by at most half of what it asked for (or by its share, if that is more).

**Centered clip** (Karimireddy et al., arXiv 2012.10333) replaces the shares, see
:func:`centered_clip`; the x_i there are the contributions after the clip above.

Same bits everywhere: norms, dot products and coefficients are float64 in a fixed order of additions
(see :mod:`protocol.exchange.kernels`), the sum is fp32 with separate multiplications and
additions. ``np.sum``, ``np.dot`` and ``np.linalg.norm`` would choose an order that depends on the
processor, and ``sum`` of floats one that depends on the version of Python.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median, median_low
from typing import Literal

import numpy as np
import numpy.typing as npt

from artel.protocol.errors import CheckFailed
from artel.protocol.exchange import kernels
from artel.protocol.exchange.codec import Elements
from artel.protocol.exchange.codec.interface import read_only
from artel.protocol.state import Layout, Vector

Method = Literal["mean", "centered_clip"]
Offsets = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

CENTERED_CLIPS = 3
"""Iterations of the centered clip."""
APART = 4.0
"""How far the median of an even number may lie above the lower of the middle two: the more, the
less is taken away from the faster of two uneven nodes (docs/results/attacks.md)."""
HELD_BYTES = 512 << 20
"""Memory for contributions while their dot products are taken; affects speed, never the result."""
_UNITS = 1 << 24  # shares in units of 2^-24: every sum of some of them is exact in fp32


@dataclass(frozen=True, eq=False)
class Weighted:
    """One node's pseudo-gradient and its integer weight (accepted tokens).

    ``vector``, shape (N,) or a sparse codec's entries of it, may be a function that returns it: it
    is called at least twice, and with lazy contributions at most one of them and the update are in
    memory (for ``centered_clip``: as many as fit into :data:`HELD_BYTES`, and one).
    """

    peer_id: str
    weight: int
    vector: Vector | Elements | Callable[[], Vector | Elements]

    def load(self, layout: Layout) -> Vector | Elements:
        """What was contributed.

        :raises CheckFailed: another dtype or shape than the layout's
        """
        vector = self.vector() if callable(self.vector) else self.vector
        if not isinstance(vector, Elements):
            layout.require(vector)
        return vector


def weights(tokens: Sequence[int]) -> list[int]:
    """The weights of contributions of so many tokens: between a quarter of the median and twice it.

    The median is the lower one, the quarter is rounded up. So nobody gains much by claiming more
    than the others, and a slow node still counts. Weights of weights are the same weights.

    :raises CheckFailed: nothing, or a number below 1
    """
    if not tokens or any(type(t) is not int or t < 1 for t in tokens):
        raise CheckFailed("a contribution has a weight below 1")
    middle = median_low(tokens)
    return [min(max(t, -(-middle // 4)), 2 * middle) for t in tokens]


def aggregate(
    layout: Layout,
    contributions: Iterable[Weighted],
    *,
    method: Method = "mean",
    floor: float = 1.0,
) -> Vector:
    """The update, shape (N,), whatever the order of the input.

    :param floor: sparse contributions alone: the smallest part of all weights (above 0, at most 1)
        that an element is the mean over
    :raises CheckFailed: no contributions, a peer twice, a weight below 1, a vector that does not
        fit the layout, NaN or infinity
    """
    ordered = sorted(contributions, key=lambda c: c.peer_id)
    if not ordered:
        raise CheckFailed("there is nothing to aggregate")
    if len({c.peer_id for c in ordered}) != len(ordered):
        raise CheckFailed("a peer contributes twice to one round")
    weight = weights([c.weight for c in ordered])
    total = sum(weight)
    shares = [w / total for w in weight]

    offsets = np.array([0, *(t.offset + t.size for t in layout.tensors)], np.int64)
    clips = _clips(layout, offsets, ordered)
    if method == "centered_clip":
        shares = centered_clip(_gram(layout, offsets, ordered, clips), shares)
    coefficients = (np.array(shares)[:, np.newaxis] * clips).astype(np.float32)
    return _sum(layout, offsets, ordered, coefficients, _exact(shares), floor)


def _sum(
    layout: Layout,
    offsets: Offsets,
    ordered: Sequence[Weighted],
    coefficients: Vector,  # (R, T): of contribution r in tensor t, share * clip
    units: Sequence[float],  # R shares in exact multiples of 2^-24
    floor: float,
) -> Vector:
    update: Vector | None = None
    mass: Vector | None = None  # of sparse contributions alone
    for contribution, row, share in zip(ordered, coefficients, units, strict=True):
        vector, first = contribution.load(layout), update is None
        if isinstance(vector, Elements):
            if update is None or mass is None:
                update, mass = (np.zeros(layout.parameters, np.float32) for _ in range(2))
            where, values = read_only(vector.positions), read_only(vector.values)
            kernels.scatter_scaled(update, mass, where, values, offsets, row, np.float32(share))
        else:
            if update is None:
                update = np.empty(layout.parameters, np.float32)
            kernels.add_scaled(update, read_only(vector), offsets, row, first)
        del vector  # before the next one is loaded
    assert update is not None
    if mass is not None:
        kernels.divide(update, mass, np.float32(max(floor, min(1.0, 2 / len(ordered)))))
    return update


def centered_clip(
    gram: Doubles,  # (R, R): the dot products of the x_i
    shares: Sequence[float],  # R of them, which add up to 1
) -> list[float]:
    """The centered clip (arXiv 2012.10333) of vectors x_i as their convex combination: coefficients
    that replace the shares.

        v = sum of share_i x_i, then 3 times:
        v += sum of share_i (x_i - v) min(1, radius / |x_i - v|)

    where the radius is the median of the |x_i - v|, as above.

    The distances follow from the dot products alone, so that it works on sparse vectors as well.
    """
    products = gram.tolist()
    center = list(shares)
    for _ in range(CENTERED_CLIPS):
        along = [_dot(row, center) for row in products]
        square = _dot(center, along)
        # Rounding can make a distance of next to nothing negative.
        distances = [
            math.sqrt(max(0.0, products[i][i] - 2.0 * along[i] + square))
            for i in range(len(center))
        ]
        radius = _median(distances)
        pulls = [
            share * (radius / distance if distance > radius else 1.0)
            for share, distance in zip(shares, distances, strict=True)
        ]
        kept = max(0.0, 1.0 - _dot(pulls, [1.0] * len(pulls)))
        center = [kept * c + pull for c, pull in zip(center, pulls, strict=True)]
    return center


def norm_of(values: Vector) -> float:
    """L2 norm, float64, in the fixed order."""
    return math.sqrt(_dots(values, values, np.array([0, len(values)], np.int64))[0])


def _clips(
    layout: Layout,
    offsets: Offsets,  # (T + 1,): where each tensor begins, and where the last one ends
    ordered: Sequence[Weighted],
) -> Doubles:
    """How much of each contribution is left in each tensor, shape (R, T).

    Squares of finite fp32 numbers cannot overflow a float64 sum, so an infinite or NaN norm means
    an infinite or NaN element.
    """
    norms = np.empty((len(ordered), len(layout.tensors)))
    for contribution, row in zip(ordered, norms, strict=True):
        vector = contribution.load(layout)
        np.sqrt(_dots(vector, vector, offsets), out=row)
        del vector  # before the next one is loaded
        if not np.isfinite(row).all():
            raise CheckFailed(f"the contribution of {contribution.peer_id} holds NaN or infinity")
    medians = np.array([_median(column) for column in norms.T.tolist()])
    clips = np.ones_like(norms)
    np.divide(np.broadcast_to(medians, norms.shape), norms, out=clips, where=norms > medians)
    return clips


def _gram(layout: Layout, offsets: Offsets, ordered: Sequence[Weighted], clips: Doubles) -> Doubles:
    """Dot products of the clipped contributions, shape (R, R), a block of them in memory."""
    gram = np.empty((len(ordered), len(ordered)))
    width = max(1, HELD_BYTES // (4 * layout.parameters))
    for start in range(0, len(ordered), width):
        block = [c.load(layout) for c in ordered[start : start + width]]
        for j in range(start, len(ordered)):
            within = j - start < len(block)
            other = block[j - start] if within else ordered[j].load(layout)
            for i, held in enumerate(block, start):
                if i <= j:
                    dots = _dots(held, other, offsets)
                    gram[i, j] = gram[j, i] = _dot(dots.tolist(), (clips[i] * clips[j]).tolist())
    return gram


def _dots(a: Vector | Elements, b: Vector | Elements, offsets: Offsets) -> Doubles:
    """Dot product in every tensor, shape (T,)."""
    out = np.empty(len(offsets) - 1)
    if isinstance(a, Elements) and isinstance(b, Elements):
        kernels.sparse_dots(
            read_only(a.positions),
            read_only(a.values),
            read_only(b.positions),
            read_only(b.values),
            offsets,
            out,
        )
    else:
        assert not isinstance(a, Elements)
        assert not isinstance(b, Elements)
        kernels.dense_dots(read_only(a), read_only(b), offsets, out)
    return out


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    """Sum of products from left to right."""
    total = 0.0
    for x, y in zip(a, b, strict=True):
        total += x * y
    return total


def _exact(shares: Sequence[float]) -> list[float]:
    """The shares in multiples of 2^-24 that add up to exactly 1.

    Sums of them are exact in fp32, so the mean over everybody is divided by 1 and by nothing else.
    """
    ends = [min(round(end * _UNITS), _UNITS) for end in itertools.accumulate(shares)]
    ends[-1] = _UNITS
    return [(end - start) / _UNITS for start, end in itertools.pairwise([0, *ends])]


def _median(values: Sequence[float]) -> float:
    """Median; of an even number not far above the lower of the middle two."""
    return min(median(values), APART * median_low(values))
