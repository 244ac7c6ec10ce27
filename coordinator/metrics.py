"""What a run looked like, round by round: numbers for people, kept in ``metrics.jsonl``.

Losses, bytes and times of computing are what nodes report; nothing here is part of the ledger, and
no credit follows from it. What there is of each member is summed at once: a round takes as little
room and time in a list, whoever asks for it, however many members it had.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from artel.ledger import entries
from artel.ledger.entries.records import Attempt
from artel.protocol import messages
from artel.protocol.events import emit
from artel.protocol.messages import Loss, Seconds

log = logging.getLogger("artel.coordinator")

METRICS_FILE = "metrics.jsonl"
DETAILED = 2
"""Rounds of which is known what each member did: the one under way, and the last one. What the file
says of older ones stays there."""
Clock = Callable[[], float]
"""Steady seconds."""


_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass
class MemberMetrics:
    """What each member of a round did, by node.

    ``steps`` are the inner steps that it was assigned, ``rejected`` says why it was left out.
    ``traffic`` is node to "up" and "down" to kind to bytes, since the agreement before this one;
    ``computing`` is node to the share of its time (0 to 1) that went into inner steps.
    """

    __pydantic_config__: ClassVar = _STRICT

    rejected: dict[str, str] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    traffic: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    computing: dict[str, float] = field(default_factory=dict)


@dataclass
class RoundSums:
    """One round, over all its members. Times in seconds, losses in nats per token, bytes as counted
    at the streams.

    ``validation`` is the loss of the state that the round starts *from*. ``left_out`` is reason to
    how many members, ``steps`` the fewest and the most that one was assigned, ``tokens`` those of
    the accepted contributions. ``up`` and ``down`` are kind to the bytes of all members together,
    ``computing`` the mean share of their time, None when none said.
    Dicts are replaced and not changed, as threads may be reading them.
    """

    __pydantic_config__: ClassVar = _STRICT

    round: messages.Count
    members: int = 0
    accepted: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    steps: tuple[int, int] = (0, 0)
    tokens: int = 0
    loss: Loss | None = None
    validation: Loss | None = None
    seconds: dict[str, Seconds] = field(default_factory=dict)
    blob_bytes: int = 0
    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)
    computing: float | None = None
    ended: float = 0.0


@dataclass
class RoundMetrics(RoundSums):
    """The same, with what each member did."""

    by_member: MemberMetrics = field(default_factory=MemberMetrics)
    """Empty but for the newest rounds (:data:`DETAILED`)."""

    def summed(self) -> dict[str, Any]:
        """Plain values without those of each member; its dicts are to be read only."""
        return {name: getattr(self, name) for name in _SUMMED}


_SUMMED = tuple(each.name for each in fields(RoundSums))
_ROW = TypeAdapter(RoundMetrics)


class Metrics:
    """The metrics of a run; owned by the coordinator."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rounds: dict[int, RoundMetrics] = {}
        self._detailed: list[int] = []  # rounds, the newest last
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._restore(line)

    def _restore(self, line: str) -> None:
        try:
            metrics = _ROW.validate_json(line)
        except ValueError:
            return  # the last line of a killed process may be cut off; these numbers are no facts
        self.rounds[metrics.round] = metrics
        self._detail(metrics.round)

    def _detail(self, round: int) -> None:
        """Keep what the members of this round did, and of no more than the one before."""
        if round not in self._detailed:
            self._detailed.append(round)
        if len(self._detailed) > DETAILED:
            self.rounds[self._detailed.pop(0)].by_member = MemberMetrics()

    def of(self, round: int) -> RoundMetrics:
        """The metrics of a round, to be changed; made when it is new."""
        metrics = self.rounds.setdefault(round, RoundMetrics(round))
        self._detail(round)
        return metrics

    def save(self, round: int) -> None:
        """Write the present numbers of a round; the last line of a round counts."""
        with self.path.open("a", encoding="utf-8") as file:
            metrics = self.of(round)
            row = metrics.summed() | {"by_member": vars(metrics.by_member)}
            file.write(json.dumps(row) + "\n")

    def evaluated(self, found: messages.Validation) -> None:
        """Keep the first report for a state by a node that was asked: a number, not a fact."""
        metrics = self.of(found.round)
        if metrics.validation is None:
            metrics.validation = found.loss
            self.save(found.round)
            emit(log, "state.evaluated", round=found.round, loss=found.loss)

    def gone_back(self, number: int, newest: int) -> None:
        """States after this one are made again, and measured again."""
        for gone in range(number + 1, newest + 1):
            if gone in self.rounds:
                self.rounds[gone].validation = None

    def table(self, last: int = 0) -> list[dict[str, Any]]:
        """The sums of all rounds (or the ``last`` ones) as plain values, oldest first."""
        numbers = sorted(self.rounds)[-last:]
        return [self.rounds[number].summed() for number in numbers]


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
        counts = steps.values() or (0,)
        metrics.members, metrics.steps, metrics.seconds = len(steps), (min(counts), max(counts)), {}
        metrics.by_member.steps = dict(steps)
        self._phase_began = self._clock()

    def phase(self, round: int, name: str) -> None:
        """The phase that was under way is over."""
        now = self._clock()
        metrics = self._metrics.of(round)
        metrics.seconds = metrics.seconds | {name: milliseconds(now - self._phase_began)}
        self._phase_began = now

    def closed(
        self,
        round: int,
        accepted: Sequence[entries.Contribution],
        rejected: Mapping[str, str],
    ) -> None:
        """An attempt was closed."""
        metrics = self._metrics.of(round)
        metrics.accepted, metrics.by_member.rejected = len(accepted), dict(rejected)
        metrics.left_out = dict(sorted(Counter(rejected.values()).items()))
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
        members = metrics.by_member
        losses = [r.loss for name, r in reports.items() if name in signers and r.loss is not None]
        metrics.loss = sum(losses) / len(losses) if losses else None
        carried = {name: self._carried(name, r) for name, r in sorted(reports.items())}
        members.traffic = {name: ways for name, ways in carried.items() if name in members.steps}
        metrics.up, metrics.down = (
            _together(ways[way] for ways in members.traffic.values()) for way in ("up", "down")
        )
        shares = {name: reports[name].computing for name in members.traffic}
        members.computing = {name: share for name, share in shares.items() if share is not None}
        metrics.computing = mean(members.computing.values()) if members.computing else None
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


def _together(each: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Bytes of all nodes, by kind."""
    total: Counter[str] = Counter()
    for kinds in each:
        total.update(kinds)
    return dict(sorted(total.items()))


def _grown(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    grown = {kind: count - before.get(kind, 0) for kind, count in sorted(now.items())}
    return {kind: count for kind, count in grown.items() if count}
