"""The run's page as HTML: pure text made from the documents of :mod:`coordinator.api`.

No scripts. Every value that is not ours goes through :func:`ledger.web.markup.text`, which escapes
it. Each number that comes from the ledger is a link to the page that shows where it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from artel.ledger.entries.reasons import explain
from artel.ledger.entries.words import short_peer
from artel.ledger.web import markup
from artel.ledger.web.context import bidi
from artel.ledger.web.markup import (
    account_link,
    bar,
    count,
    node_link,
    percent,
    plain_name,
    round_link,
    section,
    soft,
    table,
    text,
)

REFRESH_S = 5
TABLE_ROUNDS = 20
TABLE_NODES = 100
TABLE_SHARES = 100

_WIDTH, _HEIGHT = 720, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 24  # margins of the plot

Facts = dict[str, Any]


def render(run: Facts, status: Facts, rounds: Sequence[Facts], shares: Facts) -> str:
    """The whole page.

    :param run: :func:`coordinator.api.run_facts`
    :param status: :func:`coordinator.api.status_facts`
    :param rounds: rows of :func:`coordinator.api.rounds_facts`, oldest first
    :param shares: :func:`coordinator.api.shares_facts`
    """
    finished = status["phase"] == "finished"
    sections = [
        _header(run, status),
        _cards(status, shares),
        section("Loss", _plot(rounds, status["total"])),
        section("Nodes", _nodes(status["nodes"])),
        section("Rounds", _rounds(rounds, status["round"])),
        section("Shares", _shares(shares)),
        section("Exchange", _exchange(run["exchange"], status["last_round"])),
        "" if finished else section("Take part", _join(run)),
        _footer(run, status),
    ]
    title = f"{run['name']} · Artel"
    return markup.document(title, "".join(sections), refresh_s=0 if finished else REFRESH_S)


def _header(run: Facts, status: Facts) -> str:
    description = f"<p>{text(run['description'])}</p>" if run["description"] else ""
    model = run["manifest"]["config"]["model"]["type"]
    return (
        f'<header><div class="top"><h1>{text(run["name"])}</h1>'
        f'<span class="pill">{text(_doing(status))}</span></div>{description}'
        f'<p class="soft small">a {text(model)} model of {run["parameters"]:,} parameters, '
        "trained by volunteers who own it by accepted work</p>"
        f'<progress max="{status["total"]}" value="{status["round"]}"></progress></header>\n'
    )


def _doing(status: Facts) -> str:
    """What the run is doing now, in words."""
    members = status["members"]
    match status["phase"]:
        case "waiting" if status["waiting_for"]:
            return f"waiting for {count(status['waiting_for'], 'more node')}"
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
    wire = f"{_bytes(sum(overhead['up'].values()))} sent in the last round"
    attempt = f", attempt {status['attempt'] + 1}" if status["attempt"] else ""
    ledger, newest = status["ledger"], min(status["round"], status["total"] - 1)
    final = f"{ledger['final']:,} of them final" if ledger["final"] else "pending, none final yet"
    cards = (
        ("round", round_link(newest, f"{status['round']:,}"), f"of {status['total']:,}{attempt}"),
        ("validation loss", loss, note),
        ("nodes", f"{len(status['nodes']):,}", f"{speed:,.0f} tokens per second"),
        ("last round", pace, rest),
        ("nodes computing", _share(overhead["computing"]), wire),
        ("credit", f'<a href="/shares">{shares["vested"]:,}</a>', f"{shares['pending']:,} pending"),
        ("ledger entries", f'<a href="/entries">{ledger["size"]:,}</a>', final),
    )
    return markup.cards(cards)


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


def _nodes(nodes: Sequence[Facts]) -> str:
    if not nodes:
        return '<p class="soft">no node is connected</p>'
    columns = (
        *(("node", True), ("account", True), ("doing", True), ("step", False), ("loss", False)),
        *(("tokens/s", False), ("computing", False), ("sent", False), ("received", False)),
        *(("sent / round", False), ("received / round", False), ("credit", False)),
        ("heard", False),
    )
    rows = []
    for node in nodes[:TABLE_NODES]:
        step = f"{node['step']:,} / {node['steps']:,}" if node["steps"] else "–"
        rows.append(
            (
                node_link(node["node"], node["account"]),
                account_link(node["account"]) if node["account"] else "–",
                text(node["phase"]) + (" (leaving)" if node["leaving"] else ""),
                step,
                _loss(node["loss"]),
                f"{node['tokens_per_second']:,.0f}",
                _share(node["computing"]),
                _kinds(node["bytes_up"], node["up_by_kind"]),
                _kinds(node["bytes_down"], node["down_by_kind"]),
                _bytes(node["round_up"]),
                _bytes(node["round_down"]),
                _credit(node["account"], node["credit"]),
                f"{node['heard_s']:.0f} s ago",
            )
        )
    return table(columns, rows) + _more(len(nodes), TABLE_NODES, "nodes", "/api/v1/status")


def _rounds(rounds: Sequence[Facts], current: int) -> str:
    shown = [row for row in rounds if row["members"]][-TABLE_ROUNDS:][::-1]
    if not shown:
        return '<p class="soft">no round has been opened yet</p>'
    columns = (
        *(("round", False), ("members", False), ("accepted", False), ("left out", True)),
        *(("steps each", False), ("tokens", False), ("sent / node", False)),
        *(("loss at start", False), ("training loss", False), ("training", False)),
        *(("collecting", False), ("agreeing", False)),
    )
    rows = []
    for row in shown:
        under_way = row["round"] >= current and not row["accepted"]
        reasons = "<br>".join(
            f"{plain_name(peer, short_peer(peer))} {_why(reason)}"
            for peer, reason in sorted(row["rejected"].items())
        )
        seconds = row["seconds"]
        rows.append(
            (
                round_link(row["round"]),
                f"{row['members']:,}",
                "…" if under_way else round_link(row["round"], f"{row['accepted']:,}"),
                reasons or "–",
                _steps(row["steps"]),
                f"{row['tokens']:,}" if row["tokens"] else "–",
                _per_node(row["traffic"]),
                _loss(row["validation"]),
                _loss(row["loss"]),
                *(_seconds(seconds.get(phase)) for phase in ("training", "revealing", "applying")),
            )
        )
    return table(columns, rows) + _more(
        sum(1 for row in rounds if row["members"]), TABLE_ROUNDS, "rounds", "/api/v1/rounds"
    )


def _why(reason: str) -> str:
    """A reason code, and the sentence behind it when the pointer rests on it."""
    words = text(reason.replace("_", " "))
    return f'<span class="warn" title="{text(explain(reason))}">{words}</span>'


def _shares(shares: Facts) -> str:
    as_of = soft(
        f"{text(shares['label'])}; counted again by anyone with <code>artel ledger shares</code>; "
        '<a href="/shares">shares over time</a>'
    )
    rows = shares["shares"]
    if not rows:
        return f'<p class="soft">nobody has credit yet</p>{as_of}'
    columns = (
        *(("account", True), ("share", True), ("vested", False), ("pending", False)),
        *(("with pending", False), ("awaiting", False), ("left out", True)),
    )
    cells = []
    for row in rows[:TABLE_SHARES]:
        name = row["account"]
        alias = f" {bidi(row['alias'])}" if row["alias"] else ""
        left_out = ", ".join(f"{n} {why}" for why, n in sorted(row["left_out"].items()))
        cells.append(
            (
                account_link(name) + alias,
                f"{bar(row['share'])}{percent(row['share'])}",
                _credit(name, row["vested"], "vested"),
                _credit(name, row["pending"], "pending"),
                percent(row["share_with_pending"]),
                f"{row['awaiting']:,}" if row["awaiting"] else "–",
                f'<a href="/account/{text(name)}#left-out">{text(left_out)}</a>'
                if left_out
                else "–",
            )
        )
    return table(columns, cells) + _more(len(rows), TABLE_SHARES, "accounts", "/shares") + as_of


def _credit(account: str, amount: int, state: str = "") -> str:
    """A number of an account, as a link to the entries that it is made of."""
    if not amount or not account:
        return f"{amount:,}"
    query = f"?state={state}" if state else ""
    return f'<a href="/account/{text(account)}{query}#credit">{amount:,}</a>'


def _exchange(words: dict[str, str], last: Facts) -> str:
    """How the run exchanges, in words, and what the last round carried."""
    rows = [(text(name), text(sentence)) for name, sentence in words.items()]
    for way, title in (("up", "sent in the last round"), ("down", "received in the last round")):
        total = sum(last[way].values())
        if total:
            rows.append((title, f"{_bytes(total)} by all nodes: {text(_listed(last[way]))}"))
    return table((("setting", True), ("meaning", True)), rows)


def _join(run: Facts) -> str:
    return (
        "<p>Install Artel on a machine that may compute for a while, then paste:</p>"
        f"<pre>artel node start --join {text(run['invite'])} --home artel-node</pre>"
        '<p class="soft small">It checks the machine first and says whether it can keep up. '
        "Ctrl-C leaves with credit.</p>"
    )


def _footer(run: Facts, status: Facts) -> str:
    ledger = status["ledger"]
    facts = (
        ("run id", run["run"]),
        ("state", status["state_root"]),
        (f"ledger root at {ledger['size']:,}", ledger["root"]),
        ("organiser", run["organiser"]),
    )
    lines = "".join(
        f'<div>{label} <span class="mono">{text(value)}</span></div>' for label, value in facts
    )
    links = " · ".join(
        f'<a href="{path}">{title}</a>'
        for title, path in (
            ("manifest", "/api/v1/run"),
            ("status", "/api/v1/status"),
            ("rounds", "/api/v1/rounds"),
            ("shares", "/api/v1/shares"),
            ("checkpoint", "/ledger/checkpoint"),
            *((("final checkpoint", "/ledger/final"),) if ledger["final_head"] else ()),
            ("entries", "/entries"),
        )
    )
    return f'<footer class="soft small">{lines}<p>{links}</p></footer>\n'


# --- cells ----------------------------------------------------------------------------------------


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _steps(steps: dict[str, int]) -> str:
    """How many inner steps members have: one number, or the fewest and the most."""
    if not steps:
        return "–"
    least, most = min(steps.values()), max(steps.values())
    if least == most:
        return f"{most:,}"
    words = ", ".join(f"{short_peer(peer)}: {count:,}" for peer, count in sorted(steps.items()))
    return f'<span title="{text(words)}">{least:,} to {most:,}</span>'


def _per_node(traffic: dict[str, dict[str, dict[str, int]]]) -> str:
    """Mean bytes that a node sent in a round, whose kinds are shown under the pointer."""
    if not traffic:
        return "–"
    kinds: dict[str, int] = {}
    for ways in traffic.values():
        for kind, amount in ways["up"].items():
            kinds[kind] = kinds.get(kind, 0) + amount
    nodes = len(traffic)
    return _kinds(sum(kinds.values()) // nodes, {k: n // nodes for k, n in kinds.items()})


def _kinds(total: int, kinds: dict[str, int]) -> str:
    """Bytes, and what they were for when the pointer rests on them."""
    if not kinds:
        return _bytes(total)
    return f'<span title="{text(_listed(kinds))}">{_bytes(total)}</span>'


def _listed(kinds: dict[str, int]) -> str:
    """Kinds of traffic and their bytes, most first."""
    most = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{kind} {_bytes(amount)}" for kind, amount in most)


def _bytes(count: int | None) -> str:
    if count is None:
        return "–"
    if count < 10_000:
        return f"{count:,} B"
    return f"{count / 1e6:,.2f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def _more(count: int, shown: int, what: str, path: str) -> str:
    if count <= shown:
        return ""
    return f'<p class="soft small">{shown} of {count:,} {what}; <a href="{path}">all</a></p>'
