"""Amounts as a person reads them."""

from __future__ import annotations

import math


def readable(count: float) -> str:
    """Bytes in the largest unit of which there is one, rounded up: never 0 for what is needed."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if count >= factor:
            return f"{math.ceil(10 * count / factor) / 10:.1f} {unit}"
    return f"{math.ceil(count)} B"
