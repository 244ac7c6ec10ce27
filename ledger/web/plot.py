"""Shares over time as one inline SVG: areas stacked to 100 %, without scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 26
SAMPLES = 180
"""Points on the time axis, however many rounds there are."""
COLOURS = 8
"""Areas with a colour of their own; the last one is everybody else."""


@dataclass(frozen=True)
class History:
    """``parts[i][k]`` is the part (0 to 1) of ``names[k]`` when state ``states[i]`` was newest.

    ``names`` are accounts, the largest first; the last one is "" when it stands for all others.
    """

    states: tuple[int, ...]
    names: tuple[str, ...]
    parts: tuple[tuple[float, ...], ...]


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


def draw(shown: History, label: str) -> str:
    """The picture; ``label`` says in plain text (already escaped) what it shows."""
    states, parts = shown.states, shown.parts
    if not states:
        return ""
    if len(states) == 1:  # one moment is shown as a short time
        states, parts = (states[0], states[0] + 1), (parts[0], parts[0])
    pieces = [_area(states, parts, k) for k in range(len(shown.names))]
    for tenth in (0, 5, 10):
        y = _down(tenth / 10)
        pieces.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tenth * 10} %</text>'
        )
    for state, anchor in ((states[0], "start"), (states[-1], "end")):
        x = _across(states, state)
        pieces.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">state {state:,}</text>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(pieces)}</svg>"
    )


def swatch(k: int) -> str:
    """A small square in the colour of area ``k``."""
    return (
        f'<svg class="swatch" viewBox="0 0 10 10" aria-hidden="true">'
        f'<rect class="c{k}" width="10" height="10" rx="2"/></svg>'
    )


def _area(states: Sequence[int], parts: Sequence[Sequence[float]], k: int) -> str:
    below = [(state, sum(row[:k])) for state, row in zip(states, parts, strict=True)]
    above = [(state, sum(row[: k + 1])) for state, row in zip(states, parts, strict=True)]
    points = " ".join(
        f"{_across(states, state):.1f},{_down(part):.1f}" for state, part in [*above, *below[::-1]]
    )
    return f'<polygon class="area c{k}" points="{points}"/>'


def _across(states: Sequence[int], state: int) -> float:
    return LEFT + (state - states[0]) / (states[-1] - states[0]) * (WIDTH - LEFT - RIGHT)


def _down(part: float) -> float:
    return TOP + (1 - part) * (HEIGHT - TOP - BOTTOM)
