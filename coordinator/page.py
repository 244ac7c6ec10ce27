"""What the run's page shows: documents of :mod:`coordinator.api`, and what follows from them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from artel import __version__
from artel.ledger.fold.work_audits import audits_of
from artel.ledger.web import chart
from artel.ledger.web.context import Context
from artel.ledger.web.lists import shares_data, teams

TEMPLATES = Path(__file__).with_name("templates")
TIMELINE_ROUNDS, TABLE_ROUNDS = 8, 20
TABLE_ROWS = 100
VERDICTS = 10
PACE_ROUNDS = 20
"""Of the newest rounds, for an estimate of those to come."""
GRADIENT_BYTES = 4
"""Of a parameter's gradient in fp32."""
INSTALL = f"python3 -m pip install './artel_network-{__version__}-py3-none-any.whl[node]'"
"""Artel is on no registry, where others could take its name: the organiser hands out the wheel."""

Facts = dict[str, Any]


def run_page(page: Context, run: Facts, status: Facts, rounds: list[Facts]) -> Facts:
    """Values for ``run.html``.

    :param run: :func:`coordinator.api.run_facts`
    :param status: :func:`coordinator.api.status_facts`
    :param rounds: all rows of :func:`coordinator.api.rounds_facts`, oldest first
    """
    opened = [row | {"sent": _sent(row)} for row in rounds[-TABLE_ROUNDS:] if row["members"]]
    shares = shares_data(page)
    found = sampled(states(rounds))
    return {
        "run": run,
        "status": status,
        "opened": opened[::-1],
        "rounds_known": len(rounds),
        "longest": max((sum(row["seconds"].values()) for row in opened), default=0),
        "shares": shares,
        "teams": teams(shares["shares"]),
        "chart": loss_chart(sampled(rounds), status["total"]),
        "loss": drawn(
            found,
            ("validation", "validation loss", "--accent"),
            ("training", "training loss", "--soft"),
        ),
        "speed_chart": chart.speed([(s["round"] - 1, s["speed"]) for s in found if s["speed"]]),
        "speed": drawn(found, ("speed", "tokens a second", "--c1")),
        "to_go": to_go(status, rounds),
        "bandwidth": bandwidth(rounds, run["parameters"], run["tokens_per_step"]),
        "verdicts": audits_of(page.history, None, VERDICTS),
        "install": INSTALL,
        "timeline_rounds": TIMELINE_ROUNDS,
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


def sampled(rows: list[Facts]) -> list[Facts]:
    """Some of all, evenly, the newest among them: as many as a chart can show."""
    step = -(-len(rows) // chart.SAMPLES) or 1
    return rows[(len(rows) - 1) % step :: step]


def states(rounds: list[Facts]) -> list[Facts]:
    """What is known of each state that a round started from, and of the newest.

    ``tokens`` were trained on until then, ``time`` is when it was agreed on (seconds since 1970);
    ``training`` is the loss and ``speed`` the accepted tokens a second of the round that made it.
    """
    found: list[Facts] = []
    tokens = 0
    lines = zip([None, None, *rounds], [None, *rounds], [*rounds, None], strict=False)
    for before, made, row in lines:
        if row is None and (made is None or not made["ended"]):
            break
        state: Facts = {"time": None, "training": None, "speed": None, "validation": None}
        if made is not None:
            tokens += made["tokens"]
            state |= {"time": round(made["ended"]) or None, "training": made["loss"]}
            if before is not None and 0 < before["ended"] < made["ended"]:
                state["speed"] = round(made["tokens"] / (made["ended"] - before["ended"]), 1)
        if row is not None:
            state["validation"] = row["validation"]
        number = row["round"] if row is not None else rounds[-1]["round"] + 1
        found.append(state | {"round": number, "tokens": tokens})
    return found


def drawn(found: list[Facts], *series: tuple[str, str, str]) -> Facts:
    """What ``live.js`` draws of states: for each series which of their numbers, what it is called,
    and its colour in the style sheet."""
    axes = {name: [state[name] for state in found] for name in ("tokens", "time", "round")}
    lines = [
        {"label": label, "colour": colour, "values": [state[name] for state in found]}
        for name, label, colour in series
    ]
    return {"axes": axes, "series": lines}


def to_go(status: Facts, rounds: list[Facts]) -> Facts | None:
    """When the run ends at the pace of the newest rounds: seconds each, how many are to come, and
    seconds since 1970; None while no pace is known, or it waits."""
    ended = [row["ended"] for row in rounds if row["ended"]][-PACE_ROUNDS - 1 :]
    left = status["total"] - status["round"]
    if len(ended) < 2 or not left or status["phase"] in ("waiting", "finished"):
        return None
    each = mean(later - before for before, later in pairwise(ended))
    return {"rounds": left, "each": each, "seconds": left * each, "end": ended[-1] + left * each}


def bandwidth(rounds: list[Facts], parameters: int, step: int) -> Facts | None:
    """Bytes that nodes sent, and what data-parallel training of the same tokens would have sent.

    That exchanges the fp32 gradients after each step, at best by a ring: each of N nodes sends
    2 (N - 1) / N times their bytes (Patarasuk and Yuan, 2009). None before any was accepted.

    :param step: tokens that one node trains on in an inner step
    """
    agreed = [row for row in rounds if row["ended"] and row["accepted"]]
    sent = sum(sum(row["up"].values()) for row in agreed)
    copies = sum(
        2 * (row["accepted"] - 1) * row["tokens"] / (step * row["accepted"]) for row in agreed
    )
    alone = round(copies * parameters * GRADIENT_BYTES)
    return {"sent": sent, "parallel": alone, "times": alone / sent} if sent and alone else None


def _sent(row: Facts) -> dict[str, int]:
    """Mean bytes that a member sent in a round, by kind."""
    return {kind: total // row["members"] for kind, total in row["up"].items()}
