"""The outer step: the state moves by the round's update, with the same bits on every machine.

DiLoCo (arXiv 2311.08105), with d = the aggregated pseudo-gradient (state before minus after):

    Nesterov     b <- mu*b + d        theta <- theta - lr*(d + mu*b)
    heavy ball   b <- mu*b + d        theta <- theta - lr*b
    mu = 0                            theta <- theta - lr*d

fp32, one rounding for each multiplication and each addition, never fused. Note that mu = 0.9, the
paper's value for H = 500, overshoots with few inner steps a round; 0.5 is the safer default there.
"""

from __future__ import annotations

import numpy as np

from protocol.errors import CheckFailed
from protocol.state import Vector, all_finite


def outer_step(
    params: Vector,  # (N,)
    momentum: Vector | None,  # (N,); None exactly when mu is 0
    update: Vector,  # (N,)
    *,
    lr: float,
    mu: float,
    nesterov: bool,
) -> tuple[Vector, Vector | None]:
    """New parameters and momentum; the arguments stay as they are. Allocates at most 2N numbers.

    :raises CheckFailed: arrays that do not fit together, a momentum buffer with mu = 0 or none with
        mu > 0, or a result that is not finite
    """
    arrays = [params, update] if momentum is None else [params, update, momentum]
    if any(a.dtype != np.float32 or a.shape != params.shape or a.ndim != 1 for a in arrays):
        raise CheckFailed("the outer step wants flat fp32 vectors of one length")
    if (momentum is None) != (mu == 0):
        raise CheckFailed("a run has a momentum buffer exactly when its outer momentum is not 0")

    with np.errstate(over="ignore", invalid="ignore"):  # a result out of range is reported below
        if momentum is None:
            buffer = None
            step = update * np.float32(lr)
        else:
            buffer = momentum * np.float32(mu)
            np.add(buffer, update, out=buffer)
            if nesterov:
                step = buffer * np.float32(mu)
                np.add(step, update, out=step)
                np.multiply(step, np.float32(lr), out=step)
            else:
                step = buffer * np.float32(lr)
        np.subtract(params, step, out=step)
    if not all_finite(step) or (buffer is not None and not all_finite(buffer)):
        raise CheckFailed(
            "the outer step leaves the range of fp32",
            "the run diverged: lower the outer learning rate",
        )
    return step, buffer
