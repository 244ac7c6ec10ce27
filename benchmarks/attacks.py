"""What do attackers among the contributors cost? Loss of attacked runs against the clean one.

Eight nodes in one process train a small Llama on the text of ``benchmarks.convergence``, with its
inner steps. Up to three of them send what an attack says instead of what they trained. All that is
sent becomes a blob by the run's codec, is read again as other nodes read it, and is combined by
:func:`protocol.exchange.aggregate_slice.combine`; the outer step follows.

Attackers know more than real ones: the contributions of the same round, before they send, which
the order of commitment and reveal keeps from them; and they agree on what to send. Whoever sends
what is not from training is not found out here, nor left out later: this is what the aggregation
alone withstands. The measure of all is ``absent``: its attackers send nothing, the others go on.

Sources: inner-product manipulation (Xie et al., arXiv 1903.03936), "a little is enough" (Baruch et
al., arXiv 1902.06156), constant directions and multiples (BTARD, arXiv 2106.11257).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from artel.protocol.exchange import codec as codecs
from artel.protocol.exchange import parts
from artel.protocol.exchange.aggregate_slice import combine
from artel.protocol.exchange.aggregation import Weighted
from artel.protocol.exchange.codec import Elements
from artel.protocol.exchange.pseudogradient import Header
from artel.protocol.model import transformers_config
from artel.protocol.state import Layout, State, Vector, state_root
from benchmarks.convergence_model import Corpus, fast_loss
from benchmarks.convergence_rows import Plan, Row
from benchmarks.convergence_train import Node, World, advance
from benchmarks.options import require_folder

NODES = 8
RARE = 64
"""One coordinate of so many is what the targeted attack moves."""
PLAN = Plan("attacks", 64, 1, 32, None, batch=4, tokens=0, K=NODES, H=5)
AGGREGATORS, CODECS = ("mean", "centered_clip"), ("int4", "sparse")
CLEAN, ABSENT = "none", "absent"
HELP = f"""\
rerun, from the root of the repository:
  python -m benchmarks.attacks --quick                       # under a minute
  python -m benchmarks.attacks --json FILE                   # everything
  python -m benchmarks.attacks --attacks alie,ipm --attackers 2 --json FILE
