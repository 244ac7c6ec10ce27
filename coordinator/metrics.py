"""What a run looked like, round by round: numbers for people, kept in ``metrics.jsonl``.

Losses, bytes and times of computing are what nodes report; nothing here is part of the ledger, and
no credit follows from it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from artel.ledger import entries
from artel.ledger.entries.records import Attempt
from artel.protocol import messages
from artel.protocol.events import emit
from artel.protocol.messages import Loss, Seconds

log = logging.getLogger("artel.coordinator")

METRICS_FILE = "metrics.jsonl"
Clock = Callable[[], float]
"""Steady seconds."""


@dataclass
class RoundMetrics:
    """One round. Times in seconds, losses in nats per token, bytes as counted at the streams.

    ``validation`` is the loss of the state that the round starts *from*. ``steps`` are the inner
    steps that each member was assigned, ``tokens`` those of the accepted contributions.
    ``traffic`` is node to "up" and "down" to kind to bytes, since the agreement before this one;
    ``computing`` is node to the share of its time (0 to 1) that went into inner steps.
    """

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    round: messages.Count
    members: int = 0
    accepted: int = 0
    rejected: dict[str, str] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    loss: Loss | None = None
    validation: Loss | None = None
    seconds: dict[str, Seconds] = field(default_factory=dict)
    blob_bytes: int = 0
    traffic: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    computing: dict[str, float] = field(default_factory=dict)
    ended: float = 0.0


_ROW = TypeAdapter(RoundMetrics)


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
            metrics = _ROW.validate_json(line)
        except ValueError:
            return  # the last line of a killed process may be cut off; these numbers are no facts
        self.rounds[metrics.round] = metrics

    def of(self, round: int) -> RoundMetrics:
        """The metrics of a round, made when it is new."""
        return self.rounds.setdefault(round, RoundMetrics(round))

    def save(self, round: int) -> None:
        """Write the present numbers of a round; the last line of a round counts."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self.of(round))) + "\n")

    def evaluated(self, found: messages.Validation) -> None:
        """Keep the first report for a state by a node that was asked: a number, not a fact."""
        metrics = self.of(found.round)
        if metrics.validation is None:
            metrics.validation = found.loss
            self.save(found.round)
            emit(log, "state.evaluated", round=found.round, loss=found.loss)

    def table(self, last: int = 0) -> list[dict[str, Any]]:
        """All rounds (or the ``last`` ones) as plain values, oldest first."""
        numbers = sorted(self.rounds)[-last:]
        return [asdict(self.rounds[number]) for number in numbers]


class Numbers:
    """Takes the numbers of the rounds while they happen."""

    def __init__(self, metrics: Metrics, clock: Clock, attempt: Attempt | None) -> None:
        """:param attempt: the one that is under way already"""
        self._metrics, self._clock = metrics, clock
        self._phase_began = clock()
        self._counted: dict[str, dict[str, dict[str, int]]] = {}  # counters at the last agreement
        if attempt is not None:
            self.opened(attempt.round, attempt.steps)

    def opened(self, round: int, steps: Mapping[str, int]) -> None:
        """An attempt begins; ``steps`` maps its members to their inner steps."""
        metrics = self._metrics.of(round)
        metrics.members, metrics.steps, metrics.seconds = len(steps), dict(steps), {}
        self._phase_began = self._clock()

    def phase(self, round: int, name: str) -> None:
        """The phase that was under way is over."""
        now = self._clock()
        self._metrics.of(round).seconds[name] = milliseconds(now - self._phase_began)
        self._phase_began = now

    def closed(
        self,
        round: int,
        accepted: Sequence[entries.Contribution],
        rejected: Mapping[str, str],
    ) -> None:
        """An attempt was closed."""
        metrics = self._metrics.of(round)
        metrics.accepted, metrics.rejected = len(accepted), dict(rejected)
        metrics.blob_bytes = sum(body.size for body in accepted)
        metrics.tokens = sum(body.tokens for body in accepted)
        self.phase(round, "revealing")

    def agreed(
        self, round: int, signers: Sequence[str], reports: Mapping[str, messages.Report]
    ) -> None:
        """The round is over; the ledger has its facts already. ``reports`` are the newest ones.

        Kept are those of its members: whoever else is here may say what they like.
        """
        self.phase(round, "applying")
        metrics = self._metrics.of(round)
        losses = [r.loss for name, r in reports.items() if name in signers and r.loss is not None]
        metrics.loss = sum(losses) / len(losses) if losses else None
        carried = {name: self._carried(name, r) for name, r in sorted(reports.items())}
        metrics.traffic = {name: ways for name, ways in carried.items() if name in metrics.steps}
        shares = {name: reports[name].computing for name in metrics.traffic}
        metrics.computing = {name: share for name, share in shares.items() if share is not None}
        metrics.ended = time.time()
        self._metrics.save(round)

    def _carried(self, name: str, report: messages.Report) -> dict[str, dict[str, int]]:
        """Bytes since the last call for this node, by direction and kind; no kind with none."""
        now = {"up": dict(report.up_by_kind), "down": dict(report.down_by_kind)}
        before = self._counted.get(name, {})
        self._counted[name] = now
        if any(now[way].get(kind, 0) < n for way in before for kind, n in before[way].items()):
            before = {}  # it was started again, and counts from 0
        return {way: _grown(before.get(way, {}), counts) for way, counts in now.items()}


def milliseconds(seconds: float) -> float:
    """Seconds, rounded to the millisecond."""
    return round(seconds, 3)


def _grown(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    grown = {kind: count - before.get(kind, 0) for kind, count in sorted(now.items())}
    return {kind: count for kind, count in grown.items() if count}
