"""Learning rate of an inner step, counted over the whole run.

Linear warm-up, then cosine (SGDR without restarts, arXiv 1608.03983), WSD (warm-up, stable, decay:
MiniCPM, arXiv 2404.06395) or a constant. The position is global: with H inner steps in a round,
step i of the h that a node was assigned in round r lies at ``r * H + i * H / h``. A node that joins
late enters at the run's learning rate, a slow one goes through the same rates in fewer steps, and a
failed attempt repeats the same rates. At the beginning of a span of rounds the rate may rise over
some steps (:func:`ramp`).
"""

from __future__ import annotations

import math

from artel.protocol.run_config import WSD_DECAY_FRACTION, RunConfig


def position(config: RunConfig, round: int, step: int, steps: int) -> float:
    """Global position of step ``step`` (from 0) of the ``steps`` assigned in ``round``."""
    whole = config.rounds.inner_steps
    return round * whole + step * whole / steps


def learning_rate(config: RunConfig, position: float) -> float:
    """Learning rate of AdamW at a global position (from 0); beyond the run it keeps the last.

    The other optimisers follow the same curve, scaled to their own peak.
    """
    optimizer, rounds = config.optimizer, config.rounds
    if position < optimizer.warmup_steps:
        return min(optimizer.lr, optimizer.lr * (position + 1) / optimizer.warmup_steps)
    last = rounds.total * rounds.inner_steps - 1
    low = optimizer.final_lr_fraction
    match optimizer.schedule:
        case "constant":
            return optimizer.lr
        case "cosine":
            done = _progress(position, optimizer.warmup_steps, last)
            return optimizer.lr * (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)
        case "wsd":
            decay = math.ceil((last + 1) * WSD_DECAY_FRACTION)
            # The decay never starts inside the warm-up, however short the run is.
            start = max(optimizer.warmup_steps, last - decay)
            return optimizer.lr * (1 - (1 - low) * _progress(position, start, last))


def ramp(config: RunConfig, position: float, span: int) -> float:
    """Part of the run's learning rate in a step of a span that began in round ``span``: it rises in
    equal steps, so that moments that begin empty do not move the weights too far.

    :param position: as in :func:`learning_rate`
    """
    since = position - span * config.rounds.inner_steps
    return min(1.0, (since + 1) / (config.rounds.ramp + 1))


def _progress(position: float, first: int, last: int) -> float:
    """0 at ``first`` and before, 1 at ``last`` and behind."""
    return min(1.0, max(0.0, (position - first) / max(1, last - first)))
