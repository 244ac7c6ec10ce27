"""The run's page as HTML: pure text made from the documents of :mod:`coordinator.facts`.

No scripts. Every value that is not ours goes through :func:`_text`, which escapes it; the page's
content security policy would not let anything run or load even if one were forgotten.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ledger.reasons import explain
from ledger.text import short_key, short_peer

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
REFRESH_S = 5
TABLE_ROUNDS = 20
TABLE_NODES = 100
TABLE_SHARES = 100

_WIDTH, _HEIGHT = 720, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 24  # margins of the plot

Facts = dict[str, Any]


def render(run: Facts, status: Facts, rounds: Sequence[Facts], shares: Facts) -> str:
    """The whole page.

    :param run: :func:`coordinator.facts.run_facts`
    :param status: :func:`coordinator.facts.status_facts`
    :param rounds: rows of :func:`coordinator.facts.rounds_facts`, oldest first
    :param shares: :func:`coordinator.facts.shares_facts`
    """
    finished = status["phase"] == "finished"
    sections = [
        _header(run, status),
        _cards(status, shares),
        _section("Loss", _plot(rounds, status["total"])),
        _section("Nodes", _nodes(status["nodes"])),
        _section("Rounds", _rounds(rounds, status["round"])),
        _section("Shares", _shares(shares)),
        "" if finished else _section("Take part", _join(run)),
        _footer(run, status),
    ]
    refresh = "" if finished else f'<meta http-equiv="refresh" content="{REFRESH_S}">'
    title = f"{_text(run['name'])} · Artel"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{refresh}<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{''.join(sections)}</body></html>\n"
    )


def _text(value: object) -> str:
    """Any value as HTML text: escaped, and without characters that do not print."""
    plain = "".join(c if c.isprintable() else "?" for c in str(value))
    return html.escape(plain, quote=True)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body}</section>\n"


def _header(run: Facts, status: Facts) -> str:
    description = f"<p>{_text(run['description'])}</p>" if run["description"] else ""
    model = run["manifest"]["config"]["model"]["type"]
    return (
        f'<header><div class="top"><h1>{_text(run["name"])}</h1>'
        f'<span class="pill">{_text(_doing(status))}</span></div>{description}'
        f'<p class="soft small">a {_text(model)} model of {run["parameters"]:,} parameters, '
        "trained by volunteers who own it by accepted work</p>"
        f'<progress max="{status["total"]}" value="{status["round"]}"></progress></header>\n'
    )


def _doing(status: Facts) -> str:
    """What the run is doing now, in words."""
    members = status["members"]
    match status["phase"]:
        case "waiting" if status["waiting_for"]:
            return f"waiting for {_count(status['waiting_for'], 'more node')}"
        case "training":
            return f"training, {status['committed']} of {members} done"
        case "revealing":
            return f"collecting, {status['revealed']} of {status['committed']} here"
        case "applying":
            return "agreeing on the new state"
        case "finished":
            return "finished"
    return "the next round opens"


def _cards(status: Facts, shares: Facts) -> str:
    first, last = status["validation"]["first"], status["validation"]["last"]
    loss, note = "–", "not evaluated yet"
    if last is not None:
        loss = f"{last['loss']:.3f}"
        note = f"from {first['loss']:.3f}, after round {last['round']}"
        if last["round"] == first["round"]:
            note = "before training"
    speed = sum(node["tokens_per_second"] for node in status["nodes"])
    overhead = status["last_round"]
    seconds = sum(overhead["seconds"].values())
    pace = f"{seconds:.1f} s" if seconds else "–"
    rest = f"{overhead['overhead_s']:.1f} s of it not training" if seconds else "no round yet"
    attempt = f", attempt {status['attempt'] + 1}" if status["attempt"] else ""
    cards = (
        ("round", f"{status['round']:,}", f"of {status['total']:,}{attempt}"),
        ("validation loss", loss, note),
        ("nodes", f"{len(status['nodes']):,}", f"{speed:,.0f} tokens per second"),
        ("last round", pace, rest),
        ("ledger", f"{status['ledger']['size']:,}", f"entries, {shares['total']:,} tokens of work"),
    )
    return (
        "<dl>"
        + "".join(
            f"<div><dt>{label}</dt><dd>{value}<small>{note}</small></dd></div>"
            for label, value, note in cards
        )
        + "</dl>\n"
    )


# --- the plot -------------------------------------------------------------------------------------


def _plot(rounds: Sequence[Facts], total: int) -> str:
    """Validation loss of the state that each round starts from, and the mean training loss."""
    validation = [(r["round"], r["validation"]) for r in rounds if r["validation"] is not None]
    # Training in round r gives state r + 1, so that is where its loss is drawn.
    training = [(r["round"] + 1, r["loss"]) for r in rounds if r["loss"] is not None]
    points = validation + training
    if not validation:
        return '<p class="soft">nothing has been evaluated yet</p>'
    right = max([*(x for x, _ in points), min(total, 1)])
    left = min(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    margin = 0.06 * (high - low) or 0.1
    low, high = low - margin, high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / ((right - left) or 1)
        down = (high - y) / (high - low)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _TOP + down * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = []
    for step in range(4):
        value = high - margin - (high - low - 2 * margin) * step / 3
        _, y = place(left, value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>'
        )
    for number, anchor in ((left, "start"), (right, "end")):
        x, _ = place(number, low)
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 7}" text-anchor="{anchor}">round {number}</text>'
        )
    for curve, line in (("train", training), ("curve", validation)):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in line)
        parts.append(f'<polyline class="{curve}" points="{path}"/>')
    x, y = place(*validation[-1])
    parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
    label = f"validation loss, now {validation[-1][1]:.3f}"
    return (
        f'<div class="card"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg></div>"
        '<p class="soft small">line: loss on text that nobody trains on, in nats per token · '
        "dashed: mean training loss that nodes report</p>"
    )


# --- tables ---------------------------------------------------------------------------------------


def _table(columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> str:
    """A table; ``columns`` are (title, is text). Cells are HTML already."""
    kinds = [' class="text"' if text else "" for _, text in columns]
    head = "".join(
        f"<th{kind}>{title}</th>" for (title, _), kind in zip(columns, kinds, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>\n'


def _nodes(nodes: Sequence[Facts]) -> str:
    if not nodes:
        return '<p class="soft">no node is connected</p>'
    columns = (
        *(("node", True), ("account", True), ("doing", True), ("step", False), ("loss", False)),
        *(("tokens/s", False), ("sent", False), ("received", False), ("credit", False)),
        ("heard", False),
    )
    rows = []
    for node in nodes[:TABLE_NODES]:
        step = f"{node['step']:,} / {node['steps']:,}" if node["steps"] else "–"
        rows.append(
            (
                _name(short_peer(node["node"]), node["node"]),
                _name(short_key(node["account"]), node["account"]),
                _text(node["phase"]) + (" (leaving)" if node["leaving"] else ""),
                step,
                _loss(node["loss"]),
                f"{node['tokens_per_second']:,.0f}",
                _bytes(node["bytes_up"]),
                _bytes(node["bytes_down"]),
                f"{node['credit']:,}",
                f"{node['heard_s']:.0f} s ago",
            )
        )
    return _table(columns, rows) + _more(len(nodes), TABLE_NODES, "nodes", "/api/v1/status")


def _rounds(rounds: Sequence[Facts], current: int) -> str:
    shown = [row for row in rounds if row["members"]][-TABLE_ROUNDS:][::-1]
    if not shown:
        return '<p class="soft">no round has been opened yet</p>'
    columns = (
        *(("round", False), ("members", False), ("accepted", False), ("left out", True)),
        *(("loss at start", False), ("training loss", False), ("training", False)),
        *(("collecting", False), ("agreeing", False)),
    )
    rows = []
    for row in shown:
        under_way = row["round"] >= current and not row["accepted"]
        reasons = "<br>".join(
            f'{_name(short_peer(peer), peer)} <span class="warn" title="{_text(explain(reason))}">'
            f"{_text(reason.replace('_', ' '))}</span>"
            for peer, reason in sorted(row["rejected"].items())
        )
        seconds = row["seconds"]
        rows.append(
            (
                f"{row['round']:,}",
                f"{row['members']:,}",
                "…" if under_way else f"{row['accepted']:,}",
                reasons or "–",
                _loss(row["validation"]),
                _loss(row["loss"]),
                *(_seconds(seconds.get(phase)) for phase in ("training", "revealing", "applying")),
            )
        )
    return _table(columns, rows) + _more(
        sum(1 for row in rounds if row["members"]), TABLE_ROUNDS, "rounds", "/api/v1/rounds"
    )


def _shares(shares: Facts) -> str:
    as_of = (
        f'<p class="soft small">as of checkpoint {shares["as_of"]:,}, not witnessed yet; '
        "counted again by anyone with <code>artel ledger shares</code></p>"
    )
    rows = shares["shares"]
    if not rows:
        return f'<p class="soft">nobody has credit yet</p>{as_of}'
    columns = (
        *(("account", True), ("share", True), ("credit (tokens)", False)),
        *(("not agreed yet", False), ("left out", True)),
    )
    cells = [
        (
            _name(short_key(row["account"]), row["account"]),
            f"{_bar(row['share'])}{100 * row['share']:.3f} %",
            f"{row['credit']:,}",
            f"{row['pending']:,}" if row["pending"] else "–",
            _text(", ".join(f"{n} {why}" for why, n in sorted(row["left_out"].items())) or "–"),
        )
        for row in rows[:TABLE_SHARES]
    ]
    return (
        _table(columns, cells)
        + _more(len(rows), TABLE_SHARES, "accounts", "/api/v1/shares")
        + (as_of)
    )


def _join(run: Facts) -> str:
    return (
        "<p>Install Artel on a machine that may compute for a while, then paste:</p>"
        f"<pre>artel node start --join {_text(run['invite'])} --home artel-node</pre>"
        '<p class="soft small">It checks the machine first and says whether it can keep up. '
        "Ctrl-C leaves with credit.</p>"
    )


def _footer(run: Facts, status: Facts) -> str:
    ledger = status["ledger"]
    facts = (
        ("run id", run["run"]),
        ("state", status["state_root"]),
        ("ledger root", ledger["root"]),
        ("organiser", run["organiser"]),
    )
    lines = "".join(
        f'<div>{label} <span class="mono">{_text(value)}</span></div>' for label, value in facts
    )
    links = " · ".join(
        f'<a href="{path}">{title}</a>'
        for title, path in (
            ("manifest", "/api/v1/run"),
            ("status", "/api/v1/status"),
            ("rounds", "/api/v1/rounds"),
            ("shares", "/api/v1/shares"),
            ("checkpoint", "/api/v1/ledger/checkpoint"),
            ("entries", "/api/v1/ledger/entries"),
        )
    )
    return f'<footer class="soft small">{lines}<p>{links}</p></footer>\n'


# --- cells ----------------------------------------------------------------------------------------


def _name(short: str, full: str) -> str:
    return f'<span class="mono" title="{_text(full)}">{_text(short)}</span>'


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _bytes(count: int) -> str:
    if count < 10_000:
        return f"{count:,} B"
    return f"{count / 1e6:,.2f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def _bar(share: float) -> str:
    return (
        '<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8" rx="2"/>'
        f'<rect class="bar" width="{100 * share:.2f}" height="8" rx="2"/></svg>'
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _more(count: int, shown: int, what: str, path: str) -> str:
    if count <= shown:
        return ""
    return f'<p class="soft small">{shown} of {count:,} {what}; <a href="{path}">all</a></p>'
