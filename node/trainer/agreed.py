"""The newest agreed state of a run: the one object that both threads of the trainer use.

The merge thread advances it when it has applied a round; the main thread replaces it, reads it, and
takes note of what has changed since it last merged. A state's arrays are never written to once they
are here, so that either thread may go on reading an older one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from artel.node.trainer.channel import TrainerError
from artel.protocol.exchange.next_state import Base


@dataclass(frozen=True)
class Change:
    """What a closed round has done to the state."""

    round: int
    counted: frozenset[str]
    """Nodes whose contributions are in it."""
    kept: tuple[npt.NDArray[np.int64], ...] | None = None
    """Sharded with a sparse codec: for each slice the positions in it that the update has."""


class Agreed:
    """An agreed state, and the changes since the main thread last merged.

    Every method may be called from either thread.
    """

    def __init__(self, base: Base) -> None:
        self._lock = threading.Lock()
        self._now = base
        self._changes: list[Change] = []
        self._before: Base | None = None  # where the last change started from

    def now(self) -> Base:
        """The state and its root."""
        with self._lock:
            return self._now

    def of_round(self, round: int) -> Base:
        """The state that ``round`` starts from.

        That is the newest one; or the one before it, until the main thread has merged, so that a
        round can be applied once more when it turns out that a slice was wrong.

        :raises TrainerError: ``wrong_round``
        """
        with self._lock:
            if self._before is not None and self._before.state.round == round:
                return self._before
            self._require(round)
            return self._now

    def take_changes(self, round: int) -> tuple[Base, list[Change]]:
        """As :meth:`of_round`, and the changes that led to it since the last call.

        :raises TrainerError: ``wrong_round``
        """
        with self._lock:
            self._require(round)
            changes, self._changes, self._before = self._changes, [], None
            return self._now, changes

    def advance(self, base: Base, new: Base, change: Change) -> None:
        """The round that started from ``base`` has led to ``new``.

        :raises TrainerError: ``wrong_round``: another state was set or merged meanwhile, it stays
        """
        with self._lock:
            if self._before is not None and self._before.root == base.root:
                self._changes.pop()  # applied once more
            elif self._now.root == base.root:
                self._before = self._now
            else:
                raise TrainerError(
                    "wrong_round", "another state was set while the round was applied"
                )
            self._now = new
            self._changes.append(change)

    def replace(self, base: Base) -> None:
        """Another state, whatever led to it."""
        with self._lock:
            self._now, self._changes, self._before = base, [], None

    def _require(self, round: int) -> None:
        if round != self._now.state.round:
            raise TrainerError(
                "wrong_round",
                f"the trainer holds the state of round {self._now.state.round}, not of round "
                f"{round}",
                "set the state of that round first",
            )
