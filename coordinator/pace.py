"""How many inner steps each member of a time-boxed round gets, from the speed that it has shown.

A speed is what the coordinator sees itself: the tokens of a contribution that was accepted, over
the time that its node had for them. What a node reports of itself counts only until there is such
a fact. All of them are lower bounds, since waiting and sending are part of that time, so a box is
never filled with more than a node has already done. But a commitment alone costs nothing: nobody
gets more than H steps or, where that is more, twice those of a contribution of its account that has
vested. (Rounds of fixed time with as many steps as each worker can make: Decoupled DiLoCo, arXiv
2604.21428; SWARM and hivemind weight by samples.)
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median_low

from artel.protocol.assignment import Work

SHARE = 0.9
"""Of the box that is planned for; the rest is for what a node cannot foresee."""
KEEP = 3
"""Rounds whose speeds are remembered; their lower median counts."""


def steps_in_box(work: Work, box_s: float, speed: float | None) -> int:
    """Inner steps for a node in a round.

    :param box_s: length of the box in seconds; 0: everybody makes H
    :param speed: tokens per second; None when nothing is known
    :returns: as many as take about 90 % of the box, from ceil(H / 4) to 4 H; H when nothing is
        known
    """
    if not box_s or speed is None or not math.isfinite(speed):
        return work.inner_steps
    wanted = SHARE * box_s * speed / work.tokens(1)
    return int(min(max(wanted, work.least), work.most))


class Pace:
    """Speeds of nodes in tokens per second; owned by the coordinator. Times are in seconds."""

    def __init__(self) -> None:
        self._opened = 0.0
        self._measuring = False
        self._commits: dict[str, float] = {}  # of the attempt under way
        self._before: dict[str, float] = {}  # of the round before it
        self._seen: dict[str, deque[float]] = {}

    def opened(self, now: float, attempt: int) -> None:
        """An attempt begins. In a repeated one nodes may show what they have already, so it says
        nothing about their speed."""
        if attempt == 0:
            self._before, self._commits = self._commits, {}
        self._opened, self._measuring = now, attempt == 0

    def committed(self, node: str, now: float) -> None:
        """The node is done with its steps; only the first time counts."""
        self._commits.setdefault(node, now)

    def accepted(self, node: str, head: int, tail: int) -> None:
        """The node's contribution counts.

        :param head: its tokens of this round
        :param tail: its tokens from the end of the round before
        """
        if not self._measuring or node not in self._commits:
            return
        done = self._commits[node]
        # The head is trained after the opening, the tail since the commitment before.
        speeds = [head / max(done - self._opened, 1e-3)]
        if node in self._before:
            speeds.append((head + tail) / max(done - self._before[node], 1e-3))
        self._note(node, max(speeds))

    def late(self, node: str, seconds: float, tokens: int) -> None:
        """The node was waited for in vain: it did not get through so many tokens in that time."""
        if self._measuring:
            self._note(node, tokens / seconds)

    def speed(self, node: str) -> float | None:
        """What the node has shown; None when it has not shown anything yet."""
        seen = self._seen.get(node)
        return median_low(seen) if seen else None

    def _note(self, node: str, speed: float) -> None:
        self._seen.setdefault(node, deque(maxlen=KEEP)).append(speed)
