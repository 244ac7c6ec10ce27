"""How fast is a pseudo-gradient packed and unpacked, how many bits does it take, what is lost?

Every codec beside what others deploy (:mod:`benchmarks.codec_contenders`), in one process on one
core, in turns: each repetition measures each of them once, encoding and then decoding with the
addition to a sum, as the aggregation does it. Times are processor time of this process, the median
of the repetitions; compiling (numba, once per machine) is left out. Beside them stands how fast the
same core copies as many fp32 in the same run: no codec can be much faster than its input is read.

The numbers are real: a small Llama trains on Python's sources (as in the convergence benchmark),
and the pseudo-gradients of its rounds go through each codec, the sparse ones with error feedback.
For the times the last of them, with the residual, is repeated until it has --megabytes.

Then what eight nodes sent is combined by each aggregator, in turns: decoding, clips, sum, as nodes
do it with the blobs that they have fetched.

Relative error: L2 norm of what is lost over the L2 norm of what was to be sent. ``first``: of the
first round, when there is no residual; ``later``: of the last, which for sparse codecs includes it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from artel.protocol.exchange.aggregate_slice import combine_blobs
from artel.protocol.exchange.codec import codec
from artel.protocol.exchange.parts import whole
from artel.protocol.exchange.pseudogradient import Header
from artel.protocol.model import transformers_config
from artel.protocol.run_config import ExchangeSection
from artel.protocol.state import Layout, Vector
from benchmarks.codec_contenders import Contender, Ours, TorchHalf, TorchTopK, WithFeedback
from benchmarks.convergence_model import Corpus, Worker, fast_loss
from benchmarks.convergence_rows import Plan, Row
from benchmarks.options import require_folder

HELP = """\
rerun, from the root of the repository:
  python -m benchmarks.codec --quick
  python -m benchmarks.codec --json FILE
  python -m benchmarks.codec --megabytes 256 --repeat 15 --rounds 20 --inner-steps 50
