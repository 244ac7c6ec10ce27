"""``artel`` with a coordinator that asks nobody what it signed, and hears nobody who tells it.

Run as ``python tests/worlds/forgetful_coordinator.py coordinator start ...``.
"""

from __future__ import annotations

import sys

from artel import cli
from artel.coordinator import recovery


async def says_nothing(*_: object, **__: object) -> None:
    """In the place of what asks, and of what is told."""


if __name__ == "__main__":
    recovery.Asking.settle = says_nothing  # type: ignore[method-assign, assignment]
    recovery.require_newest = says_nothing  # type: ignore[assignment]
    sys.exit(cli.main(sys.argv[1:]))
