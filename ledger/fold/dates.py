"""When entries were there. They have no date of their own: their order is what counts."""

from __future__ import annotations

from statistics import median_low

from artel.ledger.entries import Witnessed
from artel.ledger.fold.history import History

HEADS = 8
"""Records that are looked through for a head over an entry: the first ones may be of heads that
came before it."""


class Dates:
    """By when entries of one history were there, as witnesses say."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._heads: dict[int, tuple[int, int]] = {}

    def seen_at(self, index: int) -> int | None:
        """In seconds since 1970: when the first witnesses whom the ledger records cosigned a head
        over the entry, by the median of their clocks; None before that."""
        found = self._history.later(index, Witnessed.KIND, HEADS)
        heads = (self._head_at(did.index) for did in found if not did.reason)
        return next((time for size, time in heads if size > index), None)

    def _head_at(self, index: int) -> tuple[int, int]:
        """The size of a head that an entry records, and when it was cosigned."""
        if index not in self._heads:
            body = self._history.entry(index).body
            assert isinstance(body, Witnessed)
            self._heads[index] = body.size, median_low(each.time for each in body.cosignatures)
        return self._heads[index]
