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
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from artel.protocol.exchange import codec as codecs
from artel.protocol.exchange import parts
from artel.protocol.exchange.aggregate_slice import combine
from artel.protocol.exchange.aggregation import Weighted
from artel.protocol.exchange.codec import Elements
from artel.protocol.exchange.pseudogradient import Header
from artel.protocol.model import transformers_config
from artel.protocol.state import Layout, State, Vector, state_root
from benchmarks.convergence_model import Corpus, Worker, fast_loss
from benchmarks.convergence_rows import Plan, Row
from benchmarks.convergence_train import Node, World, advance
from benchmarks.options import require_folder

Numbers = npt.NDArray[np.float64]
NODES = 8
RARE = 64
"""One coordinate of so many is what the targeted attack moves."""
PLAN = Plan("attacks", 64, 1, 32, None, batch=4, tokens=0, K=NODES, H=5)
SCORE_STEP = 0.2
"""Part of a contribution that the LossScore applies."""
SCORED_STEPS, SCORED_ROUNDS, SCORED_ROUND = 40, 12, 5
"""Inner steps of a round, rounds, and which is scored; 40 steps are 5,120 tokens."""
SIGMAS, SCORED_TOKENS = 5.0, 5_000
"""The target: a copier is told from an honest node by so much, on so many tokens."""
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


def _noise(seen: Seen) -> npt.NDArray[Any]:
    """The numbers of an honest contribution, their places within a tensor and their signs drawn by
    lot: as loud as that one, and as sparse."""
    noise = seen.honest[seen.number] * seen.random.choice([-1, 1], seen.layout.parameters)
    for tensor in seen.layout.tensors:
        seen.random.shuffle(noise[tensor.offset : tensor.offset + tensor.size])
    return noise


def _rare(seen: Seen) -> Numbers:
    """All of an ordinary norm in the same few places, always in the same direction."""
    size = seen.layout.parameters
    vector = seen.fixed.choice([-1.0, 1.0], size) * (seen.fixed.random(size) < 1 / RARE)
    for tensor in seen.layout.tensors:
        inside = slice(tensor.offset, tensor.offset + tensor.size)
        wanted = np.mean([np.linalg.norm(honest[inside]) for honest in seen.honest])
        vector[inside] *= wanted / max(float(np.linalg.norm(vector[inside])), 1e-30)
    return vector


