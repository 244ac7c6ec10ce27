"""The loop of the error feedback: one pass over memory."""

from __future__ import annotations

import numpy as np

from artel.protocol.exchange.aggregate_kernels import LANES, folded
from artel.protocol.exchange.jit import kernel
from artel.protocol.state import Vector


@kernel
def accumulate(residual: Vector, delta: Vector, decay: np.float32, out: Vector) -> float:
    """``out`` = decay*residual + delta, each operation rounded to fp32; returns the sum of the
    squares of delta, added up as in :mod:`protocol.exchange.aggregate_kernels`."""
    lanes = np.zeros(LANES, np.float64)
    for start in range(0, len(out), LANES):
        kept = residual[start : start + LANES]
        came = delta[start : start + LANES]
        total = out[start : start + LANES]
        for i in range(len(total)):
            total[i] = kept[i] * decay + came[i]
            lanes[i] += np.float64(came[i]) * np.float64(came[i])
    return folded(lanes)
