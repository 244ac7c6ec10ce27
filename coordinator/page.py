"""What the run's page shows: the documents of :mod:`coordinator.api`, and a chart of the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from artel.ledger.web import chart
from artel.ledger.web.context import Context
from artel.ledger.web.lists import shares_data

TEMPLATES = Path(__file__).with_name("templates")
REFRESH_S = 5
TABLE_ROUNDS = 20
TABLE_ROWS = 100

Facts = dict[str, Any]


def run_page(page: Context, run: Facts, status: Facts, rounds: list[Facts]) -> Facts:
    """Values for ``run.html``.

    :param run: :func:`coordinator.api.run_facts`
    :param status: :func:`coordinator.api.status_facts`
    :param rounds: rows of :func:`coordinator.api.rounds_facts`, oldest first
    """
    opened = [row | {"sent": _sent(row)} for row in rounds if row["members"]]
    return {
        "run": run,
        "status": status,
        "opened": opened[::-1],
        "shares": shares_data(page),
        "chart": loss_chart(rounds, status["total"]),
        "refresh_s": 0 if status["phase"] == "finished" else REFRESH_S,
        "table_rounds": TABLE_ROUNDS,
        "table_rows": TABLE_ROWS,
    }


def loss_chart(rounds: list[Facts], total: int) -> chart.Chart | None:
    """Both losses over the rounds; None before the first evaluation."""
    validation, training = (
        [(row["round"], row[name]) for row in rounds if row[name] is not None]
        for name in ("validation", "loss")
    )
    return chart.loss(validation, training, total)


def _sent(row: Facts) -> dict[str, int]:
    """Mean bytes that a member sent in a round, by kind."""
    return {kind: total // row["members"] for kind, total in row["up"].items()}
