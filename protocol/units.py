"""Amounts as a person reads them."""

from __future__ import annotations

import math


def readable(count: float) -> str:
    """Bytes in the largest unit of which there is one, rounded up: never 0 for what is needed."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if count >= factor:
            return f"{math.ceil(10 * count / factor) / 10:.1f} {unit}"
    return f"{math.ceil(count)} B"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that there are: ``3 h 20 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = (days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")
    said = [f"{count} {unit}" for count, unit in parts if count]
    return " ".join(said[:2]) or "0 s"
