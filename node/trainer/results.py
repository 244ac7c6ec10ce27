"""What goes into the trainer's commands and what comes back, as the daemon sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

Window = tuple[Path, int]
"""A shard file and the first token of a window in it."""


@dataclass(frozen=True)
class Loaded:
    """A run is ready; ``device`` is "cpu" or "cuda", ``round`` and ``root`` are the state's."""

    parameters: int
    device: str
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
    """How far training is: ``step`` of ``steps`` done, mean loss (nats) since the last report."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float


@dataclass(frozen=True)
class Trained:
    """A finished contribution; ``seconds`` has train and encode."""

    blob: Path
    size: int
    loss: float
    tokens: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Contribution:
    """A contribution that a closed round lists, with its blob as a file here."""

    node: str
    blob: Path
    weight: int


@dataclass(frozen=True)
class Applied:
    """The next state; ``seconds`` has decode, aggregate, outer, write (with hashing) and load."""

    state: Path
    root: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats per token of the agreed state."""

    loss: float
    tokens: int
