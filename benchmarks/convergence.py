"""How much loss do rare, small exchanges cost? Every codec and outer step against DDP-AdamW.

All rows see the same tokens, the same initial weights and the same inner optimiser. The DDP row
averages gradients at every step (fp32); the others take H inner steps in each of K simulated
workers and then go through the code that nodes run: codec, contribution blob, aggregation, outer
step. Method and expected sizes: DiLoCo (arXiv 2311.08105) and its scaling laws (2503.09799).

Data: the Python sources of the running interpreter as bytes, split by file. Directories of tests
are left out (they are more than half of the bytes), as are duplicates. The workers draw their
windows from the same training bytes, each from its own stream (IID).

Training is chaotic: the row "fp32 again" differs from fp32 by a millionth in its initial weights
and by nothing else, so its gap to fp32 is noise, and gaps of that size between codecs mean nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from protocol import pseudogradient
from protocol.aggregate import Contribution, aggregate
from protocol.codec import codec
from protocol.outer import outer_step
from protocol.state import Layout, State, Vector, state_root

HELP = """\
rerun, from the root of the repository:
  python -m benchmarks.convergence                                      # all rows, one core
  python -m benchmarks.convergence --quick                              # under a minute
  python -m benchmarks.convergence --rows ddp,fp32,int4 --steps 1200 --json convergence.json

rows: ddp and fp32 are the references for the two gaps and always trained; noise repeats fp32 from
initial weights that differ by a millionth: a gap no larger than its gap means nothing.
"""

SKIPPED_DIRECTORIES = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
}
VALIDATION_EVERY = 16  # one file in 16 is held out
VALIDATION_WINDOWS = 128
WARM_UP_FRACTION = 1 / 15
FLOOR = 0.1  # the cosine ends at a tenth of the learning rate


@dataclass(frozen=True)
class Setting:
    """One row: how workers exchange. ``codec`` None is DDP; ``nudge`` scales the initial weights
    by 1 + nudge."""

    name: str
    codec: str | None
    lr: float = 0.0
    mu: float = 0.0
    nudge: float = 0.0


SETTINGS = {
    "ddp": Setting("DDP AdamW", None),
    "fp32": Setting("fp32, Nesterov 0.7/0.5", "fp32", 0.7, 0.5),
    "noise": Setting("fp32 again, start + 1e-6", "fp32", 0.7, 0.5, nudge=1e-6),
    "fp16": Setting("fp16, Nesterov 0.7/0.5", "fp16", 0.7, 0.5),
    "int8": Setting("int8, Nesterov 0.7/0.5", "int8", 0.7, 0.5),
    "int4": Setting("int4, Nesterov 0.7/0.5", "int4", 0.7, 0.5),
    "mu0.9": Setting("fp32, Nesterov 0.7/0.9", "fp32", 0.7, 0.9),
    "mean": Setting("fp32, plain mean", "fp32", 1.0, 0.0),
}


@dataclass(frozen=True)
class Plan:
    """Sizes of one run of the benchmark, equal for all rows."""

    width: int
    layers: int
    context: int  # tokens of a window
    batch: int  # windows a worker sees in an inner step
    workers: int
    inner_steps: int
    steps: int  # inner steps in all
    lr: float
    seed: int

    @property
    def tokens(self) -> int:
        return self.steps * self.workers * self.batch * self.context

    def rate(self, step: int) -> float:
        """Inner learning rate: linear warm-up, then cosine down to a tenth."""
        warm_up = max(1, round(self.steps * WARM_UP_FRACTION))
        if step < warm_up:
            return self.lr * (step + 1) / warm_up
        progress = (step - warm_up) / max(1, self.steps - warm_up)
        return self.lr * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Outcome:
    """What a row gave."""

    loss: float  # nats per byte on the held-out windows
    loss_halfway: float
    bits: float  # sent by a worker, per parameter and round of H inner steps
    seconds: float
    exchange_seconds: float  # of it: codec, blob, aggregation and outer step


class Corpus:
    """Bytes of Python's standard library, split by file."""

    def __init__(self, plan: Plan) -> None:
        root = Path(sysconfig.get_path("stdlib"))
        seen: set[bytes] = set()
        parts: tuple[list[bytes], list[bytes]] = ([], [])
        for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
            if SKIPPED_DIRECTORIES.intersection(path.relative_to(root).parts):
                continue
            text = path.read_bytes()
            digest = hashlib.sha256(text).digest()
            if digest not in seen:
                parts[len(seen) % VALIDATION_EVERY == VALIDATION_EVERY - 1].append(text + b"\0")
                seen.add(digest)
        self.train, held_out = (np.frombuffer(b"".join(p), np.uint8) for p in parts)
        self.files = len(seen)
        starts = np.linspace(0, len(held_out) - plan.context, VALIDATION_WINDOWS).astype(np.int64)
        self.validation = _windows(held_out, starts, plan.context)
        self._plan = plan

    def batch(self, worker: int, step: int) -> torch.Tensor:
        """Token ids, shape (batch, context): a function of seed, worker and step alone."""
        stream = np.random.default_rng((self._plan.seed, worker, step))
        last = len(self.train) - self._plan.context
        starts = stream.integers(0, last, self._plan.batch, endpoint=True)
        return _windows(self.train, starts, self._plan.context)


