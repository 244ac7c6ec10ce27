"""The parts of :mod:`benchmarks.exchange` that are not tables of syncs."""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artel.protocol.errors import ArtelError
from benchmarks import overhead
from benchmarks.exchange_peers import Group, Sample
from benchmarks.overhead_findings import Findings, Plan, medians
from benchmarks.swarm import Swarm

Rows = list[dict[str, Any]]
Say = Callable[[str], None]

MANY = 16
STEP_TIMEOUT_S = 30.0
"""For hivemind: a step without a group takes all of it. Its own benchmarks use 5 to 60 s."""

RUN = """\
[run]
name = "exchange"
seed = 1

[model]
type = "llama"
[model.config]
hidden_size = {hidden}
intermediate_size = {intermediate}
num_hidden_layers = {layers}
num_attention_heads = 4
num_key_value_heads = 4
max_position_embeddings = 64
tie_word_embeddings = true

[tokenizer]
kind = "bytes"

[data]
sources = [{{kind = "stdlib"}}]
max_bytes = 1500000
seq_len = 64
validation_windows = 8

[optimizer]
batch_size = 1
warmup_steps = 20

[rounds]
total = 1000
inner_steps = {inner_steps}
min_nodes = {nodes}
max_nodes = {nodes}

[exchange]
codec = "{codec}"
"""


@dataclass(frozen=True)
class RoundPlan(Plan):
    """A run whose rounds hardly train: what is left of them is the exchange."""

    shape: tuple[int, int, int] = (320, 880, 7)  # 8.9M parameters with a vocabulary of bytes

    def run_text(self) -> str:
        hidden, intermediate, layers = self.shape
        text = RUN.format(
            hidden=hidden,
            intermediate=intermediate,
            layers=layers,
            inner_steps=self.inner_steps,
            nodes=self.nodes,
            codec=self.codec.rstrip("0123456789") if "sparse" in self.codec else self.codec,
        )
        return text + (f"top_k = {self.codec[6:]}\n" if "sparse" in self.codec else "")


async def whole_rounds(plan: argparse.Namespace, folder: Path, say: Say) -> Rows:
    """Rounds of a run with a coordinator and nodes: their time without the inner steps."""
    found = []
    for codec in ("int4",) if plan.quick else ("int4", "sparse64"):
        if plan.quick:  # more of the short steps: who watches must see rounds train
            round_plan = RoundPlan(2, 2, 400, 0, 1, 64, codec, (64, 176, 2))
        else:
            round_plan = RoundPlan(2, 8, 10, 0, 1, 64, codec)
        say(f"whole rounds with {codec}: a coordinator and {round_plan.nodes} nodes")
        home = folder / f"round-{codec}"
        home.mkdir()
        result = Findings(round_plan, [])
        run_file = home / "RUN.toml"
        run_file.write_text(round_plan.run_text(), encoding="utf-8")
        async with Swarm(home, run_file) as swarm:
            await swarm.start(round_plan.nodes)
            result.parameters = int((await swarm.get("/api/v1/run"))["parameters"])
            await overhead.follow_rounds(swarm, result, say)
        waits = [r.not_training for r in result.rounds]
        wait = statistics.median(waits)
        whole = statistics.median(r.whole for r in result.rounds)
        model = f"{result.parameters / 1e6:.1f}M"
        phases = medians([r.phases for r in result.rounds])
        shown = ", ".join(f"{name} {1e3 * s:.0f}" for name, s in phases.items())
        at_coordinator = ", ".join(f"{n} {1e3 * s:.0f}" for n, s in result.coordinator.items())
        found.append(
            {
                "name": f"whole round, {model}, 2 nodes, {codec}: not training",
                "ours": wait,
                "baseline": whole,
                "unit": "s",
                "ratio": wait / whole,
                "baseline_is": f"the whole round with its {round_plan.inner_steps} inner steps",
                "min": min(waits),
                "max": max(waits),
                "phases": phases,
                "coordinator": result.coordinator,
                "parameters": result.parameters,
                "rounds": len(result.rounds),
                "remark": f"node, ms: {shown}; coordinator, ms: {at_coordinator}",
            }
        )
    return found


