"""Watching the loss: what nodes measured of agreed states, when it jumps, and when it is too bad.

One member measures each state. All do of those that the coordinator keeps copies of, which are what
the run can go back to, and as long as the loss is far above what it was: two such states in a row
decide.
"""

from __future__ import annotations

import logging
from statistics import median, median_low

from artel.ledger.entries import ToldLoss
from artel.ledger.entries.anchors import oldest_anchor
from artel.ledger.entries.fold_state import FoldState, key_of
from artel.ledger.entries.kinds.diverged import (
    LATEST,
    NOT_FINITE,
    astray,
    in_micro,
    loss_message,
    shown_loss,
)
from artel.protocol import dsse
from artel.protocol.events import emit
from artel.protocol.messages import Validation
from artel.protocol.run_config import RoundsSection

log = logging.getLogger("artel.coordinator")

WINDOW, LEAST = 16, 3
"""States before one whose losses say what is usual, and fewest that can."""
SPREADS, FLOOR = 6, 0.02
"""A loss is a spike when it is so many median deviations above the median; a deviation counts as
at least this part of the median, since a run that learns evenly has almost none."""


class Divergence:
    """What was measured; the event loop owns it, and it is gone when the process ends.

    :param run: its id
    :param rounds: say of which states there are copies
    """

    def __init__(self, run: str, rounds: RoundsSection) -> None:
        self._run, self._rounds = run, rounds
        self._told: dict[tuple[int, str], dict[str, tuple[int, str]]] = {}  # by state and root

    def heard(self, fold: FoldState, peer: str, found: Validation) -> bool:
        """Keep what a node that was asked measured of a state, if it has signed that.

        :returns: whether that is new
        """
        number, loss = found.round, in_micro(found.loss)
        if not oldest_anchor(fold) <= number <= fold.round:
            return False
        place = number, fold.states[number]
        if not found.signature or peer in self._told.get(place, {}):
            return False
        said = loss_message(self._run, *place, loss)
        if not dsse.hold([(key_of(peer), bytes.fromhex(found.signature), said)]):
            return False
        before = self.alarmed(fold)
        self._told.setdefault(place, {})[peer] = loss, found.signature
        oldest = oldest_anchor(fold)
        self._told = {at: some for at, some in self._told.items() if at[0] >= oldest}
        if not before and self.alarmed(fold):
            emit(log, "loss.spiked", logging.WARNING, state=number, loss=shown_loss(loss))
        return True

    def everybody(self, fold: FoldState) -> bool:
        """Whether all members are to measure the newest state."""
        held = fold.round == 0 or self._rounds.copies(fold.round)
        return held or self.alarmed(fold)

    def alarmed(self, fold: FoldState) -> bool:
        """Whether the newest loss that was measured is a spike."""
        newest = range(fold.round, max(-1, fold.round - LATEST - 1), -1)
        last = next((number for number in newest if self._of(fold, number)), -1)
        return self._spiked(fold, last)

    def found(self, fold: FoldState) -> tuple[int, int, list[ToldLoss]] | None:
        """The state from which training diverged, the best one before it, and what proves that;
        None as long as it has not."""
        for number in range(fold.round, max(0, fold.round - LATEST), -1):
            told = self._of(fold, number)
            lasts = self._spiked(fold, number) and self._spiked(fold, number - 1)
            if not told or not (lasts or self._loss(fold, number) >= NOT_FINITE):
                continue
            earlier = range(oldest_anchor(fold), number)
            for better in sorted(
                (n for n in earlier if self._of(fold, n)), key=lambda n: self._loss(fold, n)
            ):
                losses = self._both(fold, number, better)
                if astray(fold, number, losses):
                    return number, better, losses
        return None

    def _both(self, fold: FoldState, number: int, better: int) -> list[ToldLoss]:
        now, then = self._of(fold, number), self._of(fold, better)
        return [
            ToldLoss(
                node=peer,
                loss=now[peer][0],
                better=then[peer][0],
                signature=now[peer][1],
                better_signature=then[peer][1],
            )
            for peer in sorted(now.keys() & then.keys())
        ]

    def _of(self, fold: FoldState, number: int) -> dict[str, tuple[int, str]]:
        return self._told.get((number, fold.states[number]), {})

    def _loss(self, fold: FoldState, number: int) -> int:
        return median_low(loss for loss, _ in self._of(fold, number).values())

    def _spiked(self, fold: FoldState, number: int) -> bool:
        """Whether the loss of a state is far above the usual one before it."""
        if number < 0 or not self._of(fold, number):
            return False
        if self._loss(fold, number) >= NOT_FINITE:
            return True
        oldest = max(oldest_anchor(fold), number - WINDOW)
        usual = [self._loss(fold, n) for n in range(oldest, number) if self._of(fold, n)]
        if len(usual) < LEAST:
            return False
        middle = median(usual)
        spread = max(median(abs(loss - middle) for loss in usual), FLOOR * middle)
        return self._loss(fold, number) > middle + SPREADS * spread
