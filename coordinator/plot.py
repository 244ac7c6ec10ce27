"""The loss of a run as a picture (matplotlib, drawn without a screen)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Points = Sequence[tuple[float, float]]
"""(round, loss in nats per token), ascending by round."""

_DPI = 144


def loss_plot(path: Path, title: str, validation: Points, training: Points) -> None:
    """Write a PNG with both losses over the rounds.

    :param validation: loss of the state that a round starts from
    :param training: mean loss that the members of a round reported at its end
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if training:
        # Training in round r gives state r + 1, so that is where its loss belongs.
        axes.plot(
            [number + 1 for number, _ in training],
            [loss for _, loss in training],
            color="#8a959b",
            linestyle="--",
            linewidth=1.2,
            label="training, mean of the nodes",
        )
    axes.plot(
        [number for number, _ in validation],
        [loss for _, loss in validation],
        color="#0b6e5f",
        marker="o",
        markersize=4,
        linewidth=2,
        label="validation",
    )
    axes.set_title(title)
    axes.set_xlabel("rounds")
    axes.set_ylabel("loss, nats per token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    canvas.print_png(str(path))
