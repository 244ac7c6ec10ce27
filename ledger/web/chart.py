"""Charts: where lines and areas lie. The macro ``draw`` of ``parts.html`` makes SVG of them.

The pages and ``artel demo`` show the same charts; nothing here knows markup or colours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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
    left, right, top, bottom = 58, 708, 12, 224

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
    ticks = [low + (high - low) * third / 3 for third in range(4)]
    return Chart(
        label=f"validation loss, now {validation[-1][1]:.3f}",
        unit="round",
        first=min(numbers),
        last=max(*numbers, min(total, 1)),
        low=low - margin,
        high=high + margin,
        ticks=[(tick, f"{tick:.2f}") for tick in ticks],
        lines={"train": training, "curve": validation},
        dot=validation[-1],
    )


# --- shares over time -----------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
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


def history(moves: Iterable[tuple[int, str, int]], newest: int) -> History:
    """Sample the changes (state, account, vested credit), which come in order of the state."""
    moves = list(moves)
    totals: Counter[str] = Counter()
    for _, account, amount in moves:
        totals[account] += amount
    ranked = [name for name, total in totals.most_common() if total > 0]
    names = tuple(ranked if len(ranked) <= COLOURS else (*ranked[: COLOURS - 1], ""))
    place = {name: k for k, name in enumerate(names)}
    first = moves[0][0] if moves else 0
    step = max(1, -(-(newest - first + 1) // SAMPLES))
    wanted = sorted({*range(first, newest + 1, step), newest})
    held = [0] * len(names)
    states, parts, at = [], [], 0
    for state in wanted:
        while at < len(moves) and moves[at][0] <= state:
            _, account, amount = moves[at]
            where = place.get(account, place.get(""))
            if where is not None:
                held[where] += amount
            at += 1
        total = sum(held)
        if total > 0:
            states.append(state)
            parts.append(tuple(max(0, amount) / total for amount in held))
    return History(tuple(states), names, tuple(parts))
