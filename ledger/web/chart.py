"""Charts: where lines and areas lie. The macro ``draw`` of ``parts.html`` makes SVG of them.

The pages and ``artel demo`` show the same charts; nothing here knows markup or colours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

SAMPLES = 180
"""Points on the time axis, however many rounds there are."""
COLOURS = 8
"""Areas with a colour of their own; the last one is everybody else."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Shape:
    """A line or an area: its class in the style sheet, and its corners as SVG writes them."""

    style: str
    points: str


@dataclass(frozen=True)
class Chart:
    """Values from ``low`` to ``high`` over whole numbers from ``first`` to ``last``."""

    label: str
    first: float
    last: float
    low: float
    high: float
    heights: tuple[tuple[float, str], ...] = ()
    """Height and words of each line of the grid."""
    ends: tuple[tuple[float, str, str], ...] = ()
    """Place, alignment and words below the left and the right end."""
    areas: tuple[Shape, ...] = ()
    lines: tuple[Shape, ...] = ()
    dots: tuple[tuple[float, float], ...] = ()

    width, height = 720, 250
    left, right, top, bottom = 58, 708, 12, 224

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a value is drawn; all to the right end when there is one number only."""
        across = (x - self.first) / (self.last - self.first or 1)
        up = (y - self.low) / (self.high - self.low)
        return (
            round(self.left + across * (self.right - self.left), 1),
            round(self.bottom - up * (self.bottom - self.top), 1),
        )

    def shape(self, style: str, points: Points) -> Shape:
        """A line through the values, or the area inside."""
        return Shape(style, " ".join("{},{}".format(*self.place(x, y)) for x, y in points))

    def grid(self, ticks: Iterable[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
        """A line for each value, with its words."""
        return tuple((self.place(self.first, y)[1], words) for y, words in ticks)

    def under(self, what: str) -> tuple[tuple[float, str, str], ...]:
        """The words below both ends."""
        ends = ((self.first, "start"), (self.last, "end"))
        return tuple((self.place(x, self.low)[0], at, f"{what} {x:,}") for x, at in ends)


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
    margin = 0.06 * (max(values) - min(values)) or 0.1
    label = f"validation loss, now {validation[-1][1]:.3f}"
    low, high = min(values) - margin, max(values) + margin
    chart = Chart(label, min(numbers), max(*numbers, min(total, 1)), low, high)
    ticks = [min(values) + (max(values) - min(values)) * third / 3 for third in range(4)]
    return replace(
        chart,
        heights=chart.grid((y, f"{y:.2f}") for y in ticks),
        ends=chart.under("round"),
        lines=(chart.shape("train", training), chart.shape("curve", validation)),
        dots=(chart.place(*validation[-1]),),
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
        label = "parts of the vested credit by account, from state to state"
        chart = Chart(label, states[0], states[-1], 0, 1)
        areas = []
        for k in range(len(self.names)):
            below = [(state, sum(row[:k])) for state, row in zip(states, parts, strict=True)]
            above = [(state, sum(row[: k + 1])) for state, row in zip(states, parts, strict=True)]
            areas.append(chart.shape(f"area c{k}", [*above, *below[::-1]]))
        return replace(
            chart,
            heights=chart.grid((tenth / 10, f"{10 * tenth} %") for tenth in (0, 5, 10)),
            ends=chart.under("state"),
            areas=tuple(areas),
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