class Worker:
    """A model with its inner optimiser, whose state is kept across rounds."""

    def __init__(self, plan: Plan) -> None:
        self.model = build_model(plan)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=plan.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )

    def step(self, tokens: torch.Tensor, rate: float) -> None:
        """One inner step on token ids of shape (batch, context)."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        self.model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()

    def loss(self, tokens: torch.Tensor) -> float:
        """Mean loss in nats per byte."""
        with torch.no_grad():
            return float(self.model(input_ids=tokens, labels=tokens).loss)

    def vector(self) -> Vector:
        """All parameters, shape (N,), a copy."""
        flat = torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])
        array: Vector = flat.numpy()
        return array

    def load(self, vector: Vector) -> None:
        with torch.no_grad():
            offset = 0
            for parameter in self.model.parameters():
                part = torch.from_numpy(vector[offset : offset + parameter.numel()])
                parameter.copy_(part.view_as(parameter))
                offset += parameter.numel()

    def layout(self) -> Layout:
        return Layout.of((name, tuple(p.shape)) for name, p in self.model.named_parameters())


def build_model(plan: Plan) -> Any:
    """A Llama-style byte model; equal seeds give equal weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=256,
        hidden_size=plan.width,
        intermediate_size=plan.width * 8 // 3 // 32 * 32,
        num_hidden_layers=plan.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=plan.context,
        tie_word_embeddings=False,
        use_cache=False,
    )
    torch.manual_seed(plan.seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


Tick = Callable[[str, int], None]
"""``tick(row, inner steps done)`` reports progress."""


def train_ddp(setting: Setting, plan: Plan, corpus: Corpus, tick: Tick) -> Outcome:
    """Every step on the batches of all workers together."""
    began = time.perf_counter()
    worker, halfway = Worker(plan), math.nan
    for step in range(plan.steps):
        tokens = torch.cat([corpus.batch(k, step) for k in range(plan.workers)])
        worker.step(tokens, plan.rate(step))
        if step + 1 == plan.steps // 2:
            halfway = worker.loss(corpus.validation)
        if (step + 1) % plan.inner_steps == 0:
            tick(setting.name, step + 1)
    bits = 32.0 * plan.inner_steps
    seconds = time.perf_counter() - began
    return Outcome(worker.loss(corpus.validation), halfway, bits, seconds, 0.0)


def train_rounds(setting: Setting, plan: Plan, corpus: Corpus, tick: Tick) -> Outcome:
    """K workers, H inner steps a round, exchange as nodes do it."""
    assert setting.codec is not None
    began, exchange = time.perf_counter(), 0.0
    chosen = codec(setting.codec)
    workers = [Worker(plan) for _ in range(plan.workers)]
    layout = workers[0].layout()
    params = workers[0].vector() * np.float32(1 + setting.nudge)
    momentum = np.zeros_like(params) if setting.mu else None
    halfway, blob_bytes = math.nan, 0
    rounds = plan.steps // plan.inner_steps

    for number in range(rounds):
        blobs: list[bytes] = []
        base = state_root(State(number, layout.digest, params, momentum))
        for k, worker in enumerate(workers):
            worker.load(params)
            for step in range(number * plan.inner_steps, (number + 1) * plan.inner_steps):
                worker.step(corpus.batch(k, step), plan.rate(step))
            mark = time.perf_counter()
            delta = params - worker.vector()
            blobs.append(pseudogradient.pack(layout, delta, round=number, base=base, codec=chosen))
            exchange += time.perf_counter() - mark
        mark = time.perf_counter()
        vectors = [
            pseudogradient.decode(blob, layout, round=number, base=base, codec=chosen)
            for blob in blobs
        ]
        weight = plan.inner_steps * plan.batch * plan.context
        update = aggregate(
            layout, [Contribution(f"worker-{k}", weight, v) for k, v in enumerate(vectors)]
        )
        params, momentum = outer_step(
            params, momentum, update, lr=setting.lr, mu=setting.mu, nesterov=True
        )
        exchange += time.perf_counter() - mark
        blob_bytes += sum(map(len, blobs))
        if number + 1 == rounds // 2:
            workers[0].load(params)
            halfway = workers[0].loss(corpus.validation)
        tick(setting.name, (number + 1) * plan.inner_steps)

    workers[0].load(params)
    bits = 8 * blob_bytes / (rounds * plan.workers * layout.parameters)
    seconds = time.perf_counter() - began
    return Outcome(workers[0].loss(corpus.validation), halfway, bits, seconds, exchange)


def table(outcomes: dict[str, Outcome], plan: Plan) -> str:
    """The result as text."""
    lines = [
        f"{'row':26} {'val loss':>9} {'halfway':>9} {'vs DDP':>8} {'vs fp32':>8} "
        f"{'bits/param/round':>17} {'exchange':>9} {'row time':>9}"
    ]
    for key, outcome in outcomes.items():
        fp32 = None if key == "ddp" else outcomes["fp32"]
        lines.append(
            f"{SETTINGS[key].name:26} {outcome.loss:9.4f} {outcome.loss_halfway:9.4f} "
            f"{_gap(outcome, outcomes['ddp']):>8} {_gap(outcome, fp32):>8} "
            f"{outcome.bits:17.3f} "
            f"{1000 * outcome.exchange_seconds * plan.inner_steps / plan.steps:6.1f} ms "
            f"{outcome.seconds:7.0f} s"
        )
    return "\n".join(lines)


def rows(outcomes: dict[str, Outcome], plan: Plan) -> list[dict[str, Any]]:
    """The result for programs; ratio = ours / baseline, lower is better."""
    baseline = outcomes["ddp"].loss
    reference = outcomes["fp32"].loss if "fp32" in outcomes else None
    return [
        {
            "name": SETTINGS[key].name,
            "ours": outcome.loss,
            "baseline": baseline,
            "unit": "nats per byte, validation",
            "ratio": outcome.loss / baseline,
            "baseline_is": "DDP AdamW, fp32 gradients averaged every step",
            "row": key,
            "gap_to_ddp_percent": 100 * (outcome.loss / baseline - 1),
            "gap_to_fp32_percent": None
            if reference is None or key == "ddp"
            else 100 * (outcome.loss / reference - 1),
            "halfway": outcome.loss_halfway,
            "bits_per_parameter_per_round": outcome.bits,
            "exchange_seconds_per_round": outcome.exchange_seconds * plan.inner_steps / plan.steps,
            "seconds": outcome.seconds,
            "tokens": plan.tokens,
            "workers": plan.workers,
            "inner_steps": plan.inner_steps,
            "steps": plan.steps,
            "lr": plan.lr,
            "seed": plan.seed,
        }
        for key, outcome in outcomes.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    torch.set_num_threads(options.threads)
    plan = Plan(
        width=32 if options.quick else 128,
        layers=2 if options.quick else 4,
        context=32 if options.quick else 128,
        batch=4,
        workers=options.workers,
        inner_steps=options.inner_steps,
        steps=options.steps,
        lr=options.lr,
        seed=options.seed,
    )
    corpus = Corpus(plan)
    parameters = sum(p.numel() for p in build_model(plan).parameters())
    print(
        f"{parameters / 1e6:.2f}M parameters, {len(corpus.train) / 1e6:.1f} MB of text in "
        f"{corpus.files} files, {plan.workers} workers x {plan.steps} inner steps x "
        f"{plan.batch} x {plan.context} = {plan.tokens / 1e6:.2f}M tokens a row, "
        f"H = {plan.inner_steps}, {plan.steps // plan.inner_steps} rounds",
        flush=True,
    )

    began, outcomes = time.perf_counter(), dict[str, Outcome]()

    def tick(name: str, done: int) -> None:
        if options.quick and done != plan.steps:
            return
        fraction = (len(outcomes) + done / plan.steps) / len(options.rows)
        spent = time.perf_counter() - began
        left = spent / fraction - spent
        print(f"  {name}: step {done}/{plan.steps}, about {left:.0f} s left", flush=True)

    for key in options.rows:
        setting = SETTINGS[key]
        train = train_ddp if setting.codec is None else train_rounds
        outcomes[key] = train(setting, plan, corpus, tick)
        print(f"{setting.name}: validation loss {outcomes[key].loss:.4f}", flush=True)
        if options.json:  # after every row, so that an interrupted run keeps what it has
            options.json.write_text(json.dumps(rows(outcomes, plan), indent=1) + "\n")

    print("\n" + table(outcomes, plan))
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convergence",
        description="Validation loss at equal tokens: DDP against every codec and outer step.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, help="inner steps in all (default 600; quick 120)")
    parser.add_argument("--workers", type=int, default=4, help="K (default 4)")
    parser.add_argument("--inner-steps", type=int, help="H (default 20; quick 10)")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak inner rate (default 0.003)")
    parser.add_argument("--rows", default=",".join(SETTINGS), help="comma-separated (default all)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tiny model, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args(argv)
    options.steps = options.steps or (120 if options.quick else 600)
    options.inner_steps = options.inner_steps or (10 if options.quick else 20)
    wanted = set(options.rows.split(","))
    if unknown := wanted - SETTINGS.keys():
        parser.error(f"unknown rows {sorted(unknown)}; choose from {', '.join(SETTINGS)}")
    options.rows = [key for key in SETTINGS if key in wanted | {"ddp", "fp32"}]
    if min(options.steps, options.workers, options.inner_steps, options.threads) < 1:
        parser.error("--steps, --workers, --inner-steps and --threads must be at least 1")
    if options.steps % options.inner_steps:
        parser.error("--steps must be a multiple of --inner-steps")
    return options


def _windows(
    text: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], context: int
) -> torch.Tensor:
    """Token ids, shape (len(starts), context)."""
    return torch.from_numpy(text[starts[:, None] + np.arange(context)].astype(np.int64))


def _gap(outcome: Outcome, reference: Outcome | None) -> str:
    return "" if reference is None else f"{100 * (outcome.loss / reference.loss - 1):+.2f}%"


if __name__ == "__main__":
    sys.exit(main())