ATTACKS: dict[str, Callable[[Seen], npt.NDArray[Any]]] = {
    "zeros": lambda seen: 0 * seen.own,
    "noise": _noise,
    "stale": lambda seen: seen.yesterday[seen.number],
    "copier": lambda seen: seen.honest[seen.number],
    "sign": lambda seen: -seen.own,
    "sign x1000": lambda seen: -1000 * seen.own,
    "constant": lambda seen: seen.fixed.choice([-100, 100], seen.layout.parameters),
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
    def row(self) -> Row:
        """What its nodes train, as a row of the convergence benchmark."""
        return Row(self.codec, agg=self.aggregator, seed=self.seed)

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


@dataclass(frozen=True)
class Round:
    """One round of a run."""

    before: Vector
    """The state that its contributions are relative to."""
    sent: list[Vector]
    """Of all contributors, as other nodes decode them."""
    after: Vector
    node: Node
    """An honest one."""


def world(rounds: int, inner_steps: int = PLAN.H, corpus: Corpus | None = None) -> World:
    """Text and model of runs of so many rounds."""
    corpus = corpus or Corpus(PLAN.vocab_size)
    tokens = rounds * inner_steps * NODES * PLAN.batch * PLAN.seq_len
    plan = dataclasses.replace(PLAN, H=inner_steps, tokens=tokens)
    config = plan.config(Row("int4"), corpus.vocab_size)
    loss = fast_loss(transformers_config(config.model, corpus.vocab_size), False, False)
    return World(plan, corpus, loss, bf16=False)


def rounds_of(cell: Cell, world: World) -> Iterator[Round]:
    """Train a run, round by round."""
    config = world.plan.config(cell.row, world.corpus.vocab_size)
    chosen, honest = codecs.of(config.exchange), NODES - cell.attackers
    training = NODES if cell.attack in TRAINED else honest
    nodes = [Node(cell.row, config, world, number) for number in range(training)]
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
        if cell.attack in ATTACKS:
            trained = [dense(header.load(blob, layout), layout) for blob in blobs]
            vectors = forged(cell, layout, number, trained[:honest], yesterday, trained[honest:])
            sent = [header.wrap(layout, chosen.encode(layout, vector)) for vector in vectors]
            blobs, yesterday = blobs[:honest] + sent, trained[:honest]
        read = [header.load(blob, layout) for blob in blobs]
        weight = config.rounds.inner_steps * PLAN.batch * PLAN.seq_len
        given = [Weighted(f"{k}", weight, vector) for k, vector in enumerate(read)]
        update = combine(layout, given, config.exchange)
        before = params
        params, momentum = advance(part, config, number, params, momentum, update)
        for node in nodes:
            node.merge(number, params)
        yield Round(before, [dense(vector, layout) for vector in read], params, nodes[0])


def loss_of(cell: Cell, world: World) -> float:
    """Validation loss at the end of a run, nats per token."""
    last = deque(rounds_of(cell, world), maxlen=1)[0]
    return last.node.loss_of(last.after)


def scores_of(cell: Cell, world: World, round: int) -> tuple[Numbers, Numbers]:
    """LossScore of the contributions of a round (Gauntlet, arXiv 2505.21684): how much more a small
    step along each lowers the loss on the windows that its sender had to train on than on others,
    in nats per token, and the standard errors of that over the windows."""
    shown = next(islice(rounds_of(cell, world), round, None))
    config = world.plan.config(cell.row, world.corpus.vocab_size)
    worker = Worker(config, world.corpus.vocab_size, world.loss, world.bf16)
    gaps, errors = list[float](), list[float]()
    for number, vector in enumerate(shown.sent):
        stepped = shown.before - np.float32(SCORE_STEP) * vector
        falls = list[Numbers]()
        for drawn_by in (number, NODES + number):  # the second one trains nowhere
            steps = range(round * world.plan.H, (round + 1) * world.plan.H)
            windows = torch.cat([world.windows(cell.row, drawn_by, step) for step in steps])
            falls.append(_losses(worker, shown.before, windows) - _losses(worker, stepped, windows))
        gaps.append(float(falls[0].mean() - falls[1].mean()))
        errors.append(math.sqrt(sum(float(fall.var(ddof=1)) / len(fall) for fall in falls)))
    return np.array(gaps), np.array(errors)


def _losses(worker: Worker, params: Vector, windows: torch.Tensor) -> Numbers:
    """Of every window."""
    worker.load(params)
    return np.array([worker.loss(window[None], 1) for window in windows])


def forged(
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


def dense(vector: Vector | Elements, layout: Layout) -> Vector:
    if not isinstance(vector, Elements):
        return vector
    filled = np.zeros(layout.parameters, np.float32)
    filled[vector.positions] = vector.values
    return filled


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown: mean ratios to the clean runs of the same seeds, one line for each
    attack and number; and how far the seeds are apart."""
    ways = list(product(AGGREGATORS, CODECS))
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in sorted(rows, key=lambda row: int(row["attackers"])):
        key = tuple(row[name] for name in ("attack", "attackers", "aggregator", "codec"))
        of = "ours" if row["attack"] == CLEAN else "ratio"
        found.setdefault(key, []).append(row[of])
    heads = [f"{aggregator}, `{codec}`" for aggregator, codec in ways]
    lines = [f"| attack | of {NODES} | {' | '.join(heads)} |", "|---" * (2 + len(ways)) + "|"]
    for attack, attackers in sorted({key[:2] for key in found}, key=_place):
        values = [found.get((attack, attackers, *way), []) for way in ways]
        means = [float(np.mean(some)) if some else None for some in values]
        if attack == CLEAN:
            cells = ["–" if mean is None else f"{mean:.4f}" for mean in means]
        else:
            cells = ["–" if mean is None else f"{100 * (mean - 1):+.1f} %" for mean in means]
        lines.append(f"| {attack} | {attackers} | {' | '.join(cells)} |")
    several = [some for key, some in found.items() if len(some) > 1 and key[0] != CLEAN]
    if several:
        apart = [50 * (max(some) - min(some)) for some in several]
        middle, most = np.median(apart), max(apart)
        lines += ["", f"Seeds: ± {middle:.1f} % in the middle, ± {most:.1f} % at most"]
    return "\n".join(lines)


def _place(row: tuple[str, int]) -> tuple[int, int]:
    """Where an attack by so many stands in a table."""
    attack, attackers = row
    return [CLEAN, ABSENT, *ATTACKS].index(attack), attackers


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    torch.set_num_threads(1)
    done: dict[str, dict[str, Any]] = {}
    if options.json and options.json.exists():
        done = {row["name"]: row for row in json.loads(options.json.read_text())}
    began = time.perf_counter()

    def keep(row: dict[str, Any]) -> None:
        done[row["name"]] = row
        minutes = (time.perf_counter() - began) / 60
        print(f"{minutes:5.1f} min  {row['name']}: {row['ours']:.4f}", file=sys.stderr, flush=True)
        if options.json:  # after every row, so that an interrupted run keeps what it has
            options.json.write_text(json.dumps(list(done.values()), indent=1) + "\n")

    cells = list(_cells(options))
    copied = [_copied(codec, seed) for seed, codec in product(options.seeds, CODECS)]
    attacked = world(options.rounds)
    for cell in cells:
        if cell.name not in done:
            keep(measured(cell, attacked, done))
    scored = world(SCORED_ROUNDS, SCORED_STEPS, attacked.corpus)
    for cell in copied:
        if _scored_name(cell) not in done:
            keep(score(cell, scored))
    print(table([done[cell.name] for cell in cells]))
    for row in (done[_scored_name(cell)] for cell in copied):
        print(f"{row['name']}: {row['ours']:.0f}; {row['sigmas']:.1f} sigma on {row['tokens']}")
    return 0


def measured(cell: Cell, world: World, done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The row of a run.

    :param done: rows by name, that of the clean run among them
    """
    loss = loss_of(cell, world)
    baseline = loss if cell == cell.clean else done[cell.clean.name]["ours"]
    return {
        "name": cell.name,
        "ours": loss,
        "baseline": baseline,
        "ratio": loss / baseline,
        "unit": "nats per token, validation",
        "baseline_is": "the same run without attackers",
        **dataclasses.asdict(cell),
        "command": f"python -m benchmarks.attacks --rounds {cell.rounds} --seed {cell.seed}",
    }


def score(cell: Cell, world: World) -> dict[str, Any]:
    """How well LossScore tells the copiers of a run from its honest nodes: the worst pair."""
    gaps, errors = scores_of(cell, world, SCORED_ROUND)
    honest, copiers = np.arange(NODES - cell.attackers), np.arange(NODES - cell.attackers, NODES)
    apart = gaps[honest, None] - gaps[copiers]
    sigmas = float((apart / np.hypot(errors[honest, None], errors[copiers])).min())
    tokens = world.plan.H * PLAN.batch * PLAN.seq_len
    needed = tokens * (SIGMAS / max(sigmas, 1e-3)) ** 2
    return {
        "name": _scored_name(cell),
        "ours": needed,
        "baseline": SCORED_TOKENS,
        "ratio": needed / SCORED_TOKENS,
        "unit": "tokens",
        "baseline_is": "limit",
        "holds": needed <= SCORED_TOKENS,
        "sigmas": sigmas,
        "tokens": tokens,
        "honest": gaps[honest].tolist(),
        "copiers": gaps[copiers].tolist(),
        "errors": errors.tolist(),
        **dataclasses.asdict(cell),
        "command": f"python -m benchmarks.attacks --seed {cell.seed}",
    }


def _scored_name(cell: Cell) -> str:
    return f"tokens for {SIGMAS:g} sigma of LossScore, {cell.codec}, seed {cell.seed}"


def _copied(codec: str, seed: int) -> Cell:
    """The run whose copiers are scored."""
    return Cell("copier", 2, "mean", codec, SCORED_ROUNDS, seed)


def _cells(options: argparse.Namespace) -> Iterator[Cell]:
    """The runs, those with the same aggregator together, clean ones first."""
    cases = [(CLEAN, 0), *product(options.attacks, options.attackers)]
    every = product(options.seeds, options.aggregators, cases, CODECS)
    for seed, aggregator, (attack, attackers), codec in every:
        yield Cell(attack, attackers, aggregator, codec, options.rounds, seed)


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
    parser.add_argument(
        "--seed", default="0", help="of weights, data and attacks; several are averaged (default 0)"
    )
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
    if not all(seed.isdecimal() for seed in options.seed.split(",")):
        parser.error("--seed must be a number, or several with commas")
    options.seeds = [int(seed) for seed in options.seed.split(",")]
    if not 4 <= options.rounds <= 1000:
        parser.error("--rounds must be from 4 to 1000")
    require_folder(parser, options.json)
    return options


if __name__ == "__main__":
    sys.exit(main())
