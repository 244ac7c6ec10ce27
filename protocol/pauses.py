"""What silence and dissent cost: who sits out, and how long a round that failed waits. Pure.

A member is *struck* when it was in the way: it committed to nothing, showed nothing, signed no
state or another one than the rest, in an attempt that failed for that; or it committed a fault. The
first time this costs nothing but the rest of that round. From then on each time doubles the rounds
that are opened without it: 1, 2, 4, 8, 16, 16, ... A signature under an agreed state forgives all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

MAX_PAUSE = 16
"""Rounds that are opened without a node, at most; after as many more its strikes are forgotten."""
MAX_STRIKES = 2 + MAX_PAUSE.bit_length() - 1
"""More do not make a pause longer."""
FIRST_WAIT_S = 5.0
MAX_WAIT_S = 300.0


@dataclass(frozen=True)
class Pause:
    """A node that was in the way, ``strikes`` times in a row, the last time for ``reason``."""

    strikes: int
    until: int
    """The last round that is opened without it."""
    reason: str


Pauses = Mapping[str, Pause]


def struck(pauses: Pauses, reasons: Mapping[str, str], round: int) -> dict[str, Pause]:
    """The pauses after these nodes (peer id to reason) were in the way in ``round``."""
    after = dict(pauses)
    for peer, reason in reasons.items():
        before = after[peer].strikes if peer in after else 0
        strikes = min(before + 1, MAX_STRIKES)
        after[peer] = Pause(strikes, round + (2 ** (strikes - 2) if strikes > 1 else 0), reason)
    return after


def forgiven(pauses: Pauses, peers: Collection[str], round: int) -> dict[str, Pause]:
    """The pauses once ``peers`` have signed the state that ``round`` starts from."""
    return {
        peer: pause
        for peer, pause in pauses.items()
        if peer not in peers and round <= pause.until + MAX_PAUSE
    }


def sits_out(pauses: Pauses, peer: str, round: int) -> bool:
    """Whether ``round`` is opened without this node."""
    return peer in pauses and round <= pauses[peer].until


def wait_before(attempt: int) -> float:
    """Seconds between a failed attempt and this one, its successor.

    The first repetition comes at once. Then the wait doubles, because every attempt leaves entries
    in the ledger for ever: 5 s, 10 s, ..., 300 s.
    """
    if attempt < 2:
        return 0.0
    return float(min(FIRST_WAIT_S * 2 ** min(attempt - 2, 16), MAX_WAIT_S))
