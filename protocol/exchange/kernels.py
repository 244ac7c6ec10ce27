"""The loops of aggregation, error feedback and outer step: one pass over memory each.

Every operation is rounded once, and never fused with another (:mod:`protocol.exchange.jit`).

Sums of products are float64 in :data:`LANES` lanes: element i of a tensor is added to lane i mod
LANES, in ascending order; then the lanes are halved (lane j plus lane j + half) until one is left.
Elements that are not there add nothing, so a sparse vector has the very sums of its dense form.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from artel.protocol.exchange.jit import kernel
from artel.protocol.state import Vector

LANES = 1024  # part of the protocol: it fixes the order of additions

Doubles = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]


@kernel
def folded(lanes: Doubles) -> float:
    """The sum of all lanes, which are overwritten."""
    width = LANES
    while width > 1:
        width //= 2
        for i in range(width):
            lanes[i] += lanes[i + width]
    return float(lanes[0])


@kernel
def dense_dots(a: Vector, b: Vector, offsets: Positions, out: Doubles) -> None:
    """``out[t]`` = the sum of a*b over tensor t, elements ``offsets[t]`` to ``offsets[t + 1]``."""
    lanes = np.empty(LANES, np.float64)
    for tensor in range(len(out)):
        lanes[:] = 0.0
        start = offsets[tensor]
        stop = offsets[tensor + 1]
        while start + LANES <= stop:
            left = a[start : start + LANES]
            right = b[start : start + LANES]
            for i in range(LANES):
                lanes[i] += np.float64(left[i]) * np.float64(right[i])
            start += LANES
        for i in range(stop - start):
            lanes[i] += np.float64(a[start + i]) * np.float64(b[start + i])
        out[tensor] = folded(lanes)


@kernel
def sparse_dots(
    where_a: Positions,
    a: Vector,
    where_b: Positions,
    b: Vector,
    offsets: Positions,
    out: Doubles,
) -> None:
    """As :func:`dense_dots`, of two lists of entries in ascending order."""
    lanes = np.empty(LANES, np.float64)
    i = 0
    j = 0
    for tensor in range(len(out)):
        lanes[:] = 0.0
        start = offsets[tensor]
        stop = offsets[tensor + 1]
        while i < len(a) and j < len(b) and where_a[i] < stop and where_b[j] < stop:
            if where_a[i] == where_b[j]:
                lane = (where_a[i] - start) % LANES
                lanes[lane] += np.float64(a[i]) * np.float64(b[j])
                i += 1
                j += 1
            elif where_a[i] < where_b[j]:
                i += 1
            else:
                j += 1
        while i < len(a) and where_a[i] < stop:
            i += 1
        while j < len(b) and where_b[j] < stop:
            j += 1
        out[tensor] = folded(lanes)


@kernel
def add_scaled(
    update: Vector, vector: Vector, offsets: Positions, coefficients: Vector, first: bool
) -> None:
    """``update`` (0 before the ``first``) += coefficient of the tensor * ``vector``, each operation
    rounded to fp32."""
    for tensor in range(len(coefficients)):
        scale = coefficients[tensor]
        target = update[offsets[tensor] : offsets[tensor + 1]]
        source = vector[offsets[tensor] : offsets[tensor + 1]]
        for i in range(len(source)):
            before = np.float32(0.0) if first else target[i]  # the sum makes a zero of -0
            target[i] = before + scale * source[i]


@kernel
def scatter_scaled(
    update: Vector,
    mass: Vector,
    where: Positions,
    values: Vector,
    offsets: Positions,
    coefficients: Vector,
    share: np.float32,
) -> None:
    """As :func:`add_scaled` at the entries; their ``mass`` grows by ``share``.

    A mass below 0 is that of a single contribution.
    """
    entry = 0
    for tensor in range(len(coefficients)):
        scale = coefficients[tensor]
        stop = offsets[tensor + 1]
        while entry < len(where) and where[entry] < stop:
            at = where[entry]
            update[at] = update[at] + scale * values[entry]
            mass[at] = -share if mass[at] == 0 else abs(mass[at]) + share
            entry += 1


@kernel
def divide(update: Vector, mass: Vector, floor: np.float32) -> None:
    """``update`` /= the largest of ``floor``, the mass and, where only one contributed, twice the
    mass or 1, whichever is less."""
    one = np.float32(1.0)
    for i in range(len(update)):
        held = mass[i]
        held = min(held * np.float32(-2.0), one) if held < 0 else held
        update[i] = update[i] / max(held, floor)


# --- error feedback ---


@kernel
def accumulate(residual: Vector, delta: Vector, decay: np.float32, out: Vector) -> float:
    """``out`` = decay*residual + delta, each operation rounded to fp32; returns the sum of the
    squares of delta, added up as above."""
    lanes = np.zeros(LANES, np.float64)
    for start in range(0, len(out), LANES):
        kept = residual[start : start + LANES]
        came = delta[start : start + LANES]
        total = out[start : start + LANES]
        for i in range(len(total)):
            total[i] = kept[i] * decay + came[i]
            lanes[i] += np.float64(came[i]) * np.float64(came[i])
    return folded(lanes)


# --- outer step ---


@kernel
def plain(params: Vector, update: Vector, lr: np.float32, out: Vector) -> bool:
    """``out`` = params - lr*update; whether all of it is finite."""
    finite = True
    for i in range(len(out)):
        value = params[i] - lr * update[i]
        finite &= abs(value) < np.inf
        out[i] = value
    return finite


@kernel
def with_momentum(
    params: Vector,
    momentum: Vector,
    update: Vector,
    lr: np.float32,
    mu: np.float32,
    nesterov: bool,
    out: Vector,
    buffer: Vector,
) -> bool:
    """``buffer`` = mu*momentum + update, ``out`` = params - lr*(Nesterov's: update + mu*buffer,
    else: buffer); whether both are finite."""
    finite = True
    for i in range(len(out)):
        ball = mu * momentum[i] + update[i]
        value = params[i] - lr * (mu * ball + update[i] if nesterov else ball)
        finite &= (abs(value) < np.inf) & (abs(ball) < np.inf)
        buffer[i] = ball
        out[i] = value
    return finite
