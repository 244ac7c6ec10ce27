"""How a demo looks: lines, in a terminal a live table below them, and the summary."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from artel.coordinator.commands import nodes_table
from artel.coordinator.demo_check import Facts
from artel.coordinator.local_run import Status
from artel.ledger.entries.words import plural, printable, short_key
from artel.protocol.identity import short_peer

LINE_EVERY_S = 5.0


class DemoView:
    """Lines: what happens, each new round, and a sign of life every few seconds.

    In a terminal a table below them says how the nodes are now, instead of the signs of life.
    """

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._shown = clock()
        self._round = -1
        self._nodes: dict[str, dict[str, Any]] = {}  # as last heard; they leave before the end
        self._in_terminal = out.isatty()
        if self._in_terminal:  # what draws moves the cursor; it cleans what it shows itself
            out = getattr(out, "raw", out)
        console = Console(file=out, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> DemoView:
        if self._in_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print one line with the time since the start."""
        self._shown = self._clock()
        self._live.console.print(f"{self._shown - self._began:6.1f} s  {printable(text)}")

    def show(self, status: Status) -> None:
        """Show a status: a line when a round is over, or when nothing was printed for a while."""
        if status["round"] != self._round:
            self._round = status["round"]
            self.say(f"round {_progress(status)}{_loss(status)}")
        if self._in_terminal:
            self._draw(status)
        elif self._clock() - self._shown >= LINE_EVERY_S:
            missing = status.get("waiting_for", 0)
            still = f" for {plural(missing, 'more node')}" if missing else ""
            self.say(f"  {status['phase']}{still}{_nodes(status)}")

    def _draw(self, status: Status) -> None:
        seconds = self._clock() - self._began
        title = f"{status['phase']}   ledger {status['ledger']['size']:,} entries   {seconds:.0f} s"
        gone = {"phase": "finished" if status["phase"] == "finished" else "gone"}
        present = {node["node"]: node for node in status["nodes"]}
        self._nodes = {name: node | gone for name, node in self._nodes.items()} | present
        credit = {name: f"{node['credit']:,}" for name, node in self._nodes.items()}
        table = nodes_table(self._nodes.values(), "credit", credit)
        self._live.update(Group(Text(title, style="bold"), Text(str(table))), refresh=True)


def _progress(status: Status) -> str:
    attempt = f" (attempt {status['attempt'] + 1})" if status["attempt"] else ""
    return f"{status['round']}/{status['total']}{attempt}"


def _loss(status: Status) -> str:
    last = status["validation"]["last"]
    if last is None:
        return ""
    return f"   validation loss {last['loss']:.4f} (state {last['round']})"


def _nodes(status: Status) -> str:
    parts = []
    for node in status["nodes"]:
        step = f" {node['step']}/{node['steps']}" if node["steps"] else ""
        loss = "" if node["loss"] is None else f" loss {node['loss']:.3f}"
        parts.append(f"{short_peer(node['node'])} {printable(node['phase'])}{step}{loss}")
    return "   " + "   ".join(parts) if parts else ""


def summary(facts: Facts) -> str:
    """The result for a person."""
    first, last = facts["first_val_loss"] or 0.0, facts["final_val_loss"] or 0.0
    fall = 100 * (1 - last / first) if first else 0.0
    ledger, phases, audits = facts["ledger"], facts["seconds_per_round"], facts["audits"]
    agree = "agree bit for bit" if facts["state_roots_agree"] else "DO NOT AGREE"
    rows = {
        "loss": f"{first:.4f} → {last:.4f} on the validation split ({fall:.0f} % lower)",
        "states": f"all nodes {agree}: {short_key(facts['state_root'])}",
        "ledger": f"{ledger['size']} entries, checked in {len(ledger['homes'])} homes: "
        + ("every byte, signature and share holds" if ledger["verified"] else "IT DOES NOT HOLD"),
        "final": _final(ledger),
        "audits": f"{plural(audits['verdicts'], 'verdict')} of nodes that were drawn by lot, "
        f"{plural(audits['tokens'], 'token')} trained once more",
        "traffic": f"{facts['bytes_up_per_node_per_round'] / 1e6:.2f} MB sent per node and round",
        "a round": ", ".join(f"{name.replace('_', ' ')} {s:.2f} s" for name, s in phases.items()),
        "time": f"{facts['seconds']:.0f} s in all",
    }
    lines = ["", *(f"{name:<8} {text or '-'}" for name, text in rows.items()), "", "who owns it:"]
    lines += [
        f"  account {short_key(share['account'])}  {share['credit']:>12,} credit  "
        f"{100 * share['share']:7.3f} %"
        for share in facts["shares"]
    ]
    if facts["sample"]:
        text = (line.replace("\t", "    ") for line in facts["sample"].splitlines())
        lines += ["", "the model writes:", *(f"  │ {printable(line)}" for line in text)]
    folder, entry = Path(facts["out"]), ledger["example"]
    node, coordinator = (shlex.quote(str(folder / name)) for name in ("node-1", "coordinator"))
    return (
        "\n".join(lines)
        + f"""

everything lies in {folder}
  coordinator/  node-1/ …   homes; the ledger of each is its ledger.sqlite3
  loss.svg                  the loss over the rounds
  RUN.toml                  what was trained, and by which rules
try:
  artel ledger me --home {node}
  artel ledger log --home {coordinator}
  artel ledger explain {entry} --home {node}
  artel ledger prove {entry} --home {node}
  artel ledger verify entry-{entry}.tlog-proof entry-{entry}.json
  artel model generate --home {node} --prompt "import \""""
    )


def _final(ledger: Facts) -> str:
    size, final, wanted = ledger["size"], ledger["final"], ledger["witnesses_wanted"]
    if not final:
        return f"nothing: no head that {plural(wanted, 'account')} cosigned covers another's record"
    who = plural(ledger["witnesses"], "account")
    return f"{final:,} of {size:,} entries; the newest head was cosigned by {who}, {wanted} must"
