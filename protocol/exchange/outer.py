"""The outer step: the state moves by the round's update, with the same bits on every machine.

DiLoCo (arXiv 2311.08105), with d = the aggregated pseudo-gradient (state before minus after):

    Nesterov     b <- mu*b + d        theta <- theta - lr*(d + mu*b)
    heavy ball   b <- mu*b + d        theta <- theta - lr*b
    mu = 0                            theta <- theta - lr*d

fp32, one rounding for each multiplication and each addition, never fused. With fragments the
vectors are those of the round's fragment; the rest of the state stays. Note that mu = 0.9, the
paper's value for H = 500, overshoots with few inner steps a round; 0.5 is the safer default there.
"""

from __future__ import annotations

import numpy as np

from artel.protocol.errors import CheckFailed
from artel.protocol.exchange.codec.interface import read_only
from artel.protocol.run_config import ExchangeSection
from artel.protocol.state import Vector


class Diverged(CheckFailed):
    """The outcome is not finite."""


def learning_rate(exchange: ExchangeSection, total_rounds: int, round: int) -> float:
    """Outer learning rate of round ``round`` (from 0): constant, then, over the last quarter of the
    rounds (rounded down), linear to ``final_lr_fraction`` of it, which the last round has.

    :raises CheckFailed: the run has no such round
    """
    if not 0 <= round < total_rounds:
        raise CheckFailed(f"a run of {total_rounds} rounds has no round {round}")
    outer = exchange.outer
    falling = total_rounds // 4
    fallen = round + 1 - (total_rounds - falling)
    if fallen <= 0:
        return outer.lr
    return outer.lr * (1.0 - (1.0 - outer.final_lr_fraction) * (fallen / falling))


def outer_step(
    params: Vector,  # (N,)
    momentum: Vector | None,  # (N,); None exactly when mu is 0
    update: Vector,  # (N,)
    *,
    lr: float,
    mu: float,
    nesterov: bool,
) -> tuple[Vector, Vector | None]:
    """New parameters and momentum; the arguments stay as they are. Allocates the result alone.

    :raises CheckFailed: arrays that do not fit together, a momentum buffer with mu = 0 or none with
        mu > 0, or a process that cannot compute as the others do
    :raises Diverged: the result is not finite
    """
    from artel.protocol.exchange import kernels  # numba takes 0.4 s to import

    require_gradual_underflow()
    arrays = [params, update] if momentum is None else [params, update, momentum]
    if any(a.dtype != np.float32 or a.shape != params.shape or a.ndim != 1 for a in arrays):
        raise CheckFailed("the outer step wants flat fp32 vectors of one length")
    if (momentum is None) != (mu == 0):
        raise CheckFailed("a run has a momentum buffer exactly when its outer momentum is not 0")

    after, buffer = np.empty(len(params), np.float32), None
    before, rate = read_only(params), np.float32(lr)
    if momentum is None:
        finite = kernels.plain(before, read_only(update), rate, after)
    else:
        buffer = np.empty(len(params), np.float32)
        inputs = before, read_only(momentum), read_only(update)
        finite = kernels.with_momentum(*inputs, rate, np.float32(mu), nesterov, after, buffer)
    if not finite:
        raise Diverged(
            "the outer step leaves the range of fp32",
            "the run diverged: lower the outer learning rate",
        )
    return after, buffer


def require_gradual_underflow() -> None:
    """Refuse to compute in a thread whose processor rounds denormal numbers to zero.

    Libraries built with -ffast-math switch that on for the thread that loads them, and then a state
    would differ from everybody else's in its smallest numbers.

    :raises CheckFailed: it is one
    """
    tiny = np.full(8, 1e-38, np.float32)
    if not (tiny * np.float32(0.125) > 0).all():
        raise CheckFailed(
            "this process rounds denormal numbers to zero, so its state would differ",
            "a library switched that on; use the versions of constraints.txt",
        )
