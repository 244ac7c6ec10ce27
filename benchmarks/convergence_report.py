"""What the rows of the convergence benchmark say: gaps, the table in Markdown, the plots."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.convergence_rows import DDP, Row, parse

Result = dict[str, Any]
"""One trained row: table, row (its text), plan, and what :class:`Outcome` has."""

_LR: dict[str, Any] = {"lr": None, "mlr": 0.02}
_TUNED: dict[str, Any] = {**_LR, "outer": None, "mu": None, "final": None}
"""Options that every method has of its own: a comparison takes the best of them."""
_EXCHANGE: dict[str, Any] = {"codec": "fp32", "k": 128, "decay": 0.95, "floor": 0.25, "agg": "mean"}
_COLOURS = ("#8a959b", "#0b6e5f", "#c2571a", "#3b5bdb", "#a61e4d", "#5f3dc4", "#2b8a3e", "#212529")
_DPI = 144


def loss_of(result: Result) -> float:
    """The loss at the end, nats per token."""
    return float(result["curve"][-1][1])


def published(results: Sequence[Result]) -> list[Result]:
    """The rows with what programs expect of every benchmark: ours, baseline, ratio, name, unit.

    Lower is better. The baseline is the best DDP row with AdamW and as many workers.
    """
    rows = []
    for result in results:
        row, plan, ours = parse(result["row"]), result["plan"], loss_of(result)
        references = references_of(result, results)
        baseline = references["ddp"] or ours
        rows.append(
            {
                **result,
                "name": f"{result['table']}: {result['row']} ({plan['precision']}, batch "
                f"{plan['batch']}, {plan['tokens']} tokens)",
                "ours": ours,
                "baseline": baseline,
                "unit": "nats per token, validation",
                "ratio": ours / baseline,
                "baseline_is": "DDP with AdamW, fp32 gradients averaged every step, best rate",
                "gap_to_ddp_percent": _percent(ours, references["ddp"]),
                "gap_to_ddp_muon_percent": _percent(ours, references["ddp muon"]),
                "gap_to_fp32_percent": None
                if row.codec == DDP
                else _percent(ours, references["fp32"]),
            }
        )
    return rows


def references_of(result: Result, results: Sequence[Result]) -> dict[str, float | None]:
    """Losses that a row is compared with: DDP with AdamW, with Muon, and the same row with fp32;
    the best over the options that every method has of its own. None: no such row."""
    row = parse(result["row"])
    same = [r for r in results if r["plan"] == result["plan"]]
    plain = dataclasses.replace(row, nudge=0.0, **_TUNED)
    ddp = Row(DDP, K=row.K, seed=row.seed)
    fp32 = dataclasses.replace(plain, **_EXCHANGE)
    return {
        "ddp": _best(same, ddp),
        "ddp muon": _best(same, dataclasses.replace(ddp, opt="muon")),
        "fp32": _best(same, fp32),
    }


def markdown(rows: Sequence[Result]) -> str:
    """The table, in the order of the rows."""
    lines = [
        "| row | val loss | vs DDP | vs DDP-Muon | vs fp32 | bits/param/round | rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| `{row['row']}` | {row['ours']:.4f} | {_signed(row['gap_to_ddp_percent'])} "
            f"| {_signed(row['gap_to_ddp_muon_percent'])} | {_signed(row['gap_to_fp32_percent'])} "
            f"| {row['bits']:.3f} | {row['rounds']} |"
        )
    return "\n".join(lines)


def plots(rows: Sequence[Result], folder: Path) -> list[Path]:
    """Draw the loss over the tokens of the best row of each method, and the loss over the inner
    learning rate of those that were tuned; PNG files in ``folder``."""
    if not rows:
        return []
    folder.mkdir(exist_ok=True)
    table = rows[0]["table"]
    methods: dict[str, list[Result]] = {}
    for row in rows:
        if (name := _method(parse(row["row"]))) is not None:
            methods.setdefault(name, []).append(row)
    curves, tuning = folder / f"convergence-{table}.png", folder / f"convergence-{table}-lr.png"
    _draw(
        curves,
        "tokens (millions)",
        {
            name: [(tokens / 1e6, loss) for tokens, loss in min(group, key=loss_of)["curve"]]
            for name, group in methods.items()
        },
    )
    _draw(
        tuning,
        "peak inner learning rate",
        {name: points for name, group in methods.items() if len(points := _over_rate(group)) > 1},
        log=True,
    )
    return [curves, tuning]


def _method(row: Row) -> str | None:
    """What a line of the plots is called; None: an ablation, which has no line."""
    plain = Row(row.codec, row.opt, H=row.H, k=row.k)
    if dataclasses.replace(row, **_TUNED) != dataclasses.replace(plain, **_TUNED):
        return None
    name = row.codec if row.codec != "sparse" else f"sparse {row.k}/4096"
    name = name if row.H is None else f"{name}, H = {row.H}"
    return f"{name}, Muon" if row.opt == "muon" else name


def _over_rate(group: Iterable[Result]) -> list[tuple[float, float]]:
    """(inner learning rate, lowest loss at it), ascending."""
    lowest: dict[float, float] = {}
    for result in group:
        row = parse(result["row"])
        rate = row.mlr if row.opt == "muon" else row.lr or float(result["plan"]["lr"])
        lowest[rate] = min(loss_of(result), lowest.get(rate, float("inf")))
    return sorted(lowest.items())


def _draw(
    path: Path, label: str, lines: dict[str, list[tuple[float, float]]], log: bool = False
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(lines.items()):
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=_COLOURS[number % len(_COLOURS)],
            linestyle="-" if number < len(_COLOURS) else "--",
            marker="o",
            markersize=4,
            label=name,
        )
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("validation loss, nats per token")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        axes.legend(frameon=False, fontsize=8)
    canvas.print_png(str(path))


def _best(results: Iterable[Result], wanted: Row) -> float | None:
    """The lowest loss of rows that are ``wanted``, whatever their tuned options."""
    losses = [
        loss_of(r) for r in results if dataclasses.replace(parse(r["row"]), **_TUNED) == wanted
    ]
    return min(losses, default=None)


def _percent(ours: float, reference: float | None) -> float | None:
    return None if reference is None else 100 * (ours / reference - 1)


def _signed(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:+.2f} %"