"""
DECAY = 0.95
NODES = 8
"""Whose contributions are combined."""
AGGREGATORS = ("mean", "centered_clip")
LIMITS = (
    ("sparse 64, bits per parameter", "bits", 0.16),
    ("sparse 64, encode", "encode", 1e3 / 150),
    ("sparse 64, decode and add", "decode", 1.0),
)
"""Name, what is measured, and the most that Artel allows: bits, or seconds per 10^9 bytes."""


@dataclass
class Result:
    """What is measured of one contender."""

    contender: Contender
    bits: float = 0.0
    first: float = 0.0
    later: float = 0.0
    encode: list[float] = field(default_factory=list)  # seconds
    decode: list[float] = field(default_factory=list)


def pseudogradients(rounds: int, steps: int, quick: bool) -> tuple[Layout, list[Vector], float]:
    """Layout, the pseudo-gradient of each round, and the last loss in nats per token."""
    plan = Plan(
        "codec", 128 if quick else 256, 2 if quick else 4, 64 if quick else 128, None, 4, 0, H=steps
    )
    row = Row("fp32")
    corpus = Corpus(None)
    config = plan.config(row, corpus.vocab_size)
    bare = transformers_config(config.model, corpus.vocab_size)
    worker = Worker(config, corpus.vocab_size, fast_loss(bare, False, False), False)
    result = []
    for round in range(rounds):
        base = worker.read()
        for step in range(steps):
            windows = corpus.batch(0, 0, round * steps + step, plan.batch, plan.seq_len)
            rate = config.optimizer.lr * min(1.0, (round * steps + step + 1) / steps)
            worker.step(windows, rate)
        result.append(base - worker.read())
    return worker.layout, result, worker.loss(corpus.validation(32, plan.seq_len), 8)


def contenders(layout: Layout) -> list[Contender]:
    """All of them, the two yardsticks first."""
    named = [(name, codec(name)) for name in ("fp32", "fp16", "int8", "int4")]
    sparse = [(f"sparse {k}", codec("sparse", k)) for k in (128, 64)]
    return [
        TorchHalf(),
        TorchTopK(64, layout),
        *(Ours(name, chosen, layout) for name, chosen in named + sparse),
        WithFeedback("sparse 64 + feedback", codec("sparse", 64), layout, DECAY),
    ]


def losses(layout: Layout, deltas: Sequence[Vector]) -> tuple[list[Result], dict[str, Vector]]:
    """Bits and errors of every contender, and for each what it was to send in the last round."""
    results, inputs = [], {}
    for contender in contenders(layout):
        result, residual = Result(contender), np.zeros(layout.parameters, np.float32)
        for number, delta in enumerate(deltas):
            wanted = delta + np.float32(DECAY) * residual if contender.sparse else delta
            payload = contender.encode(delta if contender.remembers else wanted)
            residual = wanted - contender.decode(payload, layout.parameters)
            error = float(np.linalg.norm(residual) / np.linalg.norm(wanted))
            result.later = error
            if number == 0:
                result.first = error
        result.bits = 8 * contender.size(payload) / layout.parameters
        inputs[contender.name] = delta if contender.remembers else wanted
        results.append(result)
    return results, inputs


def repeated(layout: Layout, times: int) -> Layout:
    """The layout of so many such models one behind the other."""
    return Layout.of(
        (f"{number}.{tensor.name}", tensor.shape)
        for number in range(times)
        for tensor in layout.tensors
    )


def measure(
    results: Sequence[Result],
    layout: Layout,
    inputs: dict[str, Vector],
    repeat: int,
    tick: Callable[[int], None],
) -> list[float]:
    """Fill in the times; returns those of a copy of as many fp32.

    :param inputs: for each contender a vector of some layout that ``layout`` repeats
    """
    copies: list[float] = []
    total = np.zeros(layout.parameters, np.float32)
    target = np.empty_like(total)
    large = {contender.name: contender for contender in contenders(layout)}
    for number in range(repeat + 1):  # the first is not counted: it compiles and takes memory
        seconds, _ = _timed(np.copyto, target, total)
        copies += [seconds] if number else []
        for result in results:
            contender = large[result.contender.name]
            part = inputs[contender.name]
            vector = np.tile(part, layout.parameters // len(part))
            encode, payload = _timed(contender.encode, vector)
            total[:] = 0
            decode, _ = _timed(contender.add, payload, total)
            if number:
                result.encode.append(encode)
                result.decode.append(decode)
        tick(number)
    return copies


def combined(
    layout: Layout, deltas: Sequence[Vector], repeat: int, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of what the aggregators take for the contributions of eight nodes, against the mean.

    :param deltas: of a layout that ``layout`` repeats; a node sends one of them
    """
    made: list[dict[str, Any]] = []
    copies = layout.parameters // len(deltas[0])
    for name, chosen in (("int4", codec("int4")), ("sparse 64", codec("sparse", 64))):
        sent = Header(0, "0" * 64, chosen)
        blobs = {
            str(node): sent.pack(layout, np.tile(deltas[node % len(deltas)], copies))
            for node in range(NODES)
        }
        tokens = dict.fromkeys(blobs, 1)
        times: dict[str, list[float]] = {aggregator: [] for aggregator in AGGREGATORS}
        for number in range(repeat + 1):  # the first is not counted
            for aggregator in AGGREGATORS if number % 2 else AGGREGATORS[::-1]:
                rules = {"codec": chosen.name, "aggregator": aggregator}
                exchange = ExchangeSection.model_validate(rules)
                seconds, _ = _timed(combine_blobs, whole(layout), exchange, sent, blobs, tokens)
                times[aggregator] += [seconds] if number else []
        mean, ours = (statistics.median(times[aggregator]) for aggregator in AGGREGATORS)
        ratios = [b / a for a, b in zip(*times.values(), strict=True)]
        made.append(
            {"name": f"{name}: centered_clip of {NODES}", "ours": ours, "baseline": mean}
            | {"ratio": ours / mean, "ratios": [min(ratios), max(ratios)]}
            | {
                "unit": "s",
                "baseline_is": "mean",
                "wire_megabytes": 1e-6 * sum(map(len, blobs.values())),
            }
            | facts
        )
    return made


