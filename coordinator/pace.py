"""What a round begins with: how many inner steps each member of a time-boxed one gets, from the
speed that it has shown, and where their data begins.

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
from collections.abc import Iterable, Mapping, Sequence
from statistics import median_low

from artel.ledger.entries import Contribution, audits
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Attempt
from artel.protocol import assignment
from artel.protocol.assignment import Work
from artel.protocol.manifest import Manifest
from artel.protocol.round_state import LATE, RoundRules

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


class Planner:
    """What a round begins with: the steps of each member, and where their data begins."""

    def __init__(self, manifest: Manifest, rules: RoundRules) -> None:
        self._config, self._rules, self.pace = manifest.config, rules, Pace()
        self._work, self._split = Work.of(manifest.config), assignment.train_split(manifest)

    def steps(
        self, fold: FoldState, members: Iterable[str], reported: Mapping[str, float]
    ) -> dict[str, int]:
        """Member to its inner steps in the round that opens.

        In a repeated attempt whoever was done keeps its number, so that what it has may do again.

        :param reported: node to the tokens per second that it says, 0 for unknown
        """
        before, kept = fold.attempt, dict[str, int]()
        if before is not None and before.round == fold.round:
            kept = {peer: before.steps[peer] for peer in before.commitments}
        return {
            peer: kept.get(peer) or self._steps_for(fold, peer, reported.get(peer))
            for peer in members
        }

    def _steps_for(self, fold: FoldState, peer: str, reported: float | None) -> int:
        speed = self.pace.speed(peer)
        if speed is None:
            speed = reported or None
        # Who commits at once looks fast; what has vested was audited where the lot fell on it.
        steps = min(steps_in_box(self._work, self._rules.box, speed), fold.most_steps(peer))
        # Whoever has an audit to do makes fewer steps of its own; it is paid the same for both.
        repeats = audits.steps_now(fold, peer)
        return max(self._work.lightest, steps - repeats) if repeats else steps

    def cursor(self, fold: FoldState, steps: int) -> int:
        """Where the data of the round that opens begins; a repeated attempt uses the same again.

        :param steps: inner steps of all members together
        """
        cursor = fold.cursor
        if fold.attempt is None or fold.attempt.round != fold.round:
            cursor = assignment.next_cursor(self._split, cursor, fold.steps, self._config)
        return assignment.round_start(self._split, cursor, self._work.windows(steps))

    def learn(
        self, attempt: Attempt, accepted: Sequence[Contribution], rejected: Mapping[str, str]
    ) -> None:
        """Note how many tokens nodes had time for in an attempt, for the rounds to come."""
        tokens, work = self._work.tokens, self._work
        for body in accepted:
            self.pace.accepted(body.node, tokens(body.head), tokens(body.tail))
        for peer, reason in rejected.items():
            if reason == LATE:
                least = work.least_head(attempt.round, attempt.steps.get(peer, 0) or work.least)
                self.pace.late(peer, self._rules.training, tokens(least))
