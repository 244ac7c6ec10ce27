"""How far a long piece of work is, told to whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[int, int], None]
"""``tell(done, all)``: so many entries, files or bytes, as whoever calls it says."""


def silent(_done: int, _all: int) -> None:
    """Tells nobody."""
