"""What goes into the trainer's commands and what comes back, as the daemon sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

Window = tuple[Path, int]
"""A shard file and the first token of a window in it."""


@dataclass(frozen=True)
class Loaded:
    """A run is ready; ``round`` and ``root`` are the state's."""

    parameters: int
    device: str
    """"cpu" or "cuda"."""
    precision: str
    """Of the activations: "fp32" or "bf16"."""
    round: int
    root: str
    seconds: float


@dataclass(frozen=True)
class Speed:
    """What a benchmark measured."""

    tokens_per_second: float
    step_seconds: float


@dataclass(frozen=True)
class Progress:
    """How far training is: step ``step`` of the ``steps`` that were assigned is done (those of the
    head come first, then those of the tail); mean loss (nats) since the last report."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float


@dataclass(frozen=True)
class Trained:
    """A finished contribution."""

    blob: Path
    """The contribution, or in a sharded round its index."""
    parts: tuple[Path, ...]
    """In a sharded round the blobs that the index lists, in order."""
    size: int
    """Bytes of all of them."""
    loss: float
    """Mean of the head, in nats per token."""
    tokens: int
    """Of head and tail together."""
    head: int
    """Steps of this round."""
    tail: int
    """Steps of the round before, trained during its exchange, that this contribution holds."""
    seconds: dict[str, float]
    """merge: taking the new state over; idle: of the main lane since the inner steps of the head
    before, in which it did nothing for the run; train: the head; encode; tail: its ``tail`` steps.
    """


@dataclass(frozen=True)
class RanOn:
    """A finished tail: its steps, their mean loss (nats per token), and the time they took."""

    steps: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Contribution:
    """A contribution that a closed round lists, with its blob as a file here."""

    node: str
    blob: Path
    weight: int


@dataclass(frozen=True)
class Applied:
    """The next state; ``seconds`` has decode, outer, write (with hashing), and aggregate where the
    contributions were combined here."""

    state: Path
    root: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class Aggregated:
    """A slice, combined for everybody."""

    blob: Path
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats per token of the agreed state."""

    loss: float
    tokens: int
