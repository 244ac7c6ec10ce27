"""A coordinator that answers everybody, and opens no round any more after the third one. Run as
``python idle_coordinator.py coordinator start ...``."""

from __future__ import annotations

import sys

from artel import cli
from artel.protocol import rounds
from artel.protocol.round_state import Action, RoundRules, RunState

honest = rounds._try_open


def opens_few(rules: RoundRules, state: RunState, now: float) -> tuple[RunState, list[Action]]:
    return honest(rules, state, now) if state.round < 3 else (state, [])


if __name__ == "__main__":
    rounds._try_open = opens_few
    sys.exit(cli.main(sys.argv[1:]))
