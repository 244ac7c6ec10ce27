"""The loops of the outer step: one pass over memory, one rounding for each operation."""

from __future__ import annotations

import numpy as np

from artel.protocol.exchange.jit import kernel
from artel.protocol.state import Vector


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
def heavy_ball(
    params: Vector,
    momentum: Vector,
    update: Vector,
    lr: np.float32,
    mu: np.float32,
    out: Vector,
    buffer: Vector,
) -> bool:
    """``buffer`` = mu*momentum + update, ``out`` = params - lr*buffer; whether both are finite."""
    finite = True
    for i in range(len(out)):
        ball = mu * momentum[i] + update[i]
        value = params[i] - lr * ball
        finite &= (abs(value) < np.inf) & (abs(ball) < np.inf)
        buffer[i] = ball
        out[i] = value
    return finite


@kernel
def nesterov(
    params: Vector,
    momentum: Vector,
    update: Vector,
    lr: np.float32,
    mu: np.float32,
    out: Vector,
    buffer: Vector,
) -> bool:
    """``buffer`` = mu*momentum + update, ``out`` = params - lr*(update + mu*buffer); whether both
    are finite."""
    finite = True
    for i in range(len(out)):
        ball = mu * momentum[i] + update[i]
        value = params[i] - lr * (mu * ball + update[i])
        finite &= (abs(value) < np.inf) & (abs(ball) < np.inf)
        buffer[i] = ball
        out[i] = value
    return finite
