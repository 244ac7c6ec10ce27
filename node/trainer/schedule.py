"""Learning rate of an inner step, counted over the whole run.

Linear warm-up, then cosine (SGDR without restarts, arXiv 1608.03983), WSD (warm-up, stable, decay:
MiniCPM, arXiv 2404.06395) or a constant. The step is global, ``round * H + i``: a node that joins
late enters at the run's learning rate, and a failed attempt repeats the same rates.
"""

from __future__ import annotations

import math

from protocol.manifest import WSD_DECAY_FRACTION, RunConfig


def learning_rate(config: RunConfig, step: int) -> float:
    """Learning rate of global inner step ``step`` (from 0); steps beyond the run keep the last."""
    optimizer, rounds = config.optimizer, config.rounds
    if step < optimizer.warmup_steps:
        return optimizer.lr * (step + 1) / optimizer.warmup_steps
    last = rounds.total * rounds.inner_steps - 1
    low = optimizer.final_lr_fraction
    match optimizer.schedule:
        case "constant":
            return optimizer.lr
        case "cosine":
            done = _progress(step, optimizer.warmup_steps, last)
            return optimizer.lr * (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)
        case "wsd":
            decay = math.ceil((last + 1) * WSD_DECAY_FRACTION)
            # The decay never starts inside the warm-up, however short the run is.
            start = max(optimizer.warmup_steps, last - decay)
            return optimizer.lr * (1 - (1 - low) * _progress(step, start, last))


def _progress(step: int, first: int, last: int) -> float:
    """0 at step ``first`` and before, 1 at step ``last`` and behind."""
    return min(1.0, max(0.0, (step - first) / max(1, last - first)))