async def sixteen(plan: argparse.Namespace, folder: Path, isolated: bool, say: Say) -> Rows:
    """Whether every round of 16 peers on this machine is complete, ours and hivemind's."""
    peers, rounds = (4, 2) if plan.quick else (MANY, 6)
    size = "0.1M" if plan.quick else "1M"

    async def run(system: str, variant: str) -> list[Sample]:
        say(f"{peers} peers, {system} {variant}")
        samples: list[Sample] = []
        try:
            async with Group(system, variant, size, peers, folder, isolated=isolated) as group:
                say(f"  all up after {group.start_seconds:.0f} s")
                for number in range(rounds):
                    samples.append(await group.sync(number, timeout=STEP_TIMEOUT_S))
                    share = _share(samples[-1:], peers)
                    say(f"  {samples[-1].seconds:.1f} s, {share:.0%} complete")
        except ArtelError as error:
            if system != "hivemind":
                raise
            # What happened to the others is the answer to a question here.
            say(f"  {error.diagnostics()}")
        return samples

    codecs = plan.codecs[:2]
    ours = {("ours", codec): await run("ours", codec) for codec in codecs}
    ours |= {("sharded", codec): await run("sharded", codec) for codec in codecs}
    theirs = await run("hivemind", "fp16")
    found = []
    baseline = statistics.median(s.seconds for s in theirs) if theirs else STEP_TIMEOUT_S
    for (system, codec), samples in ours.items():
        seconds = statistics.median(sample.seconds for sample in samples[1:])
        up, payload = statistics.median(s.up for s in samples), samples[-1].payload
        how = "gather" if system == "ours" else "sharded"
        name = f"{peers} peers, {size}, loopback, {how} {codec}"
        shares = {
            "ours_complete": _share(samples, peers),
            # Rounds that nobody could begin any more are not complete either.
            "baseline_complete": _share(theirs, peers) * len(theirs) / rounds,
        }
        found.append(
            {
                "name": f"{name}: a round",
                "ours": seconds,
                "baseline": baseline,
                "unit": "s",
                "ratio": seconds / baseline,
                "baseline_is": f"a step of hivemind fp16, time-out {STEP_TIMEOUT_S:.0f} s",
                **shares,
                "cold": samples[0].seconds,
                "rounds": rounds,
                "phases": medians([sample.phases for sample in samples[1:]]),
                "remark": f"all {peers} are in the result of {shares['ours_complete']:.0%} of our "
                f"peers' rounds, of {shares['baseline_complete']:.0%} of hivemind's peers' steps",
            }
        )
        found.append(
            {
                "name": f"{name}: bytes sent by a peer in a round",
                "ours": up,
                "baseline": float(payload),
                "unit": "bytes",
                "ratio": up / payload,
                "baseline_is": "its contribution",
                "at_streams": statistics.median(s.streams for s in samples),
                "peers": peers,
            }
        )
    return found


def _share(samples: list[Sample], peers: int) -> float:
    """Part of (peer, round) pairs whose result holds the numbers of all peers."""
    replies = [reply for sample in samples for reply in sample.replies]
    whole = sum(reply["averaged"] == peers for reply in replies)
    return whole / len(replies) if replies else 0.0


async def start_cost(plan: argparse.Namespace, folder: Path, isolated: bool, say: Say) -> Rows:
    """The first sync of fresh processes: with no compiled code at hand, and with it on the disk."""
    size, found = "0.1M" if plan.quick else "9M", []
    for codec in plan.codecs[:1] if plan.quick else plan.codecs[:2]:
        firsts = []
        with _cache_below(folder / f"cache-{codec}"):
            for what in ("empty", "filled"):
                say(f"first sync of ours {codec}, cache of compiled code {what}")
                async with Group("ours", codec, size, 2, folder, isolated=isolated) as group:
                    firsts.append((await group.sync(0)).seconds)
        found.append(
            {
                "name": f"{size}, 2 peers: first sync of fresh processes, ours {codec}",
                "ours": firsts[1],
                "baseline": firsts[0],
                "unit": "s",
                "ratio": firsts[1] / firsts[0],
                "baseline_is": "the same where nothing was ever compiled",
            }
        )
    return found


@contextlib.contextmanager
def _cache_below(folder: Path) -> Iterator[None]:
    """Processes started inside keep their compiled code in ``folder``."""
    before = os.environ.get("NUMBA_CACHE_DIR")
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["NUMBA_CACHE_DIR"]
        else:
            os.environ["NUMBA_CACHE_DIR"] = before
