"""What a run looked like, round by round: numbers for people, kept in ``metrics.jsonl``.

Losses are what nodes report; nothing here is part of the ledger, and no credit follows from it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class RoundMetrics:
    """One round. Times in seconds, losses in nats per token, bytes as counted at the streams.

    ``validation`` is the loss of the state that the round starts *from*.
    """

    round: int
    members: int = 0
    accepted: int = 0
    rejected: dict[str, str] = field(default_factory=dict)
    loss: float | None = None
    validation: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    blob_bytes: int = 0
    ended: float = 0.0


class Metrics:
    """The metrics of a run; owned by the coordinator."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rounds: dict[int, RoundMetrics] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._restore(line)

    def _restore(self, line: str) -> None:
        try:
            values = json.loads(line)
            metrics = RoundMetrics(**values)
        except (ValueError, TypeError):
            return  # the last line of a killed process may be cut off; these numbers are no facts
        self.rounds[metrics.round] = metrics

    def of(self, round: int) -> RoundMetrics:
        """The metrics of a round, made when it is new."""
        return self.rounds.setdefault(round, RoundMetrics(round))

    def save(self, round: int) -> None:
        """Write the present numbers of a round; the last line of a round counts."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self.of(round))) + "\n")

    def table(self, last: int = 0) -> list[dict[str, Any]]:
        """All rounds (or the ``last`` ones) as plain values, oldest first."""
        numbers = sorted(self.rounds)[-last:]
        return [asdict(self.rounds[number]) for number in numbers]
