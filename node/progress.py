"""What a node's work looks like from outside: for its status, its heartbeats and its owner."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from artel.protocol import messages


@dataclass
class Progress:
    """Owned by the worker; its parts write to it."""

    phase: str = "starting"
    round: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_second: float = 0.0
    validation: messages.Validation | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Of the round under way, by phase."""
    last_seconds: dict[str, float] = field(default_factory=dict)
    """Of the last finished round."""
    _marked: float = field(default_factory=time.monotonic)

    def mark(self, name: str, of_it: Mapping[str, float] | None = None) -> None:
        """Book the time since the last mark on ``name``.

        :param of_it: what the trainer has measured in that time; booked under its own names
        """
        now = time.monotonic()
        inside = dict(of_it or {})
        spent = max(0.0, now - self._marked - sum(inside.values()))
        self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)
        self.seconds |= inside
        self._marked = now

    def restart(self) -> None:
        """A new round begins now."""
        self.seconds = {}
        self._marked = time.monotonic()

    def book(self, seconds: dict[str, float]) -> None:
        """Take over what the trainer has measured itself; the clock goes on from now."""
        self.seconds |= seconds
        self._marked = time.monotonic()
