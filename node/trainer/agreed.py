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
from artel.protocol.state import State


@dataclass(frozen=True)
class Change:
    """What a closed round has done to the state."""

    round: int
    counted: frozenset[str]
    """Nodes whose contributions are in it."""
    kept: tuple[npt.NDArray[np.int64], ...] | None = None
    """Sharded with a sparse codec: for each slice the positions in it that the update has."""


class Agreed:
    """An agreed state, its root, and the changes since the main thread last merged.

    Every method may be called from either thread.
    """

    def __init__(self, state: State, root: str) -> None:
        self._lock = threading.Lock()
        self._state, self._root = state, root
        self._changes: list[Change] = []
        self._before: tuple[State, str] | None = None  # where the last change started from

    def now(self) -> tuple[State, str]:
        """The state and its root."""
        with self._lock:
            return self._state, self._root

    def of_round(self, round: int) -> tuple[State, str]:
        """The state that ``round`` starts from, and its root.

        That is the newest one; or the one before it, until the main thread has merged, so that a
        round can be applied once more when it turns out that a slice was wrong.

        :raises TrainerError: ``wrong_round``
        """
        with self._lock:
            if self._before is not None and self._before[0].round == round:
                return self._before
            self._require(round)
            return self._state, self._root

    def take_changes(self, round: int) -> tuple[State, str, list[Change]]:
        """As :meth:`of_round`, and the changes that led to it since the last call.

        :raises TrainerError: ``wrong_round``
        """
        with self._lock:
            self._require(round)
            changes, self._changes, self._before = self._changes, [], None
            return self._state, self._root, changes

    def advance(self, base: str, state: State, root: str, change: Change) -> None:
        """The round that started from the state with root ``base`` has led to ``state``.

        :raises TrainerError: ``wrong_round``: another state was set or merged meanwhile, it stays
        """
        with self._lock:
            if self._before is not None and self._before[1] == base:
                self._changes.pop()  # applied once more
            elif self._root == base:
                self._before = self._state, self._root
            else:
                raise TrainerError(
                    "wrong_round", "another state was set while the round was applied"
                )
            self._state, self._root = state, root
            self._changes.append(change)

    def replace(self, state: State, root: str) -> None:
        """Another state, whatever led to it."""
        with self._lock:
            self._state, self._root = state, root
            self._changes, self._before = [], None

    def _require(self, round: int) -> None:
        if round != self._state.round:
            raise TrainerError(
                "wrong_round",
                f"the trainer holds the state of round {self._state.round}, not of round {round}",
                "set the state of that round first",
            )
