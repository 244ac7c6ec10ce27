"""What is known of the head of a round: what was asked for, where it began, what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artel.node.trainer.inner import Snapshot
from artel.protocol.exchange.parts import Part


@dataclass(frozen=True)
class Order:
    """What the daemon wants trained as the head of a round."""

    round: int
    node: str
    """Peer id; part of the seed of the node's own randomness."""
    windows: Sequence[tuple[str, int]]
    """``(steps - tail) * batch`` of them; step i trains on those from ``i * batch`` on."""
    out: Path
    steps: int
    """All that the node was assigned (h)."""
    tail: int
    """How many of them belong to the tail."""
    slices: int
    """Slices that a sharded round asks for; 0: one blob for everybody."""
    deadline: float | None
    """When a head that is long enough ends, by :func:`time.monotonic`."""
    carried: int | None
    """Steps of the round before that may count in this one; another tail is dropped."""


@dataclass
class Head:
    """A head that was begun, and what can be done about it."""

    root: str
    """State root that it started from."""
    snapshot: Snapshot
    """Weights and optimisers at its beginning."""
    tail: int
    """Steps of the round before that are in the weights."""
    tail_seconds: float
    sent: Sent | None = None


@dataclass
class Sent:
    """A pseudo-gradient that was formed and encoded."""

    order: Order
    parts: list[Part]
    payloads: list[bytes]
    """Of each part; only where there is error feedback."""
    tail: int = 0
    """Steps trained since then: all of the tail or none."""
    tail_seconds: float = 0.0
    ran_on: bool = False
