"""Charts: where lines and areas lie. The macro ``draw`` of ``parts.html`` makes SVG of them.

The pages and ``artel demo`` show the same charts; nothing here knows markup or colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from artel.ledger.fold.history import History

SAMPLES = 180
"""Points on the time axis, however many rounds there are."""
COLOURS = 8
"""Areas with a colour of their own; the last one is everybody else."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Values from ``low`` to ``high`` over whole numbers from ``first`` to ``last``."""

    label: str
    unit: str
    """What is counted below: rounds, states."""
    first: float
    last: float
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    """Values with a line across, and their words."""
    lines: Mapping[str, Points] = field(default_factory=dict)
    """By class in the style sheet."""
    areas: Mapping[str, Points] = field(default_factory=dict)
    dot: tuple[float, float] | None = None

    width, height = 720, 250
    left, right, top, bottom = 58, 700, 12, 224

    @property
    def marks(self) -> list[float]:
        """Round numbers along the bottom."""
        return [mark for mark in rounded(self.first, self.last, 8) if mark == int(mark)]

    def x(self, number: float) -> float:
        """How far to the right; the left end when there is one number only."""
        across = (number - self.first) / (self.last - self.first or 1)
        return round(self.left + across * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """How far down."""
        up = (value - self.low) / (self.high - self.low)
        return round(self.bottom - up * (self.bottom - self.top), 1)

    def points(self, values: Points) -> str:
        """A line through the values, or the edge of an area."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in values)


def rounded(low: float, high: float, most: int) -> list[float]:
    """About as many round numbers from ``low`` to ``high``: multiples of 1, 2 or 5 times a power of
    ten."""
    rough = (high - low) / most or 1
    ten = 10.0 ** math.floor(math.log10(rough))
    step = next(step * ten for step in (1, 2, 5, 10) if step * ten >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(n * step, 12) for n in range(first, last + 1)]


# --- the loss of a run ----------------------------------------------------------------------------


def loss(validation: Points, training: Points, total: int) -> Chart | None:
    """Both losses in nats per token; None before the first evaluation.

    :param validation: round, loss of the state that it starts from; ascending
    :param training: round, mean loss that its members reported at its end
    :param total: rounds of the run
    """
    if not validation:
        return None
    # Training in round r gives state r + 1, so that is where its loss is drawn.
    training = [(number + 1, value) for number, value in training]
    numbers, values = zip(*validation, *training, strict=True)
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1
    return Chart(
        label=f"validation loss, now {validation[-1][1]:.3f}",
        unit="round",
        first=min(numbers),
        last=max(*numbers, min(total, 1)),
        low=low - margin,
        high=high + margin,
        ticks=[(tick, f"{tick:.7g}") for tick in rounded(low - margin, high + margin, 5)],
        lines={"train": training, "curve": validation},
        dot=validation[-1],
    )


def speed(values: Points) -> Chart | None:
    """Tokens a second in each round; None before two are known."""
    if len(values) < 2:
        return None
    most = max(value for _, value in values)
    return Chart(
        label=f"tokens a second, now {values[-1][1]:,.0f}",
        unit="round",
        first=values[0][0],
        last=values[-1][0],
        low=0,
        high=1.06 * most,
        ticks=[(tick, f"{tick:,.7g}") for tick in rounded(0, 1.06 * most, 5)],
        lines={"curve": values},
    )


# --- shares over time -----------------------------------------------------------------------------


@dataclass(frozen=True)
class SharesOverTime:
    """``parts[i][k]`` is the part (0 to 1) of ``names[k]`` when state ``states[i]`` was newest.

    ``names`` are accounts, the largest first; the last one is "" when it stands for all others.
    """

    states: tuple[int, ...]
    names: tuple[str, ...]
    parts: tuple[tuple[float, ...], ...]

    def chart(self) -> Chart | None:
        """Areas stacked to 100 %; None while nobody has vested credit."""
        if not self.states:
            return None
        states, parts = self.states, self.parts
        if len(states) == 1:  # one moment: the same from end to end
            states, parts = (states[0], states[0] + 1), (parts[0], parts[0])
        areas = {}
        for k in range(len(self.names)):
            below = [(state, sum(row[:k])) for state, row in zip(states, parts, strict=True)]
            above = [(state, sum(row[: k + 1])) for state, row in zip(states, parts, strict=True)]
            areas[f"area c{k}"] = [*above, *below[::-1]]
        return Chart(
            label="parts of the vested credit by account, from state to state",
            unit="state",
            first=states[0],
            last=states[-1],
            low=0,
            high=1,
            ticks=[(tenth / 10, f"{10 * tenth} %") for tenth in (0, 5, 10)],
            areas=areas,
        )


def history(told: History) -> SharesOverTime:
    """Sample the vested credit of the largest accounts, and of the others together."""
    held = {name: owner.vested for name, owner in told.state.accounts.items() if owner.vested}
    ranked = sorted(held, key=lambda name: (-held[name], name))
    names = tuple(ranked if len(ranked) <= COLOURS else (*ranked[: COLOURS - 1], ""))
    first, newest = told.first_vested, told.state.round
    step = max(1, -(-(newest - first + 1) // SAMPLES))
    wanted = sorted({*range(first, newest + 1, step), newest})
    totals = told.vested_at("", wanted)
    columns = [told.vested_at(name, wanted) for name in names if name]
    if "" in names:
        columns.append([t - sum(row) for t, *row in zip(totals, *columns, strict=True)])
    rows = [
        (state, tuple(amount / total for amount in row))
        for state, total, *row in zip(wanted, totals, *columns, strict=True)
        if total
    ]
    return SharesOverTime(
        tuple(state for state, _ in rows), names, tuple(parts for _, parts in rows)
    )
