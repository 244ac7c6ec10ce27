"""A coordinator that lets weight alone decide on a state, whoever says another one.

Run as ``python tests/worlds/colluding_coordinator.py coordinator start ... --recompute 0``.
"""

from __future__ import annotations

import sys

from artel import cli
from artel.protocol.round_state import RunState


def only_at_the_beginning(state: RunState) -> bool:
    return state.recompute and not state.own


if __name__ == "__main__":
    RunState.owes_root = property(only_at_the_beginning)  # type: ignore[assignment, method-assign]
    sys.exit(cli.main(sys.argv[1:]))