Rows that FILE already holds are not trained again, so an interrupted run goes on where it was.
Attackers are the last of {NODES} nodes.
"""


@dataclass(frozen=True)
class Seen:
    """What an attacker knows when it sends; all vectors as other nodes decode them, shape (N,)."""

    layout: Layout
    honest: list[Vector]
    """Of this round, from every honest node."""
    yesterday: list[Vector]
    """Of the round before; in round 0 those of this one."""
    own: Vector
    """What the attacker itself would have sent; zeros where its attack needs no training."""
    number: int
    """Of the attacker, from 0."""
    random: np.random.Generator
    """Its own, another one in every round."""
    fixed: np.random.Generator
    """The same for all attackers in all rounds."""

    def as_loud(self, vector: Vector) -> Vector:
        """The vector with, in each tensor, the mean norm of the honest contributions."""
        loud = vector.copy()
        for tensor in self.layout.tensors:
            inside = slice(tensor.offset, tensor.offset + tensor.size)
            wanted = np.mean([np.linalg.norm(h[inside]) for h in self.honest])
            loud[inside] *= np.float32(wanted / max(float(np.linalg.norm(loud[inside])), 1e-30))
        return loud


def _rare(seen: Seen) -> Vector:
    """All of the norm in the same few places, always in the same direction."""
    size = seen.layout.parameters
    vector = seen.fixed.choice([-1.0, 1.0], size) * (seen.fixed.random(size) < 1 / RARE)
    return seen.as_loud(vector.astype(np.float32))


ATTACKS: dict[str, Callable[[Seen], Vector]] = {
    "zeros": lambda seen: 0 * seen.own,
    "noise": lambda seen: seen.as_loud(
        seen.random.standard_normal(seen.layout.parameters).astype(np.float32)
    ),
    "stale": lambda seen: seen.yesterday[seen.number],
    "copier": lambda seen: seen.honest[seen.number],
    "sign": lambda seen: -seen.own,
    "sign x1000": lambda seen: -1000 * seen.own,
    "constant": lambda seen: seen.fixed.choice([-100, 100], seen.layout.parameters).astype(
        np.float32
    ),
    "alie": lambda seen: np.mean(seen.honest, 0) - np.float32(1.5) * np.std(seen.honest, 0),
    "ipm": lambda seen: -2 * np.mean(seen.honest, 0),
    "rare": _rare,
}
"""What an attacker sends instead of its pseudo-gradient. ``yesterday`` and ``copier`` send what an
honest node sent."""
TRAINED = {"sign", "sign x1000"}
"""Attacks that need what the attacker would have sent."""


@dataclass(frozen=True)
class Cell:
    """One run of the table."""

    attack: str
    attackers: int
    aggregator: str
    codec: str
    rounds: int
    seed: int

    @property
    def clean(self) -> Cell:
        """The run that it is compared with."""
        return dataclasses.replace(self, attack=CLEAN, attackers=0)

    @property
    def name(self) -> str:
        """As a row of the results is called."""
        return (
            f"{self.attack}, {self.attackers} of {NODES}, {self.aggregator}, {self.codec}, "
            f"{self.rounds} rounds, seed {self.seed}"
        )


def plan(rounds: int) -> Plan:
    """The plan of runs of so many rounds."""
    return dataclasses.replace(PLAN, tokens=rounds * PLAN.H * NODES * PLAN.batch * PLAN.seq_len)


def world(rounds: int) -> World:
    """Text and model of all runs of so many rounds."""
    corpus = Corpus(PLAN.vocab_size)
    config = plan(rounds).config(Row("int4"), corpus.vocab_size)
    loss = fast_loss(transformers_config(config.model, corpus.vocab_size), False, False)
    return World(plan(rounds), corpus, loss, bf16=False)


def loss_of(cell: Cell, world: World) -> float:
    """Validation loss at the end of a run, nats per token."""
    row = Row(cell.codec, agg=cell.aggregator, seed=cell.seed)
    config = world.plan.config(row, world.corpus.vocab_size)
    chosen, honest = codecs.of(config.exchange), NODES - cell.attackers
    training = NODES if cell.attack in TRAINED else honest
    nodes = [Node(row, config, world, number) for number in range(training)]
    layout = nodes[0].layout
    params = nodes[0].initial()
    momentum = np.zeros_like(params) if config.exchange.outer.momentum else None
    yesterday: list[Vector] = []
    for number in range(cell.rounds):
        base = state_root(State(number, layout.digest, params, momentum))
        header, part = Header(number, base, chosen), parts.fragment(layout, 1, number)
        blobs = []
        for node in nodes:
            node.head(number)
            blobs.append(node.contribution(number, base, params))
        sent = [_dense(header.load(blob, layout), layout) for blob in blobs]
        if cell.attack in ATTACKS:
            for vector in _forged(cell, layout, number, sent[:honest], yesterday, sent[honest:]):
                blobs.append(header.wrap(layout, chosen.encode(layout, vector)))
            blobs = blobs[:honest] + blobs[-cell.attackers :]
        weight = config.rounds.inner_steps * PLAN.batch * PLAN.seq_len
        update = combine(
            layout,
            [Weighted(f"{k}", weight, header.load(blob, layout)) for k, blob in enumerate(blobs)],
            config.exchange,
        )
        params, momentum = advance(part, config, number, params, momentum, update)
        yesterday = sent[:honest]
        for node in nodes:
            node.merge(number, params)
    return nodes[0].loss_of(params)


def _forged(
    cell: Cell,
    layout: Layout,
    round: int,
    honest: list[Vector],
    yesterday: list[Vector],
    own: list[Vector],
) -> Iterator[Vector]:
    """What each attacker sends in a round."""
    for number in range(cell.attackers):
        seen = Seen(
            layout,
            honest,
            yesterday or honest,
            own[number] if own else np.zeros(layout.parameters, np.float32),
            number,
            np.random.default_rng((cell.seed, round, number)),
            np.random.default_rng(cell.seed),
        )
        yield ATTACKS[cell.attack](seen).astype(np.float32)


def _dense(vector: Vector | Elements, layout: Layout) -> Vector:
    if not isinstance(vector, Elements):
        return vector
    filled = np.zeros(layout.parameters, np.float32)
    filled[vector.positions] = vector.values
    return filled


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown: ratios to the clean run, one line for each attack and number."""
    ways = list(product(AGGREGATORS, CODECS))
    ratios = {tuple(r[k] for k in ("attack", "attackers", "aggregator", "codec")): r for r in rows}
    heads = [f"{aggregator}, `{codec}`" for aggregator, codec in ways]
    lines = [f"| attack | of {NODES} | {' | '.join(heads)} |", "|---" * (2 + len(ways)) + "|"]
    for attack, attackers in dict.fromkeys((r["attack"], r["attackers"]) for r in rows):
        found = [ratios.get((attack, attackers, *way)) for way in ways]
        if attack == CLEAN:
            cells = ["–" if r is None else f"{r['ours']:.4f}" for r in found]
        else:
            cells = ["–" if r is None else f"{100 * (r['ratio'] - 1):+.1f} %" for r in found]
        lines.append(f"| {attack} | {attackers} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    torch.set_num_threads(1)
    done: dict[str, dict[str, Any]] = {}
    if options.json and options.json.exists():
        done = {row["name"]: row for row in json.loads(options.json.read_text())}
    everything = list(_cells(options))
    shared = world(options.rounds)
    began = time.perf_counter()
    for cell in everything:
        if cell.name in done:
            continue
        loss = loss_of(cell, shared)
        baseline = done.get(cell.clean.name, {"ours": loss})["ours"]
        done[cell.name] = {
            "name": cell.name,
            "ours": loss,
            "baseline": baseline,
            "ratio": loss / baseline,
            "unit": "nats per token, validation",
            "baseline_is": "the same run without attackers",
            **dataclasses.asdict(cell),
            "command": f"python -m benchmarks.attacks --rounds {cell.rounds} --seed {cell.seed}",
        }
        minutes = (time.perf_counter() - began) / 60
        print(f"{minutes:5.1f} min  {cell.name}: {loss:.4f}", file=sys.stderr, flush=True)
        if options.json:  # after every row, so that an interrupted run keeps what it has
            options.json.write_text(json.dumps(list(done.values()), indent=1) + "\n")
    print(table([done[cell.name] for cell in everything]))
    return 0


def _cells(options: argparse.Namespace) -> Iterator[Cell]:
    """The runs in the order of the table, clean ones first."""
    cases = [(CLEAN, 0), *product(options.attacks, options.attackers)]
    for (attack, attackers), aggregator, codec in product(cases, options.aggregators, CODECS):
        yield Cell(attack, attackers, aggregator, codec, options.rounds, options.seed)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks",
        description="Loss of runs with attackers against the clean run.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = (ABSENT, *ATTACKS)
    parser.add_argument("--attacks", default=",".join(known), help="comma-separated (default: all)")
    parser.add_argument("--attackers", default="2,1,3", help=f"of {NODES} nodes (default: 2,1,3)")
    parser.add_argument("--rounds", type=int, default=30, help="of a run (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data, attacks (default 0)")
    parser.add_argument("--quick", action="store_true", help="a few attacks, mean, 8 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the rows in FILE")
    options = parser.parse_args(argv)
    options.aggregators = AGGREGATORS
    if options.quick:
        options.attacks, options.attackers, options.rounds = f"{ABSENT},sign x1000,ipm", "2", 8
        options.aggregators = AGGREGATORS[:1]
    options.attacks = options.attacks.split(",")
    if unknown := sorted(set(options.attacks) - set(known)):
        parser.error(f"unknown attacks {unknown}: there are {', '.join(known)}")
    if not set(options.attackers.split(",")) <= {"1", "2", "3"}:
        parser.error("--attackers must be from 1 to 3")
    options.attackers = [int(number) for number in options.attackers.split(",")]
    if not 4 <= options.rounds <= 1000:
        parser.error("--rounds must be from 4 to 1000")
    require_folder(parser, options.json)
    return options


if __name__ == "__main__":
    sys.exit(main())