def rows(
    results: Sequence[Result], copies: Sequence[float], layout: Layout, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """The result for programs; ratio = ours / baseline, lower is better."""
    giga = 4e-9 * layout.parameters
    by_name = {result.contender.name: result for result in results}
    half, top = results[0], results[1]
    made: list[dict[str, Any]] = []

    def row(name: str, ours: float, baseline: float, **more: Any) -> None:
        made.append(
            {"name": name, "ours": ours, "baseline": baseline, "ratio": ours / baseline}
            | more
            | facts
        )

    for name, what, limit in LIMITS:
        result = by_name["sparse 64"]
        times = {"encode": result.encode, "decode": result.decode}
        ours = result.bits if what == "bits" else statistics.median(times[what]) / giga
        unit = "bits per parameter" if what == "bits" else "s per GB of fp32"
        row(name, ours, limit, unit=unit, baseline_is="limit", holds=ours <= limit)
    for result in results[2:]:
        yardstick = top if result.contender.sparse else half
        for what in ("encode", "decode"):
            ours, theirs = (getattr(r, what) for r in (result, yardstick))
            seconds = statistics.median(ours) / giga
            row(
                f"{result.contender.name}: {'encode' if what == 'encode' else 'decode and add'}",
                seconds,
                statistics.median(theirs) / giga,
                unit="s per GB of fp32",
                baseline_is=yardstick.contender.name,
                megabytes_per_second=1e3 / seconds,
                min=min(ours) / giga,
                max=max(ours) / giga,
                copy_megabytes_per_second=1e3 * giga / statistics.median(copies),
                part_of_copy=statistics.median(copies) / statistics.median(ours),
                bits_per_parameter=result.bits,
                baseline_bits_per_parameter=yardstick.bits,
                relative_error_first=result.first,
                relative_error_later=result.later,
                baseline_relative_error_first=yardstick.first,
                baseline_relative_error_later=yardstick.later,
            )
    return made


def table(results: Sequence[Result], copies: Sequence[float], layout: Layout) -> str:
    """The result as text."""
    mega = 4e-6 * layout.parameters
    copy = mega / statistics.median(copies)
    lines = [
        f"a copy of as many fp32 on the same core: {copy:.0f} MB/s",
        "",
        f"{'':24} {'bits':>7} {'encode':>12} {'decode and add':>16} {'error, first':>13} "
        f"{'later':>7}",
    ]
    for result in results:
        encode, decode = (mega / statistics.median(t) for t in (result.encode, result.decode))
        lines.append(
            f"{result.contender.name:24} {result.bits:7.3f} {encode:7.0f} MB/s "
            f"{decode:11.0f} MB/s {result.first:13.2g} {result.later:7.2g}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    torch.set_num_threads(1)
    layout, deltas, loss = pseudogradients(options.rounds, options.inner_steps, options.quick)
    results, inputs = losses(layout, deltas)
    large = repeated(layout, max(1, round(options.megabytes / 4e-6 / layout.parameters)))
    print(
        f"{layout.parameters / 1e6:.2f}M parameters, {options.rounds} rounds of "
        f"{options.inner_steps} steps, loss {loss:.2f} nats per byte; timed on "
        f"{4e-6 * large.parameters:.0f} MB of fp32, {options.repeat} times",
        flush=True,
    )
    began = time.perf_counter()

    def tick(done: int) -> None:
        left = (time.perf_counter() - began) / (done + 1) * (options.repeat - done)
        print(f"  {done}/{options.repeat}, about {left:.0f} s left", file=sys.stderr)

    copies = measure(results, large, inputs, options.repeat, tick)
    print(table(results, copies, large))
    facts = {
        "parameters": layout.parameters,
        "rounds": options.rounds,
        "inner_steps": options.inner_steps,
        "megabytes": 4e-6 * large.parameters,
        "repeats": options.repeat,
        "decay": DECAY,
    }
    made = rows(results, copies, large, facts)
    print()
    for row in combined(large, deltas, options.repeat, facts):
        print(
            f"{row['name']}: {row['ours']:.3f} s, {row['ratio']:.2f} times the mean's "
            f"({row['ratios'][0]:.2f} to {row['ratios'][1]:.2f}); "
            f"{row['wire_megabytes']:.1f} MB on the wire"
        )
        made.append(row)
    print()
    for limit in (row for row in made if row["baseline_is"] == "limit"):
        kept = "holds" if limit["holds"] else "MISSED"
        print(f"{limit['name']:32} {limit['ours']:.3f}, limit {limit['baseline']:.2f}: {kept}")
    if options.json:
        options.json.write_text(json.dumps(made, indent=1) + "\n")
    return 0


def _timed(action: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Processor seconds of this process (what others do on the core does not count), and result."""
    began = time.process_time()
    result = action(*arguments)
    return time.process_time() - began, result


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.codec",
        description="Speed, size and error of every codec on real pseudo-gradients, on one core.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--megabytes", type=int, help="of fp32 to time (default 128; quick 32)")
    parser.add_argument("--repeat", type=int, help="measurements (default 15; quick 3)")
    parser.add_argument("--rounds", type=int, help="of training (default 12; quick 4)")
    parser.add_argument("--inner-steps", type=int, help="of a round (default 20; quick 5)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args(argv)
    for name, usual, quick, most in (
        ("megabytes", 128, 32, 4096),
        ("repeat", 15, 3, 1000),
        ("rounds", 12, 4, 1000),
        ("inner_steps", 20, 5, 1000),
    ):
        value = getattr(options, name)
        if value is None:
            setattr(options, name, quick if options.quick else usual)
        elif not 1 <= value <= most:
            parser.error(f"--{name.replace('_', '-')} must be from 1 to {most}")
    require_folder(parser, options.json)
    return options


if __name__ == "__main__":
    sys.exit(main())
